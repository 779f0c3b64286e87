"""Ways through a crossing: what a matrix could hide, and cargo, statements and grants that are not what they say.

Some have the statement of a genuine sanitizer over bytes that it never made; they show what the other walls do alone.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attacks.lab import ADMIT, BORDER, ERRAND, KEY, NOT_STOPPED, NOW, PRIVATE, SEALING, STRANGER, person, way
from fabric.artifacts import canonical, chunk_name, digest
from fabric.crossing import CAPSULE_TYPE, Cargo, SealedCapsule, admit
from fabric.errors import Reason
from fabric.matrix import MATRIX_TYPE, SealedMatrix, StoredChunks
from fabric.statements import Statement, sign, timestamp
from fabric.testing import OPEN_LABELS, sealed_matrix
from sanitize.sealing import seal

MALFORMED = Reason.MATRIX_MALFORMED
MISMATCH = Reason.DIGEST_MISMATCH
DENIED = Reason.POLICY_DENIED
INVALID = Reason.STATEMENT_INVALID
EXPIRED = Reason.STATEMENT_EXPIRED


def send(lab, table: pa.Table):
    """Seal a table as the sanitizer does, state it as the sanitizer would, and send it."""
    chunks = seal(table)
    notes = [
        {"name": name, "from": name, "why": "a test", "type": str(table.schema.field(name).type), "role": "feature",
         "levels": 0} for name in table.column_names
    ]  # fmt: skip
    predicate = {**lab.matrix.predicate, "columns": notes, "rows": table.num_rows}
    lab.export(Cargo(matrix=stated(chunks, predicate)))


def stated(chunks, predicate) -> SealedMatrix:
    subjects = {chunk_name(index): digest(bytes(chunk)) for index, chunk in enumerate(chunks)}
    signed = sign(Statement(subjects=subjects, predicate_type=MATRIX_TYPE, predicate=predicate), KEY)
    return SealedMatrix(chunks, signed)


def stream(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def notes_of(lab) -> bytes:
    return person(lab)["notes"].encode().ljust(40, b" ")


# --- what Arrow can hide under numbers


@way(SEALING, needs="local")
def matrix_slice(lab):
    """A slice of a few rows, whose buffers hold the whole column."""
    send(lab, lab.records.select(["visits", "income"]).slice(0, 4))


@way(SEALING, needs="local")
def matrix_filtered_chunks(lab):
    """Rows filtered away, in chunks that share their buffers."""
    kept = lab.records.select(["income"]).filter(pc.less(lab.records["income"], 50_000))
    send(lab, pa.concat_tables([kept.slice(0, 2), kept.slice(2, 2)]))


@way(SEALING, needs="local")
def matrix_null_slots(lab):
    """A value under a null of a float column."""
    values = pa.py_buffer(np.array([1.0, float(person(lab)["cost"])]).tobytes())
    column = pa.Array.from_buffers(pa.float64(), 2, [pa.py_buffer(b"\x01"), values])
    send(lab, pa.table({"cost": column}))


@way(SEALING, MALFORMED, needs="local")
def matrix_null_integers(lab):
    """A value under a null of an integer column."""
    values = pa.py_buffer(np.array([1, person(lab)["income"]], np.int64).tobytes())
    column = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x01"), values])
    send(lab, pa.table({"income": column}))


@way(SEALING, needs="local")
def matrix_nan_payload(lab):
    """A note in the 51 free bits of NaNs."""
    bits = np.frombuffer(notes_of(lab), np.uint8).astype(np.uint64) | np.uint64(0x7FF8000000000000)
    send(lab, pa.table({"cost": bits.view(np.float64)}))


@way(SEALING, needs="local")
def matrix_negative_zeros(lab):
    """A note in the signs of zeros."""
    signs = np.unpackbits(np.frombuffer(notes_of(lab), np.uint8))
    send(lab, pa.table({"cost": np.where(signs == 1, -0.0, 0.0)}))


@way(SEALING, needs="local")
def matrix_metadata(lab):
    """A note in the metadata of the schema and of a field."""
    note = {"note": person(lab)["notes"]}
    schema = pa.schema([pa.field("visits", pa.int64(), metadata=note)], metadata=note)
    send(lab, pa.Table.from_arrays([lab.records["visits"]], schema=schema))


@way(SEALING, MALFORMED, needs="local")
def matrix_dictionary(lab):
    """A column of codes with its dictionary of names."""
    send(lab, pa.table({"name": lab.records["name"].combine_chunks().dictionary_encode()}))


@way(SEALING, MALFORMED, needs="local")
def matrix_struct(lab):
    """A struct whose masked children keep their values."""
    column = pa.StructArray.from_arrays(
        [lab.records["income"].combine_chunks()], names=["income"], mask=pa.array([True] * lab.records.num_rows)
    )
    send(lab, pa.table({"row": column}))


@way(SEALING, MALFORMED, needs="local")
def matrix_list(lab):
    """A list column with values outside of its offsets."""
    column = pa.ListArray.from_arrays(pa.array([0, 1]), lab.records["income"].combine_chunks())
    send(lab, pa.table({"incomes": column}))


@way(SEALING, MALFORMED, needs="local")
def matrix_text(lab):
    """A column of text."""
    send(lab, lab.records.select(["notes"]))


@way(SEALING, MALFORMED, needs="local")
def matrix_extension_type(lab):
    """A column of an extension type, whose serialized form holds a note."""

    class Kind(pa.ExtensionType):
        def __init__(self, note):
            self.note = note
            super().__init__(pa.int64(), "attacks.kind")

        def __arrow_ext_serialize__(self):
            return self.note

    kind = Kind(notes_of(lab))
    send(lab, pa.table({"visits": pa.ExtensionArray.from_storage(kind, lab.records["visits"].combine_chunks())}))


@way(SEALING, MALFORMED, needs="local")
def matrix_column_name(lab):
    """A name as the name of a column."""
    send(lab, pa.table({person(lab)["name"]: [1, 2]}))


@way(SEALING, MALFORMED, needs="local")
def matrix_view_of_strings(lab):
    """A string view, which keeps its blocks."""
    send(lab, pa.table({"notes": lab.records["notes"].cast(pa.string_view())}))


# --- cargo that is not what it says


@way(BORDER, Reason.STATEMENT_MISSING, needs="local")
def cargo_of_a_table(lab):
    """A raw table in the place of the matrix."""
    lab.export(Cargo(matrix=lab.records))


@way(BORDER, MISMATCH, needs="local")
def cargo_of_raw_chunks(lab):
    """Raw Arrow bytes under the statement of a genuine matrix."""
    lab.export(Cargo(matrix=SealedMatrix([stream(lab.records)], lab.matrix.signed)))


@way(BORDER, MISMATCH, needs="local")
def cargo_with_another_chunk(lab):
    """A chunk of raw bytes after the genuine ones."""
    lab.export(Cargo(matrix=SealedMatrix([*lab.matrix.chunks, stream(lab.records)], lab.matrix.signed)))


class Lying(Cargo):
    """A cargo whose properties answer otherwise from the second time on."""

    __slots__ = ()
    answers: ClassVar[dict] = {}

    def __getattribute__(self, name):
        found = Lying.answers.get(name)
        return found.pop(0) if found else super().__getattribute__(name)


@way(BORDER, Reason.PARAMETERS_REFUSED, needs="local")
def cargo_that_lies(lab):
    """A cargo that shows the border harmless parameters at first, and a note afterwards."""
    cargo = Lying(matrix=lab.matrix, parameters=json.dumps({"note": person(lab)["notes"]}).encode())
    Lying.answers = {"parameters": []}
    lab.export(cargo)


@way(BORDER, needs="local")
def cargo_that_lies_later(lab):
    """A cargo that shows a note only to whoever asks twice; nobody does."""
    cargo = Lying(matrix=lab.matrix, parameters=json.dumps({"note": person(lab)["notes"]}).encode())
    Lying.answers = {"parameters": [b"{}"], "matrix": [lab.matrix]}
    lab.export(cargo)


@way(BORDER, MALFORMED, needs="local")
def chunk_changed_after_its_digest(lab):
    """A chunk in a bytearray, which its owner can change between check and move."""
    lab.export(Cargo(matrix=SealedMatrix([bytearray(chunk) for chunk in lab.matrix.chunks], lab.matrix.signed)))


@way(BORDER, MALFORMED, needs="local")
def chunk_of_a_class_of_ones_own(lab):
    """A chunk of a subclass of bytes."""

    class Chunk(bytes):
        def __reduce__(self):
            return (bytes, (notes_of(lab),))

    lab.export(Cargo(matrix=SealedMatrix([Chunk(chunk) for chunk in lab.matrix.chunks], lab.matrix.signed)))


@way(BORDER, needs="local")
def chunks_that_change(lab):
    """A sequence of chunks that gives raw bytes to whoever asks twice; nobody does."""
    asked: set[int] = set()

    class Chunks(list):
        def __getitem__(self, index):
            if index in asked:
                return stream(lab.records)
            asked.add(index)
            return super().__getitem__(index)

    lab.export(Cargo(matrix=SealedMatrix(Chunks(lab.matrix.chunks), lab.matrix.signed)))


@way(BORDER, needs="local")
def stored_chunks_that_change(lab):
    """A subclass of the stored chunks, which checks nothing and gives raw bytes the second time; it is not kept."""
    genuine = list(lab.matrix.chunks)

    class Chunks(StoredChunks):
        def __getitem__(self, index):
            given.append(index)
            return genuine[index] if given.count(index) == 1 else stream(lab.records)

    given: list[int] = []
    chunks = Chunks(lab.folder, tuple(digest(chunk) for chunk in genuine))
    lab.export(Cargo(matrix=SealedMatrix(chunks, lab.matrix.signed)))


@way(BORDER, MISMATCH, needs="local")
def chunk_exchanged_on_disk(lab):
    """A file of a stored matrix that is exchanged after the border checked it."""
    folder = lab.folder / "matrix"
    folder.mkdir()
    for index, chunk in enumerate(lab.matrix.chunks):
        (folder / chunk_name(index)).write_bytes(chunk)
    digests = tuple(digest(chunk) for chunk in lab.matrix.chunks)
    parcel = lab.carrying(
        Cargo(matrix=SealedMatrix(StoredChunks(folder, digests), lab.matrix.signed)),
        before=lambda: (folder / chunk_name(0)).write_bytes(stream(lab.records)),
    )
    assert parcel is None


@way(BORDER, INVALID, needs="local")
def envelope_with_a_note(lab):
    """A genuine envelope with a field beside the statement, which nobody reads."""
    envelope = canonical({**json.loads(lab.matrix.signed.envelope), "note": person(lab)["notes"]})
    lab.export(Cargo(matrix=SealedMatrix(lab.matrix.chunks, replace(lab.matrix.signed, envelope=envelope))))


@way(BORDER, INVALID, needs="local")
def envelope_with_a_strangers_signature(lab):
    """A genuine envelope with a second signature, whose bytes are a note."""
    raw = json.loads(lab.matrix.signed.envelope)
    raw["signatures"].append({"keyid": "x", "sig": base64.b64encode(notes_of(lab)).decode()})
    lab.export(Cargo(matrix=SealedMatrix(lab.matrix.chunks, replace(lab.matrix.signed, envelope=canonical(raw)))))


@way(BORDER, INVALID, needs="local")
def envelope_with_spaces(lab):
    """A genuine envelope with a note in the white space of its JSON."""
    bits = "".join(" \t"[bit] for bit in np.unpackbits(np.frombuffer(notes_of(lab), np.uint8)))
    envelope = lab.matrix.signed.envelope + bits.encode()
    lab.export(Cargo(matrix=SealedMatrix(lab.matrix.chunks, replace(lab.matrix.signed, envelope=envelope))))


@way(BORDER, INVALID, Reason.KEY_UNKNOWN, needs="local")
def statement_of_ones_own(lab):
    """Raw bytes under a statement signed with a key of one's own."""
    chunk = stream(lab.records)
    signed = sign(Statement(subjects={chunk_name(0): digest(chunk)}, predicate_type=MATRIX_TYPE,
                            predicate=dict(lab.matrix.predicate)), STRANGER)  # fmt: skip
    lab.export(Cargo(matrix=SealedMatrix([chunk], signed)))


@way(BORDER, MISMATCH, needs="local")
def statement_of_another_matrix(lab):
    """The statement of one matrix with the chunks of another."""
    other = sealed_matrix({"visits": [1, 2], "cost": [1, 2]}, key=KEY, now=NOW)
    lab.export(Cargo(matrix=SealedMatrix(other.chunks, lab.matrix.signed)))


@way(BORDER, MISMATCH, needs="local")
def chunks_swapped(lab):
    """The chunks of a genuine matrix in another order."""
    lab.export(Cargo(matrix=SealedMatrix(lab.matrix.chunks[::-1], lab.matrix.signed)))


@way("policy", DENIED, needs="local")
def held_back_part(lab):
    """The rows that were held back to measure models on."""
    lab.export(Cargo(matrix=sealed_matrix({"a": [1], "b": [2]}, key=KEY, now=NOW, part="held-back")))


@way("policy", DENIED, needs="local")
def matrix_of_another_purpose(lab):
    """A matrix made for another purpose."""
    lab.export(Cargo(matrix=sealed_matrix({"a": [1], "b": [2]}, key=KEY, now=NOW, purpose="marketing")))


@way("policy", DENIED, needs="local")
def matrix_with_stricter_labels(lab):
    """A matrix whose signed labels forbid the zone, on an errand with looser ones."""
    labels = {**OPEN_LABELS, "allowed_execution_zone": ["private"]}
    lab.export(Cargo(matrix=sealed_matrix({"a": [1], "b": [2]}, key=KEY, now=NOW, labels=labels)))


@way("policy", DENIED, needs="local")
def matrix_that_expired(lab):
    """A matrix whose statement has expired."""
    lab.now += timedelta(days=2)
    lab.export(Cargo(matrix=lab.matrix))


@way(BORDER, MISMATCH, needs="local")
def capsule_exchanged(lab):
    """A raw table as code, under the statement of an inspected function."""
    sealed = lab.border.state_capsule(b"inspected", {"refused": False})
    lab.export(Cargo(matrix=lab.matrix, capsule=SealedCapsule(payload=stream(lab.records), signed=sealed.signed)))


@way(BORDER, Reason.CAPSULE_UNREADABLE, needs="local")
def capsule_not_inspected(lab):
    """A raw table as code, under a statement that names no inspection."""
    lab.export(Cargo(matrix=lab.matrix, capsule=lab.border.state_capsule(stream(lab.records), {})))


@way(BORDER, Reason.CAPSULE_UNREADABLE, needs="local")
def capsule_that_was_refused(lab):
    """A function that was refused, sent all the same under the statement of its x-ray."""
    lab.export(Cargo(matrix=lab.matrix, capsule=lab.border.state_capsule(stream(lab.records), {"refused": True})))


@way(BORDER, INVALID, needs="local")
def capsule_under_a_matrix_statement(lab):
    """Code under a statement of another type."""
    lab.export(Cargo(matrix=lab.matrix, capsule=SealedCapsule(payload=b"code", signed=lab.matrix.signed)))


@way(BORDER, MISMATCH, needs="local")
def capsule_in_a_bytearray(lab):
    """Code in a bytearray, which its owner can change between check and move."""
    sealed = lab.border.state_capsule(b"inspected", {"refused": False})
    lab.export(Cargo(matrix=lab.matrix, capsule=SealedCapsule(payload=bytearray(b"inspected"), signed=sealed.signed)))


@way(BORDER, Reason.PARAMETERS_REFUSED, needs="local")
def parameters_that_nobody_read(lab):
    """A note in a cargo's parameters, past the function that reads them."""
    lab.export(Cargo(matrix=lab.matrix, parameters=canonical({"note": person(lab)["notes"]})))


@way(BORDER, Reason.PARAMETERS_REFUSED, needs="local")
def parameters_that_are_no_json(lab):
    """Raw bytes in a cargo's parameters."""
    lab.export(Cargo(matrix=lab.matrix, parameters=notes_of(lab)))


@way(BORDER, Reason.PARAMETERS_REFUSED, needs="local")
def parameters_with_spaces(lab):
    """A note in the white space of JSON."""
    bits = "".join(" \t"[bit] for bit in np.unpackbits(np.frombuffer(notes_of(lab), np.uint8)))
    lab.export(Cargo(matrix=lab.matrix, parameters=b"{" + bits.encode() + b"}"))


@way(BORDER, needs="local")
def job_name(lab):
    """A name as the job's id, which stands in the grant; a digest crosses in its place."""
    lab.export(Cargo(matrix=lab.matrix), replace(ERRAND, job=person(lab)["email"]))


@way(BORDER, needs="local")
def justification(lab):
    """A note as the justification, which stays inside under a keyed digest."""
    lab.export(Cargo(matrix=lab.matrix), replace(ERRAND, justification=person(lab)["notes"]))


@way("policy", DENIED, needs="local")
def purpose_of_the_errand(lab):
    """A note as the purpose of the errand."""
    lab.export(Cargo(matrix=lab.matrix), replace(ERRAND, purpose=person(lab)["notes"]))


@way(BORDER, needs="local")
def carrier_callback(lab):
    """A carrier of one's own that looks into what it is given: it sees what was checked, after the record."""
    seen: list[Cargo] = []
    cargo = Lying(matrix=lab.matrix, parameters=notes_of(lab))
    Lying.answers = {"parameters": [b"{}"], "matrix": [lab.matrix]}
    lab.carrying(cargo, seen=seen)
    assert type(seen[0]) is Cargo
    assert seen[0].parameters == b"{}"
    assert type(seen[0].matrix.chunks) is tuple


# --- papers, on the other side


def admitted(lab, parcel, *, zone="public"):
    return admit(parcel, zone=zone, trusted=[KEY.public], now=lab.now)


@way(ADMIT, EXPIRED, needs="local")
def replayed_after_it_expired(lab):
    """A parcel kept and used again after its grant has expired."""
    parcel = lab.export(Cargo(matrix=lab.matrix))
    admitted(lab, parcel)
    lab.now += timedelta(hours=1)
    admitted(lab, parcel)


@way(ADMIT, Reason.WRONG_ZONE, needs="local")
def replayed_in_another_zone(lab):
    """A parcel taken to a third zone."""
    admitted(lab, lab.export(Cargo(matrix=lab.matrix)), zone="edge")


@way(ADMIT, Reason.WRONG_ZONE, needs="local")
def delivery_taken_outside(lab):
    """A parcel for the private zone, taken outside."""
    admitted(lab, lab.export(Cargo(matrix=lab.matrix), replace(ERRAND, zone=PRIVATE)))


@way(ADMIT, INVALID, needs="local")
def grant_of_another_crossing(lab):
    """The grant of one crossing with the statement of another."""
    other = sealed_matrix({"visits": [1, 2], "cost": [1, 2]}, key=KEY, now=NOW)
    first, second = lab.export(Cargo(matrix=lab.matrix)), lab.export(Cargo(matrix=other))
    admitted(lab, replace(second, grant=first.grant))


@way(ADMIT, MISMATCH, needs="local")
def code_of_another_crossing(lab):
    """The code of one crossing under the grant of another."""
    first = lab.border.state_capsule(b"first", {"refused": False})
    second = lab.border.state_capsule(b"second", {"refused": False})
    one = lab.export(Cargo(matrix=lab.matrix, capsule=first))
    other = lab.export(Cargo(matrix=lab.matrix, capsule=second))
    admitted(lab, replace(one, capsule=other.capsule))


@way(ADMIT, Reason.STATEMENT_MISSING, needs="local")
def parcel_without_papers(lab):
    """Chunks without a grant."""
    admitted(lab, replace(lab.export(Cargo(matrix=lab.matrix)), grant=b""))


@way(ADMIT, INVALID, needs="local")
def statement_for_a_grant(lab):
    """The matrix's statement in the place of the grant."""
    parcel = lab.export(Cargo(matrix=lab.matrix))
    admitted(lab, replace(parcel, grant=parcel.statement))


@way(ADMIT, Reason.KEY_UNKNOWN, needs="local")
def grant_of_a_stranger(lab):
    """A grant signed with a key of one's own."""
    parcel = lab.export(Cargo(matrix=lab.matrix))
    named = json.loads(base64.b64decode(json.loads(parcel.grant)["payload"]))
    terms = {**named["predicate"], "expires_at": timestamp(NOW + timedelta(days=999))}
    subjects = {one["name"]: "sha256:" + one["digest"]["sha256"] for one in named["subject"]}
    forged = sign(Statement(subjects=subjects, predicate_type=named["predicateType"], predicate=terms), STRANGER)
    admitted(lab, replace(parcel, grant=forged.envelope))


@way(ADMIT, MALFORMED, needs="local")
def chunk_with_raw_columns(lab):
    """Raw Arrow bytes that a sanitizer's key did sign: they are not opened."""
    chunk = stream(lab.records.select(["visits"]))
    parcel = lab.made_by_hand(stated([chunk], dict(lab.matrix.predicate)))
    admitted(lab, parcel)


@way(ADMIT, MALFORMED, needs="local")
def chunk_that_unfolds(lab):
    """A compressed chunk of a few kilobytes that unfolds into a gigabyte, signed: it is not opened."""
    zeros = pa.table({"visits": np.zeros(1_000_000, np.int64)})
    admitted(lab, lab.made_by_hand(stated([stream(zeros, compression="zstd")], dict(lab.matrix.predicate))))


@way(NOT_STOPPED, needs="local")
def grant_of_the_first_job(lab):
    """A second job on the same node that finds the first's parcel within the grant's life: it sees what had crossed."""
    parcel = lab.export(Cargo(matrix=lab.matrix))
    admitted(lab, parcel)
    admitted(lab, parcel)


@way(NOT_STOPPED, needs="local")
def clock_of_the_node_set_back(lab):
    """A node whose clock is set back uses an expired parcel: who owns the node has had the parcel anyway."""
    parcel = lab.export(Cargo(matrix=lab.matrix))
    lab.now += timedelta(days=1)
    lab.now -= timedelta(days=1)
    admitted(lab, parcel)


@way(NOT_STOPPED, needs="local")
def signing_key_in_the_wrong_hands(lab):
    """Whoever reads the fabric's signing key inside can state anything: the key file is for its owner alone."""
    signed = sign(
        Statement(
            subjects={"capsule": digest(b"raw")},
            predicate_type=CAPSULE_TYPE,
            predicate={"inspection": {"refused": False}, "expires_at": timestamp(NOW + timedelta(hours=1))},
        ),
        KEY,
    )
    lab.export(Cargo(matrix=lab.matrix, capsule=SealedCapsule(payload=b"raw", signed=signed)))
