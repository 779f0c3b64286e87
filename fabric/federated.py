"""A zone that is a cluster of its own: its work is started through its jobs API, and comes back through the border.

The cargo lies ready at the border service; the job gets its tokens and what it is to do, and fetches the rest. What it
returns are deliveries of bounded files: progress and checkpoints of a training, the trials of a sweep, the answer of a
function. All of it is read as untrusted, and nothing of it is ever unpickled. When the attempt is over, however it
ended, the job is stopped and the crossing closed: from then on its tokens open nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.attempts import Left, Outcome, flagged, followed
from fabric.border_carrier import BorderCarrier
from fabric.border_client import BorderTicket
from fabric.crossing import Carrier, Crossing
from fabric.deliveries import Answer, Deliveries, only_answer, read_outcomes, read_report
from fabric.errors import FabricError, Reason, RemoteFailure
from fabric.outside_jobs import OutsideJobs, job_id
from fabric.placement import Placement
from fabric.reports import Progress, Report
from fabric.results import told_failure
from fabric.session import Session
from fabric.sites import room_of
from fabric.specs import SweepSpec, TrainingSpec, crossing_form, sweep_form
from fabric.zones import Zone

LOOK_EVERY_S = 0.25
ASK_STATE_EVERY_S = 3.0
SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Federated:
    """Work in the cluster of another zone.

    Attributes:
        lost_s: a cluster that neither answers nor returns anything for so long counts as lost.
        sends_papers: each job is sent papers for the border; a zone whose nodes were given some needs none, and a key
            is not for a jobs API to list.
    """

    session: Session
    zone: Zone
    jobs: OutsideJobs
    border: BorderCarrier
    lost_s: float
    sends_papers: bool

    @property
    def carrier(self) -> Carrier:
        """Return what lays a cargo ready at the border service."""
        return self.border

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
        """Run one attempt by Ray Train in the zone's cluster."""
        name, home = f"train-{crossing.id}", self.session.home
        journal, flag = home.path / f"{name}.progress", home.path / f"{name}.leave"
        order = {"kind": "training", "spec": crossing_form(spec), "room": room_of(placement).to_json()}
        with (
            self._job(crossing, order) as answers,
            followed(journal, lambda line: progress(Report.of(line).epoch)),
            flagged(flag, leave),
        ):
            for delivery in answers:
                if isinstance(delivery, Answer):
                    self._raise_failure(delivery, "the training")
                    shutil.rmtree(delivery.folder)
                    break
                with self.session.border.refusals("return", self.zone, self.session.job):
                    report = read_report(delivery, spec, after=reports[-1].epoch.epoch if reports else 0)
                reports.append(report)
                _tell(journal, {**_losses(report), "folder": report.folder, "files": dict(report.files)})
                for old in reports[:-2]:
                    shutil.rmtree(old.folder, ignore_errors=True)
                if flag.exists() and report.epoch.epoch < spec.epochs:
                    raise Left
        if not reports or reports[-1].epoch.epoch != spec.epochs:
            raise RemoteFailure(
                Reason.REMOTE_FAILED, "the training ended without the checkpoint of its last epoch", "run it again"
            )
        return Path(reports[-1].folder)

    def search(
        self, crossing: Crossing, spec: SweepSpec, placement: Placement, *, progress: Callable[[], None]
    ) -> list[Outcome]:
        """Run every trial by Ray Tune in the zone's cluster."""
        journal = self.session.home.path / f"sweep-{crossing.id}.progress"
        order = {"kind": "sweep", "spec": sweep_form(spec), "room": room_of(placement).to_json()}
        trials, told = len(spec.trials()), 0
        with self._job(crossing, order) as answers, followed(journal, lambda _: progress()):
            for delivery in answers:
                with self.session.border.refusals("return", self.zone, self.session.job):
                    ended, outcomes = read_outcomes(delivery, trials)
                for _ in range(told, ended):
                    _tell(journal, {})
                told = max(told, ended)
                if isinstance(delivery, Answer):
                    self._raise_failure(delivery, "the sweep")
                    return outcomes
                shutil.rmtree(delivery.folder)
        raise AssertionError("the last delivery of a job is an answer")

    def call(self, crossing: Crossing, placement: Placement) -> Any:
        """Run the function as one task in the zone's cluster."""
        order = {"kind": "burst", "room": room_of(placement).to_json()}
        with self._job(crossing, order) as answers:
            for delivery in answers:
                # A burst returns its answer and nothing else: what came beside it would only fill the disk.
                with self.session.border.refusals("return", self.zone, self.session.job):
                    parts = only_answer(delivery).parts()
                shutil.rmtree(delivery.folder.parent)
                return parts
        raise AssertionError("the last delivery of a job is an answer")

    @contextmanager
    def _job(self, crossing: Crossing, order: Mapping[str, Any]) -> Iterator[Iterator[Any]]:
        """Start the job of a crossing and yield its deliveries, the last of which is an answer; end both in the end."""
        job, ticket = job_id(crossing.id), crossing.ticket
        assert isinstance(ticket, BorderTicket)  # noqa: S101 - our own carrier made it
        told = {name: value for name, value in ticket.to_json().items() if name != "papers" or self.sends_papers}
        variables = {**SETTINGS, "FABRIC_TICKET": json.dumps(told), "FABRIC_ORDER": json.dumps(order)}
        folder = self.session.home.outbox(self.zone.name) / crossing.id
        try:
            self._submit(job, variables)
            yield self._deliveries(job, Deliveries(self.border.inbox, crossing.id, folder))
        except FabricError as error:
            if not isinstance(error, RemoteFailure):  # of which something may go on from a checkpoint
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self.border.close(crossing.id)
            body = {"crossing": crossing.id, "job": self.session.job, "to_zone": self.zone.name, "what": "closed"}
            self.session.ledger.observe("crossing", body)
            self._stop(job)
            self.border.inbox.discard(crossing.id)

    def _submit(self, job: str, variables: Mapping[str, str]) -> None:
        """Start a job, once, and try for as long as its cluster may be away.

        Raises:
            RemoteFailure: `REMOTE_FAILED`.
        """
        since_s = time.monotonic()
        while True:
            try:
                return self.jobs.submit(job, variables)
            except RemoteFailure:
                if time.monotonic() - since_s > self.lost_s:
                    raise
            time.sleep(ASK_STATE_EVERY_S)

    def _stop(self, job: str) -> None:
        """Ask for a job to be stopped unless it is known to be over: what goes on unheard costs as much."""
        with suppress(RemoteFailure):
            try:
                over = self.jobs.state(job).over
            except RemoteFailure:
                over = False
            if not over:
                self.jobs.stop(job)

    def _deliveries(self, job: str, deliveries: Deliveries) -> Iterator[Any]:
        """Yield what the job returns as it comes, up to its answer.

        Raises:
            RemoteFailure: `REMOTE_FAILED`: it ended without one, or its cluster is lost.
        """
        heard_s = asked_s = time.monotonic()
        ended = False
        while True:
            with self.session.border.refusals("return", self.zone, self.session.job):
                came = list(deliveries.take())
            for delivery in came:
                heard_s = time.monotonic()
                yield delivery
                if isinstance(delivery, Answer):
                    return
            if ended:
                raise self._lost("ended without an answer")
            if time.monotonic() - asked_s >= ASK_STATE_EVERY_S:
                with suppress(RemoteFailure):
                    state = self.jobs.state(job)
                    heard_s = time.monotonic()
                    # What it delivered before it ended is looked for once more.
                    ended = state.over
                asked_s = time.monotonic()
            if time.monotonic() - heard_s > self.lost_s:
                raise self._lost(f"neither answered nor returned anything for {self.lost_s:.0f} s")
            if not ended:
                time.sleep(LOOK_EVERY_S)

    def _raise_failure(self, answer: Answer, what: str) -> None:
        if answer.kind != "done":
            with self.session.border.refusals("return", self.zone, self.session.job):
                _, content, *_ = answer.parts()
            raise told_failure(answer.kind, content, what=what)

    def _lost(self, what: str) -> RemoteFailure:
        return RemoteFailure(
            Reason.REMOTE_FAILED,
            f"the job in the cluster of zone {self.zone.name!r} {what}",
            "look at that cluster; what it had returned by then was kept",
        )


def _losses(report: Report) -> dict[str, float]:
    epoch = report.epoch
    return {"epoch": epoch.epoch, "training": epoch.training, "validation": epoch.validation}


def _tell(journal: Path, line: Mapping[str, Any]) -> None:
    with journal.open("a") as file:
        file.write(json.dumps(line) + "\n")
