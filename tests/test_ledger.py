"""The ledger: what it refuses to write, what a crash and other processes leave, and what a restart goes on from."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid, FabricError, InvalidInput, Reason
from fabric.ledger import DATABASE_NAME, Ledger
from fabric.statements import SigningKey, Statement, sign, timestamp
from fabric.verification import MAX_DOCUMENT_BYTES, Receipt, verify_bundle, verify_receipt

ORIGIN = "fabric.example/ledger"
KEY = SigningKey.from_seed(bytes(range(32)))
START = datetime(2025, 3, 1, 12, tzinfo=UTC)
TABLES = ("record", "node", "checkpoint", "document")

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4
from fabric.ledger import Ledger
from fabric.statements import SigningKey

ledger = Ledger.open(
    Path(sys.argv[1]), key=SigningKey.from_seed(bytes(range(32))), origin=sys.argv[2],
    clock=lambda: datetime.now(UTC), new_id=lambda: uuid4().hex,
)
for number in range(int(sys.argv[3])):
    intent = ledger.intend("training", {"number": number})
    print(intent.id, flush=True)
    print(ledger.conclude(intent, "done", {}).id, flush=True)
"""


def ids() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"


def clock() -> Callable[[], datetime]:
    ticks = itertools.count()
    return lambda: START + timedelta(seconds=next(ticks))


def open_ledger(folder: Path, *, key: SigningKey = KEY, origin: str = ORIGIN) -> Ledger:
    return Ledger.open(folder, key=key, origin=origin, clock=clock(), new_id=lambda: uuid4().hex)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "evidence", key=KEY, origin=ORIGIN, clock=clock(), new_id=ids())
    yield opened
    opened.close()


def by_hand(folder: Path, *statements: str) -> None:
    """Change the database as someone with write access to the file would: triggers first."""
    with sqlite3.connect(folder / DATABASE_NAME, isolation_level=None) as database:
        for table, verb in itertools.product(TABLES, ("UPDATE", "DELETE", "INSERT")):
            database.execute(f"DROP TRIGGER IF EXISTS {table}_{verb}")
        for statement in statements:
            database.execute(statement)
    database.close()


def statement(name: str = "matrix", content: bytes = b"matrix bytes") -> bytes:
    predicate = {"expires_at": timestamp(START + timedelta(days=1))}
    said = Statement(subjects={name: digest(content)}, predicate_type="urn:example:inspection", predicate=predicate)
    return sign(said, KEY).envelope


def crossing_body(ledger: Ledger) -> dict[str, object]:
    return {
        "decision": {"effect": "permit"},
        "statements": [ledger.attach(statement())],
        "subjects": {"matrix": digest(b"matrix bytes")},
    }


def refused(call: Callable[[], object]) -> FabricError:
    with pytest.raises(FabricError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        {"loss": 0.5},
        {"loss": 2.0},
        {"deep": [{"loss": [1.0]}]},
        {"nan": float("nan")},
        {"raw": b"bytes"},
        {"set": {1, 2}},
        {"when": START},
        {"big": 2**53},
        {"text": "\ud800"},
        {"\ud800": 1},
        {1: "number as a name"},
        {"long": "x" * 300_000},
        {"statements": "not a list"},
        {"statements": ["sha256:short"]},
    ],
)
def test_a_body_that_would_not_verify_is_refused_and_leaves_no_trace(ledger: Ledger, body: dict[str, object]) -> None:
    assert refused(lambda: ledger.observe("training", body)).reason is Reason.EVIDENCE_INVALID
    assert list(ledger.entries()) == []
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).checkpoints == 1


def test_a_body_without_end_is_refused(ledger: Ledger) -> None:
    endless: list[object] = []
    endless.append(endless)
    assert refused(lambda: ledger.observe("training", {"endless": endless})).reason is Reason.EVIDENCE_INVALID


def test_a_refused_value_is_not_in_the_message(ledger: Ledger) -> None:
    assert "1234.5" not in str(refused(lambda: ledger.observe("training", {"salary": 1234.5})))


@pytest.mark.parametrize("action", ["", "two words", "-dash", "x" * 64, "line\n"])
def test_an_action_that_is_no_token_is_refused(ledger: Ledger, action: str) -> None:
    assert refused(lambda: ledger.intend(action, {})).reason is Reason.EVIDENCE_INVALID


@pytest.mark.parametrize(
    "change", ["no decision", "denied", "no statements", "not attached", "no subjects", "bad subject"]
)
def test_a_crossing_that_would_not_verify_is_refused_before_it_moves(ledger: Ledger, change: str) -> None:
    body = crossing_body(ledger)
    body |= {
        "no decision": {"decision": None},
        "denied": {"decision": {"effect": "forbid"}},
        "no statements": {"statements": []},
        "not attached": {"statements": [digest(b"never attached")]},
        "no subjects": {"subjects": {}},
        "bad subject": {"subjects": {"matrix": "matrix"}},
    }[change]
    assert refused(lambda: ledger.intend("crossing", body)).reason is Reason.EVIDENCE_INVALID
    assert list(ledger.entries()) == []


def test_an_unknown_status_is_refused(ledger: Ledger) -> None:
    intent = ledger.intend("training", {})
    assert refused(lambda: ledger.conclude(intent, "perhaps", {})).reason is Reason.EVIDENCE_INVALID
    assert refused(lambda: ledger.conclude(intent, "done", {"status": "done"})).reason is Reason.EVIDENCE_INVALID


def test_a_second_outcome_is_refused(ledger: Ledger) -> None:
    intent = ledger.intend("training", {})
    ledger.conclude(intent, "failed", {})
    assert "outcome already" in refused(lambda: ledger.conclude(intent, "done", {})).message
    assert len(list(ledger.entries())) == 2


def test_an_outcome_of_nothing_is_refused(ledger: Ledger) -> None:
    seen = ledger.observe("training", {})
    stranger = Receipt(id="stranger", index=0, digest=digest(b""), checkpoint="", proof=())
    for receipt in (seen, stranger):
        assert "no such intent" in refused(lambda receipt=receipt: ledger.conclude(receipt, "done", {})).message


def test_an_id_that_repeats_is_refused(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=clock(), new_id=lambda: "same")
    ledger.intend("training", {})
    assert "id is taken" in refused(lambda: ledger.intend("training", {})).message


def test_a_document_too_large_to_verify_is_refused(ledger: Ledger) -> None:
    assert refused(lambda: ledger.attach(bytes(MAX_DOCUMENT_BYTES + 1))).reason is Reason.EVIDENCE_INVALID


def test_an_origin_that_no_checkpoint_can_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        open_ledger(tmp_path, origin="two words")


def test_a_folder_that_is_a_file_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "evidence"):
        error = refused(lambda folder=folder: open_ledger(folder))
        assert error.reason is Reason.EVIDENCE_UNWRITABLE
        assert str(folder) in error.message


def test_a_folder_that_takes_no_files_is_unwritable() -> None:
    assert refused(lambda: open_ledger(Path("/proc/self"))).reason is Reason.EVIDENCE_UNWRITABLE


def test_a_file_that_is_no_database_is_unwritable_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_text("something else entirely" * 100)
    assert refused(lambda: open_ledger(tmp_path)).reason is Reason.EVIDENCE_UNWRITABLE
    assert (tmp_path / DATABASE_NAME).read_text().startswith("something else")


def test_a_database_that_turned_read_only_is_unwritable(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    ledger = open_ledger(tmp_path)
    ledger._rows._db.execute("PRAGMA query_only=ON")
    assert refused(lambda: ledger.intend("training", {})).reason is Reason.EVIDENCE_UNWRITABLE


def test_a_full_database_refuses_the_intent_and_keeps_what_it_has(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    kept = ledger.intend("training", {})
    (pages,) = ledger._rows._db.execute("PRAGMA page_count").fetchone()
    ledger._rows._db.execute(f"PRAGMA max_page_count={pages}")
    assert refused(lambda: ledger.intend("training", {"much": "x" * 200_000})).reason is Reason.EVIDENCE_UNWRITABLE
    assert [entry.record["id"] for entry in ledger.entries()] == [kept.id]
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 1


def test_a_closed_ledger_writes_nothing(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    assert refused(lambda: ledger.intend("training", {})).reason is Reason.EVIDENCE_UNWRITABLE


def test_another_key_cannot_go_on_with_the_log(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    other = SigningKey.generate()
    assert refused(lambda: open_ledger(tmp_path, key=other)).reason is Reason.KEY_UNKNOWN
    open_ledger(tmp_path).close()


def test_another_origin_cannot_go_on_with_the_log(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    assert refused(lambda: open_ledger(tmp_path, origin="elsewhere")).reason is Reason.EVIDENCE_INVALID


def test_another_format_is_refused(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    by_hand(tmp_path, "PRAGMA user_version=99")
    assert "format 99" in refused(lambda: open_ledger(tmp_path)).message


@pytest.mark.parametrize("table", TABLES)
def test_sql_changes_and_removes_nothing(tmp_path: Path, table: str) -> None:
    ledger = open_ledger(tmp_path)
    ledger.intend("crossing", crossing_body(ledger))
    before = ledger.bundle()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as database:
        row = database.execute(f"SELECT * FROM {table}").fetchone()
        column = database.execute(f"SELECT * FROM {table}").description[0][0]
        marks = ", ".join("?" * len(row))
        for change, values in (
            (f"DELETE FROM {table}", ()),
            (f"UPDATE {table} SET {column} = {column}", ()),
            (f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row),
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(change, values)
    assert ledger.bundle() == before


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM checkpoint",
        "DELETE FROM checkpoint WHERE size = 3",
        "DELETE FROM record WHERE idx = 2",
        "DELETE FROM node WHERE level = 1",
        "UPDATE node SET hash = zeroblob(32) WHERE level = 0 AND idx = 2",
        "UPDATE node SET hash = 'text' WHERE level = 0 AND idx = 2",
        "UPDATE checkpoint SET note = replace(note, 'fabric', 'febric') WHERE size = 3",
        "UPDATE checkpoint SET note = (SELECT note FROM checkpoint WHERE size = 2) WHERE size = 3",
    ],
)
def test_a_log_changed_from_outside_is_not_signed_again(tmp_path: Path, change: str) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(3):
        ledger.observe("training", {})
    by_hand(tmp_path, change)
    assert refused(lambda: ledger.observe("training", {})).reason is Reason.EVIDENCE_INVALID
    ledger.close()
    assert refused(lambda: open_ledger(tmp_path)).reason is Reason.EVIDENCE_INVALID


def test_a_log_cut_back_under_a_running_process_is_not_gone_on_with(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(3):
        ledger.observe("training", {})
    by_hand(
        tmp_path,
        "DELETE FROM record WHERE idx = 2",
        "DELETE FROM node WHERE level = 0 AND idx = 2",
        "DELETE FROM checkpoint WHERE size = 3",
    )
    assert "3 records seen before" in refused(lambda: ledger.observe("training", {})).message


def test_a_log_swapped_under_a_running_process_is_not_gone_on_with(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "mine")
    other = open_ledger(tmp_path / "other")
    for _ in range(3):
        ledger.observe("training", {})
        other.observe("training", {})
    other.close()
    copies = [f"DELETE FROM {t}; INSERT INTO {t} SELECT * FROM other.{t}" for t in TABLES]
    attach = f"ATTACH '{tmp_path / 'other' / DATABASE_NAME}' AS other"
    by_hand(tmp_path / "mine", attach, *"; ".join(copies).split("; "))
    assert "no longer extends" in refused(lambda: ledger.observe("training", {})).message


def test_a_record_changed_from_outside_still_reaches_the_verifier(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for _ in range(3):
        ledger.observe("training", {"rows": 10})
    by_hand(tmp_path, "UPDATE record SET content = 'no JSON' WHERE idx = 1")
    with pytest.raises(EvidenceInvalid, match="record 1"):
        verify_bundle(ledger.bundle(), trusted=[KEY.public])
    assert refused(lambda: list(ledger.entries())).reason is Reason.EVIDENCE_INVALID


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "evidence"
    ledger = open_ledger(folder)
    ledger.intend("training", {})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert DATABASE_NAME in modes


def test_a_killed_writer_loses_nothing_that_it_was_told_is_kept(tmp_path: Path) -> None:
    kept: list[str] = []
    for wanted in (1, 4, 7, 12, 20):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), ORIGIN, "1000000"], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        kept += [writer.stdout.readline().strip() for _ in range(wanted)]
        os.kill(writer.pid, signal.SIGKILL)
        kept += writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        ledger = open_ledger(tmp_path)
        written = [entry.record["id"] for entry in ledger.entries()]
        verified = verify_bundle(ledger.bundle(), trusted=[KEY.public])
        assert [one for one in written if one in kept] == kept
        # The kill can leave at most the record that was under way beyond what was acknowledged.
        assert verified.records == len(written)
        assert list(verified.open_intents) == [entry.record["id"] for entry in ledger.open_intents()]
        ledger.close()
    assert len(kept) >= 44


def test_two_processes_append_to_one_tree(tmp_path: Path) -> None:
    folder, count = tmp_path / "evidence", 40
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), ORIGIN, str(count)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    kept = [writer.communicate()[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    ledger = open_ledger(folder)
    written = [entry.record["id"] for entry in ledger.entries()]
    assert sorted(written) == sorted(itertools.chain(*kept))
    assert all([one for one in written if one in set(mine)] == mine for mine in kept)
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 3 * 2 * count


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def work() -> None:
        for _ in range(10):
            ledger.conclude(ledger.intend("training", {}), "done", {})
            ledger.bundle()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verified = verify_bundle(ledger.bundle(), trusted=[KEY.public])
    assert (verified.records, verified.open_intents) == (80, ())


def test_a_callback_that_appends_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    ledgers: list[Ledger] = []
    ledgers.append(
        Ledger.open(
            tmp_path, key=KEY, origin=ORIGIN, clock=clock(), new_id=lambda: ledgers[0].observe("training", {}).id
        )
    )
    assert refused(lambda: ledgers[0].observe("training", {})).reason is Reason.EVIDENCE_UNWRITABLE
    assert list(ledgers[0].entries()) == []


def test_an_error_in_a_callback_leaves_no_trace(tmp_path: Path) -> None:
    new_ids = iter(["first"])
    ledger = Ledger.open(tmp_path, key=KEY, origin=ORIGIN, clock=clock(), new_id=lambda: next(new_ids))
    ledger.observe("training", {})
    with pytest.raises(StopIteration):
        ledger.observe("training", {})
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 1


def test_a_restart_goes_on_with_the_same_tree(tmp_path: Path) -> None:
    receipts = []
    for _ in range(4):
        ledger = open_ledger(tmp_path)
        receipts.append(ledger.observe("training", {}))
        ledger.close()
    ledger = open_ledger(tmp_path)
    assert [receipt.index for receipt in receipts] == [0, 1, 2, 3]
    assert [receipt.checkpoint for receipt in receipts] == ledger.bundle()["checkpoints"][1:]
    assert verify_bundle(ledger.bundle(), trusted=[KEY.public]).records == 4


def test_a_record_has_just_these_fields(ledger: Ledger) -> None:
    intent = ledger.intend("crossing", crossing_body(ledger))
    ledger.conclude(intent, "done", {"bytes": 12})
    first, second = ledger.entries()
    assert first.index == 0
    assert first.record == {
        "v": 1,
        "id": "id-1",
        "phase": "intent",
        "action": "crossing",
        "intent": None,
        "at": "2025-03-01T12:00:00.000000+00:00",
        "body": crossing_body(ledger),
    }
    assert second.record == {
        "v": 1,
        "id": "id-2",
        "phase": "outcome",
        "action": "crossing",
        "intent": "id-1",
        "at": "2025-03-01T12:00:01.000000+00:00",
        "body": {"bytes": 12, "status": "done"},
    }


def test_a_receipt_stands_on_its_own(ledger: Ledger) -> None:
    receipts = [ledger.observe("training", {"number": number}) for number in range(9)]
    for receipt, entry in zip(receipts, ledger.entries(), strict=True):
        checkpoint = verify_receipt(receipt, canonical(entry.record), KEY.public)
        assert (checkpoint.origin, checkpoint.size) == (ORIGIN, receipt.index + 1)


def test_a_document_is_stored_once_under_its_digest(ledger: Ledger) -> None:
    assert ledger.attach(b"document") == ledger.attach(b"document") == digest(b"document")
    ledger.attach(b"named by no record")
    ledger.observe("training", {"report": digest(b"document")})
    documents = ledger.bundle()["documents"]
    assert documents == {digest(b"document"): base64.b64encode(b"document").decode()}


def test_an_open_intent_shows_until_its_outcome(ledger: Ledger) -> None:
    first, second = ledger.intend("training", {}), ledger.intend("training", {})
    ledger.conclude(first, "done", {})
    assert [entry.record["id"] for entry in ledger.open_intents()] == [second.id]


def test_a_bundle_survives_json(ledger: Ledger) -> None:
    ledger.conclude(ledger.intend("crossing", crossing_body(ledger)), "done", {})
    bundle = ledger.bundle()
    assert json.loads(json.dumps(bundle)) == bundle


def test_a_ledger_does_not_show_its_key(ledger: Ledger) -> None:
    assert KEY.seed.hex() not in repr(ledger)
    assert ORIGIN in repr(ledger)
