"""The ledger on a real PostgreSQL: its role adds and does nothing else, and no crash loses a record."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from crashing import KEY, ORIGIN, opened, rounds
from postgres_server import ROLE, Server, missing, postgres

from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason
from fabric.ledger import Ledger
from fabric.statements import SigningKey
from fabric.verification import verify_bundle

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

TABLES = ("record", "node", "checkpoint", "document", "cosigned")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with postgres() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    from fabric.postgres_store import schema_sql

    running.sql("DROP SCHEMA IF EXISTS fabric_evidence CASCADE")
    running.sql(schema_sql(ROLE))
    return running


@pytest.fixture
def ledger(server: Server) -> Iterator[Ledger]:
    found = opened(server.url)
    yield found
    found.close()


def refused(call: object) -> FabricError:
    with pytest.raises(FabricError) as caught:
        call()  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}"])
def test_the_applications_role_changes_and_removes_nothing(ledger: Ledger, server: Server, table: str, change: str):
    import psycopg

    ledger.observe("drill", {})
    before = ledger.bundle()
    column = {"record": "id", "node": "hash", "checkpoint": "note", "document": "digest", "cosigned": "note"}[table]
    with psycopg.connect(server.url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(change.format(f"fabric_evidence.{table}", column, column))
    assert ledger.bundle() == before


@pytest.mark.parametrize("change", ["UPDATE {}record SET id = id", "DELETE FROM {}node", "TRUNCATE {}checkpoint"])
def test_even_the_tables_owner_meets_a_trigger_first(ledger: Ledger, server: Server, change: str):
    ledger.observe("drill", {})
    with pytest.raises(subprocess.CalledProcessError) as caught:
        server.sql(change.format("fabric_evidence."))
    assert "append-only" in caught.value.stderr


def test_a_role_that_may_change_rows_is_refused(server: Server):
    error = refused(lambda: opened(server.owner_url))
    assert isinstance(error, InvalidInput)
    assert "fabric evidence schema" in error.hint


def test_without_its_tables_nothing_is_recorded(server: Server):
    server.sql("DROP SCHEMA fabric_evidence CASCADE")
    assert refused(lambda: opened(server.url)).reason is Reason.EVIDENCE_UNWRITABLE


def test_a_database_that_cannot_be_reached_is_unwritable_and_its_password_stays_unsaid():
    error = refused(lambda: opened("postgresql://fabric:secret@127.0.0.1:1/postgres"))
    assert error.reason is Reason.EVIDENCE_UNWRITABLE
    assert "secret" not in str(error)


@pytest.mark.parametrize("url", ["", "postgresql://", "mysql://x/y", "no url"])
def test_what_is_no_postgresql_url_is_refused(url: str):
    error = refused(lambda: opened(url if url.startswith("postgresql") else f"postgresql{url}:"))
    assert error.reason in (Reason.CONFIG_INVALID, Reason.EVIDENCE_UNWRITABLE)


@pytest.mark.parametrize("role", ["", "Robert'); DROP TABLE x;--", "two words", "x" * 64])
def test_a_role_that_needs_quoting_gets_no_schema(role: str):
    from fabric.postgres_store import schema_sql

    assert refused(lambda: schema_sql(role)).reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {}record SET content = 'x' WHERE idx = 2",
        "DELETE FROM {}record WHERE idx = 2",
        "UPDATE {}node SET hash = '\\x00' WHERE level = 1",
        "DELETE FROM {}checkpoint WHERE size = 3",
    ],
)
def test_a_log_changed_by_an_administrator_is_not_signed_again(ledger: Ledger, server: Server, change: str):
    for _ in range(3):
        ledger.observe("drill", {})
    table = change.split("{}")[1].split()[0]
    drop = f"ALTER TABLE fabric_evidence.{table} DISABLE TRIGGER append_only; "
    server.sql(drop + change.replace("{}", "fabric_evidence."))
    assert isinstance(refused(lambda: ledger.observe("drill", {})), EvidenceInvalid)


def test_another_key_cannot_go_on_with_the_log(ledger: Ledger, server: Server):
    from fabric.postgres_store import PostgresStore

    other = SigningKey.generate()
    error = refused(
        lambda: Ledger.open(
            PostgresStore(server.url), key=other, origin=ORIGIN, clock=lambda: datetime.now(UTC), new_id=str
        )
    )
    assert error.reason is Reason.KEY_UNKNOWN


def test_kill_9_and_concurrent_writers_lose_nothing(server: Server, tmp_path: Path):
    tally = rounds(server.url, tmp_path / "effects", count=4, writers=2, seed=1)
    assert (tally.lost, tally.unrecorded) == (0, 0)
    assert tally.acknowledged >= 8


def test_a_crash_of_the_server_loses_nothing_and_the_ledger_goes_on(ledger: Ledger, server: Server):
    kept = [ledger.observe("drill", {"number": n}).id for n in range(5)]
    server.crash()
    after = []
    for n in range(5):
        try:
            after.append(ledger.observe("drill", {"number": n}).id)
        except FabricError as error:  # the connection that died is noticed once
            after += [error.reason] * (error.reason is not Reason.EVIDENCE_UNWRITABLE)
    written = [entry.record["id"] for entry in ledger.entries()]
    assert [one for one in written if one in kept + after] == kept + after
    assert len(after) >= 4
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == len(written)


def test_threads_share_commits_and_the_bundle_verifies(ledger: Ledger):
    threads = [
        threading.Thread(target=lambda: [ledger.conclude(ledger.intend("drill", {}), "done", {}) for _ in range(5)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = verify_bundle(ledger.bundle(), trusted=[KEY.public])
    assert (found.records, found.open_intents) == (80, ())
    assert found.checkpoints <= 81


def test_the_same_calls_leave_the_same_bundle_in_both_stores(ledger: Ledger, tmp_path: Path):
    bundles = []
    for where in (ledger, opened(str(tmp_path))):
        document = where.attach(b"document")
        where.observe("drill", {"report": document})
        where.conclude(where.intend("drill", {"number": 1}), "failed", {"code": "X"})
        bundles.append(where.bundle())
    shapes = [(len(b["records"]), len(b["checkpoints"]), b["documents"], b["public_key"]) for b in bundles]
    assert shapes[0] == shapes[1]


def test_rotation_and_receipts_work_there_too(ledger: Ledger):
    from fabric.verification import verify_receipt_file

    first = ledger.observe("drill", {})
    new = SigningKey.generate()
    ledger.rotate(new)
    ledger.observe("drill", {})
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 3
    assert verify_receipt_file(ledger.receipt_file(first.id), trusted=[KEY.public]).index == 0


def test_only_a_fabric_with_a_database_imports_sqlalchemy():
    code = "import sys, fabric.cli, fabric.recording; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
