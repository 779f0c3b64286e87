"""Training with Ray Train V2: workers in one zone, fed by one crossing, returning a model through quarantine.

Workers get a ticket and a spec, no dataset and no closure: the function they run is this module's, by reference. They
write checkpoints to their zone's outbox. When one dies, or the training is asked to leave its zone, the last checkpoint
passes quarantine, and another attempt goes on from it, in the same zone or in another, as a new crossing: nothing that
only the other zone has seen is trained on.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from fabric.artifacts import digest, digest_of
from fabric.border import Errand
from fabric.capsule import open_capsule
from fabric.carriage import ObjectStoreCarrier, receive
from fabric.crossing import Admitted, Cargo, Crossing, SealedCapsule, Ticket
from fabric.errors import FabricError, Reason, RemoteFailure
from fabric.guard import passage
from fabric.learning import CHECKPOINT_FILES, Arrays, Epoch, Layout, Network, Trainer
from fabric.matrix import SealedMatrix, columns_of
from fabric.placement import Placement
from fabric.quarantine import Model, admit_checkpoint, admit_model
from fabric.session import Session
from fabric.specs import TrainingSpec, crossing_form

Progress = Callable[[Epoch], None]
ASK_EVERY_S = 0.5
"""How often a training that may be moved is asked whether it should leave."""


class Left(Exception):
    """An attempt ended at a checkpoint because the training was asked to leave its zone. No failure."""


class Moves(Protocol):
    """Who may send a training to another zone while it runs."""

    def leave(self) -> bool:
        """Say whether the training should leave its zone at its next checkpoint; asked now and then, in a thread."""

    def onward(self) -> Errand:
        """Return the errand to go on with, waiting for it if need be; asked once the training has left.

        Raises:
            FabricError: it does not go on.
        """


class Stays:
    """A training that nobody moves."""

    def leave(self) -> bool:
        """Never."""
        return False

    def onward(self) -> Errand:
        """Is not asked."""
        raise AssertionError("a training that stays does not go on elsewhere")


_STAYS = Stays()


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A user's network, as it crosses and as it stands inside."""

    sealed: SealedCapsule
    network: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What rank 0 reported with a checkpoint, as the controller wrote it down inside.

    Attributes:
        folder: of the checkpoint, in the zone's outbox.
        files: the digest of each of its files.
    """

    epoch: Epoch
    folder: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, line: str) -> Report:
        """Read a line of the journal."""
        raw = json.loads(line)
        epoch = Epoch(epoch=int(raw["epoch"]), training=raw["training"], validation=raw["validation"])
        return cls(epoch=epoch, folder=str(raw["folder"]), files=dict(raw["files"]))


def train(
    session: Session,
    matrix: SealedMatrix,
    spec: TrainingSpec,
    errand: Errand,
    *,
    code: Code | None = None,
    progress: Progress = lambda epoch: None,
    moves: Moves = _STAYS,
) -> Model:
    """Train on `matrix` in the errand's zone, or in those that `moves` sends it to, and bring the model back.

    Raises:
        Refused: by policy or the border; nothing has moved.
        RemoteFailure: `REMOTE_FAILED`: the workers failed more often than the spec allows.
        InvalidInput: the matrix does not fit the spec, or what came back was refused.
    """
    crossing_form(spec)  # before anything moves
    layout = Layout.of(columns_of(matrix.signed), spec.task)
    cargo = Cargo(matrix=matrix, capsule=code.sealed if code else None)
    checked: dict[str, Any] = {"spec": spec, "layout": layout, "network": code.network if code else None}
    spec_digest = digest_of(spec.model_dump(mode="json"))
    failures_left = spec.max_failures
    while True:
        # Each attempt is a crossing of its own: asked for, granted and recorded again, with what it goes on from.
        zone, left = errand.zone.name, False
        placement = session.place(errand, workers=spec.workers)
        crossing = session.border.export(cargo, errand, ObjectStoreCarrier())
        reports: list[Report] = []
        try:
            with recorded_job(session, errand, placement, crossing, "training", spec_digest) as provenance:
                folder = _fit(session, crossing, spec, placement, progress, reports, moves)
                return admit_model(session, folder, provenance=provenance, zone=zone, **checked)
        except Left:
            left = True
        except RemoteFailure:
            if not failures_left:
                raise
            failures_left -= 1
        if reports:
            last = Path(reports[-1].folder), reports[-1].files
            checkpoint = admit_checkpoint(
                session, last[0], reported=last[1], provenance=provenance, zone=zone, **checked
            )
            cargo = replace(cargo, checkpoint=checkpoint)
        if left:
            errand = moves.onward()


@contextmanager
def recorded_job(
    session: Session, errand: Errand, placement: Placement, crossing: Crossing, kind: str, spec_digest: str
) -> Any:
    """Record a job's intent and outcome around its work, and yield the provenance of what it makes."""
    provenance: dict[str, Any] = {
        "crossing": crossing.id,
        "matrix_statement": crossing.cargo.matrix.signed.digest,
        "spec": spec_digest,
        "purpose": errand.purpose,
    }
    body: dict[str, Any] = {
        "kind": kind,
        "job": session.job,
        "zone": errand.zone.name,
        "workers": placement.workers,
        "gpu": placement.use_gpu,
        "decision": placement.decision.to_json(),
        **provenance,
    }
    receipt = session.ledger.intend("job", body)
    try:
        with passage(errand.zone.name, crossing.id):
            yield provenance
    except Left:
        session.ledger.conclude(receipt, "done", {"what": "left"})
        raise
    except BaseException as error:
        session.ledger.conclude(receipt, "failed", {"code": code_of(error)})
        raise
    session.ledger.conclude(receipt, "done", {})


def code_of(error: BaseException) -> str:
    """Return what the ledger may hold of an error: the reason token, or the class's name."""
    return error.reason.value if isinstance(error, FabricError) else type(error).__name__


def share(table_rows: int, rank: int, world: int) -> slice:
    """Return the rows of worker `rank`: every `world`-th, as many for each worker, so that none waits for another."""
    return slice(rank, (table_rows // world) * world, world)


def admitted_network(admitted: Admitted) -> Network | None:
    """Return the user's network that crossed with the matrix, or None for the built-in one."""
    return open_capsule(admitted.capsule, digest(admitted.capsule)) if admitted.capsule else None


def reraise(error: BaseException) -> None:
    """Raise what a worker's error may say outside its zone: our own errors whole, of others the class's name only.

    Raises:
        FabricError: the error itself, or `REMOTE_FAILED`.
    """
    if isinstance(error, FabricError):
        raise error from None
    raise RemoteFailure(
        Reason.REMOTE_FAILED,
        f"the work in the other zone failed with {type(error).__name__}",
        "its message stays there, because messages carry data",
    ) from None


def _fit(
    session: Session,
    crossing: Crossing,
    spec: TrainingSpec,
    placement: Placement,
    progress: Progress,
    reports: list[Report],
    moves: Moves,
) -> Path:
    """Run one attempt and return the folder of its last checkpoint; `reports` gets every report, also of a failure.

    Raises:
        Left: `moves` asked for it, and a checkpoint was reported since.
    """
    run_id = f"train-{crossing.id}"
    journal = session.home.path / f"{run_id}.progress"
    flag = session.home.path / f"{run_id}.leave"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"ticket": crossing.ticket, "spec": crossing_form(spec)},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.use_gpu,
            resources_per_worker=placement.resources_per_worker,
            label_selector=placement.label_selector,
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=str(session.home.outbox(placement.zone.name)),
            # Ray Train would start again from what the outbox holds, unchecked.
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_Journal(str(journal), str(flag), spec.epochs)],
        ),
    )
    with followed(journal, lambda line: progress(Report.of(line).epoch)), flagged(flag, moves.leave):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            if flag.exists() and isinstance(getattr(error, "controller_failure", None), Left):
                raise Left from None
            failures = getattr(error, "worker_failures", {})
            reraise(_cause(next(iter(failures.values()), error)))
        except ray.exceptions.RayError as error:
            reraise(_cause(error))
        finally:
            # Read here, not as they are told: a progress function of the caller's may fail.
            reports += [Report.of(line) for line in lines_of(journal)]
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
    trainer = Trainer(
        spec,
        layout,
        arrays.take(share(len(arrays), rank, world)),
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


def lines_of(journal: Path) -> list[str]:
    """Return the lines that were written so far."""
    return journal.read_text().splitlines() if journal.exists() else []


@contextmanager
def followed(journal: Path, tell: Callable[[str], None]) -> Any:
    """Call `tell` with each line of the journal while the block runs, and remove it afterwards."""
    done = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = done.wait(0.2)
            lines = lines_of(journal)
            for line in lines[seen:]:
                tell(line)
            seen = len(lines)
            if last:
                return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        journal.unlink(missing_ok=True)


@contextmanager
def flagged(flag: Path, asked: Callable[[], bool]) -> Any:
    """Put a flag down once `asked` says yes while the block runs, and remove it afterwards; no answer is a no."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(ASK_EVERY_S):
            with suppress(FabricError):
                if asked():
                    flag.touch(mode=0o600)
                    return

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    try:
        yield
    finally:
        done.set()
        asker.join()
        flag.unlink(missing_ok=True)
