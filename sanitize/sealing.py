"""Sealing: numbers as bytes that carry nothing else.

Arrow keeps what cannot be seen: a slice its parent's buffers, a null slot the value under it, a schema its metadata, a
NaN 51 bits. So every buffer is made anew from live values: no nulls, one NaN, no negative zero, no metadata, zero
padding. What is opened must be, byte for byte, what sealing the same values gives: the bytes around the values are
compared before Arrow parses any, so no foreign length, compression or metadata is ever followed, and the values and
their padding are looked at where they lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import Reason, Refused, StatementInvalid

MAX_CHUNK_BYTES = 64 * 1024 * 1024
_MAX_COLUMNS = 1_000
_END = 8  # bytes of Arrow's end-of-stream mark
_ALIGNED = 8  # bytes; Arrow pads every buffer to a multiple of it
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_KINDS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_())
_TYPES: Mapping[str, pa.DataType] = {str(kind): kind for kind in _KINDS}

Values = np.ndarray[Any, Any]


def seal(table: pa.Table, *, chunk_rows: int = 65_536) -> tuple[bytes, ...]:
    """Return `table` as Arrow IPC streams of one record batch each; the same values give the same bytes.

    Raises:
        Refused: `MATRIX_MALFORMED`: no rows, a column that is not numbers, a null among integers, a chunk too large.
    """
    names = table.column_names
    if not table.num_rows or not names or len(set(names)) != len(names):
        raise _unfit("it has no rows, no columns, or two columns of one name")
    for name in names:
        _check(name, table.column(name))
    schema = {name: str(table.column(name).type) for name in names}
    frames: dict[int, Frame] = {}
    chunks = []
    for start in range(0, table.num_rows, chunk_rows):
        # A chunk at a time: what is copied fits the processor's caches, and no second table is in memory.
        rows = table.slice(start, chunk_rows)
        frame = frames.setdefault(rows.num_rows, frames.get(rows.num_rows) or _frame(schema, rows.num_rows))
        if frame.size > MAX_CHUNK_BYTES:
            raise _unfit(f"a chunk has {frame.size:,} bytes, more than {MAX_CHUNK_BYTES:,}")
        chunks.append(_encode(frame, [_live(rows.column(name)) for name in names]))
    return tuple(chunks)


def open_chunk(data: bytes, schema: Mapping[str, str]) -> pa.RecordBatch:
    """Return the record batch in `data`, which may come from anywhere.

    Args:
        data: one chunk.
        schema: the type of each column that it must have, in order.

    Raises:
        StatementInvalid: `MATRIX_MALFORMED`, unless `data` is exactly what `seal` gives for such columns.
    """
    (batch,) = open_chunks([data], schema)
    return batch


def open_chunks(chunks: Iterable[bytes], schema: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Yield the record batch of each chunk, as `open_chunk` does; chunks of one size share what they are held against.

    Raises:
        StatementInvalid: `MATRIX_MALFORMED`, at the first chunk that `seal` did not write.
    """
    fitted: dict[int, Frame] = {}
    for data in chunks:
        # 1. The size, and a schema that is one of ours.
        if len(data) > MAX_CHUNK_BYTES:
            raise _malformed(f"it has {len(data):,} bytes, more than {MAX_CHUNK_BYTES:,}")
        if not 0 < len(schema) <= _MAX_COLUMNS or not all(_NAME.match(n) and k in _TYPES for n, k in schema.items()):
            raise _malformed("the columns stated for it are not columns of numbers")
        # 2. Everything around the values is ours.
        known = [fitted[len(data)]] if len(data) in fitted else []
        frame = next((one for one in (*known, *_frames(len(data), schema, known)) if one.holds(data)), None)
        if frame is None:
            raise _malformed("its schema, layout or length is not the stated one")
        fitted[len(data)] = frame
        # 3. The values are in their one form.
        if not _in_one_form(data, frame, [_TYPES[kind] for kind in schema.values()]):
            raise _malformed("it holds bytes that are no values")
        try:
            with pa.ipc.open_stream(pa.BufferReader(data)) as stream:
                batch = stream.read_next_batch()
            batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, StopIteration):
            raise _malformed("it cannot be read") from None
        yield batch


@dataclass(frozen=True, slots=True)
class Frame:
    """What lies around the values of a sealed chunk of some columns and number of rows: Arrow's own bytes."""

    head: bytes
    end: bytes
    rows: int
    body_bytes: int

    @property
    def size(self) -> int:
        """Return the bytes of the whole chunk."""
        return len(self.head) + self.body_bytes + len(self.end)

    def holds(self, data: bytes) -> bool:
        """Say whether `data` has exactly this around its values."""
        return len(data) == self.size and data.startswith(self.head) and data.endswith(self.end)


def _check(name: str, column: pa.ChunkedArray) -> None:
    if not _NAME.match(name):
        raise _unfit("a column's name is not a token of lower-case letters, digits and underscores")  # it may be data
    if str(column.type) not in _TYPES:
        raise _unfit(f"column {name!r} is {column.type}, not numbers")
    if column.null_count and not pa.types.is_floating(column.type):
        raise _unfit(f"column {name!r} has {column.null_count:,} nulls")


def _live(column: pa.ChunkedArray) -> Values:
    """Return the values of `column` in memory of their own: NaN for a null, one NaN, no negative zero."""
    values: Values = np.array(column.to_numpy(), dtype=column.type.to_pandas_dtype())
    if pa.types.is_floating(column.type):
        values[np.isnan(values)] = np.nan
        values += values.dtype.type(0)
    return values


def _encode(frame: Frame, columns: Sequence[Values]) -> bytes:
    parts: list[Any] = [frame.head]
    for values in columns:
        content = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else values
        parts += [content.data, bytes(-content.nbytes % _ALIGNED)]
    return b"".join([*parts, frame.end])


def _in_one_form(data: bytes, frame: Frame, kinds: Sequence[pa.DataType]) -> bool:
    """Say whether values and padding are as `seal` writes them, so that sealing them again gives `data`."""
    start = len(frame.head)
    for kind in kinds:
        size = -(-frame.rows * kind.bit_width // 8)
        end = start + size + -size % _ALIGNED
        if any(data[start + size : end]):
            return False
        if pa.types.is_boolean(kind) and frame.rows % 8 and data[start + size - 1] >> frame.rows % 8:
            return False
        if pa.types.is_floating(kind) and not _plain_floats(data, kind, frame.rows, start):
            return False
        start = end
    return start == len(frame.head) + frame.body_bytes


def _plain_floats(data: bytes, kind: pa.DataType, rows: int, start: int) -> bool:
    """Say whether there is no negative zero and no NaN but the one."""
    values: Values = np.frombuffer(data, kind.to_pandas_dtype(), rows, start)
    bits = values.view(np.uint64 if kind.bit_width == 64 else np.uint32)
    negative_zero, nan = (values.dtype.type(each).view(bits.dtype) for each in (-0.0, np.nan))
    return not (bits == negative_zero).any() and bool((bits[np.isnan(values)] == nan).all())


def _frames(size: int, schema: Mapping[str, str], known: Sequence[Frame]) -> Iterator[Frame]:
    """Yield the frame for each number of rows that makes a sealed chunk of `size` bytes, but those known."""
    kinds = [_TYPES[kind] for kind in schema.values()]
    one = _frame(schema, 1)
    body = size - (one.size - one.body_bytes)
    bits = sum(kind.bit_width for kind in kinds)
    most = max(body, 0) * 8 // bits
    fewest = max(1, (max(body, 0) - _ALIGNED * len(kinds)) * 8 // bits)
    for rows in range(fewest, most + 1):
        if _body_bytes(kinds, rows) == body and rows not in [frame.rows for frame in known]:
            yield _frame(schema, rows)


def _frame(schema: Mapping[str, str], rows: int) -> Frame:
    """Return what Arrow writes around `rows` rows of such columns."""
    kinds = [_TYPES[kind] for kind in schema.values()]
    arrays = [_zeros(kind, rows) for kind in kinds]
    fields = [pa.field(name, kind, nullable=False) for name, kind in zip(schema, kinds, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema(fields), options=pa.ipc.IpcWriteOptions(compression=None)) as stream:
        stream.write_batch(pa.record_batch(arrays, schema=pa.schema(fields)))
    written, body = sink.getvalue(), _body_bytes(kinds, rows)
    head = written.size - body - _END
    return Frame(written[:head].to_pybytes(), written[head + body :].to_pybytes(), rows, body)


def _zeros(kind: pa.DataType, rows: int) -> pa.Array:
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(bytes(-(-rows * kind.bit_width // 8)))])


def _body_bytes(kinds: Sequence[pa.DataType], rows: int) -> int:
    sizes = [-(-rows * kind.bit_width // 8) for kind in kinds]
    return sum(size + -size % _ALIGNED for size in sizes)


def _malformed(what: str) -> StatementInvalid:
    return StatementInvalid(Reason.MATRIX_MALFORMED, f"a chunk is malformed: {what}", "sanitize the records again")


def _unfit(what: str) -> Refused:
    return Refused(Reason.MATRIX_MALFORMED, f"the matrix cannot be sealed: {what}", "only numbers are sealed")
