"""Ways back: what the public zone could send in the place of a result, a model or a checkpoint.

Here nothing raw leaves; something hostile would come in. Each must be refused, or come in without what was hidden.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from attacks.lab import NOT_STOPPED, QUARANTINE, RESULTS, way
from fabric.errors import FabricError, Reason
from fabric.results import MAX_RESULT_BYTES, decode
from fabric.stores import read_bounded
from sanitize.sealing import seal

REFUSED = Reason.RESULT_REFUSED
MODEL, STATE = "model.safetensors", "state.json"


class Bomb:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, left: Path):
        self.left = left

    def __reduce__(self):
        return os.mkdir, (str(self.left),)


# --- results of a burst


@way(RESULTS, REFUSED, needs="local")
def result_pickle(lab):
    """A pickle that runs code, in the place of JSON."""
    left = lab.folder / "left"
    try:
        decode(("json", pickle.dumps(Bomb(left))))
    finally:
        assert not left.exists()


@way(RESULTS, REFUSED, needs="local")
def result_object(lab):
    """An object in the place of bytes."""
    decode(("json", bytearray(b"1")))


@way(RESULTS, REFUSED, needs="local")
def result_of_no_shape(lab):
    """A result that is no tuple of a kind and bytes."""
    decode([b"json"])


@way(RESULTS, REFUSED, needs="local")
def result_too_large(lab):
    """A result of more bytes than may come back."""
    decode(("json", b" " * (MAX_RESULT_BYTES + 1)))


@way(RESULTS, REFUSED, needs="local")
def json_too_deep(lab):
    """JSON nested deeper than anything reads it."""
    decode(("json", b"[" * 40 + b"]" * 40))


@way(RESULTS, REFUSED, needs="local")
def json_bomb(lab):
    """JSON nested a million deep."""
    decode(("json", b"[" * 1_000_000))


@way(RESULTS, REFUSED, needs="local")
def json_name_twice(lab):
    """JSON with one name twice, of which two readers take different ones."""
    decode(("json", b'{"loss": 1, "loss": 2}'))


@way(RESULTS, REFUSED, needs="local")
def json_not_a_number(lab):
    """JSON with NaN."""
    decode(("json", b'{"loss": NaN}'))


@way(RESULTS, REFUSED, needs="local")
def json_infinite(lab):
    """JSON with a number too large for a float, which reads as infinity."""
    decode(("json", b'{"loss": 1e999}'))


@way(RESULTS, REFUSED, needs="local")
def json_large_integer(lab):
    """JSON with an integer of four thousand digits."""
    decode(("json", b"9" * 4_000))


@way(RESULTS, REFUSED, needs="local")
def json_in_utf_16(lab):
    """JSON in another encoding than UTF-8."""
    decode(("json", '{"loss": 1}'.encode("utf-16")))


@way(RESULTS, REFUSED, needs="local")
def json_half_a_character(lab):
    """JSON with half a surrogate pair, which cannot be printed."""
    decode(("json", b'"\\ud800"'))


@way(RESULTS, REFUSED, needs="local")
def json_with_chunks(lab):
    """JSON with more bytes behind it."""
    decode(("json", b"1", b"2"))


def arrow(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def answer(table: pa.Table, **options) -> tuple:
    """Return an answer whose schema fits the table, and whose chunk was not made by sealing."""
    schema = json.dumps([[field.name, "int64"] for field in table.schema]).encode()
    return "table", schema, arrow(table, **options)


NUMBERS = pa.table({"a": np.arange(1_000)})


@way(RESULTS, REFUSED, needs="local")
def arrow_compressed(lab):
    """Compressed Arrow that unfolds into far more than it weighs."""
    decode(answer(pa.table({"a": np.zeros(5_000_000, np.int64)}), compression="zstd"))


@way(RESULTS, REFUSED, needs="local")
def arrow_dictionary(lab):
    """Arrow with a dictionary."""
    decode(answer(pa.table({"a": pa.array(["x", "y"]).dictionary_encode()})))


@way(RESULTS, REFUSED, needs="local")
def arrow_extension_type(lab):
    """Arrow with an extension type, which a registered class would read."""
    field = pa.field("a", pa.int64(), metadata={"ARROW:extension:name": "x", "ARROW:extension:metadata": "y"})
    decode(answer(pa.Table.from_arrays([NUMBERS["a"]], schema=pa.schema([field]))))


@way(RESULTS, REFUSED, needs="local")
def arrow_metadata(lab):
    """Arrow with metadata of its own."""
    decode(answer(NUMBERS.replace_schema_metadata({"pandas": "{}"})))


@way(RESULTS, REFUSED, needs="local")
def arrow_column_twice(lab):
    """A schema that names a column twice."""
    decode(("table", b'[["a", "int64"], ["a", "int64"]]', *seal(NUMBERS)))


@way(RESULTS, REFUSED, needs="local")
def arrow_out_of_bounds(lab):
    """Arrow whose buffers reach beyond the message."""
    chunk = bytearray(seal(NUMBERS)[0])
    at = chunk.find(struct.pack("<q", 8_000))
    chunk[at : at + 8] = struct.pack("<q", 2**40)
    decode(("table", b'[["a", "int64"]]', bytes(chunk)))


def shown(answer):
    """Read an answer whose error people will see."""
    with pytest.raises(FabricError) as caught:
        decode(answer)
    text = str(caught.value)
    assert "\x1b" not in text
    assert len(text) < 1_000
    raise caught.value


@way(RESULTS, Reason.REMOTE_FAILED, needs="local")
def error_name_with_escapes(lab):
    """A class name that would write into the terminal."""
    shown(("error", b"\x1b[2J\x1b]0;owned\x07"))


@way(RESULTS, Reason.POLICY_DENIED, needs="local")
def refusal_with_escapes(lab):
    """A refusal whose text would write into the terminal, a megabyte of it."""
    raw = {"code": "POLICY_DENIED", "message": "\x1b[2J" * 300_000, "hint": "\x07"}
    shown(("refusal", json.dumps(raw).encode()))


# --- a checkpoint that comes back


@way(QUARANTINE, REFUSED, needs="local")
def model_pickle(lab):
    """A pickle that runs code, in the place of the weights."""
    left = lab.folder / "left"
    try:
        lab.returns(lambda folder: (folder / MODEL).write_bytes(pickle.dumps(Bomb(left))))
    finally:
        assert not left.exists()


@way(QUARANTINE, REFUSED, needs="local")
def model_of_torch_save(lab):
    """Weights in torch's own format, which is a pickle."""
    lab.returns(lambda folder: torch.save({}, folder / MODEL))


def rewritten(folder: Path, change) -> None:
    """Write the model's file anew with another header and body."""
    content = (folder / MODEL).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = change(json.loads(content[8 : 8 + size]), content[8 + size :])
    text = json.dumps(header).encode()
    (folder / MODEL).write_bytes(struct.pack("<Q", len(text)) + text + body)


@way(QUARANTINE, REFUSED, needs="local")
def model_with_overlapping_tensors(lab):
    """Tensors whose places in the file overlap."""

    def overlap(header, body):
        first, second, *_ = (name for name in header if header[name].get("shape") == [2])
        header[second]["data_offsets"] = header[first]["data_offsets"]
        return header, body

    lab.returns(lambda folder: rewritten(folder, overlap))


@way(QUARANTINE, REFUSED, needs="local")
def model_with_bytes_behind(lab):
    """Bytes behind the last tensor."""
    lab.returns(lambda folder: rewritten(folder, lambda header, body: (header, body + b"hidden")))


@way(QUARANTINE, needs="local")
def model_with_metadata(lab):
    """Metadata in the header; it is not kept."""
    model = lab.returns(lambda folder: rewritten(folder, lambda h, b: ({**h, "__metadata__": {"x": "hidden"}}, b)))
    assert b"hidden" not in (model.path / MODEL).read_bytes()


@way(QUARANTINE, needs="local")
def model_with_spaces(lab):
    """A note in the white space of the header; it is not kept."""

    def spaced(folder):
        content = (folder / MODEL).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + size].rstrip() + b" \t" * 20
        (folder / MODEL).write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])

    model = lab.returns(spaced)
    assert b" \t" * 20 not in (model.path / MODEL).read_bytes()


@way(QUARANTINE, REFUSED, needs="local")
def model_with_another_tensor(lab):
    """A tensor that the declared network does not have."""
    lab.returns(lambda f: save_file({**load_file(f / MODEL), "more": torch.zeros(3)}, f / MODEL))


@way(QUARANTINE, REFUSED, needs="local")
def model_of_another_type(lab):
    """Weights of another type than the declared network's."""
    lab.returns(lambda f: save_file({name: t.double() for name, t in load_file(f / MODEL).items()}, f / MODEL))


@way(QUARANTINE, REFUSED, needs="local")
def model_not_finite(lab):
    """A weight that is no finite number."""

    def spoil(folder):
        tensors = load_file(folder / MODEL)
        tensors["mean"][0] = float("inf")
        save_file(tensors, folder / MODEL)

    lab.returns(spoil)


@way(QUARANTINE, REFUSED, needs="local")
def model_header_bomb(lab):
    """A header that says it has a gigabyte."""
    lab.returns(lambda folder: (folder / MODEL).write_bytes(struct.pack("<Q", 2**30) + b"{}"))


@way(QUARANTINE, REFUSED, needs="local")
def model_sparse(lab):
    """A sparse file of a gigabyte, which weighs nothing on disk."""
    with pytest.raises(FabricError, match="larger than") as caught:
        lab.returns(lambda folder: os.truncate(folder / MODEL, 2**30))
    raise caught.value


@way(QUARANTINE, REFUSED, needs="local")
def model_named_pipe(lab):
    """A named pipe, which never ends to be read."""

    def pipe(folder):
        (folder / MODEL).unlink()
        os.mkfifo(folder / MODEL)

    lab.returns(pipe)


@way(QUARANTINE, REFUSED, needs="local")
def model_folder(lab):
    """A folder in the place of the file."""

    def make(folder):
        (folder / MODEL).unlink()
        (folder / MODEL).mkdir()

    lab.returns(make)


@way(QUARANTINE, REFUSED, needs="local")
def model_socket(lab):
    """A link to a device that gives zeros for ever."""

    def link(folder):
        (folder / MODEL).unlink()
        (folder / MODEL).symlink_to("/dev/zero")

    lab.returns(link)


@way(QUARANTINE, REFUSED, needs="local")
def model_symbolic_link(lab):
    """A symbolic link to a file of the private zone."""

    def link(folder):
        moved = lab.folder / "elsewhere"
        (folder / MODEL).rename(moved)
        (folder / MODEL).symlink_to(moved)

    lab.returns(link)


@way(QUARANTINE, REFUSED, needs="local")
def model_hard_link(lab):
    """A hard link to a file of the private zone."""
    lab.returns(lambda folder: os.link(folder / MODEL, lab.folder / "elsewhere"))


@way(QUARANTINE, REFUSED, needs="local")
def folder_symbolic_link(lab):
    """A checkpoint folder that is a link out of the outbox."""
    lab.returns(lambda folder: None, place=lambda folder: linked(folder, lab.folder / "elsewhere"))


@way(QUARANTINE, REFUSED, needs="local")
def folder_above_is_a_link(lab):
    """A folder above the checkpoint that is a link out of the outbox."""
    lab.returns(lambda folder: None, place=lambda folder: linked(folder.parent, lab.folder / "elsewhere") / folder.name)


@way(QUARANTINE, REFUSED, needs="local")
def folder_with_dots(lab):
    """A checkpoint path that leaves the outbox by two dots."""

    def outside(folder):
        shutil.copytree(folder, folder.parents[3] / "elsewhere")
        return folder / ".." / ".." / ".." / ".." / "elsewhere"

    lab.returns(lambda folder: None, place=outside)


def linked(folder: Path, elsewhere: Path) -> Path:
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    return folder


@way(QUARANTINE, REFUSED, needs="local")
def file_that_grows(lab):
    """A file that grows while it is read."""
    path = lab.folder / "growing"
    path.write_bytes(b"x" * 10)

    class Growing(int):
        """A limit that lets the file grow when the reader, after its first look, counts one more byte."""

        def __add__(self, other):
            with path.open("ab") as file:
                file.write(b"y")
            return int(self) + other

    read_bounded(lab.folder, {"growing": Growing(1_000)})


def history(lab, content: bytes):
    return lab.returns(lambda folder: (folder / STATE).write_bytes(content))


def epochs(count: int, **change) -> bytes:
    rows = [{"epoch": n + 1, "training": 1.0, "validation": 1.0, **change} for n in range(count)]
    return json.dumps({"history": rows}).encode()


@way(QUARANTINE, REFUSED, needs="local")
def history_not_finite(lab):
    """A metric that is no finite number."""
    history(lab, epochs(2).replace(b"1.0", b"NaN", 1))


@way(QUARANTINE, REFUSED, needs="local")
def history_too_long(lab):
    """More epochs than were asked for."""
    history(lab, epochs(500))


@way(QUARANTINE, REFUSED, needs="local")
def history_out_of_order(lab):
    """Epochs whose numbers spell something."""
    history(lab, epochs(2, epoch=951072399))


@way(QUARANTINE, needs="local")
def history_with_names(lab):
    """Metrics under names that say something; they are not kept."""
    model = history(lab, epochs(2, **{"patient 007": "hidden"}))
    assert b"hidden" not in (model.path / STATE).read_bytes()


@way(QUARANTINE, REFUSED, needs="local")
def history_with_a_name_twice(lab):
    """A metric that is there twice."""
    history(lab, b'{"history": [{"epoch": 1, "training": 1, "training": 2, "validation": 1}]}')


@way(QUARANTINE, REFUSED, needs="local")
def history_too_deep(lab):
    """A history nested a hundred thousand deep."""
    history(lab, b"[" * 100_000)


@way(QUARANTINE, needs="local")
def files_beside(lab):
    """More files beside the checkpoint's own, a pickle among them: nobody reads them."""
    left = lab.folder / "left"
    model = lab.returns(lambda folder: (folder / "metrics.pkl").write_bytes(pickle.dumps(Bomb(left))))
    assert not left.exists()
    assert {path.name for path in model.path.iterdir()} == {MODEL, STATE, "statement.json"}


@way(NOT_STOPPED, needs="local")
def weights_that_say_something(lab):
    """A message in the low bits of the weights: a model is what a stranger trained, and its statement says so."""

    def write(folder):
        tensors = load_file(folder / MODEL)
        tensors["mean"][0] += 1e-6
        save_file(tensors, folder / MODEL)

    lab.returns(write)
