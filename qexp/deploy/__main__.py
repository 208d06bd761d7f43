"""Writes the minimal folder that a device needs to run a compressed network.

qexp deploy artifact=FOLDER engine=NAME to=FOLDER [batch_size=N] [threads=N]

artifact: folder below outputs/artifacts, or runs:/ID/artifact of MLflow
engine: onnxruntime, openvino, executorch, litert, ncnn, inductor, eager or torch_ao (the artifact is made ready for it
    if it is not)
to: folder to write
batch_size, threads: images and threads of a call (default: as it was measured, or else 1 and all physical cores)
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import fields
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from qexp.artifact import Artifact, Executable
from qexp.deploy.write import deploy
from qexp.engine.base import Engine
from qexp.loading import choose, engine_of, local_folder
from qexp.measure.machine import physical_cores
from qexp.measure.timing import Rules
from qexp.places import CONF, choices, conf_file
from qexp.types import Unsupported, UserError, nearest


def main(words: list[str]) -> int:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    known = {"artifact", "engine", "to", "batch_size", "threads"}
    if len(given) != len(words) or not {"artifact", "engine", "to"} <= {*given} <= known:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with contextlib.ExitStack() as opened:
            artifact = Artifact.read(local_folder(given["artifact"], None, opened))
            numbers = {name: whole(name, given[name]) for name in ("batch_size", "threads") if name in given}
            artifact, engine, executable = ready(artifact, given["engine"], **numbers)
            deploy(artifact, engine, executable, rules(), Path(given["to"]))
    except (UserError, Unsupported) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in Path(given["to"]).iterdir() if file.is_file())
    print(
        f"{given['to']}: {artifact.model}, {artifact.label}, for {engine.name}, {size / 1e6:.3g} MB. "
        "Its README.md says how to run it."
    )
    return 0


def whole(name: str, text: str) -> int:
    """Read a whole number of at least 1, or raise a UserError that names the option."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name}={text} is out of range; give a whole number of at least 1.")
    return int(text)


def ready(
    artifact: Artifact, name: str, batch_size: int | None = None, threads: int | None = None
) -> tuple[Artifact, Engine, Executable]:
    """Find an artifact's file for an engine, or make it if there is none for these numbers.

    If neither number is given, a file that exists is taken as it is.

    Args:
        artifact: The artifact.
        name: Name of the engine.
        batch_size: Images of a call, by default 1.
        threads: Threads of a call, by default one for each physical core.

    Returns:
        The artifact, the engine, and the file with the options that the engine loads it with.

    Raises:
        UserError: The engine is unknown.
        Unsupported: The engine cannot run this artifact.
    """
    found = [executable for executable in artifact.executables if executable.engine == name]
    if found and batch_size is None and threads is None:
        best = choose(artifact, name)
        return artifact, engine_of(best, trust=True), best
    known = [choice for choice in choices("engine") if choice != "auto"]
    if not found and name not in known:
        raise UserError(f"engine={name} is unknown. {nearest(name, known)}")
    engine: Engine = (
        engine_of(found[0], trust=True) if found else instantiate(OmegaConf.load(conf_file(f"engine/{name}.yaml")))
    )
    if not (
        engine.spec.reads(artifact.engine_spec) or engine.runs_simulated and artifact.engine_spec.formats == ("pt2",)
    ):
        raise Unsupported(
            f"{engine.name} does not run {artifact.folder.name}, which was made for other kernels; compress for it"
        )
    engine.check_machine()
    batch, cores = batch_size or 1, threads or physical_cores()
    artifact = engine.lower(artifact, batch, cores)
    return (
        artifact,
        engine,
        Executable(engine.name, engine.target, engine.options, engine.file_name(batch, cores), batch, cores),
    )


def rules() -> Rules:
    """Read the rules by which runs are timed, as far as they apply to devices.

    `most_round_trip_ns` does not: only records of this machine say where its cores are.
    """
    options = OmegaConf.load(CONF / "measure" / "latency.yaml").latency
    return Rules(**{field.name: options[field.name] for field in fields(Rules)})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
