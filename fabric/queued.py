"""A job in the queue, as whoever submitted it holds it: shaped like a future, and shown in a notebook."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import Any

from fabric.attending import LOOK_EVERY_S
from fabric.errors import FabricError, Reason
from fabric.job_store import JobStore, Row, State
from fabric.recording import now
from fabric.standing import ended, said_of


class QueuedJob:
    """One job: its state, its result when there is one, and the way to take it back."""

    def __init__(self, job: str, store: JobStore, result_of: Callable[[Row], Any]) -> None:
        self.id = job
        self._store = store
        self._result_of = result_of

    def __repr__(self) -> str:
        return f"QueuedJob({self.id!r})"

    def row(self) -> Row:
        """Return the job as the queue has it now."""
        return self._store.find(self.id)

    def status(self) -> State:
        """Return where the job stands."""
        return self.row().state

    def why(self) -> str:
        """Return why it waits, with numbers and until when; where it runs; or how it ended."""
        return said_of(self.row())

    def done(self) -> bool:
        """Say whether it has ended."""
        return self.status().ended

    def result(self, timeout: float | None = None) -> Any:
        """Wait until the job has ended and return what it made: a run, with its curve and its model.

        Raises:
            FabricError: `JOB_WAITS` if it has not ended after `timeout` seconds; why it was refused or failed.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not (row := self.row()).state.ended:
            if until is not None and time.monotonic() > until:
                raise FabricError(Reason.JOB_WAITS, said_of(row), "wait longer, or look at `fabric queue`")
            time.sleep(LOOK_EVERY_S)
        if row.state is not State.DONE:
            raise ended(row)
        return self._result_of(row)

    def cancel(self) -> bool:
        """Take the job back, and say whether that came in time."""
        row = self._store.cancel(self.id, now().timestamp())
        return row.cancel or row.state is State.CANCELLED

    def _repr_html_(self) -> str:
        row = self.row()
        cells: dict[str, Any] = {"job": row.id, "state": row.state.value, "zone": row.zone, "says": said_of(row)}
        shown = "".join(f"<tr><td>{html.escape(n)}</td><td>{html.escape(str(v))}</td></tr>" for n, v in cells.items())
        return f"<table>{shown}</table>"
