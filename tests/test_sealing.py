"""Sealing: planted values are searched for in the bytes; what is opened is exactly what is sealed."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import Reason, Refused, StatementInvalid
from sanitize.sealing import MAX_CHUNK_BYTES, open_chunk, seal

PLANTED = 219099999
MARKS = (
    PLANTED.to_bytes(8, "little"),
    np.float64(PLANTED).tobytes(),
    b"219099999",
    "219099999".encode("utf-16-le"),
)
KINDS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()]


def schema_of(table):
    return {field.name: str(field.type) for field in table.schema}


def assert_clean(table):
    sealed = b"".join(seal(table))
    assert not [mark for mark in MARKS if mark in sealed]
    assert (17).to_bytes(8, "little") in sealed or np.float64(17).tobytes() in sealed


def batch_bytes(batch, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


def malformed(data, schema):
    with pytest.raises(StatementInvalid) as caught:
        open_chunk(data, schema)
    assert caught.value.reason is Reason.MATRIX_MALFORMED


# --- what must not be in the bytes


def test_a_slice_leaves_its_parent_behind():
    assert_clean(pa.table({"a": [PLANTED, 17, PLANTED]}).slice(1, 1))


def test_a_null_leaves_the_value_under_it_behind():
    hidden = np.array([float(PLANTED), 17.0])
    under = pa.Array.from_buffers(pa.float64(), 2, [pa.py_buffer(b"\x02"), pa.py_buffer(hidden.tobytes())])
    assert under.to_pylist() == [None, 17.0]
    assert MARKS[1] in batch_bytes(pa.record_batch({"a": under}))
    assert_clean(pa.table({"a": under}))


def test_metadata_stays_behind():
    field = pa.field("a", pa.int64(), metadata={"note": "219099999"})
    assert_clean(pa.table({"a": [17]}, schema=pa.schema([field], metadata={"pandas": "219099999"})))
    frame = pd.DataFrame({"a": [17]}, index=pd.Index(["219099999"]))
    assert_clean(pa.Table.from_pandas(frame).select(["a"]))


def test_the_bits_of_a_nan_stay_behind():
    payload = np.array([0x7FF8_0000_0000_0000 | PLANTED], dtype=np.uint64).view(np.float64)
    assert np.isnan(payload[0])
    (one,), (other,) = seal(pa.table({"a": payload})), seal(pa.table({"a": [np.nan]}))
    assert one == other


def test_the_sign_of_zero_stays_behind():
    assert seal(pa.table({"a": [-0.0]})) == seal(pa.table({"a": [0.0]}))


def test_the_rest_of_a_buffer_stays_behind():
    longer = np.array([17, PLANTED], dtype=np.int64)
    assert_clean(pa.table({"a": pa.Array.from_buffers(pa.int64(), 1, [None, pa.py_buffer(longer.tobytes())])}))
    bits = pa.Array.from_buffers(pa.bool_(), 1, [None, pa.py_buffer(b"\xff")])
    assert seal(pa.table({"a": bits})) == seal(pa.table({"a": [True]}))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["219099999"]),
        pa.array(["219099999"]).dictionary_encode(),
        pa.array([PLANTED]).dictionary_encode(),
        pa.array([b"219099999"]),
        pa.array([[PLANTED]]),
        pa.array([{"a": PLANTED}]),
        pa.array([PLANTED], pa.uint64()),
        pa.array([PLANTED], pa.timestamp("us")),
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())),
        pa.nulls(1),
    ],
    ids=lambda column: str(column.type),
)
def test_only_plain_numbers_are_sealed(column):
    with pytest.raises(Refused) as caught:
        seal(pa.table({"a": column}))
    assert caught.value.reason is Reason.MATRIX_MALFORMED
    assert str(PLANTED) not in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": pa.array([1, None])}),
        pa.table({"a": pa.array([], pa.int64())}),
        pa.table({}),
        pa.table({"219099999": [1]}),
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
)
def test_a_table_that_is_no_matrix_is_not_sealed(table):
    with pytest.raises(Refused):
        seal(table)


# --- what comes back


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64, 1_000])
def test_what_was_sealed_opens_to_the_same_values(kind, rows):
    table = pa.table({"a": pa.array(np.arange(rows) % 2).cast(kind), "b": np.arange(rows) / 2})
    (chunk,) = seal(table)
    assert open_chunk(chunk, schema_of(table)).to_pydict() == table.to_pydict()


def test_rows_are_sealed_in_chunks_of_the_asked_size():
    table = pa.table({"a": np.arange(10)})
    chunks = seal(table, chunk_rows=4)
    opened = [open_chunk(chunk, schema_of(table)) for chunk in chunks]
    assert [batch.num_rows for batch in opened] == [4, 4, 2]
    assert pa.Table.from_batches(opened).column("a").to_pylist() == list(range(10))


def test_the_same_values_give_the_same_bytes_however_they_lie_in_memory():
    whole = pa.table({"a": [1.0, 2.0, 3.0]})
    pieces = pa.table({"a": pa.chunked_array([[9.0, 1.0], [2.0, 3.0]])}).slice(1)
    assert seal(whole) == seal(pieces)


def test_a_chunk_that_seal_did_not_write_is_refused():
    table = pa.table({"a": np.arange(64.0), "b": np.arange(64, dtype=np.int32)})
    (chunk,) = seal(table)
    schema = schema_of(table)
    (batch,) = table.to_batches()
    open_chunk(chunk, schema)
    with_metadata = batch.replace_schema_metadata({"note": "219099999"})
    nullable = pa.record_batch({"a": pa.array([None, *range(63)], pa.float64()), "b": batch.column("b")})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
        stream.write_batch(batch)
    for data in (
        b"",
        b"nonsense",
        chunk[:-1],
        chunk[:-8],
        chunk + b"\0",
        chunk + chunk,
        batch_bytes(batch),
        batch_bytes(with_metadata),
        batch_bytes(nullable),
        batch_bytes(batch, compression="zstd"),
        batch_bytes(batch, compression="lz4"),
        bytes(sink.getvalue()),
    ):
        malformed(data, schema)


def test_compressed_bytes_are_refused_before_they_are_unpacked(tmp_path):
    field = pa.field("a", pa.float64(), nullable=False)
    bomb = batch_bytes(pa.record_batch([np.zeros(4_000_000)], schema=pa.schema([field])), compression="zstd")
    (tmp_path / "bomb").write_bytes(bomb)
    # Arrow's peak cannot be reset, so the bytes are opened in a process that has allocated nothing yet.
    program = (
        "import sys, pathlib, pyarrow as pa; from sanitize.sealing import open_chunk\n"
        "try: open_chunk(pathlib.Path(sys.argv[1]).read_bytes(), {'a': 'double'})\n"
        "except Exception as error: print(error.reason, pa.default_memory_pool().max_memory())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "bomb")]
    reason, peak_bytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert reason == "MATRIX_MALFORMED"
    assert int(peak_bytes) < 1_000_000 < 8 * 4_000_000


@pytest.mark.parametrize(
    "schema",
    [
        {"b": "double", "a": "int32"},
        {"a": "int32", "b": "double", "c": "double"},
        {"a": "int32"},
        {"a": "int64", "b": "double"},
        {"a": "int32", "c": "double"},
        {"a": "string", "b": "double"},
        {"a": "float32", "b": "double"},
        {},
    ],
)
def test_a_chunk_of_another_schema_is_refused(schema):
    (chunk,) = seal(pa.table({"a": pa.array([1, 2], pa.int32()), "b": [1.0, 2.0]}))
    malformed(chunk, schema)


def test_a_chunk_that_is_too_large_is_refused():
    malformed(bytes(MAX_CHUNK_BYTES + 1), {"a": "double"})


def test_values_in_another_form_are_refused():
    (nan,) = seal(pa.table({"a": [np.nan, 1.0]}))
    plain, odd = np.float64(np.nan).tobytes(), bytes([1]) + np.float64(np.nan).tobytes()[1:]
    assert nan.count(plain) == 1
    malformed(nan.replace(plain, odd), {"a": "double"})
    (zero,) = seal(pa.table({"a": [123.5]}))
    malformed(zero.replace(np.float64(123.5).tobytes(), np.float64(-0.0).tobytes()), {"a": "double"})


def test_bytes_in_the_padding_are_refused():
    (chunk,) = seal(pa.table({"a": pa.array([7], pa.int8())}))
    place = chunk.rindex(b"\x07" + bytes(7))
    malformed(chunk[: place + 1] + b"\x01" + chunk[place + 2 :], {"a": "int8"})


@pytest.mark.parametrize("rows", [1, 7, 8, 9])
def test_spare_bits_of_truth_values_are_refused(rows):
    (chunk,) = seal(pa.table({"a": [True] * rows}))
    last = len(chunk) - 8 - 8 + (rows - 1) // 8  # the last byte with values, before the padding and Arrow's end
    for bit in range((rows - 1) % 8 + 1, 8):
        malformed(chunk[:last] + bytes([chunk[last] | 1 << bit]) + chunk[last + 1 :], {"a": "bool"})
    assert open_chunk(chunk, {"a": "bool"}).num_rows == rows


@pytest.mark.parametrize("bits", [0x8000_0000, 0x7FC0_0001, 0xFFC0_0000, 0x7F80_0001])
def test_small_floats_in_another_form_are_refused(bits):
    (chunk,) = seal(pa.table({"a": pa.array([123.5, 1.0], pa.float32())}))
    malformed(chunk.replace(np.float32(123.5).tobytes(), bits.to_bytes(4, "little")), {"a": "float"})


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 100), st.integers(1, 40))
def test_a_chunk_is_what_arrow_writes_of_live_values_to_the_byte(kind, rows, chunk_rows):
    table = pa.table({"a": pa.array(np.arange(rows) % 3 % 2).cast(kind), "b": np.arange(rows) / 2})
    fields = [pa.field(field.name, field.type, nullable=False) for field in table.schema]
    batches = table.cast(pa.schema(fields)).combine_chunks().to_batches()
    rebuilt = [pa.record_batch([pa.array(c.to_pylist(), c.type) for c in batch.columns], pa.schema(fields))
               for start in range(0, rows, chunk_rows) for batch in [batches[0].slice(start, chunk_rows)]]  # fmt: skip
    assert seal(table, chunk_rows=chunk_rows) == tuple(map(batch_bytes, rebuilt))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_byte_is_refused_or_is_another_sealed_matrix(data):
    table = pa.table({"a": [1.0, 2.0, np.nan], "b": pa.array([1, 2, 3], pa.int16()), "c": [True, False, True]})
    table = table.append_column("d", pa.array([0.0, 1.0, np.nan], pa.float32()))
    (chunk,) = seal(table)
    place = data.draw(st.integers(0, len(chunk) - 1))
    changed = chunk[:place] + bytes([data.draw(st.integers(0, 255))]) + chunk[place + 1 :]
    try:
        opened = open_chunk(changed, schema_of(table))
    except StatementInvalid:
        return
    assert seal(pa.Table.from_batches([opened])) == (changed,)


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_refused(content):
    malformed(content, {"a": "double"})
