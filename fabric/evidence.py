"""Evidence: what the ledger holds, to look at, to save as a bundle, and to verify and explain anywhere."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import EvidenceInvalid, InvalidInput, Reason
from fabric.ledger import Entry, Ledger
from fabric.statements import PublicKey
from fabric.verification import Verified, verify_bundle
from fabric.witness import COSIGNED, REQUEST, Request

MAX_BUNDLE_BYTES = 4 * 1024**3
MAX_KEPT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The records of a fabric, in order, with the bundle that proves them."""

    entries: tuple[Entry, ...]
    bundle: dict[str, Any]
    key: PublicKey

    @classmethod
    def of(cls, ledger: Ledger, key: PublicKey) -> Evidence:
        """Read everything a ledger holds."""
        bundle = ledger.bundle()
        entries = (Entry(index=i, record=json.loads(text)) for i, text in enumerate(bundle["records"]))
        return cls(entries=tuple(entries), bundle=bundle, key=key)

    def verify(self) -> Verified:
        """Check the bundle with the fabric's own key.

        Raises:
            EvidenceInvalid: it does not verify.
        """
        return verify_bundle(self.bundle, trusted=[self.key])

    def save(self, path: str | Path) -> Path:
        """Write the bundle for an auditor; `fabric verify` checks it anywhere.

        Raises:
            InvalidInput: `EVIDENCE_UNWRITABLE`.
        """
        return save_json(Path(path), self.bundle)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a header and one row of text per record."""
        header = ("#", "time (UTC)", "phase", "action", "what")
        return [header, *((str(e.index), str(e.record["at"])[:19], *_described(e.record)) for e in self.entries)]

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def verify_file(path: Path, trusted: Sequence[PublicKey] | None) -> Verified:
    """Verify a bundle that `Evidence.save` wrote, offline.

    Raises:
        InvalidInput: there is no such file.
        EvidenceInvalid: it does not verify.
    """
    return verify_bundle(read_document(path), trusted=trusted)


def read_document(path: Path) -> dict[str, Any]:
    """Read a bundle, a receipt or a pack from a file.

    Raises:
        InvalidInput: there is no such file.
        EvidenceInvalid: it is too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"{path} is larger than {MAX_BUNDLE_BYTES} bytes")
        content = path.read_bytes()
    except OSError:
        raise InvalidInput(
            Reason.EVIDENCE_INVALID, f"cannot read {path}", "`fabric evidence --save FILE` writes a bundle"
        ) from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise EvidenceInvalid(
            Reason.EVIDENCE_INVALID,
            f"{path} is not a bundle: no JSON object",
            "name what `fabric evidence --save` wrote",
        )
    return document


def save_json(target: Path, document: Mapping[str, Any]) -> Path:
    """Write a document of evidence with mode 0600, whole or not at all.

    Raises:
        InvalidInput: `EVIDENCE_UNWRITABLE`.
    """
    try:
        part = target.with_name(f".{target.name}.part")
        with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file)
        part.replace(target)
    except OSError:
        raise InvalidInput(
            Reason.EVIDENCE_UNWRITABLE, f"cannot write {target}", "name a file in a folder you may write to"
        ) from None
    return target


def kept_notes(folder: Path, origin: str) -> tuple[str, ...]:
    """Return the checkpoints of a log that a witness or an auditor kept in a folder, or in folders below it.

    Raises:
        InvalidInput: `EVIDENCE_INVALID` if there is none, so that an empty folder cannot pass for a witness's word.
        EvidenceInvalid: a file there cannot be read.
    """
    notes = []
    try:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (REQUEST, COSIGNED, ".note") or path.stat().st_size > MAX_KEPT_BYTES:
                continue
            text = path.read_text("utf-8")
            note = Request.from_text(text).checkpoint if path.suffix == REQUEST else text
            if note.partition("\n")[0] == origin:
                notes.append(note)
    except (OSError, UnicodeDecodeError):
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"a checkpoint kept in {folder} cannot be read") from None
    if not notes:
        raise InvalidInput(
            Reason.EVIDENCE_INVALID, f"{folder} holds no checkpoint of this log", "ask the witness for its folder"
        )
    return tuple(notes)


def explain(bundle: Mapping[str, Any], found: Verified) -> dict[str, list[str]]:
    """Answer the three questions from a verified bundle alone: where it ran, what moved, who can prove it."""
    records = [json.loads(text) for text in bundle["records"]]
    endings = {r["intent"]: str(r["body"]["status"]) for r in records if r["phase"] == "outcome"}
    ran, moved = [], []
    for index, record in enumerate(records):
        if record["phase"] == "outcome":
            continue
        ending = endings.get(record["id"], "no outcome" if record["phase"] == "intent" else "observed")
        line = f"#{index} {record['at'][:19]} {_told(record)}: {ending}"
        if record["action"] in ("job", "sanitize", "serve", "deploy", "submit"):
            ran.append(line)
        if record["action"] in ("crossing", "delivery", "return", "read"):
            moved.append(line)
    refused = [f"#{i} {r['at'][:19]} {_told(r)}" for i, r in enumerate(records) if r["action"] == "refusal"]
    return {
        "Where did it run?": ran or ["nothing ran"],
        "What moved?": [*(moved or ["nothing moved"]), f"{len(refused)} attempts were refused", *refused],
        "Who can prove it?": _provers(bundle, found),
    }


def _provers(bundle: Mapping[str, Any], found: Verified) -> list[str]:
    keys = f"the log {bundle['origin']} was signed by {len(found.keyids)} keys: " + ", ".join(
        keyid[:16] for keyid in found.keyids
    )
    witness = (
        f"a witness cosigned the first {found.witnessed} of {found.records} records by {found.witnessed_at}"
        if found.witnessed
        else "no witness was asked, so only the log's own key vouches for it"
    )
    return [
        keys if found.trusted else f"{keys} (believed because the bundle says so: use --key)",
        witness,
        f"{found.checkpoints} signed checkpoints cover {found.records} records without a gap",
        f"{found.statements} signed statements say what was inspected before it crossed",
        f"{len(found.open_intents)} effects were announced and have no outcome",
    ]


def _told(record: Mapping[str, Any]) -> str:
    body = record["body"]
    who = body.get("actor") or record["by"]["actor"]
    route = f"{body['from_zone']} -> {body['to_zone']}" if "to_zone" in body else body.get("from_zone", "")
    names = ("kind", "zone", "jurisdiction", "provider", "purpose", "code", "what", "rows", "bytes", "columns", "model")
    parts = [f"{name}={_short(body[name])}" for name in names if body.get(name) not in (None, "")]
    if isinstance(body.get("decision"), dict):
        parts.append(f"rules={_short(body['decision'].get('rules', []))}")
    parts += (
        [f"approved_by={_short([one.get('approver') for one in body['approvals']])}"] if "approvals" in body else []
    )
    return " ".join([str(record["action"]), *([f"by={who}"] if who else []), *([route] if route else []), *parts])


_TOLD = (
    "kind",
    "code",
    "what",
    "to_zone",
    "from_zone",
    "zone",
    "rows",
    "bytes",
    "columns",
    "status",
    "model",
    "crossing",
)


def _described(record: dict[str, Any]) -> tuple[str, str, str]:
    body = record["body"]
    parts = [f"{name}={_short(body[name])}" for name in _TOLD if body.get(name) not in (None, "")]
    return str(record["phase"]), str(record["action"]), " ".join(parts)


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:12] if len(text) == 32 and text.isalnum() else text
