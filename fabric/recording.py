"""Opening a fabric's ledger: one place that knows its store, origin, clock, ids, owner and witness."""

from __future__ import annotations

import os
import platform
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from fabric.budget_store import BudgetStore, SQLiteBudgets
from fabric.config import Config, EvidenceTerms
from fabric.database import Database
from fabric.ledger import Ledger
from fabric.ledger_store import LedgerStore, SQLiteStore
from fabric.notes import WitnessKey
from fabric.statements import SigningKey
from fabric.stores import Home
from fabric.witness import FolderWitness, Watch, Witness


def open_ledger(config: Config, home: Home, key: SigningKey, *, person: str = "") -> Ledger:
    """Open the ledger of a fabric, where `[evidence]` of its configuration says that it lies.

    Args:
        person: whoever acts; stands in every record under a pseudonym.

    Raises:
        FabricError: `EVIDENCE_UNWRITABLE`.
        EvidenceInvalid: it was written by another key, or changed.
    """
    return Ledger.open(
        _store(config, home),
        key=key,
        origin=origin_of(config),
        clock=now,
        new_id=new_id,
        actor=home.pseudonym(person) if person else "",
        owner=owner_token(home),
        watch=watch_of(config.evidence),
    )


def open_budgets(config: Config, home: Home) -> BudgetStore:
    """Open the budgets of a fabric, which lie where its ledger lies.

    Raises:
        FabricError: `EVIDENCE_UNWRITABLE`.
    """
    return BudgetStore(_budgets(config, home), config.limits)


def origin_of(config: Config) -> str:
    """Return the name of a fabric's log."""
    return f"{config.name}/ledger"


def watch_of(terms: EvidenceTerms) -> Watch | None:
    """Return what the ledger's witness is held to, if there is one.

    Raises:
        EvidenceInvalid: `KEY_UNKNOWN` if its key is not one.
    """
    if not terms.witness:
        return None
    return Watch(
        _witness(terms.witness),
        key=WitnessKey.from_text(terms.witness_key) if terms.witness_key else None,
        required=terms.witness_required,
        max_records=terms.witness_behind_records,
        max_age=timedelta(minutes=terms.witness_behind_minutes),
    )


def owner_token(home: Home) -> str:
    """Return the token of this process: machine, boot, process id and start, none of which names a person."""
    machine, boot = _machine(home)
    return f"{machine}.{boot}.{os.getpid()}.{int(psutil.Process().create_time() * 100)}"


def is_gone(home: Home, owner: str) -> bool:
    """Say whether the process behind a token is known to be gone; of another machine's nothing is known."""
    parts = owner.split(".")
    if len(parts) != 4 or not parts[2].isdigit():
        return False
    machine, boot = _machine(home)
    if parts[0] != machine:
        return False
    if parts[1] != boot:
        return True
    try:
        started = int(psutil.Process(int(parts[2])).create_time() * 100)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    # The clock may have been corrected since, and start times with it, by less than a process id takes to come again.
    return abs(started - int(parts[3])) > 200 if parts[3].isdigit() else False


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a random id."""
    return uuid.uuid4().hex


def _store(config: Config, home: Home) -> LedgerStore:
    if not config.evidence.database:
        return SQLiteStore(home.evidence)
    # Only a fabric that uses PostgreSQL pays for importing SQLAlchemy.
    from fabric.postgres_store import PostgresStore  # noqa: PLC0415

    return PostgresStore(config.evidence.database)


def _budgets(config: Config, home: Home) -> Database:
    if not config.evidence.database:
        return SQLiteBudgets(home.path)
    from fabric.postgres_budgets import PostgresBudgets  # noqa: PLC0415 - as above

    return PostgresBudgets(config.evidence.database)


def _witness(where: str) -> Witness:
    if not where.startswith(("http://", "https://")):
        return FolderWitness(Path(where))
    # Only a fabric with such a witness pays for importing an HTTP client.
    from fabric.witness_http import HTTPWitness  # noqa: PLC0415

    return HTTPWitness(where)


def _machine(home: Home) -> tuple[str, str]:
    """Return keyed tokens of this machine and of its boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = str(int(psutil.boot_time()))
    name, _, keyed = home.keyed(f"machine {platform.node()}").partition(":")
    return keyed[:12] or name, home.keyed(f"boot {boot}").partition(":")[2][:12]
