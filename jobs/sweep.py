"""Sweep over training specs, all trials fed by one crossing: `python -m jobs.sweep FILE.toml`."""

from __future__ import annotations

import sys

from fabric.sdk import Fabric, Matrix, Run
from fabric.specs import JobSpec
from fabric.training import Code, Moves
from jobs.running import run, show_quality


def main(arguments: list[str]) -> int:
    """Run the job and return its exit status."""
    return run(arguments, work, needs="sweep")


def work(session: Fabric, spec: JobSpec, matrix: Matrix, moves: Moves, code: Code | None) -> Run:
    """Search in the spec's zone; trials cannot be moved."""
    assert spec.sweep is not None  # noqa: S101 - whoever calls has checked it
    done = session.sweep(
        matrix, spec.sweep, zone=spec.zone, justification=spec.justification, network=code, progress=_show
    )
    print(done)
    print(done.best)
    show_quality(done.best, matrix)
    return done.best


def _show(done: int, total: int) -> None:
    print(f"trial {done} of {total} ended", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
