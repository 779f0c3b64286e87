"""The dispatcher as a detached actor of Ray, inside: drivers by the Jobs API, capacity by Ray's state, metrics.

Thin: what it decides and does is `fabric.dispatch`. Ray starts the actor again when its process dies; all its state is
in the stores. One per fabric, by its name.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.metrics import Counter, Gauge, Histogram

from fabric.catalogue import PriceBook, ZonePrices
from fabric.charges import Terms
from fabric.config import Environment
from fabric.dispatch import Dispatcher, Happening
from fabric.errors import ClusterUnavailable, FabricError, Reason
from fabric.fleet import Health, Pool
from fabric.job_store import PROBLEM, JobStore, State, open_queue
from fabric.judgement import Judgement
from fabric.launching import Drive, Life
from fabric.local_cluster import running
from fabric.placement import PRIVATE_PINCH
from fabric.queueing import Dispatch
from fabric.reaching import answers
from fabric.recording import new_id, now, open_budgets
from fabric.reserving import Books
from fabric.session import Session
from fabric.spending import Spending
from fabric.submission import static_pool
from fabric.zones import Topology, Zone, ZoneKind

NAME, NAMESPACE = "fabric-dispatcher", "fabric"
TURN_EVERY_S = 1.0
PROBE_EVERY_S = 10.0
KEPT_FOR_SANITIZING = 1
"""CPUs inside that no job gets where there are three or more: records are sanitized while the zone is full."""

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
                raise _unanswered(error) from None

    def lives(self) -> dict[str, Life]:
        """Return every driver that Ray knows."""
        try:
            return {job.submission_id: _LIVES[job.status] for job in self._client.list_jobs() if job.submission_id}
        except Exception as error:  # noqa: BLE001 - as above
            raise _unanswered(error) from None

    def stop(self, submission: str) -> None:
        """Have Ray stop a driver."""
        try:
            self._client.stop_job(submission)
        except Exception as error:  # noqa: BLE001 - as above
            _LOG.warning("a driver could not be stopped (%s)", type(error).__name__)


def _unanswered(error: Exception) -> FabricError:
    return ClusterUnavailable(
        Reason.CLUSTER_FAILED, f"Ray's Jobs API does not answer ({type(error).__name__})", "`fabric status`"
    )


@dataclass(slots=True, kw_only=True)
class Capacity:
    """What is seen of every zone: its nodes' health, what fabric.toml declares, and what other work holds."""

    session: Session
    store: JobStore
    book: PriceBook
    _answered: dict[str, tuple[float, Health]] = field(default_factory=dict)

    def pools(self, now_s: float) -> Iterable[Pool]:
        """Return a pool for each zone, with its prices.

        Raises:
            FabricError: the cluster cannot be asked.
        """
        try:
            nodes = ray.nodes()
            free = ray._private.state.available_resources_per_node()
        except Exception as error:  # noqa: BLE001 - as above
            raise _unanswered(error) from None
        held: dict[str, int] = {}
        for row in self.store.jobs():
            if row.state.holds:
                held[row.zone] = held.get(row.zone, 0) + row.workers
        for zone in self.session.config.zones.values():
            if self.session.config.topology is Topology.FEDERATED and zone.kind is not ZoneKind.PRIVATE:
                pool = self._elsewhere(zone, now_s)
            else:
                mine = [node for node in nodes if node["Labels"].get("zone") == zone.name]
                pool = self._pool(zone, mine, free, held.get(zone.name, 0), now_s)
            yield _priced(pool, self.book.at(now_s).of(zone))

    def _elsewhere(self, zone: Zone, now_s: float) -> Pool:
        """Return a zone that is a cluster of its own: as large as declared, as healthy as it answers."""
        seen_s, health = self._answered.get(zone.name, (-math.inf, Health.UNKNOWN))
        if not 0 <= now_s - seen_s < PROBE_EVERY_S:
            health = Health.HEALTHY if answers(self.session, zone) else Health.DOWN
            self._answered[zone.name] = seen_s, health = now_s, health
        return replace(static_pool(zone), health=health, observed_s=seen_s)

    def _pool(
        self, zone: Zone, nodes: list[dict[str, Any]], free: Mapping[str, Mapping[str, float]], held: int, now_s: float
    ) -> Pool:
        inside = zone.kind is ZoneKind.PRIVATE
        alive = [node for node in nodes if node["Alive"]]
        declared = static_pool(zone)
        kept = KEPT_FOR_SANITIZING if inside and zone.cpus > 2 else 0
        # Outside there are no CPUs: a worker takes one of the zone's slots.
        unit = "CPU" if inside else zone.resource
        total = min(declared.cpus_total, int(_sum(alive, unit))) - kept
        used = _sum(alive, unit) - sum(free.get(node["NodeID"], {}).get(unit, 0.0) for node in alive)
        gpus = min(declared.gpus_total, int(_sum(alive, "GPU")))
        gpus_used = _sum(alive, "GPU") - sum(free.get(node["NodeID"], {}).get("GPU", 0.0) for node in alive)
        # What sanitizes takes the room that is kept for it; what else is in the zone takes the jobs'.
        spared = min(kept, _sanitizers()) if kept else 0
        taken = max(0, math.ceil(used - 0.5) - held - spared)
        return Pool(
            zone=zone.name,
            kind=zone.kind,
            provider=zone.provider,
            region=zone.region,
            gpu_model=zone.gpu_model,
            gpus_total=gpus,
            gpus_taken=min(gpus, max(0, round(gpus_used) - (held if gpus else 0))),
            cpus_total=max(0, total),
            cpus_taken=min(max(0, total), taken),
            health=_health(nodes, alive),
            observed_s=now_s,
        )


def _priced(pool: Pool, prices: ZonePrices) -> Pool:
    """Return a pool with its prices; what is owned sends no bill."""
    if pool.inside:
        return replace(pool, price=0, egress=0)
    return replace(
        pool,
        price=prices.hour,
        spot=prices.spot,
        egress=prices.egress,
        idle=prices.idle,
        priced_s=None if prices.known_s is None else pool.observed_s,
    )


def _sanitizers() -> int:
    """Return how many sanitizers there are now; each takes a CPU."""
    try:
        alive = ray._private.state.actors(actor_state_name="ALIVE").values()
        return sum(actor["ActorClassName"] == "Sanitizer" for actor in alive)
    except Exception as error:  # noqa: BLE001 - as above
        raise _unanswered(error) from None


def _health(nodes: list[dict[str, Any]], alive: list[dict[str, Any]]) -> Health:
    if not alive:
        return Health.DOWN
    return Health.HEALTHY if len(alive) == len(nodes) else Health.DEGRADED


def _sum(nodes: Iterable[Mapping[str, Any]], name: str) -> float:
    return float(sum(node["Resources"].get(name, 0.0) for node in nodes))


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
    )


class DispatcherActor:
    """Takes a turn every second, as long as its process lives."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turns, self._said = 0, ""
        session = Session.open(Environment.read())
        if not session.config.dispatches:
            raise FabricError(Reason.CONFIG_INVALID, "fabric.toml has no [dispatch]", "add an empty one")
        store = open_queue(session.config, session.home)
        self._dispatcher = make(session, store, url)
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
                self._metrics.take(self._dispatcher.turn(), self._dispatcher.store)
                self._said = ""
            except FabricError as error:
                self._said = error.reason.value
                self._complain()
            except Exception as error:  # noqa: BLE001 - the next turn reads everything anew; a message may carry data
                self._said = type(error).__name__
                _LOG.error("a turn failed with %s", self._said)
            self._turns += 1
            time.sleep(max(0.05, TURN_EVERY_S - (time.monotonic() - began)))

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
    found = session.environment.variables.get("RAY_API_SERVER_ADDRESS", "")
    if not found:
        raise ClusterUnavailable(
            Reason.FABRIC_DOWN, "nobody says where Ray's Jobs API is", "set RAY_API_SERVER_ADDRESS to its URL"
        )
    return found
