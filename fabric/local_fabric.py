"""A local fabric: the zones of one `fabric.toml` on this machine, each told its zone and the keys it believes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType

from fabric.border_client import Papers
from fabric.border_process import standing
from fabric.certificates import Authority
from fabric.config import PAPERS_FILE, Config, Environment
from fabric.local_cluster import Apart, LocalCluster, Place, Ports, start
from fabric.recording import now
from fabric.stores import Home
from fabric.zones import Topology, ZoneKind

PAPERS_LAST = timedelta(days=30)
"""Of a node that `fabric up` starts; a job renews them when little is left."""
_SERVE = (
    "import sys; from pathlib import Path; from fabric.border_process import supervise; "
    "sys.exit(supervise(Path(sys.argv[1])))"
)


def start_local(
    config: Config,
    environment: Environment,
    *,
    progress: Callable[[str], None],
    tied_to_pid: int | None = None,
    places: Mapping[str, Place] = MappingProxyType({}),
) -> LocalCluster:
    """Start the zones of `config` on this machine, as one cluster or as one each, by the topology.

    Args:
        progress: told one line at each step.
        tied_to_pid: stop everything when this process dies.
        places: where nodes start that do not share the loopback interface, by zone name.

    Raises:
        ClusterUnavailable: `FABRIC_ALREADY_UP`, `PORT_TAKEN`, `CLUSTER_FAILED`.
        FabricError: `EVIDENCE_UNWRITABLE`.
    """
    home = Home.open(config.state)
    trusted = home.signing_key().public.to_text()
    for zone in config.zones.values():
        home.outbox(zone.name)
    return start(
        list(config.zones.values()),
        state_dir=config.state,
        # Only the private side learns where the configuration, and so the key and the evidence, lie.
        private_env={
            "FABRIC_CONFIG": str(config.path),
            "FABRIC_ZONE": config.private.name,
            "FABRIC_TRUSTED_KEYS": trusted,
            "FABRIC_PERSON": environment.person,
        },
        public_env={
            zone.name: {
                "FABRIC_ZONE": zone.name,
                "FABRIC_ZONE_KIND": zone.kind.value,
                "FABRIC_TRUSTED_KEYS": trusted,
            }
            for zone in config.zones.values()
            if zone.kind is not ZoneKind.PRIVATE
        },
        ports=Ports(gcs=config.gcs_port, dashboard=config.dashboard_port, outside_jobs=config.outside_jobs_port),
        base_env=environment.variables,
        progress=progress,
        tied_to_pid=tied_to_pid,
        places=places,
        guarded=True,
        apart=_apart(config, home) if config.topology is Topology.FEDERATED else None,
    )


def _apart(config: Config, home: Home) -> Apart:
    authority = Authority.open(home, now=now())

    def ready() -> str:
        service = standing(home)
        return service.address if service and service.alive else ""

    def given(zone: str, address: str) -> dict[str, bytes]:
        pair = authority.for_zone(zone, now=now(), lasts=PAPERS_LAST)
        papers = Papers(
            address=address,
            zone=zone,
            authority=authority.certificate.decode(),
            certificate=pair.certificate.decode(),
            key=pair.key.decode(),
        )
        return {PAPERS_FILE: json.dumps(papers.to_json()).encode()}

    return Apart(border=(sys.executable, "-c", _SERVE, str(config.path)), ready=ready, given=given)
