"""The one-way flow: what each package may import of qexp, and leaves that know no other leaf."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qexp.places import CONF

ROOT = Path(__file__).parents[1]
BASIC = {"qexp.types", "qexp.artifact", "qexp.records", "qexp.files", "qexp.progress"}
KEYED = BASIC | {"qexp.keys"}
ALLOWED = {
    "types": set(),
    "artifact": {"qexp.types"},
    "records": set(),
    "metrics": {"qexp.records", "qexp.types"},
    "files": {"qexp.types"},
    "progress": set(),
    "keys": {"qexp.sources"},
    "sources": set(),
    "tracing": set(),
    "launch": {"qexp.nursery"},
    "nursery": set(),
    "questions": set(),
    "places": set(),
    "init": {"qexp.places", "qexp.types"},
    "__main__": {"qexp.cli", "qexp.completion", "qexp.startup", "qexp.types"},
    "completion": {"qexp.cli"},
    "coding": {"qexp.types"},
    "coded_file": {"qexp.coding", "qexp.types"},
    "errors": {"qexp.types"},
    "cli": {"qexp.errors", "qexp.places", "qexp.startup", "qexp.types", "qexp.worker"},
    "startup": set(),
    "worker": {"qexp.types"},
    "data": KEYED,
    "model": BASIC,
    "onnx_file": {"qexp.types", "qexp.onnx_rewrites", "qexp.tracing"},
    "onnx_rewrites": set(),
    "engine": KEYED | {"qexp.coded_file", "qexp.onnx_file", "qexp.tracing"},
    "tracking": BASIC | {"qexp.metrics", "qexp.places"},
    "method": KEYED
    | {"qexp.data.base", "qexp.data.images", "qexp.data.loaders"}
    | {"qexp.model.base", "qexp.model.training_module", "qexp.model.trainer"}
    | {"qexp.coded_file", "qexp.coding", "qexp.onnx_file", "qexp.tracing"},
    "measure": KEYED
    | {"qexp.metrics", "qexp.launch", "qexp.questions", "qexp.engine.base", "qexp.data.decoded", "qexp.data.pixels"}
    | {"qexp.engine.profiles"},
    "device": KEYED
    | {"qexp.sources", "qexp.launch", "qexp.questions", "qexp.engine.base", "qexp.data.decoded", "qexp.errors"}
    | {"qexp.places", "qexp.measure.child"}  # the name of the program that runs there
    | {f"qexp.measure.{name}" for name in ("children", "device", "disturbance", "host_lock", "images", "machine")}
    | {f"qexp.measure.{name}" for name in ("throttling", "timing")},
    "report": BASIC | {"qexp.metrics", "qexp.tracking.store"},
    "search": KEYED | {"qexp.metrics", "qexp.tracking.store", "qexp.report.best", "qexp.jobs.reuse"},
    "within_limits": KEYED
    | {"qexp.metrics", "qexp.records", "qexp.tracking.store", "qexp.data.opening", "qexp.model.baseline"}
    | {"qexp.model.pretrained", "qexp.jobs.artifact_factory", "qexp.jobs.given", "qexp.jobs.preprocessing"}
    | {"qexp.report.plot", "qexp.report.render", "qexp.report.terms", "qexp.deploy.__main__", "qexp.deploy.write"},
    # qexp/__init__.py, for type checkers
    "": {"qexp.loading", "qexp.types"}
    | {f"qexp.api.{name}" for name in ("comparison", "compressed", "functions", "search", "trained")},
    "api": BASIC
    | {"qexp.data.parts", "qexp.deploy.__main__", "qexp.deploy.write", "qexp.errors", "qexp.loading", "qexp.places"}
    | {"qexp.jobs.given", "qexp.jobs.run"}
    | {"qexp.measure.children", "qexp.metrics", "qexp.within_limits.answer"}
    | {f"qexp.model.{name}" for name in ("base", "given", "outputs", "pretrained")}
    | {f"qexp.report.{name}" for name in ("axes", "pareto", "render", "runs", "screen", "table", "verdict", "write")},
    "inputs": {"qexp.types", "qexp.data.pixels", "qexp.data.transforming"},
    "loading": BASIC | {"qexp.coded_file", "qexp.engine.base", "qexp.data.pixels", "qexp.inputs"},
    "serving": {"qexp.types", "qexp.inputs", "qexp.loading"},
    "deploy": BASIC
    | {"qexp.coded_file", "qexp.loading", "qexp.engine.base", "qexp.data.pixels"}
    | {
        "qexp.measure.disturbance",
        "qexp.measure.timing",
        "qexp.measure.machine",
        "qexp.metrics",
        "qexp.places",
        "qexp.report.render",
        "qexp.tracking.store",
    },
    "jobs": KEYED
    | {
        "qexp.cli",
        "qexp.errors",
        "qexp.launch",
        "qexp.metrics",
        "qexp.data.base",
        "qexp.data.images",
        "qexp.data.loaders",
        "qexp.data.opening",
        "qexp.data.options",
        "qexp.data.parts",
        "qexp.engine.base",
        "qexp.method.base",
        "qexp.method.artifacts",
        "qexp.method.graph",
    }
    | {
        "qexp.model.base",
        "qexp.model.baseline",
        "qexp.model.checkpoint",
        "qexp.model.outputs",
        "qexp.model.pretrained",
        "qexp.model.training_module",
        "qexp.model.trainer",
        "qexp.measure.base",
        "qexp.measure.candidate",
        "qexp.measure.children",
        "qexp.measure.device",
        "qexp.measure.disturbance",
        "qexp.measure.images",
        "qexp.measure.machine",
        "qexp.measure.timing",
    }
    | {
        f"qexp.report.{name}"
        for name in ("best", "layers", "reference", "render", "runs", "screen", "verdict", "write")
    }
    | {"qexp.tracking.store", "qexp.tracking.sync", "qexp.within_limits.answer"},
}
MODULES = sorted((ROOT / "qexp").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imports(file: Path, of: str = "qexp") -> set[str]:
    """Modules of qexp, or of the package `of`, that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
    return {name for name in found if name.split(".")[0] == of}


@functools.cache
def leaves() -> set[str]:
    """Modules that a `_target_` in conf/ names."""
    found: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            target = node.get("_target_", "")
            if isinstance(target, str) and target.startswith("qexp."):
                found.add(target.rpartition(".")[0])
            for value in node.values():
                walk(value)

    for file in CONF.rglob("*.yaml"):
        walk(yaml.safe_load(file.read_text()))
    # Augmentation, FineTuning and Sparse are nouns, not leaves.
    return found - {"qexp.data.augment", "qexp.method.fine_tuning", "qexp.method.prune.sparse"}


def test_leaves_were_found() -> None:
    assert {
        "qexp.method.quantize.static",
        "qexp.engine.eager",
        "qexp.measure.latency",
        "qexp.model.resnet",
        "qexp.data.digits",
    } <= leaves()


@pytest.mark.parametrize("file", MODULES, ids=[str(m.relative_to(ROOT)) for m in MODULES])
def test_imports_follow_the_table(file: Path) -> None:
    package = file.relative_to(ROOT / "qexp").parts[0].removesuffix(".py")
    package = "" if package == "__init__" else package
    foreign = {name for name in imports(file) if name.split(".")[1] != package}
    assert foreign <= ALLOWED[package], f"{file} may not import {foreign - ALLOWED[package]}"
    known_leaves = imports(file) & leaves()
    assert not known_leaves, f"{file} names {known_leaves}; leaves are named by _target_ in conf/ only"


@pytest.mark.parametrize("room", ["qexp.method", "qexp.method.quantize", "qexp.method.prune"])
def test_a_room_of_methods_says_which_files_are_methods_and_which_help_them(room: str) -> None:
    folder = ROOT / room.replace(".", "/")
    named = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    methods, helpers = (re.findall(r"`(\w+)`", part) for part in named.partition("What helps them:")[::2])
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert {*methods} == {name for name in files if f"{room}.{name}" in leaves()} - {"fine_tuning"}
    assert {*helpers} == files - {*methods}


@pytest.mark.parametrize("script", ["train.py", "compress.py", "benchmark.py"])
def test_entry_scripts_know_no_leaf(script: str) -> None:
    assert not imports(ROOT / script) & leaves()


@pytest.mark.parametrize("file", TESTS, ids=[str(m.relative_to(ROOT)) for m in TESTS])
def test_what_tests_share_is_in_no_module_of_tests(file: Path) -> None:
    shared = {name for name in imports(file, of="tests") if any(part.startswith("test_") for part in name.split("."))}
    assert not shared, f"{file} imports {shared}; what several modules need belongs to one whose name has no test_"


def test_importing_qexp_imports_nothing() -> None:
    heavy = ("numpy", "PIL", "psutil", "mlflow", "torch")
    code = f"import sys, qexp; print([m for m in sys.modules if m.startswith('qexp.') or m in {heavy}])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_measuring_child_imports_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "hydra", "PIL", "scipy")
    code = f"import sys, qexp.measure.child, qexp.engine.onnxruntime; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.thorough
@pytest.mark.integration
def test_jobs_that_train_nothing_import_nothing_for_training() -> None:
    heavy = ("pytorch_lightning", "torchmetrics", "torchvision", "mlflow", "scipy", "sklearn")
    code = f"import sys, qexp.jobs.compress, qexp.jobs.benchmark; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
