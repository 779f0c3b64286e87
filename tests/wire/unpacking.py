"""Finds what is packed in bytes, by its magic, and opens it: gzip, zlib, zip, zstd, lz4, bz2, xz, Parquet.

Arrow IPC needs no opener of its own: plain, its buffers hold values as they are; compressed, each of its buffers is a
zstd or lz4 frame. Whatever does not open is not a package; a magic of four bytes lies about by chance.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import hyperscan
import pyarrow as pa
import pyarrow.parquet as pq

MAX_UNPACKED = 256 * 1024 * 1024
"""Bytes that one package may unfold into; more of it is not looked at."""

_STEP = 1 << 10
"""Small, because what a piece held is lost with it when the package turns out to be damaged in it."""

_MAGICS: dict[bytes, str] = {
    rb"\x1f\x8b\x08": "gzip",
    rb"PK\x03\x04": "zip",
    rb"BZh[1-9]1AY&SY": "bz2",
    rb"\xfd7zXZ\x00": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"\x04\x22\x4d\x18": "lz4",
    rb"x[\x01\x5e\x9c\xda]": "zlib",
    rb"PAR1": "parquet",
}


def packages(content: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield the kind, the place and the unpacked bytes of everything in `content` that opens."""
    marks: list[tuple[int, str]] = []
    kinds = list(_MAGICS.values())
    _DATABASE.scan(content, match_event_handler=lambda index, start, end, flags, _: marks.append((start, kinds[index])))
    for start, kind in marks:
        if kind in _OPENERS and (opened := _OPENERS[kind](content, start)):
            yield kind, start, opened
    for start, table in _parquet(content, [start for start, kind in marks if kind == "parquet"]):
        yield "parquet", start, table


def _pour(decompressor: object, content: bytes, start: int) -> bytes:
    """Return what comes out of a decompressor until it ends or fails."""
    out = bytearray()
    for at in range(start, len(content), _STEP):
        try:
            out += decompressor.decompress(content[at : at + _STEP])  # type: ignore[attr-defined]
        except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError):
            break
        if decompressor.eof or len(out) > MAX_UNPACKED:  # type: ignore[attr-defined]
            break
    return bytes(out)


def _gzip(content: bytes, start: int) -> bytes:
    return _pour(zlib.decompressobj(31), content, start)


def _zlib(content: bytes, start: int) -> bytes:
    # Two bytes are too few to believe: the first block of a stream must make sense too.
    try:
        if not zlib.decompressobj().decompress(content[start : start + 512]):
            return b""
    except zlib.error:
        return b""
    return _pour(zlib.decompressobj(15), content, start)


def _zip(content: bytes, start: int) -> bytes:
    if start + 30 > len(content):
        return b""
    method, name, extra = struct.unpack_from("<8xH16xHH", content, start)
    return _pour(zlib.decompressobj(-15), content, start + 30 + name + extra) if method == 8 else b""


def _bz2(content: bytes, start: int) -> bytes:
    return _pour(bz2.BZ2Decompressor(), content, start)


def _xz(content: bytes, start: int) -> bytes:
    return _pour(lzma.LZMADecompressor(lzma.FORMAT_XZ), content, start)


def _lz4(content: bytes, start: int) -> bytes:
    return _framed("lz4", content, start, _lz4_end(content, start))


def _zstd(content: bytes, start: int) -> bytes:
    return _framed("zstd", content, start, _zstd_end(content, start))


def _framed(codec: str, content: bytes, start: int, end: int) -> bytes:
    out = bytearray()
    if end <= start:
        return b""
    try:
        with pa.CompressedInputStream(pa.BufferReader(content[start:end]), codec) as stream:
            while len(out) <= MAX_UNPACKED and (piece := stream.read(1 << 16)):
                out += piece
    except (OSError, pa.ArrowException):
        pass
    return bytes(out)


def _lz4_end(content: bytes, start: int) -> int:
    """Walk the blocks of an LZ4 frame (lz4_Frame_format.md) and return where it ends; what is cut off ends there."""
    at = start + 4
    if at + 3 > len(content) or content[at] >> 6 != 1:
        return start
    flags = content[at]
    at += 2 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0) + 1
    while at + 4 <= len(content):
        (size,) = struct.unpack_from("<I", content, at)
        at += 4
        if size == 0:
            return at + (4 if flags & 4 else 0)
        if size & 0x7FFFFFFF > 4 << 20:
            return start
        at += (size & 0x7FFFFFFF) + (4 if flags & 16 else 0)
    return len(content)


def _zstd_end(content: bytes, start: int) -> int:
    """Walk the blocks of a zstd frame (RFC 8878, 3.1.1) and return where it ends; what is cut off ends there."""
    at = start + 4
    if at >= len(content) or content[at] & 8:
        return start
    head = content[at]
    single = head >> 5 & 1
    at += 1 + (0 if single else 1) + (0, 1, 2, 4)[head & 3] + ((1 if single else 0), 2, 4, 8)[head >> 6]
    while at + 3 <= len(content):
        block = int.from_bytes(content[at : at + 3], "little")
        kind, size = block >> 1 & 3, block >> 3
        if kind == 3 or (size > 1 << 17 and kind != 1):
            return start
        at += 3 + (1 if kind == 1 else size)
        if block & 1:
            return at + (4 if head & 4 else 0)
    return len(content)


def _parquet(content: bytes, marks: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Yield every whole Parquet file between two of `marks`, as an uncompressed Arrow stream of its columns."""
    for index, end in enumerate(marks):
        (footer,) = struct.unpack_from("<I", content, end - 4) if end >= 12 else (0,)
        if not 0 < footer <= end - 8:
            continue
        for start in reversed(marks[max(0, index - 8) : index]):
            if start + 4 + footer + 4 > end:
                continue
            try:
                table = pq.read_table(pa.BufferReader(content[start : end + 4]))
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
            except (OSError, ValueError, NotImplementedError, pa.ArrowException):
                continue
            yield start, sink.getvalue().to_pybytes()
            break


def _compiled() -> hyperscan.Database:
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    flags = hyperscan.HS_FLAG_SOM_LEFTMOST | hyperscan.HS_FLAG_DOTALL
    database.compile(expressions=list(_MAGICS), ids=list(range(len(_MAGICS))), elements=len(_MAGICS), flags=flags)
    return database


_DATABASE = _compiled()
_OPENERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gzip,
    "zip": _zip,
    "bz2": _bz2,
    "xz": _xz,
    "zstd": _zstd,
    "lz4": _lz4,
    "zlib": _zlib,
}
