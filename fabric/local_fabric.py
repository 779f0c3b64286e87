"""A local fabric: the two-zone cluster of one `fabric.toml`, each node told its zone and the keys it believes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fabric.config import Config, Environment
from fabric.errors import InvalidInput, Reason
from fabric.local_cluster import LocalCluster, Place, Ports, start
from fabric.stores import Home
from fabric.zones import Topology, ZoneKind


def start_local(
    config: Config,
    environment: Environment,
    *,
    progress: Callable[[str], None],
    tied_to_pid: int | None = None,
    places: Mapping[str, Place] = MappingProxyType({}),
) -> LocalCluster:
    """Start the cluster of `config` on this machine.

    Args:
        progress: told one line at each step.
        tied_to_pid: stop the cluster when this process dies.
        places: where nodes start that do not share the loopback interface, by zone name.

    Raises:
        ClusterUnavailable: `FABRIC_ALREADY_UP`, `PORT_TAKEN`, `CLUSTER_FAILED`.
        FabricError: `EVIDENCE_UNWRITABLE`.
    """
    if config.topology is Topology.FEDERATED:
        raise InvalidInput(Reason.CONFIG_INVALID, "fabric.topology federated cannot be started yet", "use stretched")
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
        ports=Ports(gcs=config.gcs_port, dashboard=config.dashboard_port),
        base_env=environment.variables,
        progress=progress,
        tied_to_pid=tied_to_pid,
        places=places,
        guarded=True,
    )
