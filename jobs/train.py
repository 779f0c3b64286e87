"""Train a model on sanitized records: `python -m jobs.train FILE.toml`, by hand or through `ray job submit`.

The driver runs in the private zone; only the matrix crosses. The job's labels are its Ray metadata.
"""

from __future__ import annotations

import sys

from fabric.attending import Attendance
from fabric.learning import Epoch
from fabric.sdk import Fabric, Matrix, Run
from fabric.specs import JobSpec
from fabric.training import Code, Moves
from jobs.running import run, show_quality


def main(arguments: list[str]) -> int:
    """Run the job and return its exit status."""
    return run(arguments, work, needs="training")


def work(session: Fabric, spec: JobSpec, matrix: Matrix, moves: Moves, code: Code | None) -> Run:
    """Train in the spec's zone, and wherever `moves` sends it from there."""
    assert spec.training is not None  # noqa: S101 - whoever calls has checked it
    epochs = spec.training.epochs

    def show(epoch: Epoch) -> None:
        print(f"epoch {epoch.epoch}: training {epoch.training:.4f}, validation {epoch.validation:.4f}", flush=True)
        if isinstance(moves, Attendance):
            moves.advanced(epoch.epoch / epochs)

    done = session.train(
        matrix,
        spec.training,
        zone=spec.zone,
        justification=spec.justification,
        network=code,
        progress=show,
        moves=moves,
    )
    print(done)
    show_quality(done, matrix)
    return done


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
