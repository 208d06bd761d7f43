"""The first thing that runs on a device: it unpacks what is needed of qexp and becomes its keeper.

Its text is sent over the connection, since nothing of qexp is there yet. It is plain enough for older versions of
Python, so that it can say which one is needed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import os
import shutil
import sys
import zipfile
from typing import Any

LEAST = (3, 11)


def boot() -> dict[str, Any]:
    """Answer the questions of the other side until what is needed of qexp is there, and give what its keeper needs."""
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = prepared(question["folder"], question["digest"], question.get("archive"))
        except Exception as error:
            answer = {"error": explained(error, question["folder"])}
        print(json.dumps(answer), flush=True)
        if "code" in answer:
            return answer
    sys.exit(1)


def prepared(folder: str, digest: str, archive: str | None) -> dict[str, Any]:
    """Check this Python, and unpack the archive.

    Args:
        folder: Folder for everything that qexp keeps on this device.
        digest: SHA-256 (hex) of the archive.
        archive: The archive in base64, or None to ask whether it is here.

    Returns:
        `lacks` if it is not here, or `folder` and `code`, the absolute paths of `folder` and of what was unpacked.
    """
    if sys.version_info < LEAST:
        raise RuntimeError(
            f"{sys.executable} is Python {sys.version.split()[0]}, and {LEAST[0]}.{LEAST[1]} or newer is needed: "
            "name another one in device.python"
        )
    if importlib.util.find_spec("numpy") is None:
        raise RuntimeError(f"{sys.executable} has no NumPy: {sys.executable} -m pip install numpy")
    folder = os.path.abspath(os.path.expanduser(folder))
    code = unpacked(folder, digest, archive)
    return {"folder": folder, "code": code} if code else {"lacks": digest}


def unpacked(folder: str, digest: str, archive: str | None) -> str:
    """The folder of an archive's files, named by the archive's digest, or "" if the archive is not here."""
    place = os.path.join(folder, "code", digest)
    if os.path.isdir(place) or archive is None:
        return place if os.path.isdir(place) else ""
    content = base64.b64decode(archive)
    if hashlib.sha256(content).hexdigest() != digest:
        raise RuntimeError("what was sent of qexp arrived damaged")
    partial = f"{place}.{os.getpid()}"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as files:
            files.extractall(partial)
        os.rename(partial, place)
    except OSError:
        if not os.path.isdir(place):  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def explained(error: Exception, folder: object) -> str:
    """What an error says to the user of the device."""
    if isinstance(error, OSError):
        return f"cannot write to {folder} on the device: {error.strerror} (device.folder; qexp device clean frees it)"
    return str(error)


if __name__ == "__main__":
    there = boot()
    sys.path.insert(0, there["code"])
    from qexp.device.keeper import main

    main(there["folder"])
