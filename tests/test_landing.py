"""Where work lands that never heard of the fabric, on a real cluster of two zones, the head idle and full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric import local_cluster
from fabric.doctor import Code, judge
from fabric.local_cluster import LocalCluster, Ports, client_env, stop
from fabric.observing import observe
from fabric.zones import Zone, ZoneKind

PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="DE", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="US", slots=4)
DRIVER = Path(__file__).parent / "landing_driver.py"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    state = tmp_path_factory.mktemp("state")
    yield local_cluster.start(
        [PRIVATE, PUBLIC],
        state_dir=state,
        private_env={},
        public_env={},
        ports=Ports(),
        base_env=dict(os.environ),
        progress=lambda _: None,
        guarded=True,
    )
    stop(state)


def run(cluster: LocalCluster, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **client_env(cluster), **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)


@pytest.fixture(scope="module")
def found(cluster, tmp_path_factory) -> dict:
    done = run(cluster, sys.executable, str(DRIVER), LANDING_FOLDER=str(tmp_path_factory.mktemp("landing")))
    assert "FOUND" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.split("FOUND")[1])


def test_print(found):
    print(json.dumps(found, indent=1))
    assert 0
