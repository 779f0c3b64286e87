"""Capacity: what is seen of every zone's room: its nodes, what fabric.toml declares, and what other work holds.

Where nodes are fixed, a zone is as large as those that are alive. Where they come when work asks for them (KubeRay's
autoscaler starts from none), it is as large as declared; the dispatcher asks for the nodes of what it has placed, and a
zone whose nodes do not come counts as throttled by its provider.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from fabric.catalogue import PriceBook, ZonePrices
from fabric.config import Config
from fabric.errors import ClusterUnavailable, FabricError, Reason
from fabric.fleet import Health, Pool
from fabric.job_store import JobStore, Row
from fabric.reaching import answers
from fabric.session import Session
from fabric.submission import static_pool
from fabric.zones import Zone, ZoneKind

PROBE_EVERY_S = 10.0
NODES_COME_S = 900.0
"""Seconds in which a node that was asked for should have come; beyond them its provider counts as throttling."""
KEPT_FOR_SANITIZING = 1
"""CPUs inside that no job gets where there are three or more: records are sanitized while the zone is full."""

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Capacity:
    """Looks at every zone. One per dispatcher: it remembers since when a zone has been short of nodes."""

    session: Session
    store: JobStore
    book: PriceBook
    _answered: dict[str, tuple[float, Health]] = field(default_factory=dict)
    _asking: dict[str, threading.Thread] = field(default_factory=dict)
    _short: dict[str, float] = field(default_factory=dict)

    def pools(self, now_s: float) -> Iterable[Pool]:
        """Return a pool for each zone, with its prices.

        Raises:
            FabricError: the cluster cannot be asked.
        """
        try:
            nodes = ray.nodes()
            free = ray._private.state.available_resources_per_node()
        except Exception as error:  # noqa: BLE001 - whatever Ray's client raises; its text may carry anything
            raise unanswered(error) from None
        held: dict[str, int] = {}
        for row in self.store.jobs():
            if row.state.holds:
                held[row.zone] = held.get(row.zone, 0) + row.workers
        for zone in self.session.config.zones.values():
            if self.session.config.is_elsewhere(zone):
                pool = self._elsewhere(zone, now_s)
            else:
                pool = self._here(zone, nodes, free, held.get(zone.name, 0), now_s)
            yield _priced(pool, self.book.at(now_s).of(zone))

    def _elsewhere(self, zone: Zone, now_s: float) -> Pool:
        """Return a zone that is a cluster of its own: as large as declared, as healthy as it answered last.

        It is asked in a thread: how long another zone takes for its answer holds up nobody but itself. An answer that
        is old counts as none (`dispatch_rules.Rules.stale_s`).
        """
        seen_s, health = self._answered.get(zone.name, (0.0, Health.UNKNOWN))
        asking = self._asking.get(zone.name)
        if not 0 <= now_s - seen_s < PROBE_EVERY_S and (asking is None or not asking.is_alive()):
            self._asking[zone.name] = threading.Thread(target=self._ask, args=(zone, now_s), daemon=True)
            self._asking[zone.name].start()
        return replace(static_pool(zone), health=health, observed_s=seen_s)

    def _ask(self, zone: Zone, now_s: float) -> None:
        health = Health.HEALTHY if answers(self.session, zone) else Health.DOWN
        self._answered[zone.name] = now_s, health

    def _here(
        self,
        zone: Zone,
        nodes: Sequence[Mapping[str, Any]],
        free: Mapping[str, Mapping[str, float]],
        held: int,
        now_s: float,
    ) -> Pool:
        mine = [node for node in nodes if node["Labels"].get("zone") == zone.name]
        kept = _kept(zone)
        if held > _units(zone, mine):
            self._short.setdefault(zone.name, now_s)
        else:
            self._short.pop(zone.name, None)
        return pool_of(
            zone,
            mine,
            free,
            held=held,
            spared=min(kept, _sanitizers()) if kept else 0,
            now_s=now_s,
            elastic=self.session.environment.elastic,
            short_since_s=self._short.get(zone.name),
        )


def pool_of(
    zone: Zone,
    nodes: Sequence[Mapping[str, Any]],
    free: Mapping[str, Mapping[str, float]],
    *,
    held: int,
    spared: int,
    now_s: float,
    elastic: bool = False,
    short_since_s: float | None = None,
) -> Pool:
    """Return a zone of this Ray cluster as a pool, without prices.

    Args:
        nodes: the zone's, dead ones too, as `ray.nodes()` has them.
        free: what each node has free, by its id.
        held: workers of the queue's own jobs there.
        spared: CPUs that sanitizers take of those that are kept for them.
        elastic: whether nodes come when they are asked for; then those that are not there yet count as room.
        short_since_s: since when there have been fewer nodes than the queue's own jobs need; None if there are enough.
    """
    alive = [node for node in nodes if node["Alive"]]
    declared, unit = static_pool(zone), _unit(zone)
    total, gpus = declared.cpus_total, declared.gpus_total
    if not elastic:
        total, gpus = min(total, int(_sum(alive, unit))), min(gpus, int(_sum(alive, "GPU")))
    total = max(0, total - _kept(zone))
    # What sanitizes takes the room that is kept for it; what else is in the zone takes the jobs'.
    taken = max(0, math.ceil(_used(alive, free, unit) - 0.5) - held - spared)
    gpus_taken = max(0, round(_used(alive, free, "GPU")) - (held if gpus else 0))
    if elastic:
        late = short_since_s is not None and now_s - short_since_s >= NODES_COME_S
        health = Health.THROTTLED if late else Health.HEALTHY
    else:
        health = Health.DOWN if not alive else Health.HEALTHY if len(alive) == len(nodes) else Health.DEGRADED
    return replace(
        declared,
        gpus_total=gpus,
        gpus_taken=min(gpus, gpus_taken),
        cpus_total=total,
        cpus_taken=min(total, taken),
        health=health,
        observed_s=now_s,
    )


class Wanted:
    """Tells Ray's autoscaler which nodes the queue's placed work needs, before its drivers ask for them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._asked: list[tuple[dict[str, float], dict[str, str]]] | None = None

    def ask(self, rows: Iterable[Row]) -> None:
        """Ask for the nodes of all work that holds a place; a hint, so that a failure costs nothing but time."""
        wanted = bundles(self._config, rows)
        if wanted == self._asked:
            return
        try:
            from ray.autoscaler.sdk import request_resources  # noqa: PLC0415 - where there is an autoscaler only

            request_resources(bundles=[b for b, _ in wanted], bundle_label_selectors=[s for _, s in wanted])
            self._asked = wanted
        except Exception as error:  # noqa: BLE001 - whatever Ray's client raises; its text may carry anything
            _LOG.warning("the autoscaler could not be told what is wanted (%s)", type(error).__name__)


def bundles(config: Config, rows: Iterable[Row]) -> list[tuple[dict[str, float], dict[str, str]]]:
    """Return the resources and label selector of each worker that holds a place in this Ray cluster."""
    found = []
    for row in sorted(rows, key=lambda row: row.id):
        zone = config.zones.get(row.zone)
        if row.state.holds and zone is not None and not config.is_elsewhere(zone):
            each = {_unit(zone): 1.0, **({"GPU": 1.0} if zone.gpus else {})}
            found += [(each, zone.node_label)] * row.workers
    return found


def unanswered(error: Exception) -> FabricError:
    """Return what is said when Ray's API does not answer; the text of `error` may carry anything."""
    return ClusterUnavailable(
        Reason.CLUSTER_FAILED, f"Ray's API does not answer ({type(error).__name__})", "`fabric status`"
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
        raise unanswered(error) from None


def _unit(zone: Zone) -> str:
    """Return what a worker takes one of; outside there are no CPUs: it takes one of the zone's slots."""
    return "CPU" if zone.kind is ZoneKind.PRIVATE else zone.resource


def _units(zone: Zone, nodes: Iterable[Mapping[str, Any]]) -> float:
    alive = [node for node in nodes if node["Alive"]]
    units = _sum(alive, _unit(zone))
    return min(units, _sum(alive, "GPU")) if zone.gpus else units


def _kept(zone: Zone) -> int:
    return KEPT_FOR_SANITIZING if zone.kind is ZoneKind.PRIVATE and zone.cpus > 2 else 0


def _used(alive: Sequence[Mapping[str, Any]], free: Mapping[str, Mapping[str, float]], name: str) -> float:
    return _sum(alive, name) - sum(free.get(node["NodeID"], {}).get(name, 0.0) for node in alive)


def _sum(nodes: Iterable[Mapping[str, Any]], name: str) -> float:
    return float(sum(node["Resources"].get(name, 0.0) for node in nodes))
