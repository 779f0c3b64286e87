"""Reading: whole files or none, no cell in any message, joins that lose no row."""

import traceback

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fabric.artifacts import digest
from fabric.errors import InvalidInput, Reason
from sanitize.reading import join_records, read_records

PLANTED = "078-05-1126"


def write(folder, content: bytes, name="people.csv"):
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_records(path, name="people")
    error = caught.value
    assert PLANTED not in "".join(traceback.format_exception(error))
    return error


def test_a_missing_file_is_answered_with_the_nearest(tmp_path):
    write(tmp_path, b"a\n1\n", "people.csv")
    error = refusal(tmp_path / "poeple.csv")
    assert error.reason is Reason.RECORDS_MISSING
    assert "did you mean 'people.csv'" in error.hint


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b\n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    assert refusal(write(tmp_path, content)).reason is Reason.RECORDS_EMPTY


@pytest.mark.parametrize(
    "content",
    [
        f"name,ssn\nada,{PLANTED}\nben".encode(),
        f"name,ssn\nada,{PLANTED}\nben\n".encode(),
        f"name,ssn\nada,{PLANTED}".encode(),
        f'name,ssn\nada,"{PLANTED}\nben,1\n'.encode(),
    ],
)
def test_a_csv_file_that_is_cut_off_is_refused(tmp_path, content):
    assert refusal(write(tmp_path, content)).reason is Reason.RECORDS_TRUNCATED


def test_the_row_that_lacks_cells_is_named(tmp_path):
    assert "row 3" in refusal(write(tmp_path, f"name,ssn\nada,1\n{PLANTED}\n".encode())).message


@pytest.mark.parametrize(
    "content",
    [
        f"name,ssn\nada,{PLANTED},more\n".encode(),
        f"name,ssn\nada,{PLANTED}\xff\n".encode("latin-1"),
        f"name,ssn\nada,{PLANTED}\0\n".encode(),
        b"name,name\nada,1\n",
    ],
)
def test_what_is_not_csv_is_refused(tmp_path, content):
    assert refusal(write(tmp_path, content)).reason is Reason.RECORDS_UNREADABLE


@pytest.mark.parametrize("header", ["078-05-1126", "17", "2020-01-01", "ada@example.org", "a\tb", "x" * 200, ""])
def test_a_header_that_is_really_a_row_is_refused_by_its_place(tmp_path, header):
    error = refusal(write(tmp_path, f'"a","{header}"\n1,2\n'.encode()))
    assert error.reason is Reason.RECORDS_UNREADABLE
    assert "column 2" in error.message


def test_an_unknown_suffix_is_refused(tmp_path):
    error = refusal(write(tmp_path, b"a\n1\n", "people.xls"))
    assert error.reason is Reason.RECORDS_UNREADABLE
    assert ".csv" in error.hint


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "people.csv").mkdir()
    assert refusal(tmp_path / "people.csv").reason is Reason.RECORDS_UNREADABLE


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_binary_file_without_its_footer_is_refused(tmp_path, suffix):
    whole = binary(tmp_path, suffix, pa.table({"ssn": [PLANTED] * 9}))
    path = write(tmp_path, whole.read_bytes()[:-7], f"cut{suffix}")
    assert refusal(path).reason is Reason.RECORDS_TRUNCATED


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_binary_file_of_another_kind_or_damaged_inside_is_refused(tmp_path, suffix):
    assert refusal(write(tmp_path, b"a,b\n1,2\n", f"x{suffix}")).reason is Reason.RECORDS_UNREADABLE
    content = bytearray(binary(tmp_path, suffix, pa.table({"ssn": [PLANTED] * 9})).read_bytes())
    content[-60:-8] = b"\xff" * 52
    assert refusal(write(tmp_path, bytes(content), f"x{suffix}")).reason is Reason.RECORDS_UNREADABLE


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_binary_file_is_read_without_dictionaries_or_metadata(tmp_path, suffix):
    table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()}).replace_schema_metadata({"k": PLANTED})
    read = read_records(binary(tmp_path, suffix, table), name="people").table
    assert read.schema.field("a").type == pa.string()
    assert not read.schema.metadata
    assert read.column("a").to_pylist() == ["x", "y", "x"]


def test_columns_are_typed_by_every_cell_and_zeros_in_front_are_kept(tmp_path):
    rows = ["zip,n,real,day,at,yes,mixed,empty"]
    rows += ["12345,7,1.5,2020-02-29,2020-01-01T10:00:00Z,true,1,"] * 3_000
    rows += ["02139,-8,2,2021-01-01,2020-01-01T10:00:00+02:00,false,N/A,"]
    table = read_records(write(tmp_path, ("\n".join(rows) + "\n").encode()), name="people").table
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "zip": "string",
        "n": "int64",
        "real": "double",
        "day": "date32[day]",
        "at": "timestamp[us, tz=UTC]",
        "yes": "bool",
        "mixed": "string",
        "empty": "string",
    }
    assert table.column("zip").to_pylist()[-1] == "02139"
    assert table.column("at").to_pylist()[-1].isoformat() == "2020-01-01T08:00:00+00:00"
    assert table.column("empty").null_count == table.num_rows


def test_a_day_that_does_not_exist_leaves_its_column_text(tmp_path):
    table = read_records(write(tmp_path, b"d\n2021-02-28\n2021-02-30\n"), name="people").table
    assert table.schema.field("d").type == pa.string()


def test_the_version_is_the_digest_of_the_bytes_and_the_order_key_is_not(tmp_path):
    content = b"a,b\n1,2\n"
    read = read_records(write(tmp_path, content), name="people")
    assert read.version == digest(content)
    assert read.order_key.hex() not in read.version
    assert read.order_key != read_records(write(tmp_path, content + b"1,3\n"), name="people").order_key


def test_raw_records_show_no_cell_when_printed(tmp_path):
    assert PLANTED not in repr(read_records(write(tmp_path, f"a,b\n1,{PLANTED}\n".encode()), name="people"))


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    right = read_records(write(tmp_path, b"k,v\n1,a\n1,b\n"), name="people")
    with pytest.raises(InvalidInput) as caught:
        join_records(pa.table({"k": [1]}), right, left_key="k", right_key="k")
    assert caught.value.reason is Reason.RECORDS_UNREADABLE


@pytest.mark.parametrize(("left", "right"), [("kk", "id"), ("k", "idd")])
def test_a_key_that_is_missing_is_answered_with_the_nearest(tmp_path, left, right):
    people = read_records(write(tmp_path, b"id,v\n1,a\n"), name="people")
    with pytest.raises(InvalidInput) as caught:
        join_records(pa.table({"k": [1]}), people, left_key=left, right_key=right)
    assert caught.value.reason is Reason.COLUMN_MISSING
    assert "did you mean" in caught.value.hint


def test_rows_without_a_match_stay_and_are_counted(tmp_path):
    right = read_records(write(tmp_path, b"id,v\n1,a\n2,b\n"), name="people")
    table, unmatched = join_records(pa.table({"k": ["2", None, "3", "1", "2"]}), right, left_key="k", right_key="id")
    assert table.column("people.v").to_pylist() == ["b", None, None, "a", "b"]
    assert unmatched == 2


def binary(folder, suffix, table):
    path = folder / f"whole{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    return path
