"""Rotation of the log's key: a statement that the old key and the new one both sign.

The old key says who comes after it, so whoever trusts the old one can follow; the new key says whom it came after, so
whoever trusts only the new one can believe what the old one signed. Pure: no file, no clock.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.statements import PublicKey, SigningKey, Statement, sign, timestamp, verify

ROTATION_TYPE = "urn:zonefabric:statement:key-rotation:v1"
OLD, NEW = "old-key", "new-key"
# Evidence is kept for ten years after a model's last use (EU AI Act, Article 18); the statement outlives that.
LASTS = timedelta(days=20 * 366)


def state_rotation(old: SigningKey, new: SigningKey, *, origin: str, now: datetime) -> bytes:
    """Return the envelope in which `old` names `new` as its successor in the log `origin`, signed by both."""
    statement = Statement(
        subjects={OLD: digest(old.public.raw), NEW: digest(new.public.raw)},
        predicate_type=ROTATION_TYPE,
        predicate={
            "origin": origin,
            "old": old.public.to_text(),
            "new": new.public.to_text(),
            "issued_at": timestamp(now),
            "expires_at": timestamp(now + LASTS),
        },
    )
    one, two = (json.loads(sign(statement, key).envelope) for key in (old, new))
    return canonical({**one, "signatures": [*one["signatures"], *two["signatures"]]})


def read_rotation(envelope: bytes, *, origin: str) -> tuple[PublicKey, PublicKey]:
    """Return the old key and the new one that `envelope` names, once both have signed it for `origin`.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID`.
    """
    try:
        # Read before it is verified only to learn which two keys must have signed.
        predicate = json.loads(base64.b64decode(json.loads(envelope)["payload"], validate=True))["predicate"]
        old, new = PublicKey.from_text(predicate["old"]), PublicKey.from_text(predicate["new"])
        stated = [verify(envelope, trusted=[key], predicate_type=ROTATION_TYPE, now=None) for key in (old, new)]
    except (ValueError, KeyError, TypeError, RecursionError, FabricError):
        raise _invalid("a key's rotation is not signed by the old key and the new one") from None
    subjects = {OLD: digest(old.raw), NEW: digest(new.raw)}
    if old == new or stated[0].statement.predicate["origin"] != origin or stated[0].statement.subjects != subjects:
        raise _invalid("a key's rotation is of another log, or names other keys than it is about")
    return old, new


def linked(signer: PublicKey, trusted: Sequence[PublicKey], rotations: Iterable[bytes], *, origin: str) -> bool:
    """Say whether `signer` is a trusted key, or rotations lead from it to one, backwards or forwards.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if a rotation does not verify.
    """
    pairs = [read_rotation(envelope, origin=origin) for envelope in rotations]
    reached = {signer}
    for _ in pairs:
        for old, new in pairs:
            if old in reached or new in reached:
                reached |= {old, new}
    return not reached.isdisjoint(trusted)


def _invalid(message: str) -> EvidenceInvalid:
    return EvidenceInvalid(Reason.EVIDENCE_INVALID, message, "`fabric evidence rotate` writes rotations that verify")
