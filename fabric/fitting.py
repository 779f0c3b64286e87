"""One attempt of a training in this process's Ray cluster, by Ray Train V2: workers fed by a ticket.

Workers get a ticket and a spec, no dataset and no closure: the function they run is this module's, by reference. Ray
Train itself never starts again: it would go on from what lies in the storage folder, unchecked.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from fabric.artifacts import digest
from fabric.attempts import Left, Room, lines_of, reraise
from fabric.carriage import admitted_network, receive
from fabric.crossing import Ticket
from fabric.errors import FabricError, Reason, RemoteFailure
from fabric.learning import CHECKPOINT_FILES, Arrays, Epoch, Layout, Trainer, share
from fabric.reports import Report
from fabric.specs import TrainingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """What one attempt is given.

    Attributes:
        name: of the run, in Ray and in the storage folder.
        spec: the plain form of a training spec.
        storage: the folder that workers write checkpoints to.
        journal: the file that gets a line for each report.
        flag: the file that makes the run end at its next checkpoint once it is there.
    """

    name: str
    ticket: Ticket
    spec: Mapping[str, Any]
    room: Room
    storage: Path
    journal: Path
    flag: Path


def fit(attempt: Fitting, reports: list[Report]) -> Path:
    """Run one attempt and return the folder of its last checkpoint; `reports` gets every report, also of a failure.

    Raises:
        Left: the flag was there when a checkpoint was reported.
        RemoteFailure: `REMOTE_FAILED`.
    """
    trainer = TorchTrainer(
        _work,
        train_loop_config={"ticket": attempt.ticket, "spec": dict(attempt.spec)},
        scaling_config=ScalingConfig(
            num_workers=attempt.room.workers,
            use_gpu=attempt.room.use_gpu,
            resources_per_worker=dict(attempt.room.resources),
            label_selector=dict(attempt.room.selector),
        ),
        run_config=RunConfig(
            name=attempt.name,
            storage_path=str(attempt.storage),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_Journal(str(attempt.journal), str(attempt.flag), int(attempt.spec["epochs"]))],
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        if attempt.flag.exists() and isinstance(getattr(error, "controller_failure", None), Left):
            raise Left from None
        failures = getattr(error, "worker_failures", {})
        reraise(_cause(next(iter(failures.values()), error)))
    except ray.exceptions.RayError as error:
        reraise(_cause(error))
    finally:
        # Read here, not as they are told: a progress function of the caller's may fail.
        reports += [Report.of(line) for line in lines_of(attempt.journal)]
    if result.checkpoint is None:
        raise RemoteFailure(Reason.REMOTE_FAILED, "the training returned no checkpoint", "run it again")
    return Path(result.checkpoint.path)


def _cause(error: BaseException) -> BaseException:
    while not isinstance(error, FabricError):
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return error


def _work(config: dict[str, Any]) -> None:
    """Run on every worker."""
    try:
        _train_share(config["ticket"], TrainingSpec.model_validate(config["spec"]))
    except Exception as error:  # noqa: BLE001 - a message of any class may carry data
        reraise(error)


def _train_share(ticket: Ticket, spec: TrainingSpec) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    admitted = receive(ticket)
    layout = Layout.of(admitted.columns, spec.task)
    arrays = Arrays.of(admitted.table, layout)
    rows, held = share(len(arrays), rank, world, spec.validation)
    trainer = Trainer(
        spec,
        layout,
        arrays.take(rows),
        held=held,
        network=admitted_network(admitted),
        device=ray.train.torch.get_device(),
        prepare=ray.train.torch.prepare_model,
        total=_sum_over_workers if world > 1 else lambda tensor: tensor,
    )
    if admitted.checkpoint:
        trainer.resume(admitted.checkpoint)
    for epoch in trainer.epochs():
        if epoch.epoch % spec.checkpoint_every == 0 or epoch.epoch == spec.epochs:
            _report(trainer, epoch, rank)


def _report(trainer: Trainer, epoch: Epoch, rank: int) -> None:
    metrics: dict[str, Any] = {"epoch": epoch.epoch, "training": epoch.training, "validation": epoch.validation}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer.save(Path(folder))
        metrics["files"] = {name: digest((Path(folder) / name).read_bytes()) for name in CHECKPOINT_FILES}
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor


class _Journal(UserCallback):
    """Writes what rank 0 reports to a file in the private zone, and ends the run there if a flag lies beside it.

    Runs in the controller. Ray Train has no other way to end a run at a checkpoint from inside; the error of a callback
    is never retried.
    """

    def __init__(self, path: str, flag: str, epochs: int) -> None:
        self._path, self._flag, self._epochs = path, flag, epochs

    def after_report(self, run_context: object, metrics: Sequence[dict[str, Any]], checkpoint: Any) -> None:
        losses = {key: float(metrics[0][key]) for key in ("epoch", "training", "validation")}
        files = {name: str(metrics[0]["files"][name]) for name in CHECKPOINT_FILES}
        with Path(self._path).open("a") as file:
            file.write(json.dumps({**losses, "folder": str(checkpoint.path), "files": files}) + "\n")
        if losses["epoch"] < self._epochs and Path(self._flag).exists():
            raise Left
