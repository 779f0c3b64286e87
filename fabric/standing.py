"""Where a job stands, in words: why it waits, with numbers and until when; where it runs; how it ended."""

from __future__ import annotations

from fabric.errors import FabricError, Reason, Refused
from fabric.holds import from_json, text
from fabric.job_store import Row, State


def ended(row: Row) -> FabricError:
    """Return the error of a job that ended without a result."""
    known = row.code if row.code in set(Reason) else ""
    if row.state in (State.CANCELLED, State.SHED):
        hint = "" if row.state is State.CANCELLED else "the rules gave it up; see `fabric queue --all`"
        return Refused(known or Reason.JOB_CANCELLED, f"job {row.id} was {row.state.value}", hint)
    if row.state is State.REFUSED:
        return Refused(known or Reason.POLICY_DENIED, f"job {row.id} was refused", "`fabric evidence` says by what")
    return FabricError(known or Reason.REMOTE_FAILED, f"job {row.id} {row.state.value}", "see Ray's log of its driver")


def waiting_line(row: Row) -> str:
    """Return why a job waits, as one line with numbers."""
    if not row.matrix:
        return f"job {row.id} waits: its records are being sanitized"
    if not row.hold:
        return f"job {row.id} waits: nobody has looked at it yet"
    return f"job {row.id} waits: {text(from_json(row.id, row.hold))}"


def said_of(row: Row) -> str:
    """Return one line on where a job stands."""
    if row.state is State.QUEUED:
        return waiting_line(row)
    if row.state.ended:
        code = f": {row.code}" if row.code else ""
        return f"job {row.id} {row.state.value}{code}{f', model {row.result}' if row.result else ''}"
    why = f", asked to leave: {row.leave}" if row.leave else ""
    return f"job {row.id} {row.state.value} in zone {row.zone}, attempt {row.attempt}{why}"
