"""Sweeps: every trial in one zone, all fed by one crossing; the best one's model comes back through quarantine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fabric.artifacts import digest_of
from fabric.attempts import Outcome
from fabric.border import Errand
from fabric.crossing import Cargo
from fabric.errors import Reason, RemoteFailure
from fabric.learning import Layout
from fabric.matrix import SealedMatrix, columns_of
from fabric.quarantine import Model, admit_model
from fabric.reaching import site_of
from fabric.session import Session
from fabric.specs import SweepSpec, TrainingSpec, crossing_form
from fabric.training import Code, recorded_job


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial: its spec, and its last validation loss, or None if it failed."""

    number: int
    spec: TrainingSpec
    validation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """All trials, best first, and the best one's model."""

    trials: tuple[Trial, ...]
    model: Model


def sweep(
    session: Session,
    matrix: SealedMatrix,
    spec: SweepSpec,
    errand: Errand,
    *,
    code: Code | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SweepResult:
    """Run every combination of the sweep in the errand's zone and bring the best model back.

    Args:
        progress: called with the number of trials that ended, and of all.

    Raises:
        Refused: by policy or the border; nothing has moved.
        RemoteFailure: `REMOTE_FAILED`: no trial succeeded.
    """
    trials = spec.trials()
    specs = [crossing_form(trial) for trial in trials]
    layout = Layout.of(columns_of(matrix.signed), spec.training.task)
    placement = session.place(errand, workers=min(spec.concurrent, len(trials)))
    cargo = Cargo(matrix=matrix, capsule=code.sealed if code else None)
    site = site_of(session, errand.zone)
    crossing = session.border.export(cargo, errand, site.carrier)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, len(trials))

    with recorded_job(session, errand, placement, crossing, "sweep", digest_of(specs)) as provenance:
        ranked = sorted(site.search(crossing, spec, placement, progress=count), key=rank)
        best = ranked[0]
        if best.folder is None:
            raise RemoteFailure(Reason.REMOTE_FAILED, f"none of {len(trials)} trials succeeded", "run one by train")
        model = admit_model(
            session,
            best.folder,
            spec=trials[best.number],
            layout=layout,
            network=code.network if code else None,
            zone=errand.zone.name,
            provenance={**provenance, "trial": best.number, "trials": len(trials)},
        )
    told = (Trial(number=one.number, spec=trials[one.number], validation=one.validation) for one in ranked)
    return SweepResult(trials=tuple(told), model=model)


def rank(outcome: Outcome) -> tuple[bool, float, int]:
    """Return the key by which trials are ordered, best first; those that failed come last."""
    return outcome.validation is None, outcome.validation or 0.0, outcome.number
