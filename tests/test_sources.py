"""Sources: files read in blocks give what they hold, or nothing."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fabric.errors import InvalidInput, Reason
from sanitize import sources
from sanitize.reading import RawTable, TableSource, read_records, read_whole
from sanitize.sources import open_source

ROWS = 1_000
TABLE = pa.table({"a": np.arange(ROWS), "b": [f"t{n % 7}" for n in range(ROWS)], "c": np.arange(ROWS) / 4})


@pytest.fixture
def written(tmp_path):
    def write(kind, *, group=100):
        path = tmp_path / f"people.{kind}"
        if kind == "parquet":
            pq.write_table(TABLE, path, row_group_size=group)
        elif kind == "arrow":
            with pa.ipc.new_file(path, TABLE.schema) as writer:
                writer.write_table(TABLE, max_chunksize=group)
        else:
            rows = zip(*(TABLE.column(name).to_pylist() for name in TABLE.column_names), strict=True)
            path.write_text("a,b,c\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
        return path

    return write


def refused(path, stage, unit=0):
    with pytest.raises(InvalidInput) as caught:
        list(open_source(path, name="people", stage=stage).read(unit, ["a"]))
    return caught.value


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_a_file_that_changed_since_it_was_opened_is_refused(written, tmp_path, kind):
    path = written(kind)
    source = open_source(path, name="people", stage=tmp_path)
    os.utime(source.path, ns=(1, 1))
    with pytest.raises(InvalidInput) as caught:
        list(source.read(0, ["a"]))
    assert caught.value.reason is Reason.RECORDS_UNREADABLE
    assert "changed" in caught.value.message


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_damaged_in_the_middle_is_refused_without_its_bytes(written, tmp_path, kind):
    path = written(kind)
    content = bytearray(path.read_bytes())
    content[64:400] = b"\xff" * 336
    path.write_bytes(content)
    error = refused(path, tmp_path)
    assert error.reason is Reason.RECORDS_UNREADABLE
    assert "xff" not in str(error)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
@pytest.mark.parametrize(("unit", "block"), [(1, 1), (150, 64), (10_000, 10_000)])
def test_blocks_of_any_size_hold_the_same_rows(monkeypatch, written, tmp_path, kind, unit, block):
    monkeypatch.setattr(sources, "UNIT_ROWS", unit)
    monkeypatch.setattr(sources, "BLOCK_ROWS", block)
    source = open_source(written(kind), name="people", stage=tmp_path)
    blocks = [b for index in range(len(source.units)) for b in source.read(index, ["c", "a", "b"])]
    assert max(b.num_rows for b in blocks) <= block
    assert sum(source.units) == ROWS
    assert pa.concat_tables(blocks).to_pydict() == TABLE.select(["c", "a", "b"]).to_pydict()


def test_a_row_group_is_never_split_and_small_ones_are_read_together(monkeypatch, written, tmp_path):
    monkeypatch.setattr(sources, "UNIT_ROWS", 250)
    assert open_source(written("parquet"), name="p", stage=tmp_path).units == (200,) * 5
    assert open_source(written("parquet", group=400), name="p", stage=tmp_path).units == (400, 400, 200)


def test_a_csv_column_is_typed_by_its_last_block_too(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_READ", 4_096)
    path = tmp_path / "people.csv"
    path.write_text("zip,day,n\n" + "12345,2020-01-01,1\n" * 5_000 + "02139,2020-02-30,\n")
    source = open_source(path, name="people", stage=tmp_path)
    assert len(list(source.read(0, ["zip"]))) >= 1
    table = read_whole(source).table
    assert [str(field.type) for field in table.schema] == ["string", "string", "int64"]
    assert table.column("n").null_count == 1


def test_a_staged_csv_is_not_written_again(written, tmp_path):
    path = written("csv")
    first = open_source(path, name="people", stage=tmp_path)
    again = open_source(path, name="people", stage=tmp_path)
    assert first.identity == again.identity
    assert read_whole(again).table.equals(read_records(path, name="people").table)


def test_what_is_staged_is_for_its_owner_alone(written, tmp_path):
    source = open_source(written("csv"), name="people", stage=tmp_path)
    assert source.path.stat().st_mode & 0o077 == 0


def test_a_table_in_memory_is_a_source_too():
    source = TableSource(RawTable(name="p", table=TABLE, version="v", order_key=b"k"), unit_rows=300, block_rows=70)
    assert source.units == (300, 300, 300, 100)
    assert read_whole(source).table.to_pydict() == TABLE.to_pydict()
