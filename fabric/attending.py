"""A driver's side of a queued job: it waits for a place, says how the work goes, and leaves when it is asked to.

A driver is a process inside that does one job's work. It talks to the dispatcher through the queue alone, so either may
die: a driver that is late with a word learns that its attempt was given up, and stops. While the queue itself cannot be
reached, nobody can give anything up: a driver waits for it, because work whose end is not heard is done and paid again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fabric.border import Errand
from fabric.errors import FabricError, Reason
from fabric.job_store import JobStore, Row, State
from fabric.labels import Labels
from fabric.recording import now
from fabric.session import Session
from fabric.standing import ended, waiting_line

LOOK_EVERY_S = 0.5
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Attendance:
    """One driver at one job. Sends a training where the dispatcher says (`training.Moves`).

    Attributes:
        driver: its id: the submission id under which Ray knows it.
        labels: of the work; the errands are made of them.
        tell: called with a line when there is something to say.
    """

    session: Session
    store: JobStore
    job: str
    driver: str
    labels: Labels
    tell: Callable[[str], None] = lambda line: None
    _row: Row | None = None
    _done: float = 0.0
    _said: str = field(default="", init=False)

    def wait(self) -> Row:
        """Wait until the job has a place, take it, and return the job.

        Raises:
            Refused: it was refused, shed or taken back while it waited.
            FabricError: the attempt is another driver's.
        """
        while True:
            row = self._find()
            if row.state.ended:
                raise ended(row)
            if row.state in (State.STARTING, State.RUNNING) and self._claims(row):
                self._row = self._find()
                self._say(f"job {row.id}: attempt {row.attempt} in zone {row.zone}, {row.workers} workers")
                return self._row
            if row.state in (State.RUNNING, State.LEAVING):
                raise FabricError(Reason.DRIVER_LOST, f"job {row.id} has another driver", "this one stops")
            self._say(waiting_line(row))
            time.sleep(LOOK_EVERY_S)

    def errand(self) -> Errand:
        """Return the errand of the current attempt."""
        row = self._current()
        return self.session.errand(
            zone=row.zone,
            labels=self.labels,
            purpose=row.body["purpose"],
            justification=self.session.home.justification(row.body["justification"]),
        )

    def leave(self) -> bool:
        """Say whether the dispatcher wants the training to leave its zone."""
        mine, row = self._current(), self.store.find(self.job)
        return row.attempt == mine.attempt and row.state is State.LEAVING

    def onward(self) -> tuple[Errand, int]:
        """Say that the training has left, and wait for where it goes on, and with how many workers.

        Raises:
            Refused: as `wait`.
        """
        row = self._current()
        left_s = max(1.0, float(row.body["duration_s"]) * (1.0 - self._done))
        if not self._heard(lambda: self.store.left(row.id, row.attempt, self.driver, left_s, _now())):
            found = self._find()
            if found.driver != self.driver or found.state not in (State.QUEUED, State.STARTING):
                raise _given_up(row)
        workers = self.wait().workers
        return self.errand(), workers

    def advanced(self, done: float) -> None:
        """Note how much of the work is done, from 0 to 1."""
        self._done = done

    def end(self, state: State, *, code: str = "", result: str = "") -> None:
        """Say how the work ended.

        Raises:
            FabricError: `DRIVER_LOST`: the attempt was given up before, so this end does not count.
        """
        row = self._current()
        if not self._heard(
            lambda: self.store.end(row.id, row.attempt, self.driver, state, _now(), code=code, result=result)
        ):
            found, said = self._find(), (row.attempt, self.driver, state, code, result)
            # It may have been heard, and only the answer lost.
            if (found.attempt, found.driver, found.state, found.code, found.result) != said:
                raise _given_up(row)

    def _find(self) -> Row:
        return self._heard(lambda: self.store.find(self.job))

    def _claims(self, row: Row) -> bool:
        return self._heard(lambda: self.store.claim(row.id, row.attempt, self.driver, _now()))

    def _heard(self, said: Callable[[], T]) -> T:
        """Return the queue's answer, waiting for it while the queue cannot be reached."""
        while True:
            try:
                return said()
            except FabricError as error:
                if error.reason is not Reason.EVIDENCE_UNWRITABLE:
                    raise
            self._say(f"job {self.job} waits: the queue cannot be reached")
            time.sleep(LOOK_EVERY_S)

    def _current(self) -> Row:
        if self._row is None:
            raise FabricError(Reason.INTERNAL, "the driver has no place yet", "this is a defect: please report it")
        return self._row

    def _say(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self.tell(line)


def _given_up(row: Row) -> FabricError:
    return FabricError(
        Reason.DRIVER_LOST, f"attempt {row.attempt} of job {row.id} was given up", "its end does not count"
    )


def _now() -> float:
    return now().timestamp()
