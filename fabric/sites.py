"""Sites: how one attempt of work runs in a zone, behind one small protocol.

Policy, evidence and quarantine stand above it and are the same for every site. `Stretched` runs work through the Ray
cluster that this driver has joined: the private zone always does, and every zone of a stretched cluster. Where every
zone is a cluster of its own, `fabric.federated` reaches the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fabric.attempts import Outcome, Room, flagged, followed
from fabric.calling import call
from fabric.carriage import ObjectStoreCarrier
from fabric.crossing import Carrier, Crossing
from fabric.fitting import Fitting, fit
from fabric.guard import passage
from fabric.placement import Placement
from fabric.reports import Progress, Report
from fabric.searching import Searching, search
from fabric.session import Session
from fabric.specs import SweepSpec, TrainingSpec, crossing_form


class Site(Protocol):
    """Where an attempt runs: how its cargo gets there, how its work is started, and what comes back of it."""

    @property
    def carrier(self) -> Carrier:
        """Return what moves a cargo there; only the border calls it."""

    def fit(
        self,
        crossing: Crossing,
        spec: TrainingSpec,
        placement: Placement,
        *,
        progress: Progress,
        leave: Callable[[], bool],
        reports: list[Report],
    ) -> Path:
        """Run one attempt of a training and return the folder, in the zone's outbox, of its last checkpoint.

        Args:
            progress: told the losses of each checkpoint.
            leave: asked now and then whether the attempt should end at its next checkpoint.
            reports: gets every report, also of an attempt that fails.

        Raises:
            Left: it was asked to, and a checkpoint was reported since.
            RemoteFailure: `REMOTE_FAILED`.
        """

    def search(
        self, crossing: Crossing, spec: SweepSpec, placement: Placement, *, progress: Callable[[], None]
    ) -> list[Outcome]:
        """Run every trial of a sweep and return how each ended; at least the best has a folder in the zone's outbox.

        Args:
            progress: called for each trial that ended.

        Raises:
            RemoteFailure: `REMOTE_FAILED`.
        """

    def call(self, crossing: Crossing, placement: Placement) -> Any:
        """Run the crossing's function over its matrix and return its answer, which nobody has believed yet.

        Raises:
            RemoteFailure: `REMOTE_FAILED`.
        """


def room_of(placement: Placement) -> Room:
    """Return how many workers a placement has, and what each asks Ray for."""
    return Room(
        workers=placement.workers,
        use_gpu=placement.use_gpu,
        resources=dict(placement.resources_per_worker),
        selector=dict(placement.label_selector),
    )


@dataclass(frozen=True, slots=True)
class Stretched:
    """Work through the Ray cluster that this driver has joined; while it runs, its job may ask for the zone."""

    session: Session

    @property
    def carrier(self) -> Carrier:
        """Return the object store."""
        return ObjectStoreCarrier()

    def fit(
        self,
        crossing: Crossing,
        spec: TrainingSpec,
        placement: Placement,
        *,
        progress: Progress,
        leave: Callable[[], bool],
        reports: list[Report],
    ) -> Path:
        """Run one attempt by Ray Train."""
        name, home = f"train-{crossing.id}", self.session.home
        attempt = Fitting(
            name=name,
            ticket=crossing.ticket,
            spec=crossing_form(spec),
            room=room_of(placement),
            storage=home.outbox(placement.zone.name),
            journal=home.path / f"{name}.progress",
            flag=home.path / f"{name}.leave",
        )
        with (
            passage(placement.zone.name, crossing.id),
            followed(attempt.journal, lambda line: progress(Report.of(line).epoch)),
            flagged(attempt.flag, leave),
        ):
            return fit(attempt, reports)

    def search(
        self, crossing: Crossing, spec: SweepSpec, placement: Placement, *, progress: Callable[[], None]
    ) -> list[Outcome]:
        """Run every trial by Ray Tune."""
        name, home = f"sweep-{crossing.id}", self.session.home
        attempt = Searching(
            name=name,
            ticket=crossing.ticket,
            specs=[crossing_form(trial) for trial in spec.trials()],
            room=room_of(placement),
            storage=home.outbox(placement.zone.name),
            journal=home.path / f"{name}.progress",
        )
        with passage(placement.zone.name, crossing.id), followed(attempt.journal, lambda _: progress()):
            return search(attempt)

    def call(self, crossing: Crossing, placement: Placement) -> Any:
        """Run the function as one task."""
        with passage(placement.zone.name, crossing.id):
            return call(crossing.ticket, room_of(placement))
