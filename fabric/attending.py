"""A driver's side of a queued job: it waits for a place, says how the work goes, and leaves when it is asked to.

A driver is a process inside that does one job's work. It talks to the dispatcher through the queue alone, so either may
die: a driver that is late with a word learns that its attempt was given up, and stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.border import Errand
from fabric.errors import FabricError, Reason
from fabric.job_store import JobStore, Row, State
from fabric.labels import Labels
from fabric.recording import now
from fabric.session import Session
from fabric.standing import ended, waiting_line

LOOK_EVERY_S = 0.5


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
            row = self.store.find(self.job)
            if row.state.ended:
                raise ended(row)
            if row.state is State.STARTING and self.store.claim(row.id, row.attempt, self.driver, _now()):
                self._row = self.store.find(self.job)
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
        if not self.store.left(row.id, row.attempt, self.driver, left_s, _now()):
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
        if not self.store.end(row.id, row.attempt, self.driver, state, _now(), code=code, result=result):
            raise _given_up(row)

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
