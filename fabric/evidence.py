"""Evidence: what the ledger holds, to look at, to save as a bundle, and to verify anywhere."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import EvidenceInvalid, InvalidInput, Reason
from fabric.ledger import Entry, Ledger
from fabric.statements import PublicKey
from fabric.verification import Verified, verify_bundle

MAX_BUNDLE_BYTES = 1024**3


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
        target = Path(path)
        try:
            part = target.with_name(f".{target.name}.part")
            with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
                json.dump(self.bundle, file)
            part.replace(target)
        except OSError:
            raise InvalidInput(
                Reason.EVIDENCE_UNWRITABLE, f"cannot write {target}", "name a file in a folder you may write to"
            ) from None
        return target

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
    try:
        if path.stat().st_size > MAX_BUNDLE_BYTES:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"{path} is larger than {MAX_BUNDLE_BYTES} bytes")
        content = path.read_bytes()
    except OSError:
        raise InvalidInput(
            Reason.EVIDENCE_INVALID, f"cannot read {path}", "`fabric evidence --save FILE` writes a bundle"
        ) from None
    try:
        bundle = json.loads(content)
    except (ValueError, RecursionError):
        bundle = None
    if not isinstance(bundle, dict):
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"{path} is not a bundle: no JSON object")
    return verify_bundle(bundle, trusted=trusted)


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
