"""A fabric's dispatcher without Ray: real stores, ledger, budgets and decision; drivers are plain processes.

Tests import it; dispatchers and drivers that are to be killed are processes that run a function of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from fabric.budget_store import BudgetStore, SQLiteBudgets
from fabric.budgets import Limit, Period, Unit, WhenSpent
from fabric.charges import Terms
from fabric.database import SQLiteDatabase
from fabric.dispatch import Dispatcher
from fabric.dispatch_rules import Late, Rules, Spill
from fabric.fleet import Health, Pool, Scope, Verdict
from fabric.job_store import DATABASE_NAME, SCHEMA, JobStore, NewJob, Row, State
from fabric.labels import WorkloadClass
from fabric.launching import Drive, Life
from fabric.ledger import Ledger
from fabric.ledger_store import SQLiteStore
from fabric.queueing import Dispatch
from fabric.reserving import Books
from fabric.spending import Spending
from fabric.statements import SigningKey
from fabric.testing import ProcessLauncher
from fabric.zones import ZoneKind

HERE = Path(__file__).parent
KEY = SigningKey.from_seed(bytes(range(32)))
ORIGIN = "fabric.example/ledger"
PRICE = 3_600_000  # micros an hour: 1000 a second
EAGER = Rules(
    spill={WorkloadClass.TRAINING: Spill(patience_s=0.0, wait_share=0.0, queue_depth=0, late=Late.WAIT)},
    startup_s=0.0, margin_s=0.0, reserve=0.0, stay_s=0.0, calm_s=0.0, drain_left_s=0.0, checkpoint_s=1.0,
)  # fmt: skip
"""Whatever may leave and finds no room inside leaves at once."""
BODY = {
    "kind": "training",
    "spec": {},
    "zone": "auto",
    "purpose": "test",
    "all_labels": {"data_classification": "internal", "team": "blue"},
    "labels": {},
    "workload": "training",
    "need": {"workers": 1},
    "duration_s": 60.0,
    "checkpointed": True,
    "person": "p-1",
    "justification": "hmac-sha256:00",
}


@dataclass
class Judge:
    """Every job may run in every zone but those that its body denies."""

    def verdicts(self, row: Row, now_s: float) -> Mapping[str, Verdict]:
        denied = row.body.get("denied", [])
        return {
            zone: Verdict(permitted=zone not in denied, code="POLICY_DENIED" if zone in denied else "")
            for zone in ("private", "public")
        }

    def egress_bytes(self, row: Row) -> int:
        return 0


@dataclass
class Drivers:
    """Drivers that are only noted; a test says what becomes of each."""

    started: list[Drive] = field(default_factory=list)
    known: dict[str, Life] = field(default_factory=dict)
    fails: Exception | None = None

    def start(self, drive: Drive) -> None:
        if self.fails:
            raise self.fails
        if drive.submission not in self.known:
            self.started.append(drive)
            self.known[drive.submission] = Life.ALIVE

    def lives(self) -> dict[str, Life]:
        if self.fails:
            raise self.fails
        return dict(self.known)

    def stop(self, submission: str) -> None:
        self.known[submission] = Life.STOPPED


@dataclass
class Lab:
    """One fabric in a folder."""

    folder: Path
    inside: int = 1
    outside: int = 4
    taken: int = 0
    limit: int = 10**9
    when_spent: WhenSpent = WhenSpent.HOLD
    rules: Rules = EAGER
    clock_s: float | None = None
    orphaned_s: float = 60.0
    health: dict[str, Health] = field(default_factory=dict)
    drivers: Drivers = field(default_factory=Drivers)
    abandoned: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = JobStore(SQLiteDatabase(self.folder / DATABASE_NAME, SCHEMA))
        limit = Limit(
            name="all",
            scope=Scope(),
            unit=Unit.MICROS,
            amount=self.limit,
            period=Period.QUARTER,
            when_spent=self.when_spent,
        )
        self.budgets = BudgetStore(SQLiteBudgets(self.folder), [limit])
        self.ledger = Ledger.open(
            SQLiteStore(self.folder / "evidence"),
            key=KEY,
            origin=ORIGIN,
            clock=lambda: datetime.now(UTC),
            new_id=lambda: uuid4().hex,
            owner="lab",
        )

    def now(self) -> float:
        return time.time() if self.clock_s is None else self.clock_s

    def dispatcher(self, launcher=None) -> Dispatcher:
        def terms(zone: str, spot: bool, at: float) -> Terms:
            owned = zone == "private"
            return Terms(zone=zone, currency="EUR", gpu_hour=PRICE, list_gpu_hour=PRICE, owned=owned)

        return Dispatcher(
            store=self.store,
            ledger=self.ledger,
            books=Books(spending=Spending(self.budgets, self.ledger, "EUR"), terms=terms, new_id=lambda: uuid4().hex),
            new_decision=lambda: Dispatch(self.rules),
            launcher=launcher or self.drivers,
            judge=Judge(),
            pools=self.pools,
            clock=self.now,
            orphaned_s=self.orphaned_s,
            abandon=self.abandoned.append,
        )

    def pools(self, now_s: float) -> Iterable[Pool]:
        for zone, kind, cpus, price in (
            ("private", ZoneKind.PRIVATE, self.inside, 0),
            ("public", ZoneKind.PUBLIC, self.outside, PRICE),
        ):
            health = self.health.get(zone, Health.HEALTHY)
            yield Pool(
                zone=zone,
                kind=kind,
                cpus_total=cpus,
                cpus_taken=self.taken if zone == "private" else 0,
                price=price,
                egress=0,
                health=health,
                observed_s=now_s,
            )

    def submit(self, name: str, *, deadline_s: float | None = None, priority: int = 0, driver: str = "", **body) -> Row:
        new = NewJob(
            id=name,
            token=f"t-{name}",
            body={**BODY, **body},
            priority=priority,
            deadline_s=deadline_s,
            driver=driver,
            matrix="m",
        )
        return self.store.submit(new, self.now())[0]

    def states(self) -> dict[str, str]:
        return {row.id: row.state.value for row in self.store.jobs(open_only=False)}

    def claim(self, name: str) -> Row:
        """Be the driver of a job that has a place."""
        row = self.store.find(name)
        assert self.store.claim(name, row.attempt, driver_of(row), self.now())
        return self.store.find(name)

    def finish(self, name: str, state: State = State.DONE) -> None:
        row = self.store.find(name)
        assert self.store.end(name, row.attempt, row.driver, state, self.now())
        self.drivers.known[row.driver] = Life.GONE

    def records(self, action: str, phase: str = "intent") -> list[dict]:
        return [e.record for e in self.ledger.entries() if (e.record["action"], e.record["phase"]) == (action, phase)]

    def balance(self) -> tuple[int, int]:
        found = self.budgets.balances(self.now())[0]
        return found.reserved, found.spent


def driver_of(row: Row) -> str:
    return row.driver or f"fabric-{row.id}-{row.attempt}"


# Processes that are killed.

_PRELUDE = (
    f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]; import dispatch_lab; from pathlib import Path\n"
)


def start(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _PRELUDE + code], stdout=subprocess.PIPE, text=True)


def dispatch_for_ever(folder: str) -> None:
    """Take turns until killed, with drivers that are processes."""
    lab = Lab(Path(folder), inside=1, outside=2, orphaned_s=0.0)
    work = Path(folder, "drivers")
    work.mkdir(exist_ok=True)
    program = _PRELUDE + f"dispatch_lab.drive({folder!r}, sys.argv[2], sys.argv[3])"
    dispatcher = lab.dispatcher(ProcessLauncher(work, (sys.executable, "-c", program)))
    print("ready", flush=True)
    while True:
        dispatcher.turn()
        time.sleep(0.01)


def drive(folder: str, job: str, submission: str) -> None:
    """Do a job's work, which is a line in a file; say so in the queue."""
    store = JobStore(SQLiteDatabase(Path(folder) / DATABASE_NAME, SCHEMA))
    row = store.find(job)
    if not store.claim(job, row.attempt, submission, time.time()):
        raise SystemExit(f"{job} is another driver's")
    with open(Path(folder, "done"), "ab", buffering=0) as file:
        file.write(f"{job} {row.attempt} {os.getpid()}\n".encode())
    time.sleep(0.05)
    store.end(job, row.attempt, submission, State.DONE, time.time(), result="m")
