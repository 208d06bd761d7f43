"""Files of weights, such as `.pt2` or `.onnx`, with their arrays coded: a small file that gives back the plain one, byte for byte.

The arrays are coded as of qexp.coding, and what lies between them (the graph) by LZMA. Engines read such a file through `plain`.
"""

from __future__ import annotations

import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qexp.coding import decode, encode
from qexp.types import UserError

MAGIC = b"\x89qexp-coded\n"
PREFIX = struct.Struct("<II")  # length and CRC-32 of the index
LEAST_BYTES = 1024  # an array that is smaller stays in the graph
# Of a `.pt2`: how names of weights go on, the number that stands for float32, and, of the ZIP format, where in the header before a file the
# lengths of its name and extra field stand.
WEIGHTS, FLOAT = "/data/weights/weight_", 7
LENGTHS_AT, LENGTHS = 26, struct.Struct("<HH")


class Piece(NamedTuple):
    """Where an array lies in a file, and the rows that it is coded by."""

    offset: int
    size: int
    rows: int


def write_coded(file: Path, pieces: Sequence[Piece]) -> None:
    """Replace `file` by its coded form. pieces: its arrays of 4-byte values, in any order, none in another."""
    plain = file.read_bytes()
    arrays: list[tuple[Piece, bytes]] = []
    for piece in sorted(pieces):
        if piece.size >= LEAST_BYTES:
            values = np.frombuffer(plain, np.uint32, piece.size // 4, piece.offset).reshape(piece.rows, -1)
            if len(code := encode(values)) < piece.size:
                arrays.append((piece, code))
    rest, position = [], 0
    for piece, _ in arrays:
        rest.append(plain[position : piece.offset])
        position = piece.offset + piece.size
    graph = lzma.compress(b"".join([*rest, plain[position:]]), preset=9)
    table = [[piece.offset, piece.size, len(code)] for piece, code in arrays]
    index = zlib.compress(
        json.dumps({"bytes": len(plain), "crc": zlib.crc32(plain), "graph": len(graph), "arrays": table}).encode(), 9
    )
    file.write_bytes(
        b"".join([MAGIC, PREFIX.pack(len(index), zlib.crc32(index)), index, graph, *(code for _, code in arrays)])
    )


def is_coded(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def plain(file: Path) -> Path | io.BytesIO:
    """What a library is given to load: the file itself, or of a coded one the plain file in memory.

    Errors: UserError where a coded file is damaged.
    """
    return io.BytesIO(_decoded(file)) if is_coded(file) else file


def coded_bytes(file: Path) -> int:
    """Bytes of all weights in a coded `.pt2`, as they are stored, without the graph that computes with them."""
    index, _ = _index(file.read_bytes(), file)
    arrays = {offset: size for offset, _, size in index["arrays"]}
    return sum(arrays.get(piece.offset, piece.size) for piece in graph_pieces(io.BytesIO(_decoded(file))))


def _index(data: bytes, file: Path) -> tuple[dict[str, Any], int]:
    """The index and where it ends."""
    start = len(MAGIC) + PREFIX.size
    try:
        length, crc = PREFIX.unpack_from(data, len(MAGIC))
        packed = data[start : start + length]
        if zlib.crc32(packed) == crc:
            return json.loads(zlib.decompress(packed)), start + length
    except (ValueError, struct.error, zlib.error):
        pass
    raise damaged(file)


def _decoded(file: Path) -> bytes:
    data = file.read_bytes()
    index, position = _index(data, file)
    try:
        graph = lzma.decompress(data[position : position + index["graph"]])
    except lzma.LZMAError as error:
        raise damaged(file) from error
    position += index["graph"]
    parts, taken, written = [], 0, 0
    for offset, size, length in index["arrays"]:
        between = offset - written
        parts += [graph[taken : taken + between], decode(data[position : position + length]).tobytes()]
        position, taken, written = position + length, taken + between, offset + size
    found = b"".join([*parts, graph[taken:]])
    if len(found) != index["bytes"] or zlib.crc32(found) != index["crc"]:
        raise damaged(file)
    return found


def damaged(file: Path) -> UserError:
    return UserError(f"{file} is damaged: its checksum is wrong. Delete the artifact and compress again.")


class Entry(NamedTuple):
    """A weight's place in a `.pt2`, its shape and whether it is float32."""

    offset: int
    size: int
    shape: tuple[int, ...]
    is_float: bool


def graph_pieces(file: Path | io.BytesIO) -> list[Piece]:
    """The float32 weights of a plain `.pt2`."""
    return [
        Piece(entry.offset, entry.size, entry.shape[0] if entry.shape else 1)
        for entry in _entries(file)
        if entry.is_float
    ]


def zeros_share(file: Path) -> float | None:
    """Share of zeros among the weights of all layers (at least two dimensions) in a plain or coded `.pt2`; None where none is float32:
    of integers some are zero anyway."""
    opened = plain(file)
    data = opened.getbuffer() if isinstance(opened, io.BytesIO) else np.memmap(opened, np.uint8, "r")
    weights = [
        np.frombuffer(data, np.float32, entry.size // 4, entry.offset)
        for entry in _entries(opened)
        if entry.is_float and len(entry.shape) > 1
    ]
    values = sum(weight.size for weight in weights)
    return sum(int(np.count_nonzero(weight == 0)) for weight in weights) / values if values else None


def _entries(file: Path | io.BytesIO) -> list[Entry]:
    with zipfile.ZipFile(file) as archive:
        names = {entry.filename.rpartition("/")[2]: entry for entry in archive.infolist() if WEIGHTS in entry.filename}
        (config,) = [name for name in archive.namelist() if name.endswith("/weights/model_weights_config.json")]
        stored = {
            weight["path_name"]: weight["tensor_meta"] for weight in json.loads(archive.read(config))["config"].values()
        }
        assert archive.fp is not None
        found = []
        for name, meta in stored.items():
            archive.fp.seek(names[name].header_offset + LENGTHS_AT)
            before = LENGTHS_AT + LENGTHS.size + sum(LENGTHS.unpack(archive.fp.read(LENGTHS.size)))
            shape = tuple(size["as_int"] for size in meta["sizes"])
            found.append(
                Entry(names[name].header_offset + before, names[name].file_size, shape, meta["dtype"] == FLOAT)
            )
    return found
