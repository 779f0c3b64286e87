"""Sweeps with Ray Tune: every trial in one zone, all fed by one crossing.

A trial is a plain Tune function: Ray Train inside Tune would put its controller outside. The search runs in the
driver; a trial gets its number, and looks up its spec among those that crossed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from fabric.artifacts import digest_of
from fabric.border import Errand
from fabric.carriage import ObjectStoreCarrier, receive
from fabric.crossing import Cargo, Crossing, Ticket
from fabric.errors import Reason, RemoteFailure
from fabric.learning import CHECKPOINT_FILES, Arrays, Layout, Trainer
from fabric.matrix import SealedMatrix, columns_of
from fabric.placement import Placement
from fabric.quarantine import Model, admit_model
from fabric.session import Session
from fabric.specs import SweepSpec, TrainingSpec, crossing_form
from fabric.training import Code, admitted_network, followed, recorded_job, reraise


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
    crossing = session.border.export(cargo, errand, ObjectStoreCarrier())
    digest = digest_of(specs)
    with recorded_job(session, errand, placement, crossing, "sweep", digest) as provenance:
        results = _search(session, crossing, specs, placement, progress)
        ranked = sorted(_outcomes(trials, results), key=lambda trial: _rank(trial[0]))
        best, folder = ranked[0]
        if folder is None:
            raise RemoteFailure(Reason.REMOTE_FAILED, f"none of {len(trials)} trials succeeded", "run one by train")
        model = admit_model(
            session,
            folder,
            spec=best.spec,
            layout=layout,
            network=code.network if code else None,
            zone=errand.zone.name,
            provenance={**provenance, "trial": best.number, "trials": len(trials)},
        )
    return SweepResult(trials=tuple(trial for trial, _ in ranked), model=model)


def _search(
    session: Session,
    crossing: Crossing,
    specs: Sequence[dict[str, Any]],
    placement: Placement,
    progress: Callable[[int, int], None],
) -> Any:
    journal = session.home.path / f"sweep-{crossing.id}.progress"
    bundle = {"CPU": 0, **placement.resources_per_worker}
    where = tune.PlacementGroupFactory([bundle], bundle_label_selector=[placement.label_selector])
    work = tune.with_parameters(_work, ticket=crossing.ticket, specs=specs)
    tuner = tune.Tuner(
        tune.with_resources(work, where),
        param_space={"trial": tune.grid_search(list(range(len(specs))))},
        tune_config=tune.TuneConfig(
            metric="validation", mode="min", max_concurrent_trials=placement.workers, reuse_actors=False
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{crossing.id}",
            storage_path=str(session.home.outbox(placement.zone.name)),
            failure_config=tune.FailureConfig(max_failures=specs[0]["max_failures"]),
            callbacks=[_Journal(str(journal))],
            verbose=0,
        ),
    )
    done = 0

    def count(_: str) -> None:
        nonlocal done
        done += 1
        progress(done, len(specs))

    with followed(journal, count):
        try:
            return tuner.fit()
        except ray.exceptions.RayError as error:
            reraise(error)


def _outcomes(trials: Sequence[TrainingSpec], results: Any) -> list[tuple[Trial, Path | None]]:
    outcomes = []
    for result in results:
        number = int(result.config["trial"])
        ended = result.error is None and result.checkpoint is not None
        loss = float(result.metrics["validation"]) if ended else math.nan
        ended = math.isfinite(loss)  # a trial that diverged has failed, and must not take the others with it
        trial = Trial(number=number, spec=trials[number], validation=loss if ended else None)
        outcomes.append((trial, Path(result.checkpoint.path) if ended else None))
    return outcomes


def _rank(trial: Trial) -> tuple[bool, float, int]:
    return trial.validation is None, trial.validation or 0.0, trial.number


def _work(config: dict[str, Any], *, ticket: Ticket, specs: Sequence[dict[str, Any]]) -> None:
    """Run one trial, on one worker."""
    try:
        _run_trial(ticket, TrainingSpec.model_validate(specs[config["trial"]]))
    except Exception as error:  # noqa: BLE001 - a message of any class may carry data
        reraise(error)


def _run_trial(ticket: Ticket, spec: TrainingSpec) -> None:
    admitted = receive(ticket)
    layout = Layout.of(admitted.columns, spec.task)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(
        spec, layout, Arrays.of(admitted.table, layout), network=admitted_network(admitted), device=device
    )
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.resume({name: (Path(folder) / name).read_bytes() for name in CHECKPOINT_FILES})
    for epoch in trainer.epochs():
        if epoch.epoch % spec.checkpoint_every == 0 or epoch.epoch == spec.epochs:
            with tempfile.TemporaryDirectory() as folder:
                trainer.save(Path(folder))
                losses = {"epoch": epoch.epoch, "training": epoch.training, "validation": epoch.validation}
                tune.report(losses, checkpoint=tune.Checkpoint.from_directory(folder))


class _Journal(tune.Callback):
    """Writes a line for each trial that ended. Tune pickles it into the outbox, so it holds a path and no more."""

    def __init__(self, path: str) -> None:
        self._path = path

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: object, **info: object) -> None:
        """Write a line; runs in the driver."""
        with Path(self._path).open("a") as file:
            file.write("ended\n")

    on_trial_error = on_trial_complete
