"""Loads a compressed network, and classifies images with it exactly as the evaluation did."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import psutil

from qexp.artifact import Artifact, Executable
from qexp.coded_file import decoded, is_graph
from qexp.data.pixels import normalise, softmax
from qexp.engine.base import Engine
from qexp.files import RECORDS, check_digests
from qexp.inputs import Given, OneImage, is_many, pixels_of
from qexp.types import Unsupported, UserError, nearest, typed

if TYPE_CHECKING:
    from PIL import Image

CALL = 64  # the most images per call of the engine
URI = re.compile(r"(runs|models|mlflow-artifacts):/|[a-z][a-z0-9+.-]+://")


@dataclass(frozen=True)
class Prediction:
    """What an image shows.

    Attributes:
        label: Name of the most probable class.
        probability: Probability of that class.
        probabilities: Probabilities of all classes, in the order of `class_names`.
        class_names: Names of all classes.
    """

    label: str
    probability: float
    probabilities: tuple[float, ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Give the k most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-np.array(self.probabilities), kind="stable")[:k]
        return [(self.class_names[i], self.probabilities[i]) for i in order]


def load(
    source: str | os.PathLike[str], engine: str | None = None, *, threads: int | None = None, trust: bool = False,
    tracking_uri: str | None = None,
) -> Classifier:  # fmt: skip
    """Load the network of an artifact.

    Args:
        source: Folder of the artifact, or its place in MLflow: `runs:/ID/artifact` or `models:/NAME/VERSION`.
        engine: Name of an engine that the artifact was lowered for. None takes the one that was fastest when the
            artifact was measured, preferably on this machine, or the first that needs no trust if it was not measured.
        threads: Threads of each call. None takes as many as the file was made for, but no more than there are cores.
        trust: Whether to load formats that can run code which somebody put into them.
        tracking_uri: Address of MLflow, instead of $MLFLOW_TRACKING_URI.

    Raises:
        UserError: There is no artifact, its files were changed, it needs trust, or the engine is not installed or not
            one that the artifact was lowered for.
    """
    with contextlib.ExitStack() as opened:
        folder = local_folder(source, tracking_uri, opened)
        artifact = Artifact.read(folder)
        check_digests(folder, artifact.files)
        executable = choose(artifact, engine)
        made = Classifier(
            artifact, executable, engine_of(executable, trust), threads or min(executable.threads, _cores())
        )
        made._kept = opened.pop_all()  # keeps a download as long as the network
    return made


class Classifier:
    """A loaded network, which several threads may use at once.

    Attributes:
        artifact: What the network was loaded from.
        engine: Name of the engine that computes.
        threads: Threads of each call.
        import_ms: Milliseconds that importing the engine's library took, near 0 if it was imported before.
        import_memory_mb: Resident memory that the import took, in MB (10⁶ bytes).
        load_ms: Milliseconds that loading the network took after that.
        memory_mb: Resident memory that loading the network took after that, in MB.
    """

    def __init__(self, artifact: Artifact, executable: Executable, engine: Engine, threads: int):
        self.artifact, self.engine, self.threads = artifact, engine.name, threads
        file = artifact.folder / executable.file
        refuse_pickles(file)
        self.import_ms, self.import_memory_mb, _ = _cost(lambda: _import(engine))
        self.load_ms, self.memory_mb, self._forward = _cost(lambda: engine.open(file, threads))
        self._turn = contextlib.nullcontext() if engine.thread_safe else threading.Lock()
        self._kept = contextlib.ExitStack()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.artifact.data.class_names

    def __repr__(self) -> str:
        return f"<{self.artifact.model}, {self.artifact.label}, on {self.engine}: {len(self.class_names)} classes>"

    @overload
    def predict(self, images: str | bytes | os.PathLike[str] | Image.Image) -> Prediction: ...

    @overload
    def predict(self, images: list[Given] | tuple[Given, ...]) -> list[Prediction]: ...

    @overload
    def predict(self, images: np.ndarray) -> Prediction | list[Prediction]: ...

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Classify images of any size and mode, preprocessed like the training and test images.

        Args:
            images: One image, a list or tuple of images, or an array [N,H,W,C]. An image is the path of a file, its
                bytes, a PIL image, or an array [H,W] or [H,W,C] of uint8 or of floats in 0..1.

        Returns:
            A prediction for one image, or a list of predictions for several.

        Raises:
            UserError: An image is of another type, or its file cannot be read.
        """
        found = [
            Prediction(self.class_names[row.argmax()], float(row.max()), tuple(row.tolist()), self.class_names)
            for row in softmax(self.logits(images))
        ]
        return found if is_many(images) else found[0]

    def logits(self, images: OneImage | Sequence[OneImage]) -> np.ndarray:
        """Compute logits[N,K] float32 of images as `predict` takes them. N is 1 for a single image."""
        data = self.artifact.data
        several: Sequence[OneImage] = images if is_many(images) else [images]  # type: ignore[assignment, list-item]
        answers = [np.empty((0, data.num_classes), np.float32)]
        for start in range(0, len(several), CALL):
            pixels = np.stack([pixels_of(image, data.preprocessing) for image in several[start : start + CALL]])
            x = normalise(pixels, data.preprocessing)
            with self._turn:
                answers.append(np.asarray(self._forward(x)))
        return np.concatenate(answers)


def local_folder(source: str | os.PathLike[str], tracking_uri: str | None, opened: contextlib.ExitStack) -> Path:
    """The folder of an artifact on this disk, downloaded first if it is in MLflow.

    Args:
        source: What `load` takes.
        tracking_uri: What `load` takes.
        opened: Deletes a download when it is closed.

    Raises:
        UserError: MLflow does not give the artifact.
    """
    folder = Path(source)
    if URI.match(str(source)):
        import mlflow.artifacts

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        uri = re.sub(r"^runs:/([^/]+)/?$", r"runs:/\1/artifact", str(source))  # the place in a run
        place = opened.enter_context(tempfile.TemporaryDirectory(prefix="qexp-"))
        try:
            folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=place, tracking_uri=tracking_uri))
        except Exception as error:
            asked = tracking_uri or mlflow.get_tracking_uri()
            hint = "Give tracking_uri= or set MLFLOW_TRACKING_URI, for instance to sqlite:///outputs/mlflow.db"
            raise UserError(f"MLflow at {asked} does not give {source}: {error}. {hint}.") from error
    return folder


def choose(artifact: Artifact, engine: str | None) -> Executable:
    """Choose the file to load and its engine, by the rules of `load`.

    Raises:
        UserError: The artifact has no file for the engine, or none at all.
    """
    if not artifact.executables:
        command = f"{typed('benchmark')} artifact={artifact.folder} engine=onnxruntime"
        raise UserError(
            f"{artifact.folder} does not tell which engines it was made ready for. Measure it again: {command}"
        )
    known = {executable.engine: executable for executable in reversed(artifact.executables)}
    if engine is not None and engine not in known:
        raise UserError(f"{artifact.folder.name} was not made ready for engine={engine}. {nearest(engine, known)}")
    for _, executable in sorted(measured(artifact), key=lambda found: found[0]):
        if engine in (None, executable.engine):
            return executable
    if engine is not None:
        return known[engine]
    safe = (
        e
        for e in artifact.executables
        if e.target.startswith("qexp.engine.") and not engine_of(e, trust=True).carries_code
    )
    return next(safe, artifact.executables[0])


def measured(artifact: Artifact) -> Iterator[tuple[tuple[bool, float], Executable]]:
    """Read the records in an artifact's folder.

    Yields:
        A rank and the executable that was measured. Lower ranks are better: first by whether another machine measured
        it, then by milliseconds per image.
    """
    for file in sorted((artifact.folder / RECORDS).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # records only help to choose
            record = json.loads(file.read_text())
            ms = next((m["value"] for m in record["measurements"] if m["name"] == "latency_ms_per_image"), float("inf"))
            asked = [record["params"][name] for name in ("engine", "batch_size", "threads")]
            same = [e for e in artifact.executables if e.engine == asked[0]]
            found = next((e for e in same if [e.batch, e.threads] == asked[1:]), same[0] if same else None)
            if found:
                yield (record["environment"]["host"] != socket.gethostname(), float(ms)), found


def engine_of(executable: Executable, trust: bool) -> Engine:
    """Make the engine that loads an executable.

    Raises:
        UserError: The engine is not one of qexp's or its format can carry code, and `trust` is false; or this version
            of qexp cannot make it.
    """
    module, _, name = executable.target.rpartition(".")
    if not (trust or module.startswith("qexp.engine.")):
        raise UserError(
            f"{executable.engine} is {executable.target}, which is no part of qexp. Give trust=True to run that code."
        )
    try:
        made = getattr(importlib.import_module(module), name)
        if not issubclass(made, Engine):
            raise TypeError("it is none")
        engine = made(**executable.options)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"This version of qexp cannot make the engine {executable.target}: {error}.") from error
    if engine.carries_code and not trust:
        raise UserError(
            f"{executable.file}, which {engine.name} loads, is of a format that can carry code. Give trust=True if you "
            "know who made it, or choose another engine."
        )
    return engine


def refuse_pickles(file: Path) -> None:
    """Refuse a `.pt2` that makes torch.export.load unpickle weights or constants, which no file of qexp's does.

    Raises:
        UserError: It does, or a coded file is damaged.
    """
    import zipfile

    if not is_graph(file):
        return
    with decoded(file) as plain, zipfile.ZipFile(plain) as archive:
        for name in archive.namelist():
            legacy = re.search(r"(data/(weights|constants)/[^/]+\.pt|\.pkl|(custom_obj|opaque_obj)_\d+)$", name)
            if legacy or (name.endswith("_config.json") and re.search(rb'"use_pickle":\s*true', archive.read(name))):
                raise UserError(
                    f"{file} holds pickled objects ({name}), which could run any code. It was not written by qexp."
                )


def _import(engine: Engine) -> None:
    try:
        engine.check_machine()
        engine.import_libraries()
    except (Unsupported, ImportError) as error:
        raise UserError(f"{engine.name} does not run here: {error}") from error


def _cost(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Call `work`, and give the milliseconds and MB of resident memory that it took, and what it returned."""
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    result = work()
    return 1000 * (time.perf_counter() - began), (process.memory_info().rss - before) / 1e6, result


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
