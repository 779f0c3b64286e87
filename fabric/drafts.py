"""Drafts: records on their way into the log, and what a draft must be to become one.

A draft is made by the thread that appends, and composed by whoever writes the commit that it is in. Pure but for the
draft itself, which is filled in: what the log holds already comes in as `Known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.records import CROSSING, MAX_DEPTH, RECORD_VERSION, check_body, documents_named, encode, read_record
from fabric.stories import expires_at
from fabric.verification import Receipt


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """A record on its way into the log.

    Attributes:
        settled: whether `result` has an answer; set last, because other threads look at it.
    """

    id: str
    phase: str
    action: str
    intent: str | None
    body: dict[str, Any]
    content: bytes = b""
    index: int = -1
    proof: tuple[str, ...] = ()
    receipt: Receipt | None = None
    error: Exception | None = None
    settled: bool = False

    def statements(self) -> list[str]:
        """Return the documents that the body says it rests on, before anybody checked it."""
        named = self.body.get("statements")
        return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []

    def result(self) -> Receipt:
        """Return the receipt of the record, or raise what refused it."""
        if self.error is not None:
            raise self.error
        if self.receipt is None:
            raise FabricError(Reason.EVIDENCE_UNWRITABLE, "the commit was interrupted", "try again")
        return self.receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the log holds of what a commit's drafts name.

    Attributes:
        records: by id.
        taken: ids of records, and of intents that have an outcome; grows with the commit.
        documents: digests.
        moving: documents that crossings rest on, by digest.
    """

    records: Mapping[str, bytes]
    taken: set[str]
    documents: set[str]
    moving: Mapping[str, bytes]


def make_draft(record_id: str, phase: str, action: str, intent: str | None, body: Mapping[str, object]) -> Draft:
    """Return a draft with a body of plain JSON values that its action may say.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`.
    """
    plain = _plain(body)
    if intent is None:
        check_body(action, plain)
    return Draft(id=record_id, phase=phase, action=action, intent=intent, body=plain)


def compose(draft: Draft, known: Known, *, after: int, at: str, by: Mapping[str, str]) -> bytes:
    """Return the record's bytes, read back as a verifier will read them.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`.
    """
    action = draft.action
    if draft.intent is not None:
        action = _open_intent(known.records.get(draft.intent), is_concluded=draft.intent in known.taken)
        check_body(action, draft.body)
    content = _content(
        {
            "v": RECORD_VERSION,
            "id": draft.id,
            "phase": draft.phase,
            "action": action,
            "intent": draft.intent,
            "at": at,
            "after": after,
            "by": by,
            "body": draft.body,
        }
    )
    read_record(content)
    if draft.id in known.taken:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the record's id is taken", "make ids at random")
    if not known.documents.issuperset(documents_named(draft.body)):
        raise EvidenceInvalid(
            Reason.EVIDENCE_INVALID, "the record rests on a statement that the log does not hold", "attach it first"
        )
    if action == CROSSING and draft.intent is None:
        _check_unexpired(draft, known, at)
    return content


def _check_unexpired(draft: Draft, known: Known, at: str) -> None:
    # The border has looked, but a moment ago: what is recorded late would never verify.
    if any(datetime.fromisoformat(at) >= expires_at(known.moving[name]) for name in documents_named(draft.body)):
        raise EvidenceInvalid(
            Reason.STATEMENT_EXPIRED, "a statement of the crossing has expired", "sanitize the records again"
        )


def _open_intent(content: bytes | None, *, is_concluded: bool) -> str:
    """Return the action of an intent that has no outcome yet."""
    record = read_record(content) if content is not None else None
    if record is None or record["phase"] != "intent":
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the log has no such intent")
    if is_concluded:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the intent has an outcome already")
    return str(record["action"])


def _plain(body: Mapping[str, object]) -> dict[str, Any]:
    plain = _plain_value(body, MAX_DEPTH)
    return plain if isinstance(plain, dict) else {}


def _plain_value(value: object, levels: int) -> object:
    """Return `value` as plain JSON values, or refuse it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if levels and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str(name): _plain_value(item, levels - 1) for name, item in value.items()}
    if levels and isinstance(value, list | tuple):
        return [_plain_value(item, levels - 1) for item in value]
    raise EvidenceInvalid(
        Reason.EVIDENCE_INVALID,
        f"a record cannot hold a {type(value).__name__} at this place",
        f"use null, booleans, integers, text, lists and maps of at most {MAX_DEPTH} levels; write a ratio as text",
    )


def _content(record: Mapping[str, Any]) -> bytes:
    try:
        return encode(record)
    except ValueError:
        raise EvidenceInvalid(
            Reason.EVIDENCE_INVALID, "the record has no canonical JSON", "integers up to 2**53 - 1, Unicode text"
        ) from None
