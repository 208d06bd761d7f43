"""The wheel holds all that qexp needs, and works in an empty folder of an environment that holds nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What few need is not in the core.
OPTIONAL = {
    "openvino", "executorch", "ai-edge-litert", "ncnn", "ray", "timm", "optuna", "pytest", "ruff", "mypy", "zeus",
    "psycopg",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in this process, as `uv build` builds it in an environment of its own."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    return Path(next(builders.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))))


def files(folder: str) -> set[str]:
    """The files in a folder of the clone, relative to it, without what running them leaves."""
    found = (ROOT / folder).rglob("*")
    return {str(f.relative_to(ROOT / folder)) for f in found if f.is_file() and "__pycache__" not in f.parts}


def test_it_holds_all_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for folder, place in {
        "qexp": "qexp", "conf": "qexp/conf", "examples/own_folder": "qexp/example", "hydra_plugins": "hydra_plugins",
    }.items():  # fmt: skip
        assert {f"{place}/{name}" for name in files(folder)} <= held
    top = {name.partition("/")[0] for name in held}
    assert top == {"qexp", "hydra_plugins", f"qexp-{PROJECT['project']['version']}.dist-info"}


def test_its_core_is_small_and_it_has_a_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        told = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert "qexp = qexp.__main__:main" in archive.read(f"{info}/entry_points.txt").decode()
    core = [text for text in told.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert not {text.partition("[")[0] for text in core} & OPTIONAL and {"torch", "onnxruntime"} <= {*core}
    assert {*told.get_all("Provides-Extra", [])} == PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.network
@pytest.mark.thorough
@pytest.mark.integration
@pytest.mark.skipif("QEXP_NETWORK" not in os.environ, reason="needs a package registry: set QEXP_NETWORK=1")
def test_in_an_empty_folder_it_does_what_readme_promises(wheel: Path, tmp_path: Path) -> None:
    fresh, folder = tmp_path / "fresh", tmp_path / "empty"
    (tmp_path / "constraints.txt").write_text("\n".join(PROJECT["tool"]["uv"]["constraint-dependencies"]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder.mkdir()

    def done(*words: str | Path) -> str:
        ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, f"{words}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def install(what: str, *options: str) -> None:
        done(
            "uv", "pip", "install", "-q", *options, "-p", fresh / "bin" / "python", "-c",
            tmp_path / "constraints.txt", what,
        )  # fmt: skip

    done("uv", "venv", "-q", "-p", sys.executable, fresh)
    install(str(wheel))
    command = fresh / "bin" / "qexp"
    assert done(command, "--version").split() == ["qexp", PROJECT["project"]["version"]]
    assert "report.html" in done(command, "compress", "experiment=quickstart")
    done(command, "init")
    done(command, "compress", "experiment=shapes")
    rows = [json.loads(file.read_text()) for file in folder.glob("outputs/sweeps/*/*/record.json")]
    assert [row["status"] for row in rows] == ["finished"] * 9
    assert {row["params"]["method"] for row in rows} == {"none", "dynamic", "static", "short_mantissa"}
    install("pytest")
    assert " passed" in done(fresh / "bin" / "python", "-m", "pytest", "-q")
    install(f"{wheel}[{','.join(PROJECT['project']['optional-dependencies'])}]", "--dry-run")
