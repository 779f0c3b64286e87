"""Rounds of kill -9 on concurrent writers: what was acknowledged must be in the log, and no effect without its intent.

The tests and the benchmark import `rounds`; each writer is a process of its own.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from fabric.ledger import Ledger
from fabric.ledger_store import LedgerStore, SQLiteStore
from fabric.statements import SigningKey
from fabric.verification import verify_bundle

KEY = SigningKey.from_seed(bytes(range(32)))
ORIGIN = "fabric.example/ledger"
HERE = Path(__file__).parent
WRITER = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
from crashing import write
write(sys.argv[1], Path(sys.argv[2]))
"""


@dataclass(frozen=True)
class Tally:
    """What some rounds came to; `lost` and `unrecorded` must be 0."""

    rounds: int
    acknowledged: int
    lost: int
    effects: int
    unrecorded: int
    open_intents: int
    records: int


def store(where: str) -> LedgerStore:
    if where.startswith("postgresql"):
        from fabric.postgres_store import PostgresStore

        return PostgresStore(where)
    return SQLiteStore(Path(where))


def opened(where: str) -> Ledger:
    return Ledger.open(
        store(where),
        key=KEY,
        origin=ORIGIN,
        clock=lambda: datetime.now(UTC),
        new_id=lambda: uuid4().hex,
        owner="writer",
    )


def rounds(where: str, effects: Path, *, count: int, writers: int, seed: int) -> Tally:
    """Start writers and kill them at a random moment, `count` times; check the whole log every tenth round."""
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for number in range(1, count + 1):
        running = [
            subprocess.Popen([sys.executable, "-c", WRITER, where, str(effects)], stdout=subprocess.PIPE, text=True)
            for _ in range(writers)
        ]
        for one in running:
            assert one.stdout is not None
            acknowledged.add(one.stdout.readline().strip())
        time.sleep(chance.random() * 0.15)
        for one in running:
            os.kill(one.pid, signal.SIGKILL)
        for one in running:
            assert one.stdout is not None
            *whole, _cut = one.stdout.read().split("\n")
            acknowledged |= set(whole)
            one.wait()
            one.stdout.close()
        if number % 10 and number != count:
            continue
        ledger = opened(where)
        bundle = ledger.bundle()
        verified = verify_bundle(bundle, trusted=[KEY.public])
        written = {entry.record["id"] for entry in ledger.entries()}
        ledger.close()
    done = {line for line in effects.read_text().split("\n") if len(line) == 32}
    return Tally(
        rounds=count,
        acknowledged=len(acknowledged),
        lost=len(acknowledged - written),
        effects=len(done),
        unrecorded=len(done - written),
        open_intents=len(verified.open_intents),
        records=verified.records,
    )


def write(where: str, effects: Path) -> None:
    """Announce an effect, have it (a line in a file, named by its intent), record its outcome, and so on for ever."""
    ledger = opened(where)
    with effects.open("ab", buffering=0) as file:
        while True:
            intent = ledger.intend("drill", {})
            print(intent.id, flush=True)
            file.write(f"{intent.id}\n".encode())
            print(ledger.conclude(intent, "done", {}).id, flush=True)
