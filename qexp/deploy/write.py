"""Writes the folder for a device: one model file, and scripts that need only its engine and NumPy."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from qexp.artifact import Artifact, Executable
from qexp.coded_file import decoded
from qexp.data import pixels
from qexp.deploy.native import native_example
from qexp.deploy.readme import readme
from qexp.engine.base import Engine
from qexp.files import check_digests, not_writable
from qexp.measure import disturbance, machine, timing
from qexp.types import UserError

MARK = "deployment.json"  # the file by which a deployment is recognised
DEVICE = Path(__file__).parent / "device"
COPIED = (pixels, timing, disturbance, machine)  # modules that need no qexp
ENGINE_HEADER = '''"""Loads the network as qexp did when it was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Forward = Callable[[np.ndarray], np.ndarray]  # x[N,C,H,W] float32 -> logits[N,K] float32
'''


def deploy(artifact: Artifact, engine: Engine, executable: Executable, rules: timing.Rules, to: Path) -> None:
    """Write a deployment of one file of an artifact. It replaces an older deployment in the same folder.

    Args:
        artifact: The artifact.
        engine: Engine that loads the file.
        executable: The file.
        rules: Rules by which the deployment's benchmark.py measures.
        to: Folder of the deployment.

    Raises:
        UserError: The folder holds something else or cannot be written, the files of the artifact were changed, or the
            engine needs more than its library and NumPy.
    """
    check_digests(artifact.folder, artifact.files)
    how = artifact.data.preprocessing
    if how.transform:
        raise UserError(
            f"Images of this network are prepared {how.steps}, which a device does not have. Deploy a network "
            "whose images qexp prepares (data.resize, data.mean, ...), or load this one with qexp.load."
        )
    load = engine.standalone()
    if load is None:
        raise UserError(
            f"{engine.name} compiles when it loads, which takes more than its library. Choose another engine."
        )
    old = previous(to)
    with decoded(artifact.folder / executable.file) as plain:  # a device has no decoder
        stored = plain.read_bytes()
    packages = {
        package: metadata.version(package).partition("+")[0] for package in (*engine.packages, "numpy", "pillow")
    }
    data = artifact.data
    about = {
        "artifact": artifact.key, "file": executable.file, "sha256": hashlib.sha256(stored).hexdigest(),
        "engine": engine.name, "arguments": load.keywords, "modules": engine.modules, "batch": executable.batch,
        "threads": executable.threads, "rules": asdict(rules), "params": artifact.params,
        "commit": machine.environment(Path(__file__).parents[2])["commit"],
    }  # fmt: skip
    preprocessing = {**asdict(how), "steps": f"{how.steps}; NCHW float32"}
    texts = {
        "labels.json": _json(data.class_names), "preprocessing.json": _json(preprocessing),
        "engine.py": engine_source(load.func), "requirements.txt": requirements(engine, packages),
        "README.md": readme(artifact, engine, executable, packages),
        **{file.name: file.read_text() for file in DEVICE.glob("*.py")}, **native_example(artifact, executable),
        **{Path(str(module.__file__)).name: inspect.getsource(module) for module in COPIED},
    }  # fmt: skip
    texts[MARK] = _json({**about, "files": sorted([*texts, executable.file, MARK])})
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as partial:
            for name, text in texts.items():
                (Path(partial) / name).write_text(text)
            (Path(partial) / executable.file).write_bytes(stored)
            to.mkdir(exist_ok=True)
            for name in old:
                (to / name).unlink(missing_ok=True)
            for name in sorted([*texts, executable.file], key=lambda name: name == MARK):  # the mark comes last
                os.replace(Path(partial) / name, to / name)
    except OSError as error:
        raise not_writable(to, error) from error


def previous(to: Path) -> list[str]:
    """Names of the files of an older deployment in a folder.

    Raises:
        UserError: The folder holds something that is not a deployment.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return []
    try:
        names = json.loads((to / MARK).read_text())["files"]
        return [name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{to} holds something that is no deployment of qexp. Give to= an empty or a new folder."
        ) from error


def engine_source(load: Callable[..., Any]) -> str:
    """Source of a module with the function as `load`, and with all functions that it calls."""
    sources = "\n\n".join(inspect.getsource(function) for function in with_called(load))
    return f"{ENGINE_HEADER}\n\n{sources}\n\nload = {load.__name__}\n"


def with_called(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """A function and all that it calls by global names, directly or indirectly, each once and before its callers."""
    known = inspect.unwrap(function).__globals__
    names = [node.id for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Name)]
    called = [known[name] for name in names if inspect.isfunction(known.get(name)) and known[name] is not function]
    return list(dict.fromkeys([*(inner for outer in called for inner in with_called(outer)), function]))


def requirements(engine: Engine, packages: dict[str, str]) -> str:
    """Text of the deployment's requirements.txt."""
    # Engines are pinned, because what was measured holds for that version.
    pinned = [f"{package}=={packages[package]}" for package in engine.packages]
    return (
        "\n".join(
            [*pinned, f"numpy  # tested with {packages['numpy']}", f"pillow  # for image files; {packages['pillow']}"]
        )
        + "\n"
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
