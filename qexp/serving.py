"""A logged artifact as a model of MLflow's, whose MLmodel names this module: `mlflow models serve -m runs:/ID/artifact`."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from qexp.loading import Classifier, is_many, load
from qexp.types import UserError

TOP = 5  # classes of an answer at most
TRUST = "QEXP_TRUST"  # of the server's environment, since a model's own file must not vouch for it


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Served:
    """What MLflow calls. model_config: `engine` and `threads`, as of qexp.load."""
    return Served(load(path, trust=os.environ.get(TRUST) == "1", **(model_config or {})))


class Served:
    def __init__(self, network: Classifier):
        self.network = network

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """`label`, `probability` and `top` (the most probable classes with theirs) of every image that a request holds."""
        try:
            images = images_of(model_input)
            found = self.network.predict(images if is_many(images) else [images])
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        return [{"label": one.label, "probability": one.probability, "top": dict(one.top(TOP))} for one in found]


def images_of(given: Any) -> Any:
    """Images as qexp takes them, of files in base64 (a list, or the first column of a table) or of numbers (integers in 0..255 or floats
    in 0..1). Never of paths: a client may not choose files of the server. Errors: UserError."""
    if hasattr(given, "iloc"):  # a pandas table
        given = given.iloc[:, 0].tolist()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise UserError(f"The images of one request must have one size: {error}") from error
    if array.dtype.kind in "US":
        try:
            return [base64.b64decode(text, validate=True) for text in array.ravel().tolist()]
        except binascii.Error as error:
            raise UserError(f"A text must be an image file in base64: {error}") from error
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array
