"""Serves a logged artifact as an MLflow model: `mlflow models serve -m runs:/ID/artifact`.

The artifact's file MLmodel names this module as its loader.
"""

from __future__ import annotations

import base64
import os
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from qexp.inputs import is_many
from qexp.loading import Classifier, load
from qexp.types import UserError

TOP = 5  # the most classes that an answer lists
TRUST = "QEXP_TRUST"  # a variable of the server's environment, because a model's own file must not vouch for itself


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Served:
    """Load the model. MLflow calls this function by its name.

    Args:
        path: Folder of the artifact.
        model_config: The options `engine` and `threads` of `qexp.load`.
    """
    return Served(load(path, trust=os.environ.get(TRUST) == "1", **(model_config or {})))


class Served:
    def __init__(self, network: Classifier):
        self.network = network

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Classify every image that a request holds.

        Args:
            model_input: The images, as `images_of` takes them.
            params: Not used. MLflow passes it.

        Returns:
            For each image, its `label`, the `probability` of that label, and `top`, which maps the most probable
            classes to their probabilities.

        Raises:
            MlflowException: The request holds something that is not an image.
        """
        try:
            images = images_of(model_input)
            found = self.network.predict(images if is_many(images) else [images])
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return [{"label": one.label, "probability": one.probability, "top": dict(one.top(TOP))} for one in found]


def images_of(given: Any) -> Any:
    """Turn what a request holds into images as `Classifier.predict` takes them.

    A text is never taken for a path, because a client must not choose files on the server.

    Args:
        given: Image files in base64 (a list, or the first column of a pandas table), or pixel values, which are
            integers in 0..255 or floats in 0..1.

    Returns:
        A list of the files' bytes, or an array of the pixel values.

    Raises:
        UserError: The images differ in size, or a text is not base64.
    """
    if hasattr(given, "iloc"):  # a pandas table
        given = given.iloc[:, 0].tolist()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise UserError(f"The images of one request must have one size: {error}") from error
    if array.dtype.kind in "US":
        try:
            return [base64.b64decode(text, validate=True) for text in array.ravel().tolist()]
        except ValueError as error:  # binascii.Error is one, and letters beyond ASCII give another
            raise UserError(f"A text must be an image file in base64: {error}") from error
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array
