"""A Python as a device has it."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that holds NumPy and ONNX Runtime alone."""
    folder = tmp_path_factory.mktemp("bare")
    wanted = [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnxruntime")]
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    python = str(folder / "bin" / "python")
    for command in (["venv", str(folder)], ["pip", "install", "--python", python, *wanted]):
        if subprocess.run([uv, *command, "--quiet"], capture_output=True).returncode:
            pytest.skip("the libraries cannot be installed without a network")
    assert Path(python).exists()
    return python
