"""The search of the wire harness: planted values are found however they are written or packed, near misses are not."""

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import urllib.parse
import zipfile
import zlib
from datetime import date
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

pytest.importorskip("hyperscan", reason="the search needs hyperscan (extra `test`)")
from wire.capture import flows, messages, streams
from wire.planted import KINDS, ROWS, Planted
from wire.search import Search

PLANTED = Planted.draw(Random(11))
SEARCH = Search.for_columns({name: PLANTED.column(name) for name in KINDS}, KINDS)
NOISE = Random(5).randbytes(3000)
DATES = [date.fromisoformat(text) for text in PLANTED.column("birth_date")]
DIGITS = [text.replace("-", "") for text in PLANTED.column("national_id")]
FRAME = pd.DataFrame(PLANTED.rows).assign(
    income=lambda f: f["income"].astype("int64"),
    cost=lambda f: f["cost"].astype("float64"),
    birth_date=pd.to_datetime(DATES),
)
ALL = set(KINDS)


def found(content: bytes) -> set[str]:
    return SEARCH.content(NOISE + content + NOISE, "here").columns()


def first(column: str) -> str:
    return PLANTED.rows[0][column]


TEXT = {
    "utf-8": lambda t: t.encode(),
    "utf-16 little": lambda t: t.encode("utf-16-le"),
    "utf-16 big": lambda t: t.encode("utf-16-be"),
    "utf-32, as numpy keeps it": lambda t: np.array([t]).tobytes(),
    "lower case": lambda t: t.lower().encode(),
    "upper case": lambda t: t.upper().encode(),
    "latin-1": lambda t: t.encode("latin-1"),
    "base64": lambda t: base64.b64encode(t.encode()),
    "base64, one byte on": lambda t: base64.b64encode(b"?" + t.encode() + b"?"),
    "base64, two bytes on": lambda t: base64.b64encode(b"??" + t.encode() + b"?"),
    "base64, url-safe": lambda t: base64.urlsafe_b64encode(b"\xff" + t.encode()),
    "base64 of utf-16": lambda t: base64.b64encode(b"?" + t.encode("utf-16-le")),
    "hexadecimal": lambda t: t.encode().hex().encode(),
    "hexadecimal, upper": lambda t: t.encode().hex().upper().encode(),
    "url": lambda t: urllib.parse.quote(t, safe="").encode(),
    "grpc status": lambda t: (
        t.encode()
        .replace(b"\xc3\xa9", b"%C3%A9")
        .replace(b"\xc2", b"%C2")
        .replace(b"\xab", b"%AB")
        .replace(b"\xbb", b"%BB")
    ),
    "form": lambda t: urllib.parse.urlencode({"q": t}).encode(),
    "json": lambda t: json.dumps({"a": [t]}).encode(),
    "json, not escaped": lambda t: json.dumps({"a": [t]}, ensure_ascii=False).encode(),
    "repr": lambda t: repr(t.encode()).encode(),
    "pickle 0": lambda t: pickle.dumps([t], protocol=0),
    "pickle 2": lambda t: pickle.dumps([t], protocol=2),
    "pickle 5": lambda t: pickle.dumps({"x": (t,)}, protocol=5),
}


@pytest.mark.parametrize("column", ["name", "email", "national_id", "phone", "notes"])
@pytest.mark.parametrize("way", TEXT)
def test_a_text_is_found_in_each_way_of_writing_it(way, column):
    assert column in found(TEXT[way](first(column)))


NUMBER = {
    "int64 little": lambda n: struct.pack("<q", int(n)),
    "int64 big": lambda n: struct.pack(">q", int(n)),
    "float64 little": lambda n: struct.pack("<d", float(n)),
    "float64 big": lambda n: struct.pack(">d", float(n)),
    "pickled float": lambda n: pickle.dumps(float(n)),
    "text": lambda n: str(n).encode(),
    "base64 of float64": lambda n: base64.b64encode(b"?" + struct.pack("<d", float(n)) + b"?"),
    "hex of int64": lambda n: struct.pack("<q", int(n)).hex().encode(),
}


@pytest.mark.parametrize("way", NUMBER)
def test_a_number_is_found_alone_in_eight_bytes_and_as_text(way):
    assert "income" in found(NUMBER[way](int(first("income"))))


def test_an_amount_is_found_as_float_and_in_hundredths():
    cost = float(first("cost"))
    assert "cost" in found(struct.pack("<d", cost))
    assert "cost" in found(np.array([round(float(c) * 100) for c in PLANTED.column("cost")]).tobytes())
    assert "cost" in found(first("cost").encode())


@pytest.mark.parametrize("code", ["<i4", ">i4", "<f4", ">f4"])
def test_a_column_of_narrow_numbers_is_found_in_any_order(code):
    column = np.array([float(digits) for digits in DIGITS]).astype(code)
    filler = np.arange(200).astype(code)
    for order in (
        column,
        column[::-1],
        np.insert(column, range(ROWS), 7),
        np.concatenate([column[:4], filler, column[4:]]),
    ):
        assert "national_id" in found(order.tobytes())


def test_a_narrow_number_alone_is_chance_and_not_a_hit():
    assert found(struct.pack("<i", int(DIGITS[0]))) == set()
    assert found(struct.pack("<i", int(DIGITS[0])) * 100) == set()


@pytest.mark.parametrize("code", ["<q", ">q", "<d", ">d"])
def test_a_small_number_in_eight_bytes_is_found_as_a_column_and_alone_is_chance(code):
    """Dates as YYYYMMDD lay about by chance in the memory of one process in a hundred."""
    days = [struct.pack(code, int(day.strftime("%Y%m%d"))) for day in DATES]
    assert found(days[0]) == set()
    assert found(days[0] * 100) == set()
    assert found(b"".join(days)) == {"birth_date"}


WHEN = {
    "iso": lambda d: d.isoformat().encode(),
    "german": lambda d: d.strftime("%d.%m.%Y").encode(),
    "compact": lambda d: d.strftime("%Y%m%d").encode(),
    "utf-16": lambda d: d.isoformat().encode("utf-16-le"),
    "microseconds": lambda d: np.datetime64(d, "us").tobytes(),
    "nanoseconds": lambda d: np.datetime64(d, "ns").tobytes(),
    "milliseconds": lambda d: np.datetime64(d, "ms").tobytes(),
}


@pytest.mark.parametrize("way", WHEN)
def test_a_date_is_found_in_each_way_of_writing_it(way):
    assert "birth_date" in found(WHEN[way](DATES[0]))


def test_dates_as_days_since_1970_are_found_as_a_column():
    assert "birth_date" in found(pa.array(DATES).buffers()[1].to_pybytes())
    assert "birth_date" in found(np.array(DATES, dtype="datetime64[D]").tobytes())
    assert "birth_date" in found(b"".join(pickle.dumps(day) for day in DATES))


def arrow(codec: str | None) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pandas(FRAME)
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet(codec: str, **options) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(FRAME), file, compression=codec, **options)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", content)
    return file.getvalue()


CSV = FRAME.to_csv().encode()
TABLES = {
    "csv": CSV,
    "arrow": arrow(None),
    "arrow lz4": arrow("lz4"),
    "arrow zstd": arrow("zstd"),
    **{f"parquet {codec}": parquet(codec) for codec in ("none", "snappy", "gzip", "zstd", "lz4", "brotli")},
    "parquet, delta encoded": parquet("zstd", use_dictionary=False, column_encoding={"income": "DELTA_BINARY_PACKED"}),
    "pickle of a frame": pickle.dumps(FRAME, protocol=5),
    "pickle of rows": pickle.dumps(FRAME.to_dict("records")),
    "pickle of numpy": pickle.dumps({c: FRAME[c].to_numpy() for c in FRAME}),
    "gzip": gzip.compress(CSV),
    "zlib": zlib.compress(CSV),
    "bz2": bz2.compress(CSV),
    "xz": lzma.compress(CSV),
    "zip": zipped(CSV),
    "gzip of zip of parquet": gzip.compress(zipped(parquet("snappy"))),
}


@pytest.mark.parametrize("way", TABLES)
def test_every_column_of_a_table_is_found_however_it_is_packed(way):
    assert found(TABLES[way]) >= ALL


def test_a_stream_that_was_cut_off_is_searched_as_far_as_it_goes():
    packed = gzip.compress(CSV * 50 + NOISE * 10)
    assert found(packed[: len(packed) // 2]) >= ALL


def test_packages_are_opened_as_deep_as_the_limit_and_no_deeper():
    packed = gzip.compress(bytes(5000) + zipped(CSV))
    assert SEARCH.content(packed, "here", depth=2).columns() == ALL
    assert SEARCH.content(packed, "here", depth=1).hits == set()


def near_misses() -> dict[str, bytes]:
    name, number, day = first("name"), int(first("income")), DATES[0]
    return {
        "noise": Random(9).randbytes(1 << 22),
        "zeros": bytes(1 << 20),
        "numbers in a row": np.arange(-30_000, 300_000, dtype="int32").tobytes(),
        "numbers in a row, wide": np.arange(-30_000, 300_000, dtype="int64").tobytes(),
        "another name": (name[:-2] + "xx").encode() * 10,
        "half of it": name[: len(name) // 2].encode(),
        "one more": struct.pack("<qd", number + 1, float(number + 1)),
        "the day after": struct.pack("<q", np.datetime64(day, "us").astype(int) + 86_400_000_000),
        "what the recipe makes of it": struct.pack("<d", round(number / 5000) * 5000.0),
        "its digits in another order": b"".join(cell[::-1][3:].encode() for cell in PLANTED.column("national_id")),
        "magic without a package": b"PK\x03\x04\x1f\x8b\x08\x28\xb5\x2f\xfd\x04\x22\x4d\x18PAR1x\x9cPAR1" * 1000,
    }


@pytest.mark.parametrize("way", near_misses())
def test_a_near_miss_is_not_a_hit(way):
    assert SEARCH.content(near_misses()[way], "here").hits == set()


def test_a_value_over_the_edge_of_two_pieces_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("wire.search._PIECE", 4096)
    monkeypatch.setattr("wire.search._OVERLAP", 1024)
    for place in (4090, 8189, 4096, 4095):
        (tmp_path / "big").write_bytes(b"." * place + first("notes").encode() + b"." * 5000)
        assert SEARCH.file(tmp_path / "big").columns() == {"notes"}


def test_a_folder_is_searched_with_its_names_and_links(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "log").write_bytes(arrow("zstd"))
    (tmp_path / first("email")).touch()
    (tmp_path / "empty").touch()
    os.setxattr(tmp_path / "empty", "user.kept", first("national_id").encode("utf-16-le"))
    (tmp_path / "link").symlink_to(f"/nowhere/{first('phone')}")
    seen = SEARCH.folder(tmp_path)
    assert {hit.place for hit in seen.hits if hit.column == "email"} >= {f"name of {tmp_path}/…"}
    assert {hit.encoding for hit in seen.hits if hit.place == f"attribute of {tmp_path / 'empty'}"} == {"utf-16-le"}
    assert seen.columns() == ALL
    assert seen.unread == []


HOLDER = """
import mmap, os, sys, tempfile, threading, time
value = sys.stdin.buffer.readline().strip()
shared = mmap.mmap(-1, 1 << 20); shared[500:500 + len(value)] = value; kept = b""
if sys.argv[1] == "spool":
    spool = tempfile.TemporaryFile(); spool.write(value); spool.flush()
if sys.argv[1] == "memfd":
    sealed = os.memfd_create("sealed"); os.write(sealed, value)
if sys.argv[1] == "thread":
    threading.Thread(target=sys.stdin.read, daemon=True).start()
    (thread,) = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    open(f"/proc/self/task/{thread}/comm", "wb").write(value)
if sys.argv[1] != "memory":
    shared[:] = bytes(1 << 20); del value
print("ready", flush=True); time.sleep(600)
"""


@pytest.mark.skipif(os.geteuid() != 0 and sys.platform == "linux", reason="reading another's memory needs root")
@pytest.mark.parametrize("where", ["memory", "spool", "memfd", "thread", "environ", "cmdline"])
def test_a_process_is_searched_in_memory_open_files_environment_and_command_line(where):
    column = "national_id" if where == "thread" else "notes"  # a thread's name has 15 bytes
    value = first(column)
    env = {**os.environ, **({"SECRET": value} if where == "environ" else {})}
    command = [sys.executable, "-c", HOLDER, where, *([value] if where == "cmdline" else [])]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdin.write((value if where in ("memory", "spool", "memfd", "thread") else "nothing").encode() + b"\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"ready\n"
        seen = SEARCH.process(holder.pid)
        holder.kill()
    assert seen.columns() == {column}
    places = {hit.place for hit in seen.hits}
    wanted = {"memory": "memory of", "spool": "/fd/", "memfd": "/fd/", "thread": "/task/"}.get(where, f"/{where}")
    assert any(wanted in place for place in places), places


def test_an_innocent_process_has_no_hits_and_something_to_read():
    command = [sys.executable, "-c", "print('ready', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as innocent:
        assert innocent.stdout.readline() == b"ready\n"
        seen = SEARCH.process(innocent.pid)
        innocent.communicate(b"\n")
    assert seen.hits == set()
    assert seen.searched_bytes > 1 << 20


def test_what_cannot_be_read_is_named(tmp_path):
    assert SEARCH.file(tmp_path / "absent").unread
    assert SEARCH.process(2**22 + 1).unread


# The capture: frames made by hand, so that loss, order and repetition can be chosen.


def frame(source: int, target: int, sequence: int, payload: bytes = b"", flags: int = 0x18, ports=(1000, 80)) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", *ports, sequence % 2**32, 0, 5 << 4, flags, 0, 0, 0) + payload
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, bytes([10, 0, 0, source]), bytes([10, 0, 0, target])
    )
    return bytes(12) + b"\x08\x00" + ip + tcp


def pcap(path: Path, frames: list[bytes]) -> Path:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    path.write_bytes(head + b"".join(struct.pack("<IIII", 0, 0, len(f), len(f)) + f for f in frames))
    return path


@pytest.mark.parametrize("first_sequence", [5, 2**32 - 10], ids=["plain", "sequence numbers wrap"])
def test_a_value_split_over_segments_is_found_whatever_their_order(tmp_path, first_sequence):
    value = first("notes").encode()
    start = first_sequence + 1
    parts = [(start + at, value[at : at + 5]) for at in range(0, len(value), 5)]
    Random(3).shuffle(parts)
    again = [(start, value[:9]), (start + 3, value[3:20])]  # sent again, cut elsewhere
    path = pcap(
        tmp_path / "a", [frame(1, 2, first_sequence, flags=2), *(frame(1, 2, *part) for part in [*parts, *again])]
    )
    (stream,) = streams(path)
    assert stream.content == value
    assert stream.gaps == 0
    assert SEARCH.content(path.read_bytes(), "raw").hits == set()
    assert SEARCH.content(stream.content, "stream").columns() == {"notes"}


def test_a_segment_that_the_capture_missed_is_a_gap(tmp_path):
    (stream,) = streams(
        pcap(tmp_path / "a", [frame(1, 2, 5, flags=2), frame(1, 2, 6, b"abc"), frame(1, 2, 12, b"def")])
    )
    assert (stream.content, stream.gaps) == (b"abc\0\0\0def", 3)


def test_ports_that_are_used_again_make_a_new_stream(tmp_path):
    frames = [frame(1, 2, 5, flags=2), frame(1, 2, 6, b"abc"), frame(1, 2, 9000, flags=2), frame(1, 2, 9001, b"def")]
    assert [s.content for s in streams(pcap(tmp_path / "a", frames))] == [b"abc", b"def"]


def test_flows_are_summed_by_who_asked_and_which_port_answered(tmp_path):
    back = (80, 1000)
    frames = [
        frame(1, 2, 5, flags=2), frame(2, 1, 50, flags=0x12, ports=back),
        frame(1, 2, 6, b"ask"), frame(2, 1, 51, b"answer", ports=back),
        frame(1, 2, 70, flags=2, ports=(1001, 80)), frame(1, 2, 71, b"ask", ports=(1001, 80)),
    ]  # fmt: skip
    (flow,) = flows(streams(pcap(tmp_path / "a", frames)))
    assert (flow.client, flow.server, flow.port, flow.connections) == ("10.0.0.1", "10.0.0.2", 80, 2)
    assert (flow.sent_bytes, flow.received_bytes) == (6, 6)


def http2(kind: int, number: int, content: bytes, flags: int = 0) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + content


def test_a_value_split_over_http2_frames_is_found():
    value = first("notes").encode()
    stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(4, 0, b"")
    stream += http2(0, 1, value[:7]) + http2(0, 3, b"other") + http2(0, 1, b"\x02" + value[7:] + b"..", flags=8)
    assert SEARCH.content(stream, "raw").hits == set()
    assert set(messages(stream)) == {value, b"other"}
    assert messages(b"GET / HTTP/1.1\r\n\r\n") == []


def test_the_planted_rows_differ_in_every_column_that_must_stay():
    for column in KINDS:
        assert len(set(PLANTED.column(column))) == ROWS
    other = Planted.draw(Random(12))
    for column in set(KINDS) - {"birth_date"}:
        assert set(PLANTED.column(column)).isdisjoint(other.column(column))
