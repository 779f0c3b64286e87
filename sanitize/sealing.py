"""Sealing: numbers as bytes that carry nothing else.

Arrow keeps what cannot be seen: a slice its parent's buffers, a null slot the value under it, a schema its metadata, a
NaN 51 bits. So every buffer is made anew from live values: no nulls, one NaN, no negative zero, no metadata, zero
padding. What is opened must be, byte for byte, what sealing the same values gives; the bytes around the values are
compared before Arrow parses any, so no foreign length, compression or metadata is ever followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import Reason, Refused, StatementInvalid

MAX_CHUNK_BYTES = 64 * 1024 * 1024
_MAX_COLUMNS = 1_000
_END = 8  # bytes of Arrow's end-of-stream mark
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
    columns = {name: _live(name, table.column(name)) for name in names}
    chunks = []
    for start in range(0, table.num_rows, chunk_rows):
        chunk = _encode({name: values[start : start + chunk_rows] for name, values in columns.items()})
        if len(chunk) > MAX_CHUNK_BYTES:
            raise _unfit(f"a chunk has {len(chunk):,} bytes, more than {MAX_CHUNK_BYTES:,}")
        chunks.append(chunk)
    return tuple(chunks)


def open_chunk(data: bytes, schema: Mapping[str, str]) -> pa.RecordBatch:
    """Return the record batch in `data`, which may come from anywhere.

    Args:
        data: one chunk.
        schema: the type of each column that it must have, in order.

    Raises:
        StatementInvalid: `MATRIX_MALFORMED`, unless `data` is exactly what `seal` gives for such columns.
    """
    # 1. The size, and a schema that is one of ours.
    if len(data) > MAX_CHUNK_BYTES:
        raise _malformed(f"it has {len(data):,} bytes, more than {MAX_CHUNK_BYTES:,}")
    if not 0 < len(schema) <= _MAX_COLUMNS or not all(_NAME.match(n) and k in _TYPES for n, k in schema.items()):
        raise _malformed("the columns stated for it are not columns of numbers")
    # 2. Everything around the values is ours.
    if not any(_framed_alike(data, *template) for template in _templates(len(data), schema)):
        raise _malformed("its schema, layout or length is not the stated one")
    # 3. The values are in their one form.
    try:
        with pa.ipc.open_stream(pa.BufferReader(data)) as stream:
            batch = stream.read_next_batch()
        batch.validate(full=True)
        again = _encode({name: _live(name, pa.chunked_array([batch.column(name)])) for name in schema})
    except (pa.ArrowException, OSError, ValueError, StopIteration, Refused):
        raise _malformed("it cannot be read") from None
    if again != data:
        raise _malformed("it holds bytes that are no values")
    return batch


def _live(name: str, column: pa.ChunkedArray) -> Values:
    """Return the values of `column` in memory of their own: NaN for a null, one NaN, no negative zero."""
    if not _NAME.match(name):
        raise _unfit("a column's name is not a token of lower-case letters, digits and underscores")  # it may be data
    if str(column.type) not in _TYPES:
        raise _unfit(f"column {name!r} is {column.type}, not numbers")
    real = pa.types.is_floating(column.type)
    if column.null_count and not real:
        raise _unfit(f"column {name!r} has {column.null_count:,} nulls")
    values: Values = np.array(column.to_numpy(), dtype=column.type.to_pandas_dtype())
    if real:
        values[np.isnan(values)] = np.nan
        values += values.dtype.type(0)
    return values


def _encode(columns: Mapping[str, Values]) -> bytes:
    arrays = [_array(values) for values in columns.values()]
    schema = pa.schema([pa.field(n, a.type, nullable=False) for n, a in zip(columns, arrays, strict=True)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=None)) as stream:
        stream.write_batch(pa.record_batch(arrays, schema=schema))
    return bytes(sink.getvalue())


def _array(values: Values) -> pa.Array:
    if values.dtype == np.bool_:
        bits = pa.py_buffer(np.packbits(values, bitorder="little").tobytes())
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values.tobytes())])


def _templates(size: int, schema: Mapping[str, str]) -> Iterator[tuple[bytes, int]]:
    """Yield a sealed chunk of zeros and the size of its body, for each number of rows that makes `size` bytes."""
    kinds = [_TYPES[kind] for kind in schema.values()]
    body = size - (len(_zeros(schema, 1)) - _body_bytes(kinds, 1))
    bits = sum(kind.bit_width for kind in kinds)
    most = max(body, 0) * 8 // bits
    fewest = max(1, (max(body, 0) - 8 * len(kinds)) * 8 // bits)
    for rows in range(fewest, most + 1):
        if _body_bytes(kinds, rows) == body:
            yield _zeros(schema, rows), body


def _body_bytes(kinds: list[pa.DataType], rows: int) -> int:
    return sum((-(-rows * kind.bit_width // 8) + 7) // 8 * 8 for kind in kinds)


def _zeros(schema: Mapping[str, str], rows: int) -> bytes:
    return _encode({name: np.zeros(rows, _TYPES[kind].to_pandas_dtype()) for name, kind in schema.items()})


def _framed_alike(data: bytes, template: bytes, body: int) -> bool:
    """Say whether `data` is `template` but for its body."""
    head = len(template) - body - _END
    return len(data) == len(template) and data[:head] == template[:head] and data[-_END:] == template[-_END:]


def _malformed(what: str) -> StatementInvalid:
    return StatementInvalid(Reason.MATRIX_MALFORMED, f"a chunk is malformed: {what}", "sanitize the records again")


def _unfit(what: str) -> Refused:
    return Refused(Reason.MATRIX_MALFORMED, f"the matrix cannot be sealed: {what}", "only numbers are sealed")
