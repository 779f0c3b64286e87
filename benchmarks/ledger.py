"""What the ledger costs beside plain inserts, how long a verification takes, and a hundred rounds of kill -9.

    python benchmarks/ledger.py [--appends 300] [--records 1000000] [--rounds 100]

Every figure stands beside a plain one taken in the same run on the same disk: an insert of the same bytes into one
table, committed as durably. Grouped means 64 threads that append at once and share commits, or 64 plain inserts in a
commit. PostgreSQL is one of its own in a temporary folder, started if Debian's package is there. Verification reads a
bundle of small records in commits of 512; plain beside it is parsing the same records and hashing them once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from crashing import KEY, ORIGIN, opened, rounds
from postgres_server import ROLE, missing, postgres

from fabric import merkle
from fabric.artifacts import canonical
from fabric.notes import sign_checkpoint
from fabric.statements import timestamp
from fabric.verification import verify_bundle

THREADS = 64
BODY = {"number": 1, "job": "session-0123456789abcdef", "purpose": "cost-forecast", "zone": "public", "rows": 1234}
ROW = canonical({"body": BODY, "at": timestamp(datetime(2025, 3, 1, tzinfo=UTC)), "pad": "x" * 150})

Insert = Callable[[list[bytes]], None]


def per_second(count: int, work: Callable[[], object]) -> float:
    """Return how many of `count` things happen in a second of wall clock while `work` runs."""
    before = time.perf_counter()
    work()
    return count / (time.perf_counter() - before)


def ledger_rates(where: str, count: int) -> tuple[float, float]:
    """Return appends a second, one at a time and by threads that share commits."""
    ledger = opened(where)
    single = per_second(count, lambda: [ledger.observe("drill", BODY) for _ in range(count)])
    many = count * 10
    with ThreadPoolExecutor(THREADS) as pool:
        grouped = per_second(many, lambda: list(pool.map(lambda _: ledger.observe("drill", BODY), range(many))))
    ledger.close()
    return single, grouped


def plain_rates(insert: Insert, count: int) -> tuple[float, float]:
    """Return plain inserts a second, one in a commit and 64 in a commit."""
    single = per_second(count, lambda: [insert([ROW]) for _ in range(count)])
    groups = count * 10 // THREADS
    return single, per_second(groups * THREADS, lambda: [insert([ROW] * THREADS) for _ in range(groups)])


@contextmanager
def sqlite_inserts(path: Path) -> Iterator[Insert]:
    """Yield a function that inserts rows into a table in one commit as durable as the ledger's."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE plain (idx INTEGER PRIMARY KEY, content BLOB NOT NULL)")

    def insert(rows: list[bytes]) -> None:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO plain (content) VALUES (?)", [(row,) for row in rows])
        database.execute("COMMIT")

    yield insert
    database.close()


@contextmanager
def postgres_inserts(url: str) -> Iterator[Insert]:
    """Yield the same for PostgreSQL."""
    import psycopg  # noqa: PLC0415 - an extra

    with psycopg.connect(url, autocommit=True) as connection:

        def insert(rows: list[bytes]) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany("INSERT INTO plain (content) VALUES (%s)", [(row,) for row in rows])

        yield insert


def bundle_of(count: int, commit: int) -> dict[str, Any]:
    """Return a bundle of `count` small records in commits of `commit`."""
    start, nodes = datetime(2025, 3, 1, tzinfo=UTC), dict[tuple[int, int], bytes]()
    by = {"actor": "p-0123456789abcdef", "owner": "a.b.1.2"}

    def read(level: int, index: int) -> bytes:
        return nodes[level, index]

    records, notes = [], [sign_checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT, KEY)]
    for after in range(0, count, commit):
        size = min(count, after + commit)
        at = timestamp(start + timedelta(seconds=after))
        for index in range(after, size):
            record = {"v": 2, "id": f"id-{index}", "phase": "observation", "action": "drill", "intent": None}
            content = canonical({**record, "at": at, "after": after, "by": by, "body": BODY})
            for level, place, value in merkle.append(index, merkle.leaf_hash(content), read):
                nodes[level, place] = value
            records.append(content.decode())
        notes.append(sign_checkpoint(ORIGIN, size, merkle.root(size, read), KEY))
        wanted = set(merkle.frontier(size))
        for name in [name for name in nodes if name not in wanted]:
            del nodes[name]
    return {
        "version": 2,
        "origin": ORIGIN,
        "public_key": KEY.public.to_text(),
        "records": records,
        "documents": {},
        "checkpoints": notes,
        "cosignatures": [],
    }


def told(name: str, ours: float, plain: float) -> None:
    """Print one line of the table."""
    print(
        f"{name:<42} {ours:>12,.0f}/s  plain {plain:>12,.0f}/s  plain is {plain / ours:5.1f} times as fast", flush=True
    )


def appends(count: int, folder: Path) -> None:
    """Print appends a second on SQLite and, if it is there, on PostgreSQL."""
    with sqlite_inserts(folder / "plain.sqlite3") as insert:
        plain = plain_rates(insert, count)
    ours = ledger_rates(str(folder / "sqlite"), count)
    told("SQLite, one record a commit", ours[0], plain[0])
    told(f"SQLite, {THREADS} threads share commits", ours[1], plain[1])
    if missing():
        print(f"PostgreSQL: {missing()}")
        return
    from fabric.postgres_store import schema_sql  # noqa: PLC0415 - SQLAlchemy is an extra

    with postgres() as server:
        server.sql(schema_sql(ROLE))
        server.sql(
            f"CREATE TABLE plain (idx bigserial PRIMARY KEY, content bytea NOT NULL); GRANT ALL ON plain TO {ROLE};"
        )
        server.sql(f"GRANT ALL ON SEQUENCE plain_idx_seq TO {ROLE}")
        with postgres_inserts(server.url) as insert:
            plain = plain_rates(insert, count)
        ours = ledger_rates(server.url, count)
    told("PostgreSQL, one record a commit", ours[0], plain[0])
    told(f"PostgreSQL, {THREADS} threads share commits", ours[1], plain[1])


def verification(count: int) -> None:
    """Print how long a bundle takes to verify."""
    bundle = bundle_of(count, 512)
    plain = per_second(count, lambda: [(json.loads(t), hashlib.sha256(t.encode()).digest()) for t in bundle["records"]])
    before = time.process_time()
    ours = per_second(count, lambda: verify_bundle(bundle, trusted=[KEY.public]))
    told(f"verify {count:,} records", ours, plain)
    print(f"{'':<42} {time.process_time() - before:,.1f} CPU s, {len(bundle['checkpoints']):,} checkpoints")


def crashes(count: int, folder: Path) -> None:
    """Print what rounds of kill -9 on two concurrent writers came to."""
    print(
        f"SQLite      {rounds(str(folder / 'crash'), folder / 'effects-sqlite', count=count, writers=2, seed=0)}",
        flush=True,
    )
    if missing():
        return
    from fabric.postgres_store import schema_sql  # noqa: PLC0415 - SQLAlchemy is an extra

    with postgres() as server:
        server.sql(schema_sql(ROLE))
        print(
            f"PostgreSQL  {rounds(server.url, folder / 'effects-postgres', count=count, writers=2, seed=0)}", flush=True
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appends", type=int, default=300, help="single appends; ten times as many grouped")
    parser.add_argument(
        "--records", type=int, default=1_000_000, help="records in the bundle that is verified; 0 for none"
    )
    parser.add_argument("--rounds", type=int, default=100, help="rounds of kill -9; 0 for none")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if chosen.appends:
            appends(chosen.appends, Path(name))
        if chosen.records:
            verification(chosen.records)
        if chosen.rounds:
            crashes(chosen.rounds, Path(name))


if __name__ == "__main__":
    main()
