"""Offline verification of evidence: receipts and whole bundles.

Pure: it needs no database, no cluster and no network, only the bundle and, from elsewhere, the keys to believe.
Whatever the input is, the answer is a summary or `EvidenceInvalid`. What a bundle alone cannot show: that its newest
records were cut off together with their checkpoints (it is then an older, honest bundle), or that the signer rewrote
the log from the start. A checkpoint, a receipt or a witness's copy that was kept elsewhere shows both.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fabric import merkle
from fabric.artifacts import digest
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.notes import Checkpoint, WitnessKey, cosigned_at, open_checkpoint
from fabric.records import (
    MAX_DEPTH,
    MAX_RECORD_BYTES,
    RECORD_VERSION,
    ROTATION,
    digests_in,
    documents_named,
    read_record,
)
from fabric.rotation import linked, read_rotation
from fabric.statements import MAX_ENVELOPE_BYTES, PublicKey, timestamp
from fabric.stories import Story

BUNDLE_VERSION = 2
RECEIPT_VERSION = 1
MAX_RECORDS = 10_000_000
MAX_DOCUMENT_BYTES = MAX_ENVELOPE_BYTES

__all__ = [
    "BUNDLE_VERSION",
    "MAX_DEPTH",
    "MAX_DOCUMENT_BYTES",
    "MAX_RECORD_BYTES",
    "RECORD_VERSION",
    "Receipt",
    "Verified",
    "VerifiedReceipt",
    "read_record",
    "verify_bundle",
    "verify_receipt",
    "verify_receipt_file",
]

_BUNDLE_KEYS = frozenset({"version", "origin", "public_key", "records", "documents", "checkpoints", "cosignatures"})
_RECEIPT_KEYS = frozenset({"receipt", "origin", "public_key", "index", "record", "checkpoint", "proof", "rotations"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a record is in the log; it stands on its own, beside the record's bytes and the log's key.

    Attributes:
        digest: of the record's canonical JSON.
        checkpoint: the signed note that covers the record.
        proof: inclusion proof, hash by hash in hex.
    """

    id: str
    index: int
    digest: str
    checkpoint: str
    proof: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a bundle was found to hold.

    Attributes:
        statements: distinct signed statements that crossings rest on.
        crossings: crossing intents, each permitted and covered by its statements.
        refusals: outcomes with status `refused`, and observations of a refusal or of a decision other than permit.
        open_intents: ids of intents without an outcome, in the log's order.
        keyids: the log's keys in the order of their use, then other keys that signed a statement.
        trusted: False if the bundle's own key had to be believed.
        vouched: how many of the first records are known from checkpoints kept elsewhere; 0 if none were given.
        witnessed: how many of the first records a trusted witness cosigned; 0 if no witness's key was given.
        witnessed_at: when it did, in UTC; empty if it did not.
    """

    records: int
    checkpoints: int
    statements: int
    crossings: int
    refusals: int
    open_intents: tuple[str, ...]
    keyids: tuple[str, ...]
    trusted: bool
    vouched: int
    witnessed: int = 0
    witnessed_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A record that a receipt proved to be in a log, and the checkpoint that covers it."""

    record: dict[str, Any]
    index: int
    checkpoint: Checkpoint
    keyid: str
    trusted: bool
    witnessed_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    origin: str
    key: PublicKey
    records: Sequence[str]
    documents: Mapping[str, bytes]
    checkpoints: Sequence[str]
    cosignatures: Sequence[str]


def verify_bundle(
    bundle: Mapping[str, Any],
    *,
    trusted: Sequence[PublicKey] | None,
    kept: Sequence[str] = (),
    witnesses: Sequence[WitnessKey] = (),
) -> Verified:
    """Check a bundle from its bytes up and return what it holds.

    Args:
        bundle: what `Ledger.bundle` returned, perhaps by way of a JSON file.
        trusted: keys believed; one that the log was signed with must be among them. None believes the bundle's own.
        kept: checkpoints of this log from elsewhere (a receipt's, a witness's); each must fit the bundle.
        witnesses: keys of witnesses; one of them must have cosigned a checkpoint of the bundle or a kept one.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, naming the record or checkpoint by its index; `EVIDENCE_UNWITNESSED` if
            no witness that was named cosigned.
    """
    # 1. The shape, before anything is believed.
    parts = _open_bundle(bundle)
    # 2. The signers: the first key, and those that it and its successors named.
    keys = _keys(parts)
    if trusted is not None and not set(keys) & set(trusted):
        _refuse("the log was signed by a key that is not trusted", "get the log's public key from its owner")
    # 3. The tree over the records with the checkpoints over it, and the story that the records tell.
    story = Story(parts.documents, list(dict.fromkeys([*keys, *(trusted or ())])))
    sizes = {_opened(f"kept checkpoint {n}", note, parts, keys).size for n, note in enumerate(kept)}
    sizes |= {_opened(f"cosignature {n}", note, parts, keys).size for n, note in enumerate(parts.cosignatures)}
    roots = _read_log(parts, keys, story, sizes)
    # 4. What was kept elsewhere, and what witnesses cosigned.
    vouched = _check_kept("kept checkpoint", kept, parts, keys, roots)
    _check_kept("cosignature", parts.cosignatures, parts, keys, roots)
    witnessed, witnessed_at = _witnessed([*parts.cosignatures, *kept], witnesses, parts, keys)
    return Verified(
        records=len(parts.records),
        checkpoints=len(parts.checkpoints),
        statements=story.statements,
        crossings=story.crossings,
        refusals=story.refusals,
        open_intents=story.open_intents,
        keyids=tuple(dict.fromkeys([*(key.keyid for key in keys), *story.signers])),
        trusted=trusted is not None,
        vouched=vouched,
        witnessed=witnessed,
        witnessed_at=witnessed_at,
    )


def verify_receipt(receipt: Receipt, record: bytes, key: PublicKey) -> Checkpoint:
    """Check that `record` is in the log that `key` signs, and return the checkpoint that covers it.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or `KEY_UNKNOWN` if another key signed the checkpoint.
    """
    if read_record(record)["id"] != receipt.id or digest(record) != receipt.digest:
        _refuse("the receipt is for another record")
    checkpoint = open_checkpoint(receipt.checkpoint, receipt.checkpoint.partition("\n")[0], [key])
    _check_included(record, receipt.index, checkpoint, receipt.proof)
    return checkpoint


def verify_receipt_file(
    document: Mapping[str, Any], *, trusted: Sequence[PublicKey] | None, witnesses: Sequence[WitnessKey] = ()
) -> VerifiedReceipt:
    """Check a receipt that carries its record, its checkpoint and the rotations of the log's key.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`; `KEY_UNKNOWN` if no rotation leads from its signer to a trusted key;
            `EVIDENCE_UNWITNESSED` if witnesses were named and none cosigned.
    """
    if not isinstance(document, Mapping) or set(document) != _RECEIPT_KEYS or document["receipt"] != RECEIPT_VERSION:
        _refuse(f"the receipt's keys are not {', '.join(sorted(_RECEIPT_KEYS))}, or its version not {RECEIPT_VERSION}")
    for name in ("origin", "public_key", "record", "checkpoint"):
        if not isinstance(document[name], str):
            _refuse(f"the receipt's {name} is not text")
    signer, origin = _key(document["public_key"]), document["origin"]
    rotations = [_decoded("a rotation", text) for text in _texts("rotations", document["rotations"], MAX_RECORDS)]
    if trusted is not None and not linked(signer, trusted, rotations, origin=origin):
        raise EvidenceInvalid(
            Reason.KEY_UNKNOWN,
            "the receipt was signed by a key that is not trusted",
            "get the log's key from its owner",
        )
    checkpoint = open_checkpoint(document["checkpoint"], origin, [signer])
    record = _utf8("the receipt's record", document["record"])
    index = document["index"]
    if type(index) is not int:
        _refuse("the receipt's index is not a number")
    _check_included(record, index, checkpoint, _texts("proof", document["proof"], 64))
    times = [at for at in (cosigned_at(document["checkpoint"], witness) for witness in witnesses) if at]
    if witnesses and not times:
        raise _unwitnessed("the receipt's checkpoint")
    return VerifiedReceipt(
        record=read_record(record),
        index=index,
        checkpoint=checkpoint,
        keyid=signer.keyid,
        trusted=trusted is not None,
        witnessed_at=timestamp(max(times)) if times else "",
    )


def _check_included(record: bytes, index: int, checkpoint: Checkpoint, proof: Sequence[str]) -> None:
    try:
        steps = [bytes.fromhex(step) for step in proof]
    except (TypeError, ValueError):
        _refuse("the receipt's proof is not hex")
    if not merkle.inclusion_holds(merkle.leaf_hash(record), index, checkpoint.size, steps, checkpoint.root):
        _refuse("the receipt's proof does not lead to its checkpoint")


def _open_bundle(bundle: Mapping[str, Any]) -> _Bundle:
    if not isinstance(bundle, Mapping) or set(bundle) != _BUNDLE_KEYS:
        _refuse(f"the bundle's keys are not {', '.join(sorted(_BUNDLE_KEYS))}")
    if type(bundle["version"]) is not int or bundle["version"] != BUNDLE_VERSION:
        _refuse(f"the bundle is not of format version {BUNDLE_VERSION}")
    if not isinstance(bundle["origin"], str) or not isinstance(bundle["public_key"], str):
        _refuse("the bundle's origin or public key is not text")
    return _Bundle(
        origin=bundle["origin"],
        key=_key(bundle["public_key"]),
        records=_texts("records", bundle["records"], MAX_RECORDS),
        documents=_documents(bundle["documents"]),
        checkpoints=_texts("checkpoints", bundle["checkpoints"], MAX_RECORDS + 1),
        cosignatures=_texts("cosignatures", bundle["cosignatures"], MAX_RECORDS),
    )


def _key(text: str) -> PublicKey:
    try:
        return PublicKey.from_text(text)
    except FabricError:
        _refuse("the public key is not 32 bytes in base64")


def _texts(name: str, value: object, limit: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(f"the {name} are not a list of texts")
    if len(value) > limit:
        _refuse(f"there are more than {limit} {name}")
    return value


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        _refuse(f"{name} is not Unicode text")


def _decoded(name: str, text: object) -> bytes:
    if not isinstance(text, str) or len(text) > MAX_DOCUMENT_BYTES // 3 * 4 + 4:
        _refuse(f"{name} is not base64 text of at most {MAX_DOCUMENT_BYTES} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        _refuse(f"{name} is not base64")


def _documents(value: object) -> dict[str, bytes]:
    if not isinstance(value, Mapping) or len(value) > MAX_RECORDS:
        _refuse(f"the bundle's documents are not a map of at most {MAX_RECORDS} entries")
    documents: dict[str, bytes] = {}
    for position, (name, text) in enumerate(value.items()):
        content = _decoded(f"document {position}", text)
        if digest(content) != name:
            _refuse(f"document {position} does not match its digest")
        documents[name] = content
    return documents


def _keys(parts: _Bundle) -> tuple[PublicKey, ...]:
    """Return the keys of the log in the order of their use, by the rotations that its records tell of."""
    keys = [parts.key]
    for index, text in enumerate(parts.records):
        # Most records are read once only; a rotation shows by its action, which canonical JSON writes in one way.
        if f'"action":"{ROTATION}"' not in text:
            continue
        record = _numbered(index, _utf8(f"record {index}", text))
        if record["action"] != ROTATION:
            continue
        named = documents_named(record["body"])
        if len(named) != 1 or named[0] not in parts.documents:
            _refuse(f"record {index} is a rotation and rests on no document, or on several")
        old, new = read_rotation(parts.documents[named[0]], origin=parts.origin)
        if old != keys[-1] or new in keys:
            _refuse(f"record {index} is a rotation from a key that was not in use, or to one that was")
        keys.append(new)
    return tuple(keys)


def _read_log(parts: _Bundle, keys: Sequence[PublicKey], story: Story, sizes: set[int]) -> dict[int, bytes]:
    """Read every record once, check every checkpoint, and return the roots at `sizes` and at all checkpoints."""
    nodes: dict[tuple[int, int], bytes] = {}
    unnamed, in_use, roots = set(parts.documents), 0, {0: merkle.EMPTY_ROOT}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    for before, after, note in _commits(parts, keys):
        # 1. The tree of the very bytes.
        records = []
        for index in range(before, after):
            content = _utf8(f"record {index}", parts.records[index])
            for level, position, value in merkle.append(index, merkle.leaf_hash(content), read):
                nodes[level, position] = value
            if index + 1 in sizes:
                roots[index + 1] = merkle.root(index + 1, read)
            records.append(_numbered(index, content))
        roots[after] = merkle.root(after, read)
        # 2. The checkpoint over it. A rotation has one by the old key and the new one, then the new one goes on alone.
        rotates = any(record["action"] == ROTATION for record in records)
        for key in keys[in_use : in_use + 1 + rotates]:
            if _opened(f"the checkpoint at {after}", note, parts, [key]).root != roots[after]:
                _refuse(
                    f"the checkpoint at {after} does not match the records: record {max(after - 1, 0)} "
                    "or one before it was changed"
                )
        in_use += rotates
        _forget(nodes, after)
        # 3. The story, only of what was signed.
        for index, record in enumerate(records, before):
            if record["after"] != before or (record["action"] == ROTATION and len(records) > 1):
                _refuse(f"record {index} was written with another checkpoint than the bundle has: one is missing")
            story.tell(index, record)
            unnamed.difference_update(digests_in(record["body"]))
    if unnamed:
        _refuse(f"{len(unnamed)} documents are named by no record")
    return roots


def _commits(parts: _Bundle, keys: Sequence[PublicKey]) -> Iterator[tuple[int, int, str]]:
    """Yield the size before each commit, the size after it, and its checkpoint; the first made the log."""
    before = 0
    for number, note in enumerate(parts.checkpoints):
        after = _opened(f"checkpoint {number}", note, parts, keys).size
        if (after <= before) if number else after:
            _refuse(f"checkpoint {number} covers {after} records, the one before it {before}")
        if after > len(parts.records):
            _refuse(f"checkpoint {number} covers {after} records, and the bundle has only {len(parts.records)}")
        yield before, after, note
        before = after
    if before != len(parts.records) or not parts.checkpoints:
        _refuse(f"the checkpoints do not cover all {len(parts.records)} records")


def _forget(nodes: dict[tuple[int, int], bytes], size: int) -> None:
    """Keep of the tree only the perfect subtrees that its further growth reads."""
    wanted = set(merkle.frontier(size))
    for name in [name for name in nodes if name not in wanted]:
        del nodes[name]


def _check_kept(
    name: str, kept: Sequence[str], parts: _Bundle, keys: Sequence[PublicKey], roots: Mapping[int, bytes]
) -> int:
    """Check checkpoints from elsewhere against the bundle's roots and return the largest size."""
    vouched = 0
    for position, note in enumerate(kept):
        checkpoint = _opened(f"{name} {position}", note, parts, keys)
        if checkpoint.size > len(parts.records):
            _refuse(f"the log had {checkpoint.size} records, and the bundle has only {len(parts.records)}")
        if checkpoint.root != roots[checkpoint.size]:
            _refuse(f"the first {checkpoint.size} records are not those that were signed before: the log was rewritten")
        vouched = max(vouched, checkpoint.size)
    return vouched


def _witnessed(
    notes: Sequence[str], witnesses: Sequence[WitnessKey], parts: _Bundle, keys: Sequence[PublicKey]
) -> tuple[int, str]:
    """Return how many records a witness cosigned, and when it did."""
    found = [
        (_opened("a cosigned checkpoint", note, parts, keys).size, timestamp(at))
        for note in notes
        for witness in witnesses
        if (at := cosigned_at(note, witness)) is not None
    ]
    if witnesses and not found:
        raise _unwitnessed("any checkpoint of the bundle")
    return max(found, default=(0, ""))


def _unwitnessed(what: str) -> EvidenceInvalid:
    return EvidenceInvalid(
        Reason.EVIDENCE_UNWITNESSED,
        f"no witness that was named has cosigned {what}",
        "get the witness's key and its own copies from the witness: --witness-key, --kept",
    )


def _opened(name: str, note: str, parts: _Bundle, keys: Sequence[PublicKey]) -> Checkpoint:
    try:
        return open_checkpoint(note, parts.origin, keys)
    except EvidenceInvalid as error:
        _refuse(f"{name}: {error.message}", error.hint)


def _numbered(index: int, content: bytes) -> dict[str, Any]:
    try:
        return read_record(content)
    except EvidenceInvalid as error:
        _refuse(f"record {index}: {error.message}")


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise EvidenceInvalid(Reason.EVIDENCE_INVALID, message, hint)
