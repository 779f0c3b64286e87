"""Reservations a second in SQLite and PostgreSQL, beside plain inserts of the same row, as durable, in one run.

    python benchmarks/budgets.py [--count 500] [--json]

A reservation takes from four limits (two budgets, a quota of GPUs, one of GPU-hours) in one transaction. "Racing" means
eight threads with a connection each, all at the same four limits. With the ledger, every reservation and settlement is
also a signed record. PostgreSQL is one of its own in a temporary folder, started if Debian's package is there.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from postgres_server import ROLE, missing, postgres
from spenders import AT, KEYED, LIMITS, WORK, budgets, order, spending

RACERS = 8
ROUNDS = 3
ROOMY = tuple(replace(limit, amount=10**12) for limit in LIMITS)
ASKED = order(7, gpus=1, gpu_seconds=60)
ROW = (WORK.team, WORK.project, "confidential", "training", "public", 7, 1, 60, int(AT * 1e6))
PLAIN = (
    "CREATE TABLE plain (id TEXT PRIMARY KEY, team TEXT, project TEXT, classification TEXT, workload TEXT, zone TEXT, "
    "amount BIGINT, gpus BIGINT, gpu_seconds BIGINT, at BIGINT)"
)


def per_second(count: int, work: Callable[[int], object], workers: int = 1) -> float:
    """Return how many of `count` calls happen in a second, the median of some rounds."""
    found = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        if workers == 1:
            for number in range(count):
                work(number)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, range(count)))
        found.append(count / (time.perf_counter() - before))
    return statistics.median(found)


def measured(where: str, count: int, insert: Callable[[tuple[object, ...]], object]) -> dict[str, float]:
    """Return the figures of one database."""
    money = [budgets(where, ROOMY) for _ in range(RACERS)]
    made: list[str] = []

    def reserve(number: int) -> None:
        made.append(uuid4().hex)
        money[number % RACERS].reserve(made[-1], "job", ASKED, AT)

    def alone(number: int) -> None:
        made.append(uuid4().hex)
        money[0].reserve(made[-1], "job", ASKED, AT)

    ids = iter(made)
    figures = {
        "plain insert": per_second(count, lambda _: insert((uuid4().hex, *ROW))),
        "reserve": per_second(count, alone),
        "reserve, racing": per_second(count, reserve, RACERS),
        "settle": per_second(count, lambda _: money[0].settle(next(ids), 5, AT)),
        "balances": per_second(count, lambda _: money[0].balances(AT)),
    }
    told = spending(where, ROOMY)
    figures["reserve with ledger"] = per_second(
        max(count // 4, 1), lambda _: told.reserve(uuid4().hex, "job", ASKED, AT, justification_key=KEYED)
    )
    for one in (*money, told.store):
        one.close()
    told.ledger.close()
    return figures


@contextmanager
def plain_sqlite(folder: str) -> Iterator[Callable[[tuple[object, ...]], object]]:
    """Yield an insert of one row, committed with `synchronous=FULL`."""
    db = sqlite3.connect(Path(folder) / "plain.sqlite3", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(PLAIN)
    yield lambda row: db.execute("INSERT INTO plain VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.close()


def of_postgres(count: int) -> dict[str, float]:
    """Return the figures of a PostgreSQL server of one's own."""
    import psycopg  # noqa: PLC0415 - only where there is one

    from fabric import postgres_budgets, postgres_store  # noqa: PLC0415

    with postgres() as server:
        server.sql(postgres_store.schema_sql(ROLE) + postgres_budgets.schema_sql(ROLE))
        server.sql(f"{PLAIN}; GRANT INSERT ON plain TO {ROLE}")
        with psycopg.connect(server.url, autocommit=True) as connection:
            plain = "INSERT INTO plain VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            return measured(server.url, count, lambda row: connection.execute(plain, row))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder, plain_sqlite(folder) as insert:
        found["SQLite"] = measured(folder, asked.count, insert)
    if not missing():
        found["PostgreSQL"] = of_postgres(asked.count)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        for what, figure in figures.items():
            print(f"{name:<11} {what:<20} {figure:9,.0f}/s  {figure / figures['plain insert']:5.2f} of plain inserts")


if __name__ == "__main__":
    main()
