"""What every job does around its work: join, read the job file, sanitize, show the plan, and fail with a clear word.

Where the job's file leaves the zone to the dispatcher, the driver enqueues itself, waits for a place and says why it
waits; the same submission is the same job in the queue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fabric
from fabric.attending import Attendance
from fabric.bursting import kept_code
from fabric.errors import FabricError, InvalidInput, Reason, Refused
from fabric.job_store import Row, State, open_queue
from fabric.judgement import AUTO, CODE, matrix_name
from fabric.sdk import Fabric, Matrix, Run
from fabric.specs import JobSpec
from fabric.submission import read_job, submit, wish_of_file
from fabric.training import Code, Moves, Stays, code_of
from fabric.zones import find_zone
from sanitize.actor import Progress

Work = Callable[[Fabric, JobSpec, Matrix, Moves, Code | None], Run]
"""Does a job's work in the zone that its spec names, with the network that it brings along; shows what came of it, and
returns it."""


def run(arguments: list[str], work: Work, *, needs: str) -> int:
    """Run a job file and return the exit status: 0, or the status of the error that was printed.

    Args:
        arguments: the path of the job file.
        work: what to do with the matrix.
        needs: the table that the job file must have, "training" or "sweep".
    """
    try:
        path, spec = _read(arguments, needs)
        with fabric.connect() as session:
            _check(session, spec)
            print(f"job {session.session.job}: {spec.records} -> zone {spec.zone}", flush=True)
            matrix = session.sanitize(
                session.records(spec.records),
                session.recipe(path.parent / spec.recipe),
                hold_back=spec.hold_back,
                seed=spec.seed,
                progress=_print_progress,
            )
            if spec.zone == AUTO:
                _enqueue(session, path, spec, matrix, work)
            else:
                print(session.plan(matrix, zone=spec.zone, justification=spec.justification), flush=True)
                work(session, spec, matrix, Stays(), None)
    except FabricError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    return 0


def attend(session: Fabric, attendance: Attendance, spec: JobSpec, matrix: Matrix, work: Work) -> None:
    """Wait for a place, do the work there, and say how it ended.

    Raises:
        FabricError: what it was refused for, or failed with.
    """
    row = attendance.wait()
    try:
        code = kept_code(session.session, row.body[CODE]) if CODE in row.body else None
        print(session.plan(matrix, zone=row.zone, justification=spec.justification, code=code), flush=True)
        done = work(session, placed(spec, row), matrix, attendance, code)
    except BaseException as error:
        if isinstance(error, FabricError) and error.reason is Reason.EVIDENCE_UNWRITABLE:
            raise  # nothing is wrong with the job: the dispatcher gives this attempt up, and it is done again
        state = State.REFUSED if isinstance(error, Refused) else State.FAILED
        attendance.end(state, code=code_of(error))
        if isinstance(error, FabricError) or not isinstance(error, Exception):
            raise
        # Code that the job brought along may quote rows, and Ray keeps a failed driver's last words for every node.
        raise FabricError(
            Reason.REMOTE_FAILED,
            f"job {row.id} failed inside with {code_of(error)}",
            "its message is not told, because messages carry data; try the code on the matrix in a session of your own",
        ) from None
    attendance.end(State.DONE, result=done.model.id)


def placed(spec: JobSpec, row: Row) -> JobSpec:
    """Return a job's spec with the zone and the number of workers that it got."""
    changes: dict[str, object] = {"zone": row.zone}
    if spec.training is not None:
        changes["training"] = spec.training.model_copy(update={"workers": row.workers})
    elif spec.sweep is not None:
        changes["sweep"] = spec.sweep.model_copy(update={"concurrent": row.workers})
    return spec.model_copy(update=changes)


def _enqueue(session: Fabric, path: Path, spec: JobSpec, matrix: Matrix, work: Work) -> None:
    """Put this very driver into the queue, under its own submission id, and do the work when its turn comes."""
    inner = session.session
    store = open_queue(inner.config, inner.home)
    try:
        wish = replace(wish_of_file(inner, path, inner.environment.job_labels), matrix=matrix_name(matrix.sealed))
        row, _ = submit(inner, store, wish, token=inner.job, driver=inner.job)
        print(f"queued as job {row.id}", flush=True)
        attendance = Attendance(
            session=inner, store=store, job=row.id, driver=inner.job, labels=matrix.labels, tell=_tell
        )
        attend(session, attendance, spec, matrix, work)
    finally:
        store.close()


def _tell(line: str) -> None:
    print(line, flush=True)


def show_quality(done: Run, matrix: Matrix) -> None:
    """Print how good the model is on the rows that were held back, if any were."""
    if matrix.held_back is not None:
        quality = done.evaluate(matrix.held_back)
        print(f"held back, inside: {quality.metric} {quality.value:.4f} on {quality.rows:,} rows")


def _print_progress(progress: Progress) -> None:
    """Print a line as a stage that takes long goes on, and one when it is done."""
    left = progress.seconds_left
    if progress.total > 1 and left is not None and progress.seconds > 5:
        print(
            f"sanitizing: {progress.stage} {progress.done}/{progress.total}, about {left:.0f} s left in this stage",
            flush=True,
        )


def _read(arguments: list[str], needs: str) -> tuple[Path, JobSpec]:
    if len(arguments) != 1:
        raise InvalidInput(Reason.CONFIG_MISSING, "name one job file", f"python -m jobs.{_MODULES[needs]} FILE.toml")
    path = Path(arguments[0]).resolve()
    spec = read_job(path)
    if getattr(spec, needs) is None:
        raise InvalidInput(Reason.CONFIG_INVALID, f"{path.name} has no [{needs}] table", "add one to run this job")
    return path, spec


def _check(session: Fabric, spec: JobSpec) -> None:
    """Refuse at once what would otherwise be found after the records were read, or never."""
    if spec.zone != AUTO:
        find_zone(session.session.config.zones, spec.zone)
    session.records(spec.records)


_MODULES = {"training": "train", "sweep": "sweep"}
