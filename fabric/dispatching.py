"""The dispatcher as a detached actor of Ray, inside: drivers by the Jobs API, metrics, hints to the autoscaler.

Thin: what it decides and does is `fabric.dispatch`. Ray starts the actor again when its process dies; all its state is
in the stores. One per fabric, by its name.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.metrics import Counter, Gauge, Histogram

from fabric.capacity import Capacity, Wanted, unanswered
from fabric.catalogue import PriceBook
from fabric.charges import Terms
from fabric.config import Environment
from fabric.dispatch import Dispatcher, Happening
from fabric.errors import ClusterUnavailable, FabricError, Reason
from fabric.job_store import PROBLEM, JobStore, State, open_queue
from fabric.judgement import Judgement
from fabric.launching import Drive, Life
from fabric.local_cluster import running
from fabric.placement import PRIVATE_PINCH
from fabric.queueing import Dispatch
from fabric.reaching import abandon
from fabric.recording import new_id, now, open_budgets
from fabric.reopening import Reopening
from fabric.reserving import Books
from fabric.session import Session
from fabric.spending import Spending
from fabric.zones import Zone

NAME, NAMESPACE = "fabric-dispatcher", "fabric"
TURN_EVERY_S = 1.0

_LOG = logging.getLogger(__name__)
_LIVES = {
    JobStatus.PENDING: Life.ALIVE,
    JobStatus.RUNNING: Life.ALIVE,
    JobStatus.STOPPED: Life.STOPPED,
    JobStatus.SUCCEEDED: Life.GONE,
    JobStatus.FAILED: Life.GONE,
}


class RayLauncher:
    """Drivers as jobs of Ray's Jobs API, pinned to the private zone. No working directory and no variable travels."""

    def __init__(self, url: str, home: Zone) -> None:
        self._client = JobSubmissionClient(url)
        self._home = home

    def start(self, drive: Drive) -> None:
        """Submit a driver; Ray refuses an id that is there, which is as good."""
        entry = shlex.join([sys.executable, "-m", "jobs.queued", *drive.words])
        try:
            self._client.submit_job(
                entrypoint=entry,
                submission_id=drive.submission,
                metadata=dict(drive.labels),
                entrypoint_resources={self._home.resource: PRIVATE_PINCH},
            )
        except Exception as error:  # noqa: BLE001 - whatever Ray's client raises; its text may carry anything
            if drive.submission not in self.lives():
                raise unanswered(error) from None

    def lives(self) -> dict[str, Life]:
        """Return every driver that Ray knows."""
        try:
            return {job.submission_id: _LIVES[job.status] for job in self._client.list_jobs() if job.submission_id}
        except Exception as error:  # noqa: BLE001 - as above
            raise unanswered(error) from None

    def stop(self, submission: str) -> None:
        """Have Ray stop a driver."""
        try:
            self._client.stop_job(submission)
        except Exception as error:  # noqa: BLE001 - as above
            _LOG.warning("a driver could not be stopped (%s)", type(error).__name__)


@dataclass(slots=True)
class Metrics:
    """What Prometheus scrapes off Ray's own endpoint: zones, workload classes and reason tokens, and no more."""

    _depth: Any = field(init=False)
    _running: Any = field(init=False)
    _holds: Any = field(init=False)
    _wait: Any = field(init=False)
    _happened: Any = field(init=False)
    _spent: Any = field(init=False)
    _seen: dict[str, set[tuple[str, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self._depth = Gauge("fabric_queue_depth", "Jobs that wait, by workload class.", ("workload",))
        self._running = Gauge("fabric_running_jobs", "Jobs that hold room, by zone.", ("zone", "workload"))
        self._holds = Gauge("fabric_held_jobs", "Jobs that wait, by the reason they are held for.", ("reason",))
        self._wait = Histogram(
            "fabric_wait_seconds", "From submission to a place.", [1, 10, 60, 600, 3_600, 36_000], ("zone", "workload")
        )
        self._happened = Counter(
            "fabric_dispatch_events", "Starts, refusals, moves, ends.", ("event", "zone", "workload", "reason")
        )
        self._spent = Counter("fabric_spent_units", "What attempts cost, in the currency.", ("zone", "workload"))
        self._seen = {"depth": set(), "running": set(), "holds": set()}

    def take(self, happened: Iterable[Happening], store: JobStore) -> None:
        """Count what happened, and show the queue as it is."""
        for one in happened:
            where = {"zone": one.zone, "workload": one.workload}
            if one.name == "wait":
                self._wait.observe(one.value, where)
            elif one.name == "spent":
                self._spent.inc(max(one.value, 1e-9), where)
            else:
                self._happened.inc(1, {**where, "event": one.name, "reason": one.reason})
        rows = store.jobs()
        waiting = [row for row in rows if row.state is State.QUEUED]
        self._show("depth", self._depth, [(str(row.body["workload"]),) for row in waiting])
        self._show("running", self._running, [(r.zone, str(r.body["workload"])) for r in rows if r.state.holds])
        self._show("holds", self._holds, [(str(row.hold.get("reason", "")),) for row in waiting if row.hold])

    def _show(self, name: str, gauge: Any, keys: list[tuple[str, ...]]) -> None:
        self._seen[name] |= set(keys)
        for key in self._seen[name]:
            gauge.set(keys.count(key), dict(zip(gauge._tag_keys, key, strict=True)))


def make(session: Session, store: JobStore, url: str) -> Dispatcher:
    """Wire a dispatcher of this session's fabric, with the real edges."""
    config = session.config
    book = PriceBook(config.prices)

    def terms(zone: str, spot: bool, at: float) -> Terms:
        return book.at(at).terms(config.zones[zone], spot=spot)

    spending = Spending(open_budgets(config, session.home), session.ledger, config.prices.currency)
    return Dispatcher(
        store=store,
        ledger=session.ledger,
        books=Books(spending=spending, terms=terms, new_id=new_id),
        new_decision=lambda: Dispatch(config.dispatch),
        launcher=RayLauncher(url, config.private),
        judge=Judgement(session),
        pools=Capacity(session=session, store=store, book=book).pools,
        clock=lambda: now().timestamp(),
        abandon=partial(abandon, session),
    )


class DispatcherActor:
    """Takes a turn every second, as long as its process lives, under the settings as they are then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turns, self._said = 0, ""
        self._reopening = Reopening(Environment.read())
        self._session: Session | None = None
        self._dispatcher: Dispatcher
        self._renew()
        self._metrics = Metrics()
        threading.Thread(target=self._run, daemon=True).start()

    def pid(self) -> int:
        """Return the number of its process."""
        return os.getpid()

    def turns(self) -> tuple[int, str]:
        """Return how many turns it took, and what went wrong in the last one: a reason token, or a class's name."""
        return self._turns, self._said

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._renew()
                self._metrics.take(self._dispatcher.turn(), self._dispatcher.store)
                if self._wanted is not None:
                    self._wanted.ask(self._dispatcher.store.jobs())
                self._said = ""
            except FabricError as error:
                self._said = error.reason.value
                self._complain()
            except Exception as error:  # noqa: BLE001 - the next turn reads everything anew; a message may carry data
                self._said = type(error).__name__
                _LOG.error("a turn failed with %s", self._said)
            self._turns += 1
            time.sleep(max(0.05, TURN_EVERY_S - (time.monotonic() - began)))

    def _renew(self) -> None:
        """Make the dispatcher anew where fabric.toml, a policy or the key has changed; all its state is in the stores.

        Raises:
            FabricError: what is wrong with the new settings; no turn is taken under the former ones.
        """
        session = self._reopening.session()
        if session is self._session:
            return
        if not session.config.dispatches:
            raise FabricError(Reason.CONFIG_INVALID, "fabric.toml has no [dispatch]", "add an empty one")
        store = open_queue(session.config, session.home)
        try:
            made = make(session, store, self._url)
        except BaseException:
            store.close()
            raise
        if self._session is not None:
            self._dispatcher.store.close()
            self._dispatcher.books.spending.store.close()
            self._session.ledger.close()
        self._session, self._dispatcher = session, made
        self._wanted = Wanted(session.config) if session.environment.elastic else None

    def _complain(self) -> None:
        """Say in the queue what keeps it from taking turns."""
        with suppress(FabricError):
            self._dispatcher.store.beat(f"{PROBLEM}{self._said}", now().timestamp())


def ensure(session: Session) -> Any:
    """Return the fabric's dispatcher, started if there is none; Ray must be connected.

    Raises:
        ClusterUnavailable: it does not start.
    """
    private = session.config.private
    actor = (
        ray.remote(DispatcherActor)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={private.resource: PRIVATE_PINCH},
            label_selector=private.node_label,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(_jobs_url(session))
    )
    try:
        ray.get(actor.turns.remote(), timeout=60)
    except ray.exceptions.RayError as error:
        raise ClusterUnavailable(
            Reason.CLUSTER_FAILED,
            f"the dispatcher does not start ({type(error).__name__})",
            "see the actor's log in Ray",
        ) from None
    return actor


def _jobs_url(session: Session) -> str:
    cluster = running(session.config.state)
    if cluster is not None:
        return cluster.dashboard_url
    found = session.environment.variables.get("RAY_API_SERVER_ADDRESS", "") or rays_jobs_url()
    if not found:
        raise ClusterUnavailable(
            Reason.FABRIC_DOWN, "nobody says where Ray's Jobs API is", "set RAY_API_SERVER_ADDRESS to its URL"
        )
    return found


def rays_jobs_url() -> str:
    """Return where Ray says that the Jobs API of this process's cluster is; empty if it has none."""
    found = ray._private.worker.get_dashboard_url()
    return f"http://{found}" if found else ""
