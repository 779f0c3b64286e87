"""One sweep in this process's Ray cluster, by Ray Tune: every trial fed by the same ticket.

A trial is a plain Tune function: Ray Train inside Tune would put its controller anywhere. The search runs in this
process; a trial gets its number, and looks up its spec among those that crossed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from fabric.attempts import Outcome, Room, reraise
from fabric.carriage import admitted_network, receive
from fabric.crossing import Ticket
from fabric.learning import CHECKPOINT_FILES, Arrays, Layout, Trainer
from fabric.specs import TrainingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Searching:
    """What one sweep is given.

    Attributes:
        name: of the run, in Ray and in the storage folder.
        specs: the plain form of each trial's spec.
        storage: the folder that trials write checkpoints to.
        journal: the file that gets a line for each trial that ended.
    """

    name: str
    ticket: Ticket
    specs: Sequence[Mapping[str, Any]]
    room: Room
    storage: Path
    journal: Path


def search(attempt: Searching) -> list[Outcome]:
    """Run every trial and return how each ended.

    Raises:
        RemoteFailure: `REMOTE_FAILED`.
    """
    bundle = {"CPU": 0, **attempt.room.resources}
    where = tune.PlacementGroupFactory([bundle], bundle_label_selector=[dict(attempt.room.selector)])
    specs = [dict(spec) for spec in attempt.specs]
    work = tune.with_parameters(_work, ticket=attempt.ticket, specs=specs)
    tuner = tune.Tuner(
        tune.with_resources(work, where),
        param_space={"trial": tune.grid_search(list(range(len(specs))))},
        tune_config=tune.TuneConfig(
            metric="validation", mode="min", max_concurrent_trials=attempt.room.workers, reuse_actors=False
        ),
        run_config=tune.RunConfig(
            name=attempt.name,
            storage_path=str(attempt.storage),
            failure_config=tune.FailureConfig(max_failures=specs[0]["max_failures"]),
            callbacks=[_Journal(str(attempt.journal))],
            verbose=0,
        ),
    )
    try:
        return outcomes(tuner.fit())
    except ray.exceptions.RayError as error:
        reraise(error)


def outcomes(results: Any) -> list[Outcome]:
    """Return how each trial ended, by Tune's results; one that diverged has failed, and takes no other with it."""
    found = []
    for result in results:
        ended = result.error is None and result.checkpoint is not None
        loss = float(result.metrics["validation"]) if ended else math.nan
        ended = math.isfinite(loss)
        found.append(
            Outcome(
                number=int(result.config["trial"]),
                validation=loss if ended else None,
                folder=Path(result.checkpoint.path) if ended else None,
            )
        )
    return found


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
