"""What a device needs of qexp is one small archive, which holds the code of the user's own engine, too."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qexp.device import boot
from qexp.device.archive import archive_of
from qexp.device.ssh import ABLE, KEEPER

ABSENT = ["torch", "psutil", "filelock", "hydra", "omegaconf", "onnx", "onnxruntime", "PIL", "scipy"]
CHILD, ONNXRUNTIME = "qexp.measure.child", "qexp.engine.onnxruntime.OnnxRuntime"


def unpacked(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        files.extractall(folder)
    return folder


def test_the_same_code_makes_the_same_archive() -> None:
    one, other = archive_of([CHILD]), archive_of([CHILD])
    assert one == other and one.digest != archive_of([KEEPER]).digest


def test_a_child_and_a_keeper_run_from_their_archives_alone(tmp_path: Path) -> None:
    for names in ([KEEPER], [CHILD, ABLE, ONNXRUNTIME]):
        archive = archive_of(names)
        assert len(archive.content) < 100_000
        place = unpacked(archive.content, tmp_path / names[0])
        modules = [name.removesuffix(".OnnxRuntime") for name in names]
        # None in the place of a module is one that is not installed.
        absent = f"sys.modules.update(dict.fromkeys({ABSENT}))"
        code = f"import sys; {absent}; sys.path.insert(0, {str(place)!r}); import {', '.join(modules)}"
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
        files = {str(file.relative_to(place)) for file in place.rglob("*.py")}
        assert not any("report" in file or "method" in file or "jobs" in file for file in files)


def test_a_module_of_the_users_own_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_my_own").mkdir()
    (tmp_path / "of_my_own" / "engine.py").write_text("from of_my_own.helper import help\nclass Mine: ...\n")
    (tmp_path / "of_my_own" / "helper.py").write_text("import numpy\ndef help(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with zipfile.ZipFile(io.BytesIO(archive_of(["of_my_own.engine.Mine"]).content)) as files:
        assert {"of_my_own/engine.py", "of_my_own/helper.py"} <= {*files.namelist()}
        assert not any("numpy" in name for name in files.namelist())


def test_an_archive_is_unpacked_once_and_checked(tmp_path: Path) -> None:
    import base64

    archive = archive_of([KEEPER])
    sent = base64.b64encode(archive.content).decode()
    assert boot.prepared(str(tmp_path), archive.digest, None) == {"lacks": archive.digest}
    place = Path(boot.prepared(str(tmp_path), archive.digest, sent)["code"])
    assert (place / "qexp" / "device" / "keeper.py").is_file() and [*place.parent.iterdir()] == [place]
    assert boot.prepared(str(tmp_path), archive.digest, None)["code"] == str(place)
    with pytest.raises(RuntimeError, match="arrived damaged"):
        boot.prepared(str(tmp_path), "0" * 64, sent)


def test_an_old_python_and_one_without_numpy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(RuntimeError, match=r"3\.11 or newer is needed: name another one in device\.python"):
        boot.prepared(str(tmp_path), "0", None)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="has no NumPy: .* -m pip install numpy"):
        boot.prepared(str(tmp_path), "0", None)
