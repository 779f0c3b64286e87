"""Reservations and the meters they run: in SQLite on one machine, in PostgreSQL for several.

A reservation takes from every limit that covers it, in one transaction, by updates that hold only while there is room:
so no number of racing processes overspends. It is made once under its id, however often it is asked for, and so are its
settlement and its release; whoever was killed asks again. A settlement may be above its reservation: what was spent
was spent, so the meter shows it, and a limit that is overdrawn takes no reservation until its next period. A settlement
counts in the period that its reservation was made in. Limits come from `fabric.toml`, so that only one place has them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fabric.budgets import Balance, Limit, Order, Unit, Window, concerned, refusal
from fabric.charges import Terms, Usage
from fabric.database import Database, SQLiteDatabase
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.fleet import Scope
from fabric.labels import Classification, WorkloadClass, is_token
from fabric.money import MAX_MICROS

DATABASE_NAME = "budgets.sqlite3"
CLOCK_TOLERANCE_S = 2.0
MAX_GPU_SECONDS = 10**12


class State(StrEnum):
    """Where a reservation stands."""

    HELD = "held"
    SETTLED = "settled"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What was reserved under one id, and what became of it.

    Attributes:
        spent_micros: what was settled; None before.
        usage: what was used, if the settlement said so.
        at: when it was made, in seconds since the epoch.
        ended_at: when it was settled or released.
    """

    id: str
    job: str
    state: State
    order: Order
    at: float
    spent_micros: int | None = None
    usage: Usage | None = None
    ended_at: float | None = None


_NEW = """
INSERT INTO reservation (id, job, state, team, project, classification, workload, zone, amount, gpus, gpu_seconds,
  terms, at)
VALUES (:id, :job, 'held', :team, :project, :classification, :workload, :zone, :amount, :gpus, :gpu_seconds, :terms,
  :at)
ON CONFLICT (id) DO NOTHING
"""
_FIND = """
SELECT id, job, state, team, project, classification, workload, zone, amount, gpus, gpu_seconds, terms, at, spent, used,
  ended FROM reservation
"""
_NEWEST = "SELECT max(at) FROM reservation"
_METER = """
INSERT INTO meter (name, unit, starts, reserved, spent) VALUES (:name, :unit, :starts, 0, 0)
ON CONFLICT (name, unit, starts) DO NOTHING
"""
# The one statement on which exactness rests: it reserves and checks at once.
_TAKE = """
UPDATE meter SET reserved = reserved + :asked
WHERE name = :name AND unit = :unit AND starts = :starts AND reserved + spent + :asked <= :allowed
"""
_HOLD = """
INSERT INTO hold (reservation, name, unit, starts, amount) VALUES (:id, :name, :unit, :starts, :asked)
"""
_HOLDS = "SELECT name, unit, starts, amount FROM hold WHERE reservation = :id ORDER BY name, unit"
_GIVE = """
UPDATE meter SET reserved = reserved - :held, spent = spent + :used
WHERE name = :name AND unit = :unit AND starts = :starts
"""
_END = """
UPDATE reservation SET state = :state, spent = :spent, used = :used, ended = :ended
WHERE id = :id AND state = :before
"""
_READ = "SELECT name, unit, starts, reserved, spent FROM meter"


class BudgetStore:
    """The reservations of one fabric. Safe to share between threads and processes."""

    def __init__(self, database: Database, limits: Sequence[Limit]) -> None:
        self._database = database
        self._limits = tuple(limits)

    def reserve(self, reservation_id: str, job_id: str, order: Order, at: float) -> Reservation:
        """Take what an order needs from every limit that covers it, or nothing; the same id twice is once.

        A reservation that is there is returned as it is, whatever became of it and whatever is asked now.

        Raises:
            SpendingRefused: `BUDGET_UNKNOWN`, `BUDGET_SPENT` or `QUOTA_EXCEEDED`; it says whether to wait, until when.
            InvalidInput: `RESERVATION_REUSED` if the id is another job's; `CONFIG_INVALID` for what is no amount.
            FabricError: `CLOCK_SET_BACK`, `EVIDENCE_UNWRITABLE`.
        """
        _check(reservation_id, job_id, order, at)
        with self._database.transaction(write=True):
            # 1. Once under this id.
            if not self._database.run(_NEW, id=reservation_id, job=job_id, at=_stamp(at), **_columns(order))[0]:
                return self._again(reservation_id, job_id)
            # 2. In time's order.
            self._check_clock(at)
            # 3. From every limit, or from none: what is raised undoes the whole.
            for limit, asked in concerned(self._limits, order):
                self._take(reservation_id, limit, asked, at)
        return Reservation(id=reservation_id, job=job_id, state=State.HELD, order=order, at=_stamp(at) / 1e6)

    def settle(self, reservation_id: str, actual_micros: int, at: float, *, usage: Usage | None = None) -> Reservation:
        """State what was spent, and give back the rest; the first settlement counts.

        It may be more than was reserved. A reservation that was released takes it too: the money is spent.

        Raises:
            InvalidInput: `RESERVATION_UNKNOWN`; `CONFIG_INVALID` for what is no amount.
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        _check_amount(actual_micros, MAX_MICROS)
        return self._end(reservation_id, State.SETTLED, at, actual_micros, usage)

    def release(self, reservation_id: str, at: float) -> Reservation:
        """Give back all that was reserved, for work that spent nothing; twice is once, and a settlement stays.

        Raises:
            InvalidInput: `RESERVATION_UNKNOWN`.
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        return self._end(reservation_id, State.RELEASED, at, 0, None)

    def covering(self, order: Order) -> tuple[str, ...]:
        """Return the names of the limits that an order takes from."""
        return tuple(limit.name for limit in self._limits if limit.asks(order))

    def find(self, reservation_id: str) -> Reservation | None:
        """Return the reservation of this id, if there is one."""
        with self._database.transaction(write=False):
            _, rows = self._database.run(f"{_FIND} WHERE id = :id", id=reservation_id)
        return _reservation(rows[0]) if rows else None

    def reservations(self, start_s: float = 0.0, end_s: float = math.inf) -> list[Reservation]:
        """Return the reservations that were made from `start_s` until before `end_s`, oldest first."""
        with self._database.transaction(write=False):
            _, rows = self._database.run(
                f"{_FIND} WHERE at >= :start AND at < :end ORDER BY at, id",
                start=_stamp(start_s),
                end=_stamp(min(end_s, 2.0**40)),
            )
        return [_reservation(row) for row in rows]

    def balances(self, at: float) -> tuple[Balance, ...]:
        """Return every limit with what is reserved and spent of it in the period that `at` falls into."""
        with self._database.transaction(write=False):
            _, rows = self._database.run(_READ)
        meters = {(name, unit, starts): (reserved, spent) for name, unit, starts, reserved, spent in rows}
        return tuple(_balance(limit, limit.window(at), meters) for limit in self._limits)

    def close(self) -> None:
        """Close the database; closing twice is the same as once."""
        self._database.close()

    def _again(self, reservation_id: str, job_id: str) -> Reservation:
        found = self._found(reservation_id)
        if found.job != job_id:
            raise InvalidInput(
                Reason.RESERVATION_REUSED, "the reservation's id is another job's", "use an id of its own"
            )
        return found

    def _take(self, reservation_id: str, limit: Limit, asked: int, at: float) -> None:
        window = limit.window(at)
        meter = {"name": limit.name, "unit": limit.unit.value, "starts": window.start_s}
        take = {**meter, "asked": asked, "allowed": limit.amount}
        if not self._database.run(_TAKE, **take)[0]:
            # There is no room, or no meter yet in this period.
            self._database.run(_METER, **meter)
            if not self._database.run(_TAKE, **take)[0]:
                raise refusal(self._read(limit, window), asked)
        self._database.run(_HOLD, id=reservation_id, asked=asked, **meter)

    def _end(self, reservation_id: str, state: State, at: float, spent: int, usage: Usage | None) -> Reservation:
        _check_time(at)
        row = {
            "id": reservation_id,
            "state": state.value,
            "spent": spent,
            "used": json.dumps(usage.to_json()) if usage else None,
            "ended": _stamp(at),
        }
        with self._database.transaction(write=True):
            # The update says what the reservation was before: what is read first may be old by then.
            if self._database.run(_END, **row, before=State.HELD.value)[0]:
                self._give(reservation_id, spent, usage, was_held=True, is_settled=state is State.SETTLED)
            elif state is State.SETTLED and self._database.run(_END, **row, before=State.RELEASED.value)[0]:
                self._give(reservation_id, spent, usage, was_held=False, is_settled=True)
            return self._found(reservation_id)

    def _give(self, reservation_id: str, spent: int, usage: Usage | None, *, was_held: bool, is_settled: bool) -> None:
        for name, unit, starts, amount in self._database.run(_HOLDS, id=reservation_id)[1]:
            # Without a word on what was used, all that was reserved counts as used.
            seconds = usage.gpu_seconds if usage else amount
            used = {Unit.MICROS: spent, Unit.GPUS: 0, Unit.GPU_SECONDS: seconds if is_settled else 0}[Unit(unit)]
            self._database.run(_GIVE, name=name, unit=unit, starts=starts, held=amount if was_held else 0, used=used)

    def _read(self, limit: Limit, window: Window) -> Balance:
        _, rows = self._database.run(
            f"{_READ} WHERE name = :name AND unit = :unit AND starts = :starts",
            name=limit.name,
            unit=limit.unit.value,
            starts=window.start_s,
        )
        return _balance(limit, window, {(name, unit, starts): (r, s) for name, unit, starts, r, s in rows})

    def _found(self, reservation_id: str) -> Reservation:
        _, rows = self._database.run(f"{_FIND} WHERE id = :id", id=reservation_id)
        if not rows:
            raise InvalidInput(
                Reason.RESERVATION_UNKNOWN, "nothing was reserved under this id", "reserve before spending"
            )
        return _reservation(rows[0])

    def _check_clock(self, at: float) -> None:
        newest = self._database.run(_NEWEST)[1][0][0]
        behind = 0.0 if newest is None else newest / 1e6 - at
        if behind > CLOCK_TOLERANCE_S:
            raise FabricError(
                Reason.CLOCK_SET_BACK,
                f"the clock is {behind:.0f} s behind the newest reservation",
                "set this machine's clock right (chronyc makestep); nothing is reserved before it is",
            )


SQLITE_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meter (name TEXT NOT NULL, unit TEXT NOT NULL, starts INTEGER NOT NULL, "
    "reserved INTEGER NOT NULL CHECK (reserved >= 0), "
    "spent INTEGER NOT NULL CHECK (spent >= 0 AND typeof(spent) = 'integer'), PRIMARY KEY (name, unit, starts))",
    "CREATE TABLE IF NOT EXISTS reservation (id TEXT PRIMARY KEY, job TEXT NOT NULL, state TEXT NOT NULL, "
    "team TEXT NOT NULL, project TEXT NOT NULL, classification TEXT NOT NULL, workload TEXT NOT NULL, "
    "zone TEXT NOT NULL, amount INTEGER NOT NULL, gpus INTEGER NOT NULL, gpu_seconds INTEGER NOT NULL, "
    "terms TEXT, at INTEGER NOT NULL, spent INTEGER, used TEXT, ended INTEGER)",
    "CREATE INDEX IF NOT EXISTS reservation_at ON reservation (at)",
    "CREATE TABLE IF NOT EXISTS hold (reservation TEXT NOT NULL REFERENCES reservation (id), name TEXT NOT NULL, "
    "unit TEXT NOT NULL, starts INTEGER NOT NULL, amount INTEGER NOT NULL CHECK (amount > 0), "
    "PRIMARY KEY (reservation, name, unit))",
)


class SQLiteBudgets(SQLiteDatabase):
    """The budgets of one machine, in a file of mode 0600."""

    def __init__(self, folder: Path) -> None:
        """Open the database in `folder`, made if it is not there.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        super().__init__(folder / DATABASE_NAME, SQLITE_SCHEMA)


def _balance(limit: Limit, window: Window, meters: Mapping[tuple[str, str, int], tuple[int, int]]) -> Balance:
    reserved, spent = meters.get((limit.name, limit.unit.value, window.start_s), (0, 0))
    return Balance(limit=limit, window=window, reserved=reserved, spent=spent)


def _columns(order: Order) -> dict[str, object]:
    return {
        "team": order.scope.team,
        "project": order.scope.project,
        "classification": order.scope.classification.value if order.scope.classification else "",
        "workload": order.scope.workload.value if order.scope.workload else "",
        "zone": order.zone,
        "amount": order.amount_micros,
        "gpus": order.gpus,
        "gpu_seconds": order.gpu_seconds,
        "terms": json.dumps(order.terms.to_json()) if order.terms else None,
    }


def _reservation(row: Sequence[Any]) -> Reservation:
    (name, job, state, team, project, classification, workload, zone, amount, gpus, gpu_seconds, terms, at, spent, used,
     ended) = row  # fmt: skip
    scope = Scope(
        team=team,
        project=project,
        classification=Classification(classification),
        workload=WorkloadClass(workload) if workload else None,
    )
    order = Order(
        scope=scope,
        zone=zone,
        amount_micros=amount,
        gpus=gpus,
        gpu_seconds=gpu_seconds,
        terms=Terms.from_json(json.loads(terms)) if terms else None,
    )
    return Reservation(
        id=name,
        job=job,
        state=State(state),
        order=order,
        at=at / 1e6,
        spent_micros=spent,
        usage=Usage.from_json(json.loads(used)) if used else None,
        ended_at=None if ended is None else ended / 1e6,
    )


def _stamp(at: float) -> int:
    return round(at * 1e6)


def _check(reservation_id: str, job_id: str, order: Order, at: float) -> None:
    for name in (reservation_id, job_id):
        if not is_token(name):
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                "the id of a reservation or of its job is not a token",
                "up to 63 letters, digits, '.', '_' or '-'",
            )
    if order.scope.classification is None:
        raise InvalidInput(
            Reason.CONFIG_INVALID, "work without a classification reserves nothing", "use `scope_of` its labels"
        )
    _check_time(at)
    _check_amount(order.amount_micros, MAX_MICROS)
    _check_amount(order.gpus, MAX_GPU_SECONDS)
    _check_amount(order.gpu_seconds, MAX_GPU_SECONDS)


def _check_amount(amount: int, most: int) -> None:
    if type(amount) is not int or not 0 <= amount <= most:
        raise InvalidInput(
            Reason.PRICE_INVALID, "an amount is negative, no whole number or too large", f"0 to {most} micros"
        )


def _check_time(at: float) -> None:
    if not math.isfinite(at) or not 0 <= at < 2**40:
        raise InvalidInput(Reason.CONFIG_INVALID, "a time is not seconds since the epoch", "give the clock's")
