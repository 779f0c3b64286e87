"""What every job does around its work: join, read the job file, sanitize, show the plan, and fail with a clear word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import fabric
from fabric.errors import FabricError, InvalidInput, Reason, nearest
from fabric.sdk import Fabric, Matrix, Run
from fabric.specs import JobSpec, parse
from fabric.zones import find_zone
from sanitize.actor import Progress

Work = Callable[[Fabric, JobSpec, Matrix], None]


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
            print(session.plan(matrix, zone=spec.zone, justification=spec.justification), flush=True)
            work(session, spec, matrix)
    except FabricError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    return 0


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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise InvalidInput(Reason.CONFIG_MISSING, f"there is no job file {path}", near) from None
    spec = parse(JobSpec, text, source=path.name)
    if getattr(spec, needs) is None:
        raise InvalidInput(Reason.CONFIG_INVALID, f"{path.name} has no [{needs}] table", "add one to run this job")
    return path, spec


def _check(session: Fabric, spec: JobSpec) -> None:
    """Refuse at once what would otherwise be found after the records were read, or never."""
    find_zone(session.session.config.zones, spec.zone)
    session.records(spec.records)


_MODULES = {"training": "train", "sweep": "sweep"}
