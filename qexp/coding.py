"""Codes arrays of 32-bit values without loss. Arrays with many zeros or few different values become small.

As in Deep Compression (Han et al., 2016), zeros are told apart from the other values first, shared values become
indices of log2(k) bits into a palette, and both are Huffman coded. The Huffman coder is zlib's, which every Python has,
so that decoding needs nothing but NumPy. Its symbols are whole bytes, each with 8 zero-or-not flags or, for example, 2
indices of 4 bits. It therefore costs little that the code of a symbol is a whole number of bits: the result is within
3 % of the entropy, and within 5 % if only one in 20 values is not zero. The module imports nothing of qexp but types.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from qexp.types import UserError

WORD = np.dtype("<u4")
HEADER = struct.Struct("<BQII")  # layout, number of values, CRC-32 of the values, CRC-32 of what follows
RAW, PLANES, SHARED = range(3)
SPARSE = 4  # added to the layout if it holds only the values that are not zero
MOST_SHARED = 256  # values that a palette can have
MOST_PER_BYTE = 8 * 1032  # values that a byte of code can stand for: each takes a bit, and DEFLATE 1/1032 of that


def encode(values: np.ndarray) -> bytes:
    """Code an array in the layout that is smallest.

    The layouts are:

    - the values as they are,
    - their four bytes apart, because exponents repeat,
    - shared values, with one palette for all values or one for each of the O rows.

    In each of them, zeros are either among the other values or told apart from them.

    Args:
        values: values[O,...] of any type of four bytes, such as float32.
    """
    words = np.ascontiguousarray(values).reshape(-1).view(WORD)
    rows = max(1, len(values)) if values.ndim and len(words) else 1
    layout, body = min(_candidates(words, rows), key=lambda candidate: len(candidate[1]))
    return HEADER.pack(layout, len(words), zlib.crc32(words.data), zlib.crc32(body)) + body


def decode(data: bytes) -> np.ndarray:
    """Decode what `encode` returned.

    Returns:
        values[N] as uint32, to be viewed as the type that they had.

    Raises:
        UserError: `data` is not what `encode` returned.
    """
    if len(data) < HEADER.size:
        raise damaged("it ends too early")
    layout, count, values_crc, body_crc = HEADER.unpack_from(data)
    body = data[HEADER.size :]
    if zlib.crc32(body) != body_crc:
        raise damaged("its checksum is wrong")
    if count > MOST_PER_BYTE * len(body):  # otherwise gigabytes would be allocated for them
        raise damaged(f"it cannot hold {count} values")
    try:
        words = _decoded(Reader(body), layout, count)
    except (ValueError, IndexError, KeyError, MemoryError, zlib.error) as error:
        # The body is whole, so it is the header that is damaged, which has no checksum of its own.
        raise damaged(str(error)) from error
    if zlib.crc32(words.data) != values_crc:
        raise damaged("its values have another checksum than those that were stored")
    return words


def damaged(why: str) -> UserError:
    return UserError(f"A coded array is damaged: {why}. Delete the artifact and compress again.")


def _candidates(words: np.ndarray, rows: int) -> list[tuple[int, bytes]]:
    """Code words[N], of `rows` rows of equal length, in all layouts, with the zeros among the rest and told apart."""
    used = words != 0  # only +0.0 of float32 is zero
    found = _dense(words, np.full(rows, len(words) // rows))
    if not used.all():
        flags = _coded(np.packbits(used))
        found += [
            (layout + SPARSE, flags + body) for layout, body in _dense(words[used], used.reshape(rows, -1).sum(1))
        ]
    return found


def _dense(words: np.ndarray, lengths: np.ndarray) -> list[tuple[int, bytes]]:
    """Code words[N] in all layouts, without telling zeros apart. The words are made of rows of lengths[R]."""
    found = [(RAW, words.tobytes()), (PLANES, _planes(words))]
    for parts in (np.array([len(words)]), lengths):
        shared = _shared(words, parts)
        if shared is not None:
            found.append((SHARED, shared))
    return found


def _planes(words: np.ndarray) -> bytes:
    """Code the four bytes of the words apart.

    The words are rotated by one bit first, so that the exponent of a float32 is one of the bytes.
    """
    turned = (words << np.uint32(1)) | (words >> np.uint32(31))
    return b"".join(_coded(plane) for plane in turned.astype(WORD).view(np.uint8).reshape(-1, 4).T)


def _shared(words: np.ndarray, lengths: np.ndarray) -> bytes | None:
    """Code a palette for each row and the places of the row's values in it.

    The words are made of rows of lengths[R]. The result is None if a row has too many different values.
    """
    palettes, places = [], np.empty(len(words), np.uint8)
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        different, inverse = np.unique(words[start:end], return_inverse=True)
        if len(different) > MOST_SHARED:
            return None
        # Palettes are in the order of float32, so that the same place means much the same value in all of them.
        order = np.argsort(np.where(different >> np.uint32(31), -different.astype(np.int64), different), kind="stable")
        palettes.append(different[order])
        places[start:end] = np.argsort(order)[inverse.reshape(-1)]
    sizes = np.array([len(palette) for palette in palettes], "<u2")
    palette = _planes(np.concatenate(palettes))
    return struct.pack("<I", len(sizes)) + _coded(sizes.view(np.uint8)) + palette + _coded(_packed(places, sizes.max()))


def _packed(places: np.ndarray, different: int) -> np.ndarray:
    """Pack places[N] uint8, which are below `different`, with 1, 2, 4 or 8 bits each."""
    bits = _bits(different)
    filled = np.zeros(-(-len(places) * bits // 8) * 8 // bits, np.uint8)
    filled[: len(places)] = places
    packed = np.zeros(len(filled) * bits // 8, np.uint8)
    for part, shift in zip(filled.reshape(-1, 8 // bits).T, range(0, 8, bits), strict=True):
        packed |= part << np.uint8(shift)
    return packed


def _unpacked(packed: np.ndarray, different: int, count: int) -> np.ndarray:
    bits = _bits(different)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:count]


def _bits(different: int) -> int:
    return next(bits for bits in (1, 2, 4, 8) if different <= 2**bits)


def _coded(symbols: np.ndarray) -> bytes:
    """Code symbols[N] uint8, after the length of their code. The length is N if they are left as they are."""
    plain = symbols.tobytes()
    codes = [plain]
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):  # the second is shorter if whole channels are zero
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        code = coder.compress(plain) + coder.flush()
        if len(code) >= len(plain):
            break
        codes.append(code)
    shortest = min(codes, key=len)
    return struct.pack("<Q", len(shortest)) + shortest


class Reader:
    """Reads from the front of `data`, piece by piece.

    Raises:
        ValueError: The data ends too early, or a piece has another length than expected.
    """

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, size: int) -> bytes:
        found = self.data[self.position : self.position + size]
        if len(found) != size:
            raise ValueError("it ends too early")
        self.position += size
        return found

    def symbols(self, count: int) -> np.ndarray:
        """Read symbols[count] uint8 that `_coded` wrote."""
        (size,) = struct.unpack("<Q", self.take(8))
        code = self.take(size)
        found = np.frombuffer(code if size == count else zlib.decompress(code, -15), np.uint8)
        if len(found) != count:
            raise ValueError("it holds another number of values")
        return found

    def planes(self, count: int) -> np.ndarray:
        """Read words[count] that `_planes` wrote."""
        turned = np.empty((count, 4), np.uint8)
        for plane in turned.T:
            plane[:] = self.symbols(count)
        words = turned.reshape(-1).view(WORD)
        return (words >> np.uint32(1)) | (words << np.uint32(31))


def _decoded(reader: Reader, layout: int, count: int) -> np.ndarray:
    if layout < SPARSE:
        return _read_dense(reader, layout, count, np.ones(count, bool))
    used = np.unpackbits(reader.symbols((count + 7) // 8), count=count).astype(bool)
    words = np.zeros(count, WORD)
    words[used] = _read_dense(reader, layout - SPARSE, int(used.sum()), used)
    return words


def _read_dense(reader: Reader, layout: int, count: int, used: np.ndarray) -> np.ndarray:
    """Read words[count] that `_dense` wrote. used[N] says which of all words they are, and so how long each row is."""
    if layout == RAW:
        return np.frombuffer(reader.take(WORD.itemsize * count), WORD).copy()
    if layout == PLANES:
        return reader.planes(count)
    if layout != SHARED:
        raise ValueError(f"it has the unknown layout {layout}")
    (rows,) = struct.unpack("<I", reader.take(4))
    sizes = reader.symbols(2 * rows).view("<u2").astype(np.int64)
    palettes = reader.planes(int(sizes.sum()))
    different = int(sizes.max())
    places = _unpacked(reader.symbols(-(-count * _bits(different) // 8)), different, count)
    starts = np.repeat(np.cumsum(sizes) - sizes, used.reshape(rows, -1).sum(1))
    return palettes[places + starts]
