"""Joining a cluster: find it, and set what Ray reads when it is first imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fabric.config import Environment
from fabric.errors import ClusterUnavailable, Reason
from fabric.local_cluster import client_env, running
from fabric.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A session and the address of the Ray cluster it works in."""

    session: Session
    address: str


def prepare(config_path: Path | None) -> Joined:
    """Open the session and point this process at its cluster; Ray must not have been imported yet.

    Raises:
        ClusterUnavailable: `FABRIC_DOWN` or `DRIVER_OUTSIDE`.
    """
    environment = Environment.read()
    if environment.outside:
        raise ClusterUnavailable(
            Reason.DRIVER_OUTSIDE,
            f"this driver runs in zone {environment.zone!r}, records are read in the private zone only",
            "submit with --entrypoint-resources '{\"zone_private\": 0.001}' and without --entrypoint-memory",
        )
    session = Session.open(environment, config_path=config_path)
    try:
        session.check_carried(Path.cwd())
        return Joined(session=session, address=_address(session, environment))
    except BaseException:
        session.ledger.close()
        raise


def _address(session: Session, environment: Environment) -> str:
    """Set what Ray reads when it is imported, and return the address of the cluster."""
    os.environ.update(
        RAY_TRAIN_V2_ENABLED="1",
        # Both would start helpers that no zone resource holds inside.
        RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_USAGE_STATS_ENABLED="0",
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    )
    if environment.zone and environment.ray_address:
        return environment.ray_address
    cluster = running(session.config.state)
    if cluster is None:
        raise ClusterUnavailable(
            Reason.FABRIC_DOWN,
            f"no fabric is up for {session.config.path}",
            "`fabric up` starts one on this machine",
        )
    os.environ.update(client_env(cluster, environment.variables))
    return cluster.gcs_address
