"""The durable queue: jobs, where each stands, and what each attempt at it held and cost.

Who submits, who dispatches and who does the work are different processes, and any of them may be killed at any moment.
So every step is one conditional update: it happens if the job still stands where the caller believes it does, or not at
all, and the caller is told which. A step that is asked for again by the same process is the same step. A job has one
driver at a time, the one that claimed the attempt; what a driver says after its attempt was given up is not heard.
Bodies hold specs, labels and digests: no record, no name of a person, no text of a justification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any

from fabric.artifacts import canonical, digest
from fabric.config import Config
from fabric.database import Database, SQLiteDatabase
from fabric.errors import InvalidInput, Reason
from fabric.labels import is_token
from fabric.stores import Home


class State(StrEnum):
    """Where a job stands. The last five are ends."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    SHED = "shed"

    @property
    def ended(self) -> bool:
        """Say whether nothing comes after it."""
        return self in ENDS

    @property
    def holds(self) -> bool:
        """Say whether a job in it holds room in a zone."""
        return self in HOLDING


SIGN = "dispatcher"
"""The name under which the dispatcher leaves its signs of life."""
PROBLEM = "problem-"
"""What a sign begins with that names what keeps the dispatcher from taking turns."""
GIVEN_UP = 2
ENDS = (State.DONE, State.FAILED, State.REFUSED, State.CANCELLED, State.SHED)
HOLDING = (State.STARTING, State.RUNNING, State.LEAVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What is submitted.

    Attributes:
        token: names the submission; the same token again is the same job.
        body: everything that the work is made from, as plain JSON.
        driver: id of the process that waits to do the work itself; empty if one is to be started.
        matrix: name of the sealed matrix; empty until the records are sanitized.
    """

    id: str
    token: str
    body: Mapping[str, Any]
    priority: int
    deadline_s: float | None
    driver: str = ""
    matrix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an attempt runs, and what is reserved for it."""

    zone: str
    pool: str
    workers: int
    reservation: str
    reserved_micros: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job as it is stored.

    Attributes:
        attempt: number of the current or last attempt; 0 before the first.
        hold: why it waits, as JSON; empty while nobody has said.
        cancel: whether somebody took it back, or the rules gave it up, and its end is still to come.
        lost: how many of its drivers died.
        left_s: how much of its work is left, as estimated; None for all.
        result: what it made: the id of a model.
        intent: id of the ledger's record of its admission.
    """

    id: str
    token: str
    body_text: str
    state: State
    priority: int
    submitted_s: float
    deadline_s: float | None
    driver: str
    own_driver: bool
    matrix: str
    attempt: int
    zone: str
    pool: str
    workers: int
    reservation: str
    reserved_micros: int
    started_s: float | None
    left_s: float | None
    hold_text: str
    leave: str
    cancel: bool
    lost: int
    preparing: int
    code: str
    result: str
    ended_s: float | None
    intent: str

    @cached_property
    def body(self) -> Mapping[str, Any]:
        """Return what was submitted."""
        return MappingProxyType(json.loads(self.body_text))

    @property
    def hold(self) -> Mapping[str, Any]:
        """Return why it waits; empty where nobody has said."""
        return json.loads(self.hold_text) if self.hold_text else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a job: what it held, from when to when, and what it cost once that is settled."""

    job: str
    number: int
    zone: str
    pool: str
    workers: int
    reservation: str
    reserved_micros: int
    placed_s: float
    started_s: float | None
    ended_s: float | None
    outcome: str
    spent_micros: int | None

    @property
    def settled(self) -> bool:
        """Say whether its cost is known."""
        return self.spent_micros is not None


_COLUMNS = (
    "id, token, body, state, priority, submitted, deadline, driver, own_driver, matrix, attempt, zone, pool, workers, "
    "reservation, reserved, started, left_over, hold, leave, cancel, lost, preparing, code, result, ended, intent"
)
_ATTEMPT_COLUMNS = "job, number, zone, pool, workers, reservation, reserved, placed, started, ended, outcome, spent"
_NEW = f"""
INSERT INTO job ({_COLUMNS}) VALUES (:id, :token, :body, 'queued', :priority, :at, :deadline, :driver, :own, :matrix, 0,
  '', '', 0, '', 0, NULL, NULL, '', '', 0, 0, 0, '', '', NULL, '')
ON CONFLICT (token) DO NOTHING
"""  # noqa: S608 - the columns are written above
_FIND = f"SELECT {_COLUMNS} FROM job"  # noqa: S608
_PLACE = """
UPDATE job SET state = 'starting', attempt = attempt + 1, zone = :zone, pool = :pool, workers = :workers,
  reservation = :reservation, reserved = :reserved, started = NULL, hold = '', leave = ''
WHERE id = :id AND state = 'queued' AND attempt = :before AND cancel = 0
"""
_NEW_ATTEMPT = f"""
INSERT INTO attempt ({_ATTEMPT_COLUMNS})
VALUES (:id, :number, :zone, :pool, :workers, :reservation, :reserved, :at, NULL, NULL, '', NULL)
ON CONFLICT (job, number) DO NOTHING
"""  # noqa: S608
# Whoever claims an attempt first is its driver; the same driver again is told yes again.
_CLAIM = """
UPDATE job SET state = 'running', driver = :driver, started = COALESCE(started, :at)
WHERE id = :id AND attempt = :attempt AND (
  (state = 'starting' AND driver IN ('', :driver)) OR (state = 'running' AND driver = :driver))
"""
_LEAVE = """
UPDATE job SET state = 'leaving', leave = :why WHERE id = :id AND state = 'running' AND attempt = :attempt
"""
_LEFT = """
UPDATE job SET state = 'queued', left_over = :left, zone = '', pool = '', workers = 0, leave = ''
WHERE id = :id AND state IN ('running', 'leaving') AND attempt = :attempt AND driver = :driver
"""
# What fails because it was being taken back, or given up, has not failed.
_END = """
UPDATE job SET state = CASE cancel WHEN 0 THEN :state WHEN 2 THEN :or_shed ELSE :or_cancelled END,
  code = CASE WHEN cancel = 2 AND :well = 0 THEN code ELSE :code END, result = :result,
  ended = :at, hold = '', leave = ''
WHERE id = :id AND state IN ('running', 'leaving') AND attempt = :attempt AND driver = :driver
"""
_LOSE = """
UPDATE job SET state = :state, lost = lost + 1, driver = '', own_driver = 0, left_over = NULL, code = :code,
  ended = :ended, zone = '', pool = '', workers = 0, leave = ''
WHERE id = :id AND state IN ('starting', 'running', 'leaving') AND attempt = :attempt
"""
_WITHDRAW = """
UPDATE job SET state = :state, code = :code, ended = :at, hold = '' WHERE id = :id AND state = 'queued'
"""
# `cancel` is 1 where somebody took the job back, 2 where the rules gave it up while it held room.
_GIVE_UP = """
UPDATE job SET cancel = 2, code = :code
WHERE id = :id AND cancel = 0 AND state IN ('starting', 'running', 'leaving') AND attempt = :attempt
"""
_STOPPED = """
UPDATE job SET state = CASE cancel WHEN 2 THEN 'shed' ELSE 'cancelled' END, ended = :at, hold = '', leave = ''
WHERE id = :id AND cancel > 0 AND state IN ('starting', 'running', 'leaving') AND attempt = :attempt
"""
_OVER = """
UPDATE attempt SET ended = :at, outcome = :outcome WHERE job = :id AND number = :attempt AND ended IS NULL
"""
_OPEN_STATES = ", ".join(f"'{state.value}'" for state in State if not state.ended)


class JobStore:
    """The queue of one fabric. Safe to share between threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Submitting.

    def submit(self, new: NewJob, at: float) -> tuple[Row, bool]:
        """Queue a job, and say whether it is new; the same token again is the job that is there.

        Raises:
            InvalidInput: `SUBMIT_TOKEN_REUSED` if the token is another job's; `JOB_INVALID` if it is no token.
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        check_token(new.token)
        check_token(new.id)
        text = canonical(dict(new.body)).decode()
        with self._database.transaction(write=True):
            made, _ = self._database.run(
                _NEW,
                id=new.id,
                token=new.token,
                body=text,
                priority=new.priority,
                at=_stamp(at),
                deadline=None if new.deadline_s is None else _stamp(new.deadline_s),
                driver=new.driver,
                own=int(bool(new.driver)),
                matrix=new.matrix,
            )
            row = self._only("token = :token", token=new.token)
        if digest(row.body_text.encode()) != digest(text.encode()):
            raise InvalidInput(
                Reason.SUBMIT_TOKEN_REUSED,
                f"the submit token is that of job {row.id}, which is another one",
                "give a new token, or leave it out; the same token is for asking again",
            )
        return row, bool(made)

    def admitted(self, job: str, intent: str) -> None:
        """Remember the ledger's record of a job's admission."""
        self._change("UPDATE job SET intent = :intent WHERE id = :id AND intent = ''", id=job, intent=intent)

    def cancel(self, job: str, at: float) -> Row:
        """Take a job back: at once if it waits; if it runs, the dispatcher stops it. A job that ended stays as it is.

        Raises:
            InvalidInput: `JOB_UNKNOWN`.
        """
        if not is_token(job):  # it may be text that no database takes
            raise _unknown()
        with self._database.transaction(write=True):
            self._database.run(_WITHDRAW, id=job, state=State.CANCELLED.value, code="", at=_stamp(at))
            self._database.run(
                f"UPDATE job SET cancel = 1 WHERE id = :id AND cancel = 0 AND state IN ({_OPEN_STATES})",  # noqa: S608 - our states
                id=job,
            )
            return self._only("id = :id", id=job)

    # Dispatching.

    def place(self, job: str, before: int, place: Place, at: float) -> bool:
        """Give a waiting job a place: attempt number `before` + 1. Say whether it was still to be had."""
        columns = {
            "zone": place.zone,
            "pool": place.pool,
            "workers": place.workers,
            "reservation": place.reservation,
            "reserved": place.reserved_micros,
        }
        with self._database.transaction(write=True):
            if not self._database.run(_PLACE, id=job, before=before, **columns)[0]:
                return False
            self._database.run(_NEW_ATTEMPT, id=job, number=before + 1, at=_stamp(at), **columns)
            return True

    def leave(self, job: str, attempt: int, why: str) -> bool:
        """Ask a running job to leave at its next checkpoint."""
        return self._change(_LEAVE, id=job, attempt=attempt, why=why)

    def lose(self, job: str, attempt: int, at: float, *, code: str, tries: int) -> bool:
        """Give an attempt up whose driver is gone; the job waits again, or has failed after as many as `tries`."""
        with self._database.transaction(write=True):
            rows = self._database.run("SELECT lost, cancel, code FROM job WHERE id = :id", id=job)[1]
            if not rows:
                return False
            lost, cancel, given_up = rows[0]
            state = State.FAILED if lost + 1 >= tries else State.QUEUED
            state = State.SHED if cancel == GIVEN_UP else State.CANCELLED if cancel else state
            done = self._database.run(
                _LOSE,
                id=job,
                attempt=attempt,
                state=state.value,
                code=code if state is State.FAILED else given_up if state is State.SHED else "",
                ended=_stamp(at) if state.ended else None,
            )[0]
            if done:
                self._database.run(_OVER, id=job, attempt=attempt, at=_stamp(at), outcome="lost")
            return bool(done)

    def give_up(self, job: str, attempt: int, code: str) -> bool:
        """Give up a job that holds room, as the rules say; the dispatcher stops it."""
        return self._change(_GIVE_UP, id=job, attempt=attempt, code=code)

    def stopped(self, job: str, attempt: int, at: float) -> bool:
        """Note that the driver of a job that was cancelled or given up is stopped."""
        return self._over(_STOPPED, job, attempt, at, "cancelled")

    def withdraw(self, job: str, state: State, code: str, at: float) -> bool:
        """End a job that waits: shed or refused."""
        return self._change(_WITHDRAW, id=job, state=state.value, code=code, at=_stamp(at))

    def note_hold(self, job: str, hold: Mapping[str, Any]) -> bool:
        """Note why a job waits."""
        text = json.dumps(hold, sort_keys=True)
        return self._change(
            "UPDATE job SET hold = :hold WHERE id = :id AND state = 'queued' AND hold <> :hold", id=job, hold=text
        )

    def preparing(self, job: str, number: int) -> bool:
        """Note that the records of a waiting job are being sanitized, for the `number`-th time."""
        return self._change(
            "UPDATE job SET preparing = :number WHERE id = :id AND state = 'queued' AND matrix = '' "
            "AND preparing = :number - 1",
            id=job,
            number=number,
        )

    def forget_driver(self, job: str, driver: str) -> bool:
        """Note that the driver of a waiting job is gone, and with it what it had done."""
        return self._change(
            "UPDATE job SET driver = '', own_driver = 0, left_over = NULL, lost = lost + 1 "
            "WHERE id = :id AND state = 'queued' AND driver = :driver",
            id=job,
            driver=driver,
        )

    def settled(self, job: str, attempt: int, spent_micros: int) -> bool:
        """Note what an attempt cost; the first word counts."""
        return self._change(
            "UPDATE attempt SET spent = :spent WHERE job = :id AND number = :attempt AND spent IS NULL",
            id=job,
            attempt=attempt,
            spent=spent_micros,
        )

    def reserved_more(self, job: str, attempt: int, more_micros: int) -> bool:
        """Note that more was reserved for an attempt."""
        with self._database.transaction(write=True):
            done, _ = self._database.run(
                "UPDATE attempt SET reserved = reserved + :more "
                "WHERE job = :id AND number = :attempt AND spent IS NULL",
                id=job,
                attempt=attempt,
                more=more_micros,
            )
            self._database.run(
                "UPDATE job SET reserved = reserved + :more WHERE id = :id AND attempt = :attempt",
                id=job,
                attempt=attempt,
                more=more_micros if done else 0,
            )
            return bool(done)

    def beat(self, name: str, at: float) -> None:
        """Leave a sign of life."""
        with self._database.transaction(write=True):
            self._database.run(
                "INSERT INTO sign (name, at) VALUES (:name, :at) ON CONFLICT (name) DO UPDATE SET at = :at",
                name=name,
                at=_stamp(at),
            )

    # Doing the work.

    def prepared(self, job: str, matrix: str) -> bool:
        """Name the sealed matrix of a waiting job."""
        return self._change(
            "UPDATE job SET matrix = :matrix WHERE id = :id AND state = 'queued' AND matrix = ''", id=job, matrix=matrix
        )

    def claim(self, job: str, attempt: int, driver: str, at: float) -> bool:
        """Become the driver of an attempt; only one ever does."""
        with self._database.transaction(write=True):
            done, _ = self._database.run(_CLAIM, id=job, attempt=attempt, driver=driver, at=_stamp(at))
            if done:
                self._database.run(
                    "UPDATE attempt SET started = COALESCE(started, :at) WHERE job = :id AND number = :attempt",
                    id=job,
                    attempt=attempt,
                    at=_stamp(at),
                )
            return bool(done)

    def left(self, job: str, attempt: int, driver: str, left_s: float, at: float) -> bool:
        """Say that the work stopped at a checkpoint and waits again, with `left_s` to do; the driver stays the same."""
        with self._database.transaction(write=True):
            done, _ = self._database.run(_LEFT, id=job, attempt=attempt, driver=driver, left=_stamp(left_s))
            if done:
                self._database.run(_OVER, id=job, attempt=attempt, at=_stamp(at), outcome="left")
            return bool(done)

    def end(
        self, job: str, attempt: int, driver: str, state: State, at: float, *, code: str = "", result: str = ""
    ) -> bool:
        """Say how the work ended."""
        well = state is State.DONE
        ended = {
            "state": state.value,
            "or_cancelled": (state if well else State.CANCELLED).value,
            "or_shed": (state if well else State.SHED).value,
            "well": int(well),
        }
        with self._database.transaction(write=True):
            done, _ = self._database.run(
                _END, id=job, attempt=attempt, driver=driver, code=code, result=result, at=_stamp(at), **ended
            )
            if done:
                self._database.run(_OVER, id=job, attempt=attempt, at=_stamp(at), outcome=state.value)
            return bool(done)

    # Reading.

    def find(self, job: str) -> Row:
        """Return a job by its id, or by its submit token; a token that is another job's id names nobody else's job.

        Raises:
            InvalidInput: `JOB_UNKNOWN`.
        """
        if not is_token(job):  # it may be text that no database takes
            raise _unknown()
        with self._database.transaction(write=False):
            return self._only("id = :id OR token = :id ORDER BY CASE id WHEN :id THEN 0 ELSE 1 END", id=job)

    def by_token(self, token: str) -> Row | None:
        """Return the job of a submit token, if there is one.

        Raises:
            InvalidInput: `JOB_INVALID` if it is no token.
        """
        check_token(token)
        with self._database.transaction(write=False):
            rows = self._database.run(f"{_FIND} WHERE token = :token", token=token)[1]
        return _row(rows[0]) if rows else None

    def jobs(self, *, open_only: bool = True, newest: int = 0) -> list[Row]:
        """Return jobs in the order of their submission: those that have not ended, or all, or the `newest` few."""
        where = f" WHERE state IN ({_OPEN_STATES})" if open_only else ""
        with self._database.transaction(write=False):
            if newest:
                rows = self._database.run(f"{_FIND}{where} ORDER BY submitted DESC, id DESC LIMIT :n", n=newest)[1]
                rows = rows[::-1]
            else:
                rows = self._database.run(f"{_FIND}{where} ORDER BY submitted, id")[1]
        return [_row(row) for row in rows]

    def attempts(self, job: str = "", *, unsettled: bool = False) -> list[Attempt]:
        """Return attempts, of one job or of all; with `unsettled`, those that ended and whose cost is not known yet."""
        wanted = ["job = :id"] if job else []
        wanted += ["ended IS NOT NULL AND spent IS NULL"] if unsettled else []
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        with self._database.transaction(write=False):
            rows = self._database.run(
                f"SELECT {_ATTEMPT_COLUMNS} FROM attempt{where} ORDER BY job, number",  # noqa: S608 - our columns
                **({"id": job} if job else {}),
            )[1]
        return [_attempt(row) for row in rows]

    def last_sign(self, name: str) -> float | None:
        """Return when there was last a sign of life; None if there never was."""
        with self._database.transaction(write=False):
            rows = self._database.run("SELECT at FROM sign WHERE name = :name", name=name)[1]
        return rows[0][0] / 1e6 if rows else None

    def problems(self, since_s: float) -> list[str]:
        """Return what has kept the dispatcher from taking turns since then, newest first: reason tokens."""
        with self._database.transaction(write=False):
            rows = self._database.run(
                "SELECT name FROM sign WHERE name LIKE :like AND at >= :since ORDER BY at DESC",
                like=f"{PROBLEM}%",
                since=_stamp(since_s),
            )[1]
        return [name.removeprefix(PROBLEM) for (name,) in rows]

    def close(self) -> None:
        """Close the database; closing twice is the same as once."""
        self._database.close()

    def _change(self, statement: str, **values: object) -> bool:
        with self._database.transaction(write=True):
            return bool(self._database.run(statement, **values)[0])

    def _over(self, statement: str, job: str, attempt: int, at: float, outcome: str) -> bool:
        with self._database.transaction(write=True):
            named = {"at": _stamp(at)} if ":at" in statement else {}
            done, _ = self._database.run(statement, id=job, attempt=attempt, **named)
            if done:
                self._database.run(_OVER, id=job, attempt=attempt, at=_stamp(at), outcome=outcome)
            return bool(done)

    def _only(self, where: str, **values: object) -> Row:
        rows = self._database.run(f"{_FIND} WHERE {where}", **values)[1]
        if not rows:
            raise _unknown()
        return _row(rows[0])


def _unknown() -> InvalidInput:
    return InvalidInput(Reason.JOB_UNKNOWN, "there is no such job", "`fabric queue --all` lists them")


def check_token(token: str) -> None:
    """Refuse what is no submit token.

    Raises:
        InvalidInput: `JOB_INVALID`.
    """
    if not is_token(token):
        raise InvalidInput(
            Reason.JOB_INVALID, "the submit token is not a token", "up to 63 letters, digits, '.', '_' or '-'"
        )


def _row(columns: Sequence[Any]) -> Row:
    (
        name, token, body, state, priority, submitted, deadline, driver, own, matrix, attempt, zone, pool, workers,
        reservation, reserved, started, left, hold, leave, cancel, lost, preparing, code, result, ended, intent,
    ) = columns  # fmt: skip
    return Row(
        id=name,
        token=token,
        body_text=body,
        state=State(state),
        priority=priority,
        submitted_s=submitted / 1e6,
        deadline_s=_seconds(deadline),
        driver=driver,
        own_driver=bool(own),
        matrix=matrix,
        attempt=attempt,
        zone=zone,
        pool=pool,
        workers=workers,
        reservation=reservation,
        reserved_micros=reserved,
        started_s=_seconds(started),
        left_s=_seconds(left),
        hold_text=hold,
        leave=leave,
        cancel=bool(cancel),
        lost=lost,
        preparing=preparing,
        code=code,
        result=result,
        ended_s=_seconds(ended),
        intent=intent,
    )


def _attempt(columns: Sequence[Any]) -> Attempt:
    job, number, zone, pool, workers, reservation, reserved, placed, started, ended, outcome, spent = columns
    return Attempt(
        job=job,
        number=number,
        zone=zone,
        pool=pool,
        workers=workers,
        reservation=reservation,
        reserved_micros=reserved,
        placed_s=placed / 1e6,
        started_s=_seconds(started),
        ended_s=_seconds(ended),
        outcome=outcome,
        spent_micros=spent,
    )


def _seconds(stamp: int | None) -> float | None:
    return None if stamp is None else stamp / 1e6


def _stamp(at: float) -> int:
    return round(at * 1e6)


DATABASE_NAME = "queue.sqlite3"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS job (id TEXT PRIMARY KEY, token TEXT NOT NULL UNIQUE, body TEXT NOT NULL, "
    "state TEXT NOT NULL, priority INTEGER NOT NULL, submitted BIGINT NOT NULL, deadline BIGINT, "
    "driver TEXT NOT NULL, own_driver INTEGER NOT NULL, matrix TEXT NOT NULL, attempt INTEGER NOT NULL, "
    "zone TEXT NOT NULL, pool TEXT NOT NULL, workers INTEGER NOT NULL, reservation TEXT NOT NULL, "
    "reserved BIGINT NOT NULL, started BIGINT, left_over BIGINT, hold TEXT NOT NULL, leave TEXT NOT NULL, "
    "cancel INTEGER NOT NULL, lost INTEGER NOT NULL, preparing INTEGER NOT NULL, code TEXT NOT NULL, "
    "result TEXT NOT NULL, ended BIGINT, intent TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS job_submitted ON job (submitted)",
    "CREATE TABLE IF NOT EXISTS attempt (job TEXT NOT NULL REFERENCES job (id), number INTEGER NOT NULL, "
    "zone TEXT NOT NULL, pool TEXT NOT NULL, workers INTEGER NOT NULL, reservation TEXT NOT NULL, "
    "reserved BIGINT NOT NULL, placed BIGINT NOT NULL, started BIGINT, ended BIGINT, outcome TEXT NOT NULL, "
    "spent BIGINT, PRIMARY KEY (job, number))",
    "CREATE TABLE IF NOT EXISTS sign (name TEXT PRIMARY KEY, at BIGINT NOT NULL)",
)


def open_queue(config: Config, home: Home) -> JobStore:
    """Open the queue of a fabric, which lies where its ledger lies.

    Raises:
        FabricError: `EVIDENCE_UNWRITABLE`.
    """
    if not config.evidence.database:
        return JobStore(SQLiteDatabase(home.path / DATABASE_NAME, SCHEMA))
    # Only a fabric that uses PostgreSQL pays for importing SQLAlchemy.
    from fabric.postgres_jobs import PostgresJobs  # noqa: PLC0415

    return JobStore(PostgresJobs(config.evidence.database))
