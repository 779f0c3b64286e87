"""Offline verification of evidence: records, receipts and whole bundles.

Pure: it needs no database, no cluster and no network, only the bundle and, from elsewhere, the keys to believe.
Whatever the input is, the answer is a summary or `EvidenceInvalid`. What a bundle alone cannot show: that its newest
records were cut off together with their checkpoints (it is then an older, honest bundle), or that the signer rewrote
the log from the start. A checkpoint or receipt that was kept elsewhere shows both.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from fabric import merkle
from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.notes import Checkpoint, open_checkpoint
from fabric.statements import MAX_ENVELOPE_BYTES, PublicKey, Statement, verify

BUNDLE_VERSION = 1
RECORD_VERSION = 1
MAX_RECORDS = 1_000_000
MAX_RECORD_BYTES = 256 * 1024
MAX_DOCUMENT_BYTES = MAX_ENVELOPE_BYTES
MAX_DEPTH = 32

PHASES = ("intent", "outcome", "observation")
STATUSES = ("done", "refused", "failed")
CROSSING = "crossing"
REFUSAL = "refusal"

_BUNDLE_KEYS = frozenset({"version", "origin", "public_key", "records", "documents", "checkpoints"})
_RECORD_KEYS = frozenset({"v", "id", "phase", "action", "intent", "at", "body"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
_ACTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


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
        keyids: the log's key first, then other keys that signed a statement.
        trusted: False if the bundle's own key had to be believed.
        vouched: how many of the first records are known from checkpoints kept elsewhere; 0 if none were given.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    origin: str
    key: PublicKey
    records: tuple[bytes, ...]
    documents: Mapping[str, bytes]
    checkpoints: tuple[str, ...]


def verify_bundle(
    bundle: Mapping[str, Any], *, trusted: Sequence[PublicKey] | None, kept: Sequence[str] = ()
) -> Verified:
    """Check a bundle from its bytes up and return what it holds.

    Args:
        bundle: what `Ledger.bundle` returned, perhaps by way of a JSON file.
        trusted: keys believed; the log's own must be among them. None believes the key in the bundle.
        kept: checkpoints of this log from elsewhere (a receipt's, a witness's); each must fit the bundle.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, naming the record or checkpoint by its index.
    """
    # 1. The shape, before anything is believed.
    parts = _open_bundle(bundle)
    # 2. The signer: one key signs all of a log.
    if trusted is not None and parts.key not in trusted:
        _refuse("the log was signed by a key that is not trusted", "get the log's public key from its owner")
    # 3. The records, each of the right shape, and the checkpoints over them.
    records = [_numbered(index, content) for index, content in enumerate(parts.records)]
    roots = _check_checkpoints(parts)
    vouched = _check_kept(kept, parts, roots)
    # 4. The documents: none changed, none that no record names.
    _check_documents(parts.documents, records)
    # 5. The story that the records tell.
    open_intents = _check_order(records)
    keys = tuple(dict.fromkeys([parts.key, *(trusted or ())]))
    statements: dict[str, tuple[Statement, tuple[str, ...]]] = {}
    for index, record in enumerate(records):
        if _is_crossing(record):
            _check_crossing(index, record["body"], parts.documents, keys, statements)
    signers = dict.fromkeys([parts.key.keyid, *(keyid for _, signed in statements.values() for keyid in signed)])
    return Verified(
        records=len(records),
        checkpoints=len(parts.checkpoints),
        statements=len(statements),
        crossings=sum(_is_crossing(record) for record in records),
        refusals=sum(_is_refusal(record) for record in records),
        open_intents=open_intents,
        keyids=tuple(signers),
        trusted=trusted is not None,
        vouched=vouched,
    )


def verify_receipt(receipt: Receipt, record: bytes, key: PublicKey) -> Checkpoint:
    """Check that `record` is in the log that `key` signs, and return the checkpoint that covers it.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`, or `KEY_UNKNOWN` if another key signed the checkpoint.
    """
    if read_record(record)["id"] != receipt.id or digest(record) != receipt.digest:
        _refuse("the receipt is for another record")
    checkpoint = open_checkpoint(receipt.checkpoint, receipt.checkpoint.partition("\n")[0], [key])
    try:
        proof = [bytes.fromhex(step) for step in receipt.proof]
    except (TypeError, ValueError):
        _refuse("the receipt's proof is not hex")
    leaf = merkle.leaf_hash(record)
    if not merkle.inclusion_holds(leaf, receipt.index, checkpoint.size, proof, checkpoint.root):
        _refuse("the receipt's proof does not lead to its checkpoint")
    return checkpoint


def read_record(content: bytes) -> dict[str, Any]:
    """Return the record in `content`; the ledger writes only what this reads.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` unless it is canonical JSON of the right shape.
    """
    if len(content) > MAX_RECORD_BYTES:
        _refuse(f"the record is larger than {MAX_RECORD_BYTES} bytes", "attach a document and name its digest")
    try:
        record = json.loads(content, parse_float=_no_float, parse_constant=_no_float)
        is_canonical = canonical(record) == content
    except (ValueError, RecursionError):
        _refuse("the record is not JSON without floats")
    if not is_canonical:
        _refuse("the record is not canonical JSON")
    if not isinstance(record, dict) or record.keys() != _RECORD_KEYS:
        _refuse("the record has missing or unknown fields")
    _check_fields(record)
    _check_body(record)
    return record


def documents_named(body: Mapping[str, Any]) -> list[str]:
    """Return the documents that a checked record's body rests on, by digest: its `statements`."""
    return list(body.get("statements", ()))


def digests_in(value: object) -> Iterator[str]:
    """Yield every digest that is a value anywhere in `value`."""
    if isinstance(value, str):
        if _DIGEST.match(value):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from digests_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from digests_in(item)


def _open_bundle(bundle: Mapping[str, Any]) -> _Bundle:
    if not isinstance(bundle, Mapping) or set(bundle) != _BUNDLE_KEYS:
        _refuse(f"the bundle's keys are not {', '.join(sorted(_BUNDLE_KEYS))}")
    if type(bundle["version"]) is not int or bundle["version"] != BUNDLE_VERSION:
        _refuse(f"the bundle is not of format version {BUNDLE_VERSION}")
    if not isinstance(bundle["origin"], str) or not isinstance(bundle["public_key"], str):
        _refuse("the bundle's origin or public key is not text")
    try:
        key = PublicKey.from_text(bundle["public_key"])
    except FabricError:
        _refuse("the bundle's public key is not 32 bytes in base64")
    records = _texts("records", bundle["records"], MAX_RECORDS)
    return _Bundle(
        origin=bundle["origin"],
        key=key,
        records=tuple(_utf8(f"record {index}", text) for index, text in enumerate(records)),
        documents=_documents(bundle["documents"]),
        checkpoints=tuple(_texts("checkpoints", bundle["checkpoints"], MAX_RECORDS + 1)),
    )


def _texts(name: str, value: object, limit: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(f"the bundle's {name} are not a list of texts")
    if len(value) > limit:
        _refuse(f"the bundle has more than {limit} {name}")
    return value


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        _refuse(f"{name} is not Unicode text")


def _documents(value: object) -> dict[str, bytes]:
    if not isinstance(value, Mapping) or len(value) > MAX_RECORDS:
        _refuse(f"the bundle's documents are not a map of at most {MAX_RECORDS} entries")
    documents: dict[str, bytes] = {}
    for position, (name, text) in enumerate(value.items()):
        if not isinstance(name, str) or not isinstance(text, str) or len(text) > MAX_DOCUMENT_BYTES // 3 * 4 + 4:
            _refuse(f"document {position} is not base64 text of at most {MAX_DOCUMENT_BYTES} bytes")
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError:
            _refuse(f"document {position} is not base64")
        if digest(content) != name:
            _refuse(f"document {position} does not match its digest")
        documents[name] = content
    return documents


def _numbered(index: int, content: bytes) -> dict[str, Any]:
    try:
        return read_record(content)
    except EvidenceInvalid as error:
        _refuse(f"record {index}: {error.message}")


def _check_fields(record: Mapping[str, Any]) -> None:
    # A JSON true would equal 1.
    if type(record["v"]) is not int or record["v"] != RECORD_VERSION:
        _refuse(f"the record is not of version {RECORD_VERSION}")
    if record["phase"] not in PHASES:
        _refuse(f"the record's phase is not one of {', '.join(PHASES)}")
    if not _matches(_ID, record["id"]) or not _matches(_ACTION, record["action"]):
        _refuse("the record's id or action is not a token")
    is_outcome = record["phase"] == "outcome"
    if is_outcome != _matches(_ID, record["intent"]) or (not is_outcome and record["intent"] is not None):
        _refuse("the record names an intent without being an outcome, or is an outcome without naming one")
    try:
        well_dated = _matches(_AT, record["at"]) and bool(datetime.fromisoformat(record["at"]))
    except ValueError:
        well_dated = False
    if not well_dated:
        _refuse("the record's time is not UTC with microseconds")


def _check_body(record: Mapping[str, Any]) -> None:
    body = record["body"]
    if not isinstance(body, dict) or _is_deeper(body, MAX_DEPTH):
        _refuse(f"the record's body is not an object of at most {MAX_DEPTH} levels")
    if record["phase"] == "outcome" and body.get("status") not in STATUSES:
        _refuse(f"the outcome's status is not one of {', '.join(STATUSES)}")
    named = body.get("statements", [])
    if not isinstance(named, list) or not all(_matches(_DIGEST, item) for item in named):
        _refuse("the record's statements are not a list of digests")
    if not _is_crossing(record):
        return
    if _effect(body) != "permit":
        _refuse("a crossing carries no decision that permits it")
    subjects = body.get("subjects")
    if not isinstance(subjects, dict) or not subjects or not all(_matches(_DIGEST, d) for d in subjects.values()):
        _refuse("a crossing names no subjects, or one without a digest")
    if not named:
        _refuse("a crossing rests on no statement")


def _check_checkpoints(parts: _Bundle) -> list[bytes]:
    """Check every checkpoint against the records and return the roots, by size."""
    # The log signs one checkpoint when it is made and one with every record, so none may be missing in between.
    if len(parts.checkpoints) != len(parts.records) + 1:
        _refuse(
            f"{len(parts.checkpoints)} checkpoints do not cover {len(parts.records)} records, one each and one before"
        )
    nodes: dict[tuple[int, int], bytes] = {}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    roots: list[bytes] = []
    for size, note in enumerate(parts.checkpoints):
        if size:
            for level, index, value in merkle.append(size - 1, merkle.leaf_hash(parts.records[size - 1]), read):
                nodes[level, index] = value
        checkpoint = _opened(f"checkpoint {size}", note, parts)
        if checkpoint.size != size:
            _refuse(f"checkpoint {size} covers {checkpoint.size} records, not {size}")
        roots.append(merkle.root(size, read))
        if checkpoint.root != roots[size]:
            _refuse(f"checkpoint {size} does not match the records: record {size - 1} or one before it was changed")
    return roots


def _check_kept(kept: Sequence[str], parts: _Bundle, roots: Sequence[bytes]) -> int:
    """Check checkpoints from elsewhere against the bundle's roots and return the largest size."""
    vouched = 0
    for position, note in enumerate(kept):
        checkpoint = _opened(f"kept checkpoint {position}", note, parts)
        if checkpoint.size >= len(roots):
            _refuse(f"the log had {checkpoint.size} records, and the bundle has only {len(roots) - 1}")
        if checkpoint.root != roots[checkpoint.size]:
            _refuse(f"the first {checkpoint.size} records are not those that were signed before: the log was rewritten")
        vouched = max(vouched, checkpoint.size)
    return vouched


def _opened(name: str, note: str, parts: _Bundle) -> Checkpoint:
    try:
        return open_checkpoint(note, parts.origin, [parts.key])
    except EvidenceInvalid as error:
        _refuse(f"{name}: {error.message}", error.hint)


def _check_documents(documents: Mapping[str, bytes], records: Sequence[Mapping[str, Any]]) -> None:
    unnamed = set(documents)
    for index, record in enumerate(records):
        unnamed.difference_update(digests_in(record["body"]))
        if any(name not in documents for name in documents_named(record["body"])):
            _refuse(f"record {index} rests on a document that is not in the bundle")
    if unnamed:
        _refuse(f"{len(unnamed)} documents are named by no record")


def _check_order(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Check that outcomes follow their intents, one at most, and return the ids of intents still open."""
    seen: set[str] = set()
    still_open: dict[str, str] = {}
    for index, record in enumerate(records):
        if record["id"] in seen:
            _refuse(f"record {index} repeats an earlier record's id")
        seen.add(record["id"])
        if record["phase"] == "intent":
            still_open[record["id"]] = record["action"]
        elif record["phase"] == "outcome" and still_open.pop(record["intent"], None) != record["action"]:
            _refuse(f"record {index} is an outcome, but no open intent of that action comes before it")
    return tuple(still_open)


def _check_crossing(
    index: int,
    body: Mapping[str, Any],
    documents: Mapping[str, bytes],
    keys: Sequence[PublicKey],
    statements: dict[str, tuple[Statement, tuple[str, ...]]],
) -> None:
    """Check a crossing against its statements, and remember in `statements` those that verified."""
    covered: set[str] = set()
    for name in documents_named(body):
        if name not in statements:
            try:
                statements[name] = _verify_statement(documents[name], keys)
            except FabricError as error:
                _refuse(f"record {index}: a statement of the crossing does not verify: {error.message}", error.hint)
        covered.update(statements[name][0].subjects.values())
    missing = sum(d not in covered for d in body["subjects"].values())
    if missing:
        _refuse(f"record {index}: {missing} subjects of the crossing are in none of its statements")


def _verify_statement(envelope: bytes, keys: Sequence[PublicKey]) -> tuple[Statement, tuple[str, ...]]:
    """Return the statement and the ids of the keys that signed it."""
    # The type is read before the signature is checked only to ask `verify` for it; `verify` reads it again.
    expected = _predicate_type(envelope)
    statement = verify(envelope, trusted=keys, predicate_type=expected, now=None).statement
    return statement, tuple(key.keyid for key in keys if _signed(envelope, key, expected))


def _signed(envelope: bytes, key: PublicKey, expected: str) -> bool:
    try:
        verify(envelope, trusted=[key], predicate_type=expected, now=None)
    except FabricError:
        return False
    return True


def _predicate_type(envelope: bytes) -> str:
    try:
        payload = json.loads(base64.b64decode(json.loads(envelope)["payload"], validate=True))
        return str(payload["predicateType"])
    except (ValueError, KeyError, TypeError, RecursionError):
        _refuse("the document is not a statement in a DSSE envelope")


def _is_crossing(record: Mapping[str, Any]) -> bool:
    return bool(record["action"] == CROSSING and record["phase"] == "intent")


def _is_refusal(record: Mapping[str, Any]) -> bool:
    if record["phase"] == "outcome":
        return bool(record["body"]["status"] == "refused")
    return record["phase"] == "observation" and (
        record["action"] == REFUSAL or _effect(record["body"]) not in (None, "permit")
    )


def _effect(body: Mapping[str, Any]) -> object:
    decision = body.get("decision")
    return decision.get("effect") if isinstance(decision, dict) else None


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.match(value) is not None


def _no_float(_: str) -> NoReturn:
    raise ValueError("floats have no place in evidence")


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise EvidenceInvalid(Reason.EVIDENCE_INVALID, message, hint)
