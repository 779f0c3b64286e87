"""The durable queue: every step is one conditional update, exact under races and safe to repeat."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from postgres_server import ROLE, missing, postgres

from fabric import postgres_jobs
from fabric.database import SQLiteDatabase
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.job_store import DATABASE_NAME, SCHEMA, JobStore, NewJob, Place, Row, State

AT = 1_795_800_000.0
BODY = {"kind": "training", "workload": "training", "labels": {}}
PLACE = Place(zone="public", pool="public", workers=2, reservation="r-1", reserved_micros=7)


@pytest.fixture(scope="module")
def server():
    if missing():
        pytest.skip(missing())
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path)
    server = request.getfixturevalue("server")
    server.sql("DROP SCHEMA IF EXISTS fabric_queue CASCADE")
    server.sql(postgres_jobs.schema_sql(ROLE))
    return server.url


def opened(where: str) -> JobStore:
    if where.startswith("postgresql"):
        return JobStore(postgres_jobs.PostgresJobs(where))
    return JobStore(SQLiteDatabase(Path(where) / DATABASE_NAME, SCHEMA))


@pytest.fixture
def store(where):
    found = opened(where)
    yield found
    found.close()


def job(name: str = "j1", token: str = "", **changes) -> NewJob:
    return NewJob(id=name, token=token or f"t-{name}", body={**BODY, **changes}, priority=0, deadline_s=None)


def queued(store: JobStore, name: str = "j1") -> Row:
    return store.submit(job(name), AT)[0]


def running(store: JobStore, name: str = "j1") -> Row:
    queued(store, name)
    assert store.place(name, 0, PLACE, AT)
    assert store.claim(name, 1, "d1", AT)
    return store.find(name)


def test_an_unknown_job_is_refused_with_the_way_out(store):
    for ask in (store.find, lambda name: store.cancel(name, AT)):
        with pytest.raises(InvalidInput) as refused:
            ask("nobody")
        assert refused.value.reason is Reason.JOB_UNKNOWN
        assert "fabric queue" in refused.value.hint


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_submit_token_that_is_another_jobs_id_hides_nobody_elses_job(store, first):
    for name in (first, "ab".replace(first, "")):
        store.submit(job(name, token={"a": "t-a", "b": "a"}[name]), AT)
    assert store.find("a").id == "a"
    assert store.cancel(store.find("a").id, AT).id == "a"
    assert store.find("b").state is State.QUEUED


@pytest.mark.parametrize("by", ["stop", "end", "loss"])
def test_a_job_that_the_rules_give_up_while_it_runs_is_shed_with_their_reason_however_it_ends(store, by):
    running(store)
    assert store.give_up("j1", 1, "BUDGET_SPENT")
    assert not store.give_up("j1", 1, "DEADLINE_MISSED")
    assert store.cancel("j1", AT).cancel
    if by == "stop":
        assert store.stopped("j1", 1, AT + 1)
    elif by == "end":
        assert store.end("j1", 1, "d1", State.FAILED, AT + 1, code="REMOTE_FAILED")
    else:
        assert store.lose("j1", 1, AT + 1, code="DRIVER_LOST", tries=3)
    row = store.find("j1")
    assert (row.state, row.code) == (State.SHED, "BUDGET_SPENT")


def test_work_that_was_done_before_its_stop_came_is_done(store):
    running(store)
    assert store.give_up("j1", 1, "BUDGET_SPENT")
    assert store.end("j1", 1, "d1", State.DONE, AT + 1, result="m")
    assert (store.find("j1").state, store.find("j1").code) == (State.DONE, "")


@pytest.mark.parametrize("name", ["\udcff", "a\0b", "x" * 10_000_000, "\uff41"])
def test_what_is_no_token_names_no_job_whatever_it_is(store, name):
    for ask in (store.find, lambda name: store.cancel(name, AT)):
        with pytest.raises(InvalidInput) as refused:
            ask(name)
        assert refused.value.reason is Reason.JOB_UNKNOWN
    with pytest.raises(InvalidInput) as refused:
        store.by_token(name)
    assert refused.value.reason is Reason.JOB_INVALID


@pytest.mark.parametrize("token", ["two words", "someone@example.org", "", "x" * 64])
def test_a_submit_token_that_is_no_token_is_refused(store, token):
    with pytest.raises(InvalidInput) as refused:
        store.submit(NewJob(id="j", token=token, body=BODY, priority=0, deadline_s=None), AT)
    assert refused.value.reason is Reason.JOB_INVALID


def test_another_body_under_a_token_is_refused_and_changes_nothing(store):
    store.submit(job("j1", "same"), AT)
    with pytest.raises(InvalidInput) as refused:
        store.submit(job("j2", "same", kind="sweep"), AT)
    assert refused.value.reason is Reason.SUBMIT_TOKEN_REUSED
    assert [row.id for row in store.jobs()] == ["j1"]


def test_the_same_token_twice_is_the_same_job_also_after_it_ended(store):
    first, made = store.submit(job("j1", "same"), AT)
    again, twice = store.submit(job("j2", "same"), AT + 60)
    assert (made, twice, again) == (True, False, first)
    store.withdraw("j1", State.SHED, "DEADLINE_MISSED", AT)
    assert store.submit(job("j3", "same"), AT)[0].state is State.SHED


def test_of_many_that_submit_under_one_token_at_once_one_makes_the_job(where):
    def one(number: int) -> tuple[str, bool]:
        store = opened(where)
        row, made = store.submit(job(f"j{number}", "same"), AT)
        store.close()
        return row.id, made

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(50)))
    assert len({name for name, _ in found}) == 1
    assert sum(made for _, made in found) == 1


def test_only_one_of_many_dispatchers_places_a_job_and_only_one_of_many_drivers_claims_it(where):
    queued(opened(where))
    ready = threading.Barrier(8)

    def one(number: int) -> tuple[bool, bool]:
        store = opened(where)
        ready.wait()
        placed = store.place("j1", 0, PLACE, AT)
        ready.wait()
        claimed = store.claim("j1", 1, f"d{number}", AT)
        store.close()
        return placed, claimed

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    assert [sum(column) for column in zip(*found, strict=True)] == [1, 1]


def test_a_driver_that_claims_again_is_still_the_driver_and_another_is_not(store):
    running(store)
    assert store.claim("j1", 1, "d1", AT + 5)
    assert not store.claim("j1", 1, "d2", AT + 5)
    assert store.find("j1").started_s == AT


def test_what_a_driver_says_after_its_attempt_was_given_up_is_not_heard(store):
    running(store)
    assert store.lose("j1", 1, AT + 1, code="DRIVER_LOST", tries=3)
    assert not store.end("j1", 1, "d1", State.DONE, AT + 2, result="m")
    assert not store.left("j1", 1, "d1", 5.0, AT + 2)
    assert store.find("j1").state is State.QUEUED
    assert store.place("j1", 1, PLACE, AT + 3)
    assert not store.end("j1", 1, "d1", State.DONE, AT + 4, result="m")
    assert not store.end("j1", 2, "d1", State.DONE, AT + 4, result="m")
    assert [(a.number, a.outcome) for a in store.attempts()] == [(1, "lost"), (2, "")]


def test_a_job_whose_drivers_die_again_and_again_has_failed(store):
    queued(store)
    for attempt in range(3):
        assert store.place("j1", attempt, PLACE, AT)
        assert store.lose("j1", attempt + 1, AT, code="DRIVER_LOST", tries=3)
    row = store.find("j1")
    assert (row.state, row.code, row.lost) == (State.FAILED, "DRIVER_LOST", 3)


def test_a_job_that_leaves_waits_again_with_what_is_left_and_keeps_its_driver(store):
    running(store)
    assert store.leave("j1", 1, "drain-back")
    assert not store.leave("j1", 1, "preempt")
    assert store.left("j1", 1, "d1", 42.0, AT + 9)
    row = store.find("j1")
    assert (row.state, row.left_s, row.driver, row.zone) == (State.QUEUED, 42.0, "d1", "")
    assert store.place("j1", 1, PLACE, AT + 10)
    assert not store.claim("j1", 2, "d2", AT + 11)
    assert store.claim("j1", 2, "d1", AT + 11)


def test_a_job_that_waits_is_taken_back_at_once_and_one_that_runs_when_it_is_stopped(store):
    queued(store, "waits")
    assert store.cancel("waits", AT).state is State.CANCELLED
    assert not store.place("waits", 0, PLACE, AT)
    running(store, "runs")
    assert store.cancel("runs", AT).state is State.RUNNING
    assert not store.stopped("runs", 2, AT)
    assert store.stopped("runs", 1, AT)
    assert store.find("runs").state is State.CANCELLED
    assert store.cancel("runs", AT).state is State.CANCELLED


def test_what_fails_because_it_was_taken_back_is_cancelled_and_what_was_done_by_then_is_done(store):
    for name, end, state in (("a", State.FAILED, State.CANCELLED), ("b", State.DONE, State.DONE)):
        running(store, name)
        store.cancel(name, AT)
        assert store.end(name, 1, "d1", end, AT)
        assert store.find(name).state is state


def test_a_cancelled_job_that_leaves_is_not_placed_again(store):
    running(store)
    store.cancel("j1", AT)
    assert store.left("j1", 1, "d1", 5.0, AT)
    assert not store.place("j1", 1, PLACE, AT)
    assert store.cancel("j1", AT).state is State.CANCELLED


def test_what_an_attempt_cost_is_said_once(store):
    running(store)
    store.end("j1", 1, "d1", State.DONE, AT + 5, result="m")
    assert [a.number for a in store.attempts(unsettled=True)] == [1]
    assert store.settled("j1", 1, 30)
    assert not store.settled("j1", 1, 99)
    assert store.attempts(unsettled=True) == []
    assert [a.spent_micros for a in store.attempts()] == [30]


def test_no_sequence_of_steps_leads_out_of_an_end_or_gives_two_drivers(store):
    chance = random.Random(5)
    for number in range(60):
        name = f"j{number}"
        queued(store, name)
        drivers: dict[int, set[str]] = {}
        for _ in range(40):
            before = store.find(name)
            attempt, driver = chance.randint(0, 3), chance.choice(["d1", "d2"])
            step = chance.randrange(8)
            if step == 0:
                store.place(name, attempt, PLACE, AT)
            elif step == 1 and store.claim(name, attempt, driver, AT):
                drivers.setdefault(attempt, set()).add(driver)
            elif step == 2:
                store.leave(name, attempt, "preempt")
            elif step == 3:
                store.left(name, attempt, driver, 1.0, AT)
            elif step == 4:
                store.end(name, attempt, driver, chance.choice([State.DONE, State.FAILED]), AT)
            elif step == 5:
                store.lose(name, attempt, AT, code="DRIVER_LOST", tries=9)
            elif step == 6 and chance.random() < 0.2:
                store.cancel(name, AT)
            elif step == 7:
                store.stopped(name, attempt, AT)
            after = store.find(name)
            assert after.attempt - before.attempt in (0, 1)
            if before.state.ended:
                assert after == before
        assert all(len(found) == 1 for found in drivers.values())
        known = store.attempts(name)
        assert len(known) == store.find(name).attempt
        open_attempts = [a for a in known if a.ended_s is None]
        assert len(open_attempts) == (1 if store.find(name).state.holds else 0)


def test_a_store_that_cannot_be_written_refuses(tmp_path):
    (tmp_path / DATABASE_NAME).mkdir()
    with pytest.raises(FabricError) as refused:
        opened(str(tmp_path))
    assert refused.value.reason is Reason.EVIDENCE_UNWRITABLE


def test_the_queues_file_is_for_its_owner_only(tmp_path):
    opened(str(tmp_path)).close()
    assert (tmp_path / DATABASE_NAME).stat().st_mode & 0o777 == 0o600


def test_the_database_role_can_take_no_job_away_and_rewrite_none(server):
    server.sql("DROP SCHEMA IF EXISTS fabric_queue CASCADE")
    server.sql(postgres_jobs.schema_sql(ROLE))
    queued(opened(server.url))
    for statement in ("DELETE FROM fabric_queue.job", "UPDATE fabric_queue.job SET body = ''", "DROP TABLE x"):
        done = server.sql(f"SET ROLE {ROLE}; DO $$ BEGIN {statement}; RAISE 'done'; "
                          "EXCEPTION WHEN insufficient_privilege OR undefined_table THEN NULL; END $$")  # fmt: skip
        assert "done" not in done
    server.sql(f"GRANT DELETE ON fabric_queue.job TO {ROLE}")
    with pytest.raises(InvalidInput) as refused:
        queued(opened(server.url), "j2")
    assert refused.value.reason is Reason.CONFIG_INVALID
