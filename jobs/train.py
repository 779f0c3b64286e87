"""Train a model on sanitized records: `python -m jobs.train FILE.toml`, by hand or through `ray job submit`.

The driver runs in the private zone; only the matrix crosses. The job's labels are its Ray metadata.
"""

from __future__ import annotations

import sys

from fabric.learning import Epoch
from fabric.sdk import Fabric, Matrix
from fabric.specs import JobSpec
from jobs.running import run, show_quality


def main(arguments: list[str]) -> int:
    """Run the job and return its exit status."""
    return run(arguments, _train, needs="training")


def _train(session: Fabric, spec: JobSpec, matrix: Matrix) -> None:
    done = session.train(matrix, spec.training, zone=spec.zone, justification=spec.justification, progress=_show)
    print(done)
    show_quality(done, matrix)


def _show(epoch: Epoch) -> None:
    print(f"epoch {epoch.epoch}: training {epoch.training:.4f}, validation {epoch.validation:.4f}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
