"""The C++ example of a deployment: a program that classifies a picture, for engines with a library for C++."""

from __future__ import annotations

import json
from pathlib import Path

from qexp.artifact import Artifact, Executable
from qexp.data.pixels import factors

DEVICE = Path(__file__).parent / "device"
SHARED = DEVICE / "picture.h"


def native_example(artifact: Artifact, executable: Executable) -> dict[str, str]:
    """The texts of the example by the names of their files. There are none if the engine has no such example."""
    files = sorted((DEVICE / executable.engine).glob("*"))
    if not files:
        return {}
    texts = {file.name: file.read_text() for file in [*files, SHARED]}
    return {**texts, "network.h": network_header(artifact, executable)}


def network_header(artifact: Artifact, executable: Executable) -> str:
    """What a program has to know of the network, as C++."""
    how, classes = artifact.data.preprocessing, artifact.data.class_names
    scale, shift = factors(how)
    numbers = {
        "BATCH": executable.batch, "CHANNELS": how.channels, "HEIGHT": how.size[0], "WIDTH": how.size[1],
        "CLASSES": len(classes), "THREADS": executable.threads,
    }  # fmt: skip
    lines = [
        "// Written by qexp: the network, what becomes of a pixel (value * SCALE + SHIFT), and the classes.",
        "#pragma once",
        f"#define MODEL {json.dumps(executable.file)}",
        *(f"constexpr int {name} = {number};" for name, number in numbers.items()),
        *(
            f"constexpr float {name}[] = {{{', '.join(f'{value:.9e}f' for value in values)}}};"
            for name, values in (("SCALE", scale), ("SHIFT", shift))
        ),
        f"constexpr const char* LABELS[] = {{{', '.join(map(_literal, classes))}}};",
    ]
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """A string as C++ writes it: letters of other alphabets stay, as UTF-8."""
    return json.dumps(text, ensure_ascii=False)
