"""Training: attempts in one zone after another, each fed by a crossing, returning a model through quarantine.

Workers write checkpoints, which come to their zone's outbox. When one dies, or the training is asked to leave its zone,
the last checkpoint passes quarantine, and another attempt goes on from it, in the same zone or in another, as a new
crossing: nothing that only the other zone has seen is trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fabric.artifacts import digest, digest_of
from fabric.attempts import Left
from fabric.border import Errand
from fabric.crossing import Cargo, Crossing, SealedCapsule
from fabric.errors import FabricError, Reason, RemoteFailure
from fabric.labels import is_token
from fabric.learning import Layout, Network
from fabric.matrix import SealedMatrix, columns_of
from fabric.placement import Placement
from fabric.quarantine import Model, admit_checkpoint, admit_model
from fabric.reaching import site_of
from fabric.reports import Progress, Report
from fabric.session import Session
from fabric.specs import TrainingSpec, crossing_form


class Moves(Protocol):
    """Who may send a training to another zone while it runs."""

    def leave(self) -> bool:
        """Say whether the training should leave its zone at its next checkpoint; asked now and then, in a thread."""

    def onward(self) -> tuple[Errand, int]:
        """Return the errand to go on with and for how many workers, waiting for it; asked once the training has left.

        Raises:
            FabricError: it does not go on.
        """


class Stays:
    """A training that nobody moves."""

    def leave(self) -> bool:
        """Never."""
        return False

    def onward(self) -> tuple[Errand, int]:
        """Is not asked."""
        raise AssertionError("a training that stays does not go on elsewhere")


_STAYS = Stays()


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A user's network, as it crosses and as it stands inside."""

    sealed: SealedCapsule
    network: Network


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
    workers, failures_left = spec.workers, spec.max_failures
    while True:
        # Each attempt is a crossing of its own: asked for, granted and recorded again, with what it goes on from.
        zone, left = errand.zone.name, False
        placement = session.place(errand, workers=workers)
        site = site_of(session, errand.zone)
        crossing = session.border.export(cargo, errand, site.carrier)
        reports: list[Report] = []
        try:
            with recorded_job(session, errand, placement, crossing, "training", spec_digest) as provenance:
                try:
                    folder = site.fit(crossing, spec, placement, progress=progress, leave=moves.leave, reports=reports)
                except RemoteFailure:
                    if not reports or reports[-1].epoch.epoch < spec.epochs:
                        raise
                    folder = Path(reports[-1].folder)  # all was done before it failed
                return admit_model(session, folder, provenance=provenance, zone=zone, **checked)
        except Left:
            left = True
        except RemoteFailure as error:
            if not failures_left or error.reason is not Reason.REMOTE_FAILED:
                raise
            failures_left -= 1
        if reports:
            last = Path(reports[-1].folder), reports[-1].files
            checkpoint = admit_checkpoint(
                session, last[0], reported=last[1], provenance=provenance, zone=zone, **checked
            )
            cargo = replace(cargo, checkpoint=checkpoint)
        if left:
            errand, workers = moves.onward()
            cargo = replace(cargo, capsule=latest(session, cargo.capsule))


def latest(session: Session, capsule: SealedCapsule | None) -> SealedCapsule | None:
    """Return code under the newest statement that is kept of it: it may have been read again while a job waited."""
    if capsule is not None:
        with suppress(FabricError):  # nobody keeps it, or what is kept does not hold
            return session.kept_capsule(digest(capsule.payload))
    return capsule


@contextmanager
def recorded_job(
    session: Session, errand: Errand, placement: Placement, crossing: Crossing, kind: str, spec_digest: str
) -> Iterator[dict[str, Any]]:
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
        yield provenance
    except Left:
        session.ledger.conclude(receipt, "done", {"what": "left"})
        raise
    except BaseException as error:
        session.ledger.conclude(receipt, "failed", {"code": code_of(error)})
        raise
    session.ledger.conclude(receipt, "done", {})


def code_of(error: BaseException) -> str:
    """Return what the ledger, the queue and metrics may hold of an error: the reason token, or the name of its class.

    Code that a job brought along makes classes too, and may name them anything: of those, the nearest one above counts.
    """
    if isinstance(error, FabricError):
        return error.reason.value
    return next(kind.__name__ for kind in type(error).__mro__ if _has_a_module(kind))


def _has_a_module(kind: type) -> bool:
    module, name = sys.modules.get(str(kind.__module__)), kind.__name__
    return module is not None and vars(module).get(name) is kind and is_token(name)
