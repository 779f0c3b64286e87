"""Sealing: a treated table rebuilt from its live values and written as bytes that carry nothing else.

Arrow keeps what cannot be seen: a slice its parent's buffers, a null slot the value under it, a schema its metadata.
So every buffer is made anew: no nulls, one NaN, no negative zero, no metadata, no type but plain numbers, zero padding.
`open_chunk` is the other half, for bytes that nobody has vouched for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import Reason, StatementInvalid

CHUNK_ROWS = 65_536
MAX_CHUNK_BYTES = 256 * 1024 * 1024
TYPES = {
    str(kind): kind
    for kind in (
        pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.float32(),
        pa.float64(),
    )
}  # fmt: skip


def seal(table: pa.Table, *, chunk_rows: int = CHUNK_ROWS) -> tuple[bytes, ...]:
    """Return the table as chunks, each an Arrow IPC stream of one record batch; the same values give the same bytes.

    Raises:
        StatementInvalid: `MATRIX_MALFORMED` if a column is not of plain numbers, or holds a null.
    """
    columns = {name: _rebuilt(name, table.column(name)) for name in table.column_names}
    return tuple(_chunk(columns, start, start + chunk_rows) for start in range(0, max(1, table.num_rows), chunk_rows))


def open_chunk(data: bytes, schema: Mapping[str, str]) -> pa.RecordBatch:
    """Open a chunk of exactly the columns and types in `schema`.

    Raises:
        StatementInvalid: `MATRIX_MALFORMED`: anything in it is not as `seal` would have written it.
    """
    if len(data) > MAX_CHUNK_BYTES:
        raise _malformed(f"a chunk is larger than {MAX_CHUNK_BYTES} bytes")
    try:
        reader = pa.ipc.open_stream(pa.BufferReader(data))
        found = {field.name: str(field.type) for field in reader.schema}
        if len(reader.schema) != len(found) or list(found.items()) != list(schema.items()):
            raise _malformed("its columns are not those of the statement")
        batch = reader.read_next_batch()
        batch.validate(full=True)
        columns = {name: _rebuilt(name, pa.chunked_array([batch.column(name)])) for name in found}
    except (pa.ArrowException, StopIteration, OSError):
        raise _malformed("it is not an Arrow IPC stream") from None
    # What `seal` would have written, to the byte: so there is no room for anything else, in padding or behind the end.
    if _chunk(columns, 0, batch.num_rows) != data:
        raise _malformed("it carries more than its values")
    return batch


def _chunk(columns: Mapping[str, np.ndarray[Any, Any]], start: int, stop: int) -> bytes:
    batch = pa.record_batch({name: pa.array(values[start:stop].copy()) for name, values in columns.items()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _rebuilt(name: str, column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    if str(column.type) not in TYPES:
        raise _malformed(f"column {name!r} is of type {column.type}, not a plain number")
    if column.null_count:
        raise _malformed(f"column {name!r} holds {column.null_count} nulls")
    values: np.ndarray[Any, Any] = column.to_numpy().copy()
    if pa.types.is_floating(column.type):
        values[np.isnan(values)] = np.nan
        values += 0.0  # negative zero becomes zero
    return values


def _malformed(why: str) -> StatementInvalid:
    return StatementInvalid(
        Reason.MATRIX_MALFORMED,
        f"the matrix cannot be used: {why}",
        "sanitize the records again; use the chunks it gave",
    )
