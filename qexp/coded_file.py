"""Coded forms of `.pt2` and `.onnx` files. They are small, and give the plain file back byte for byte.

qexp.coding codes the arrays of weights, and LZMA compresses what lies between them (the graph). Engines know nothing of
this: they are given plain files, which `decoded` makes from coded ones.
"""

from __future__ import annotations

import json
import lzma
import mmap
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from qexp.coding import decode, encode
from qexp.types import UserError

MAGIC = b"\x89qexp-coded\n"
PREFIX = struct.Struct("<II")  # length and CRC-32 of the index
LEAST_BYTES = 1024  # smaller arrays stay in the graph
# In a `.pt2`: what the names of all weights contain, and the number that stands for float32.
WEIGHTS, FLOAT = "/data/weights/weight_", 7
# In the header that ZIP puts before a file: where the lengths of its name and extra field are, and their form.
LENGTHS_AT, LENGTHS = 26, struct.Struct("<HH")


class Piece(NamedTuple):
    """Where an array lies in a file.

    Attributes:
        offset: Where it begins, in bytes.
        size: Its length in bytes.
        rows: The number of rows in which it is coded.
    """

    offset: int
    size: int
    rows: int


def is_graph(file: Path) -> bool:
    """Tell by its name whether a file is a graph of torch.export. Inductor's packages end with `.pt2` too."""
    return file.name.endswith(".pt2") and not file.name.endswith(".aoti.pt2")


def code_weights(file: Path) -> None:
    """Replace a plain `.pt2` or `.onnx` by its coded form. Other formats, which store weights differently, stay."""
    if is_graph(file):
        write_coded(file, graph_pieces(file))
    elif file.suffix == ".onnx":
        write_coded(file, onnx_pieces(file))


def write_coded(file: Path, pieces: Sequence[Piece]) -> None:
    """Replace a plain file by its coded form.

    Args:
        file: The file.
        pieces: Its arrays of 4-byte values, in any order. They do not overlap.
    """
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


@contextmanager
def decoded(file: Path) -> Iterator[Path]:
    """A context that gives a plain file to load: the file itself or, if that is coded, a decoded one.

    The decoded file has the same name and lasts until the block ends. It counts as resident memory of this process,
    just as if a library had been given its bytes instead of a file, so that it is measured as part of the memory that
    loading takes.

    Raises:
        UserError: A coded file is damaged.
    """
    if not is_coded(file):
        yield file
        return
    data = _decoded(file)
    with tempfile.TemporaryDirectory(prefix="qexp-decoded-") as folder:
        plain = Path(folder) / file.name
        with _written(data, plain) as stream:
            del data
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                _ = mapped[:: mmap.PAGESIZE]  # a page becomes resident when it is touched
                yield plain


def _written(data: bytes, file: Path) -> BinaryIO:
    """Make a file that holds these bytes until the returned stream is closed.

    On Linux, it lies in memory that is freed with this process, even if that is killed.
    """
    if hasattr(os, "memfd_create"):
        stream: BinaryIO = os.fdopen(os.memfd_create(file.name), "w+b")
        file.symlink_to(f"/proc/{os.getpid()}/fd/{stream.fileno()}")
    else:
        stream = file.open("w+b")
    stream.write(data)
    stream.flush()
    return stream


def coded_bytes(file: Path) -> int:
    """Count the bytes that all weights in a coded `.pt2` take as stored, without the graph that computes with them."""
    index, _ = _index(file.read_bytes(), file)
    arrays = {offset: size for offset, _, size in index["arrays"]}
    with decoded(file) as plain:
        return sum(arrays.get(piece.offset, piece.size) for piece in graph_pieces(plain))


def _index(data: bytes, file: Path) -> tuple[dict[str, Any], int]:
    """The index of a coded file, and the offset at which it ends.

    Raises:
        UserError: The index is damaged.
    """
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
    """A weight in a `.pt2`.

    Attributes:
        offset: Where it begins, in bytes.
        size: Its length in bytes.
        shape: Its shape.
        is_float: Whether it is float32.
    """

    offset: int
    size: int
    shape: tuple[int, ...]
    is_float: bool


def graph_pieces(file: Path) -> list[Piece]:
    """The float32 weights of a plain `.pt2`."""
    return [
        Piece(entry.offset, entry.size, entry.shape[0] if entry.shape else 1)
        for entry in _entries(file)
        if entry.is_float
    ]


def onnx_pieces(file: Path) -> list[Piece]:
    """The float32 weights of a plain `.onnx`."""
    import onnx

    data, position, found = file.read_bytes(), 0, []
    for constant in onnx.load_from_string(data).graph.initializer:  # in the order of the file
        values = constant.raw_data
        if constant.data_type == onnx.TensorProto.FLOAT and values:
            position = data.index(values, position)
            found.append(Piece(position, len(values), constant.dims[0] if constant.dims else 1))
            position += len(values)
    return found


def zeros_share(file: Path) -> float | None:
    """The share of zeros among the float32 weights of all layers, which have at least two dimensions.

    Integers are left out, since some of them are zero anyway.

    Args:
        file: A plain or coded `.pt2`.

    Returns:
        The share, or None if no weight is float32.
    """
    with decoded(file) as plain:
        data, entries = plain.read_bytes(), _entries(plain)
    weights = [
        np.frombuffer(data, np.float32, entry.size // 4, entry.offset)
        for entry in entries
        if entry.is_float and len(entry.shape) > 1
    ]
    values = sum(weight.size for weight in weights)
    return sum(int(np.count_nonzero(weight == 0)) for weight in weights) / values if values else None


def _entries(file: Path) -> list[Entry]:
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
