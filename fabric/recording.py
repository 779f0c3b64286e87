"""Opening a fabric's ledger: one place that knows its origin, clock and ids."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from fabric.config import Config
from fabric.ledger import Ledger
from fabric.statements import SigningKey
from fabric.stores import Home


def open_ledger(config: Config, home: Home, key: SigningKey) -> Ledger:
    """Open the ledger in `home`.

    Raises:
        FabricError: `EVIDENCE_UNWRITABLE`.
        EvidenceInvalid: it was written by another key, or changed.
    """
    return Ledger.open(home.evidence, key=key, origin=f"{config.name}/ledger", clock=now, new_id=new_id)


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a random id."""
    return uuid.uuid4().hex
