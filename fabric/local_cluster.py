"""The zones of one machine as Ray nodes: start them, find them again, stop them.

Stretched, the private zone is the head node and every other zone a node of its cluster. Federated (`Apart`), every zone
is a cluster of its own, with a head, a token and a folder of its own, and between them runs the border service. Outside
the private zone a node has no CPU and a minimal environment.
All listen on the loopback interface only, unless a `Place` gives a node a network of its own, and behind a token. This
shows where work lands and what leaves; it is one machine and one user, so it is no wall between the zones.

Every process of a cluster carries the cluster's random id in its environment. That mark, not a pid or a name, decides
what belongs to the cluster, so no other Ray on the machine is ever touched. This module never imports Ray.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import psutil

from fabric import _ray_node
from fabric._ray_node import LOOPBACK, MARK
from fabric.errors import ClusterUnavailable, InvalidInput, Reason, nearest
from fabric.zones import Zone, ZoneKind

START_TIMEOUT_S = 90.0
GRACE_S = 6.0
WATCH_EVERY_S = 0.5
KILL_TIMEOUT_S = 20.0
LOOKS_IN_VAIN = 2
_STATE, _LOCK, _TOKEN, _KEPT = "cluster.json", "cluster.lock", "ray-token", "failed-start"
BORDER = "border"
"""What the border service is called beside the zones, in logs and listings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports that a user may want to fix; 0 lets the kernel choose. All others are always chosen by the kernel."""

    gcs: int = 0
    dashboard: int = 0
    outside_jobs: int = 0
    """Of the dashboard and jobs API of each cluster outside."""

    def __post_init__(self) -> None:
        for purpose, port in asdict(self).items():
            if port and not 1024 <= port <= 65535:
                raise InvalidInput(
                    Reason.CONFIG_INVALID, f"{purpose} port {port} is out of range", "use 1024 to 65535, or 0 for any"
                )
        if self.gcs and self.gcs == self.dashboard:
            raise InvalidInput(Reason.CONFIG_INVALID, f"port {self.gcs} is given twice", "use two different ports")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a zone's node starts, if not on the loopback interface of this process: in a network of its own.

    Attributes:
        address: at which the node listens and by which the others reach it.
        launcher: words put before its command, such as `nsenter --net=...`; they must end by becoming the command.
    """

    address: str = LOOPBACK
    launcher: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """What makes every zone a cluster of its own.

    Attributes:
        border: the command of the border service, which runs where the private zone's head does.
        ready: returns its address, `host:port`, once it listens; empty before that.
        given: returns, from that address, the files that a zone's node gets in its folder `given_folder`, by name.
    """

    border: Sequence[str]
    ready: Callable[[], str]
    given: Callable[[str, str], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One zone's node: the process that holds it (`ray start --block`) and its folder; pid 0 before it starts.

    Attributes:
        jobs_url: of its own cluster's jobs API, where it is the head of one; empty for a node of the private head's.
    """

    zone: str
    temp: Path
    pid: int = 0
    address: str = LOOPBACK
    jobs_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """What the operating system says of one zone's node. Without an observer in Ray: psutil only."""

    zone: str
    pid: int
    alive: bool
    processes: int
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """What runs, as the state file tells it: the first node is the private head; without a dashboard it is starting."""

    id: str
    state_dir: Path
    started_at: str
    nodes: tuple[Node, ...]
    gcs_address: str = ""
    dashboard_url: str = ""
    guarded: bool = False
    federated: bool = False
    border_pid: int = 0
    border_address: str = ""

    @property
    def token_path(self) -> Path:
        """Return the file that holds the token of the private head's cluster."""
        return self.state_dir / _TOKEN

    def outside_token_path(self, zone: str) -> Path:
        """Return the file that holds the private side's copy of the token of a zone's own cluster."""
        return self.state_dir / f"{_TOKEN}-{zone}"

    @property
    def private_temp(self) -> Path:
        """Return the private node's folder: sessions, logs, sockets, spilled objects."""
        return self.nodes[0].temp

    @property
    def public_temps(self) -> Mapping[str, Path]:
        """Return the folder of each other zone's node."""
        return {node.zone: node.temp for node in self.nodes[1:]}

    def to_json(self) -> dict[str, Any]:
        """Return the cluster as a JSON object."""
        nodes = [{**asdict(node), "temp": str(node.temp)} for node in self.nodes]
        return {**asdict(self), "state_dir": str(self.state_dir), "nodes": nodes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LocalCluster:
        """Return the cluster that `to_json` wrote.

        Raises:
            ClusterUnavailable: `CLUSTER_FAILED`, if `value` is not such an object.
        """
        try:
            nodes = tuple(Node(**{**node, "temp": Path(node["temp"])}) for node in value["nodes"])
            if not nodes or [node.temp for node in nodes] != _temps(value["id"], len(nodes)):
                raise ValueError  # These folders are removed in the end: no others than ours.
            return cls(**{**value, "state_dir": Path(value["state_dir"]), "nodes": nodes})
        except (KeyError, TypeError, ValueError):
            raise ClusterUnavailable(
                Reason.CLUSTER_FAILED,
                "the state of the local cluster is not readable",
                f"if no cluster of yours runs, remove {_STATE} from the state folder",
            ) from None


def client_env(cluster: LocalCluster, base_env: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return what a driver or `ray job submit` needs on top of its own environment, `base_env`.

    `RAY_ADDRESS` is for `ray.init()`, `RAY_API_SERVER_ADDRESS` for the jobs command line. Where `base_env` names a
    proxy, the cluster is exempted from it.
    """
    return {
        "RAY_ADDRESS": cluster.gcs_address,
        "RAY_API_SERVER_ADDRESS": cluster.dashboard_url,
        "RAY_AUTH_TOKEN": "",  # It would win over the file; empty, it does not.
        **_ray_node.past_the_proxy(base_env, cluster.nodes[0].address),
        **_ray_node.client_settings(cluster.token_path),
        **_guard(cluster, cluster.nodes[0].zone),
    }


def _guard(cluster: LocalCluster, zone: str) -> dict[str, str]:
    if not cluster.guarded:
        return {}
    return _ray_node.guard_settings(zone, cluster.nodes[0].zone, [node.zone for node in cluster.nodes[1:]])


# Start.


def start(
    zones: Sequence[Zone],
    *,
    state_dir: Path,
    private_env: Mapping[str, str],
    public_env: Mapping[str, Mapping[str, str]],
    ports: Ports,
    base_env: Mapping[str, str],
    progress: Callable[[str], None],
    tied_to_pid: int | None = None,
    places: Mapping[str, Place] = MappingProxyType({}),
    guarded: bool = False,
    apart: Apart | None = None,
) -> LocalCluster:
    """Start one node per zone and return when all are registered and the dashboard answers.

    Args:
        zones: exactly one of kind private, which becomes the head.
        state_dir: where the state file, the token and the lock live.
        private_env: what the private node gets on top of `base_env`.
        public_env: what each other zone's node gets on top of a minimal environment, by zone name.
        ports: ports to fix.
        base_env: the environment of the caller.
        progress: told one line at each step; what it raises undoes the start.
        tied_to_pid: the cluster stops when this process dies; without it, the cluster outlives its starter.
        places: where nodes start that do not share the loopback interface, by zone name.
        guarded: workers of the private head's cluster, and drivers that take `client_env`, start behind `fabric.guard`.
        apart: every zone becomes a cluster of its own.

    Raises:
        ClusterUnavailable: `FABRIC_ALREADY_UP`, `PORT_TAKEN`, or `CLUSTER_FAILED` with the folder of the logs.
        InvalidInput: `CONFIG_INVALID` if there is not one private zone, `UNKNOWN_ZONE` for a key of `public_env`.
    """
    ordered = _head_first(zones)
    for name in public_env.keys() - {zone.name for zone in ordered[1:]}:
        raise InvalidInput(
            Reason.UNKNOWN_ZONE, f"no public zone {name!r}", nearest(name, [zone.name for zone in ordered[1:]])
        )
    state_dir = state_dir.absolute()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(state_dir, wait=False):
        # 1. Refuse what is up already, forget what is dead, refuse a taken port.
        _refuse_second(state_dir)
        _require_free(ports.gcs, "the GCS of Ray")
        _require_free(ports.dashboard, "the dashboard and the jobs API")
        # 2. Write down what is about to exist, so that it is cleaned up whatever happens; then make it exist.
        cluster = replace(_planned(ordered, state_dir, places), guarded=guarded, federated=apart is not None)
        try:
            _prepare(cluster, apart)
            if tied_to_pid is not None:
                _start_watcher(cluster, base_env, tied_to_pid)
            environments = _environments(cluster, base_env, private_env, public_env)
            launchers = [places.get(zone.name, Place()).launcher for zone in ordered]
            if apart is None:
                cluster = _bring_up(cluster, ordered, environments, launchers, ports, progress)
            else:
                cluster = _bring_up_apart(cluster, ordered, environments, launchers, ports, progress, apart)
            # 3. Believe it when every dashboard lists what it should.
            progress("waiting for the dashboard")
            _await_listings(cluster)
            _write(cluster)
            return cluster
        except BaseException as error:
            if isinstance(error, ClusterUnavailable):
                _keep_logs(cluster)
            _erase(_read(state_dir) or cluster)
            raise


def _head_first(zones: Sequence[Zone]) -> list[Zone]:
    ordered = sorted(zones, key=lambda zone: zone.kind is not ZoneKind.PRIVATE)
    heads = [zone.name for zone in zones if zone.kind is ZoneKind.PRIVATE]
    if len(heads) != 1 or len({zone.name for zone in zones}) != len(zones):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"a local cluster cannot be made of the zones {', '.join(zone.name for zone in zones) or '(none)'}",
            "declare exactly one zone of kind private, which holds the head node, and every zone once",
        )
    return ordered


def _planned(ordered: Sequence[Zone], state_dir: Path, places: Mapping[str, Place]) -> LocalCluster:
    cluster_id = secrets.token_hex(8)
    temps = _temps(cluster_id, len(ordered))
    nodes = tuple(
        Node(zone=zone.name, temp=temp, address=places.get(zone.name, Place()).address)
        for zone, temp in zip(ordered, temps, strict=True)
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return LocalCluster(id=cluster_id, state_dir=state_dir, started_at=now, nodes=nodes)


def _temps(cluster_id: str, count: int) -> list[Path]:
    # Short, and not below TMPDIR: the path of a Unix socket ends at 107 bytes, and Ray's part of it takes 70.
    return [Path(f"/tmp/fz-{cluster_id[:8]}-{index}") for index in range(count)]  # noqa: S108


def _prepare(cluster: LocalCluster, apart: Apart | None) -> None:
    shutil.rmtree(cluster.state_dir / _KEPT, ignore_errors=True)
    _write(cluster)
    for node in cluster.nodes:
        node.temp.mkdir(mode=0o700)
    _write_private(cluster.token_path, secrets.token_hex(32))
    if apart is None:
        return
    for node in cluster.nodes[1:]:
        # A token and a copy of its own: nothing that a node outside is told names a path of the private side.
        token = secrets.token_hex(32)
        _write_private(cluster.outside_token_path(node.zone), token)
        given_folder(node.temp).mkdir(mode=0o700)
        _write_private(given_folder(node.temp) / _TOKEN, token)


def given_folder(temp: Path) -> Path:
    """Return the folder, in a node's own, of the files that a node outside was given when it was started."""
    return temp / "given"


def _environments(
    cluster: LocalCluster,
    base: Mapping[str, str],
    private: Mapping[str, str],
    public: Mapping[str, Mapping[str, str]],
) -> list[dict[str, str]]:
    settings = _ray_node.node_settings(cluster.id, cluster.token_path)
    guards = [_guard(cluster, node.zone) for node in cluster.nodes]
    head = cluster.private_temp
    address = cluster.nodes[0].address
    inside = _ray_node.private_environment(base, private, {**settings, **guards[0]}, head, address)
    if cluster.federated:
        return [
            inside,
            *(
                _ray_node.outside_environment(
                    base,
                    {**public.get(node.zone, {}), _ray_node.GIVEN: str(given_folder(node.temp))},
                    _ray_node.node_settings(cluster.id, given_folder(node.temp) / _TOKEN),
                    node.temp,
                )
                for node in cluster.nodes[1:]
            ),
        ]
    return [
        inside,
        *(
            _ray_node.public_environment(base, public.get(node.zone, {}), {**settings, **guard}, node.temp, head)
            for node, guard in zip(cluster.nodes[1:], guards[1:], strict=True)
        ),
    ]


def _bring_up(
    cluster: LocalCluster,
    ordered: Sequence[Zone],
    environments: Sequence[Mapping[str, str]],
    launchers: Sequence[Sequence[str]],
    ports: Ports,
    progress: Callable[[str], None],
) -> LocalCluster:
    """Start the head and, as soon as its GCS has a port, all other nodes; return when every node is registered."""
    deadline = time.monotonic() + START_TIMEOUT_S
    head, temp = cluster.nodes[0].address, cluster.private_temp
    command = _ray_node.head_command(ordered[0], temp, head, gcs_port=ports.gcs, dashboard_port=ports.dashboard)
    for index, zone in enumerate(ordered):
        progress(f"starting zone {zone.name}")
        node = cluster.nodes[index]
        if index:
            command = _ray_node.other_command(zone, node.temp, node.address, gcs_address=cluster.gcs_address)
        cluster = _with_pid(cluster, index, _spawn([*launchers[index], *command], environments[index], node.temp))
        if not index:
            port = _await(cluster, cluster.nodes[0], _ray_node.gcs_port, deadline)
            cluster = replace(cluster, gcs_address=f"{head}:{port}")
    for node in cluster.nodes:
        _await(cluster, node, _ray_node.registered, deadline)
        progress(f"zone {node.zone} is up")
    return replace(cluster, dashboard_url=_await(cluster, cluster.nodes[0], _ray_node.dashboard_url, deadline))


def _bring_up_apart(
    cluster: LocalCluster,
    ordered: Sequence[Zone],
    environments: Sequence[Mapping[str, str]],
    launchers: Sequence[Sequence[str]],
    ports: Ports,
    progress: Callable[[str], None],
    apart: Apart,
) -> LocalCluster:
    """Start the private head and the border service, then a head for every other zone, which is told the border."""
    deadline = time.monotonic() + START_TIMEOUT_S
    # 1. Inside: the head, and beside it the border.
    progress(f"starting zone {ordered[0].name}")
    head = cluster.nodes[0]
    command = _ray_node.head_command(
        ordered[0], head.temp, head.address, gcs_port=ports.gcs, dashboard_port=ports.dashboard
    )
    cluster = _with_pid(cluster, 0, _spawn([*launchers[0], *command], environments[0], head.temp))
    progress("starting the border service")
    pid = _spawn([*launchers[0], *apart.border], environments[0], head.temp, output=_border_output(head.temp))
    cluster = replace(cluster, border_pid=pid)
    _write(cluster)
    border = Node(zone=BORDER, temp=head.temp, pid=pid)
    cluster = replace(cluster, border_address=_await(cluster, border, lambda _: apart.ready(), deadline))
    # 2. Outside: each zone's own head.
    for index, zone in enumerate(ordered[1:], 1):
        progress(f"starting zone {zone.name}")
        node = cluster.nodes[index]
        # Where it is not told one, Ray looks through all processes of the machine for a cluster, another zone's too.
        gcs = _ray_node.free_port()
        env = {**environments[index], "RAY_ADDRESS": f"{node.address}:{gcs}"}
        command = _ray_node.head_command(zone, node.temp, node.address, gcs_port=gcs, dashboard_port=ports.outside_jobs)
        for name, content in apart.given(zone.name, cluster.border_address).items():
            _write_private(given_folder(node.temp) / name, content.decode())
        cluster = _with_pid(cluster, index, _spawn([*launchers[index], *command], env, node.temp))
    # 3. All of them.
    for index, node in enumerate(cluster.nodes):
        _await(cluster, node, _ray_node.registered, deadline)
        url = _await(cluster, node, _ray_node.dashboard_url, deadline)
        if index:
            # Of what that zone wrote, the port: its address is ours to know.
            at_home = f"http://{node.address}:{urlsplit(url).port}"
            nodes = (*cluster.nodes[:index], replace(node, jobs_url=at_home), *cluster.nodes[index + 1 :])
            cluster = replace(cluster, nodes=nodes)
        else:
            port = _await(cluster, node, _ray_node.gcs_port, deadline)
            cluster = replace(cluster, gcs_address=f"{node.address}:{port}", dashboard_url=url)
        progress(f"zone {node.zone} is up")
    return cluster


def _with_pid(cluster: LocalCluster, index: int, pid: int) -> LocalCluster:
    """Return the cluster with a node that was just started; the state file learns of it at once."""
    node = replace(cluster.nodes[index], pid=pid)
    cluster = replace(cluster, nodes=(*cluster.nodes[:index], node, *cluster.nodes[index + 1 :]))
    _write(cluster)
    return cluster


def _border_output(temp: Path) -> Path:
    return temp / "border.log"


def _start_watcher(cluster: LocalCluster, base_env: Mapping[str, str], pid: int) -> None:
    command = [sys.executable, "-m", __name__, "--watch", str(pid), cluster.id, str(cluster.state_dir)]
    _spawn(command, {**base_env, MARK: cluster.id}, cluster.private_temp)


def _spawn(command: Sequence[str], env: Mapping[str, str], folder: Path, output: Path | None = None) -> int:
    with (output or _ray_node.output_file(folder)).open("ab") as told:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the caller, not for the cluster.
        )
    process.returncode = 0  # The state file holds the process from here on; this object would warn when it goes.
    return process.pid


def _await(cluster: LocalCluster, node: Node, look: Callable[[Path], str], deadline: float) -> str:
    """Return the first text that `look` sees in the node's folder."""
    child = _process(node.pid)  # Not asked for its mark: a process has no environment for a moment after it starts.
    while not (seen := look(node.temp)):
        late = time.monotonic() > deadline
        if late or child is None or not _lives(child):
            raise ClusterUnavailable(
                Reason.CLUSTER_FAILED,
                f"{_called(node)} {'did not start in time' if late else 'stopped while it started'}",
                f"its logs are in {cluster.state_dir / _KEPT / node.zone}",
            )
        time.sleep(0.05)
    return seen


def _called(node: Node) -> str:
    return "the border service" if node.zone == BORDER else f"the node of zone {node.zone!r}"


def _await_listings(cluster: LocalCluster) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    head, *others = cluster.nodes
    members = [head] if cluster.federated else cluster.nodes
    _await(cluster, head, partial(_listing, cluster.dashboard_url, cluster.token_path, members), deadline)
    for node in others if cluster.federated else ():
        _await(cluster, node, partial(_listing, node.jobs_url, cluster.outside_token_path(node.zone), [node]), deadline)


def _listing(url: str, token: Path, nodes: Sequence[Node], _: Path) -> str:
    """Return the zones that a dashboard, asked with its token, lists as alive; "" unless it lists all of `nodes`."""
    request = urllib.request.Request(  # noqa: S310 - our own loopback address
        f"{url}/api/v0/nodes",
        headers={"Authorization": f"Bearer {token.read_text()}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5.0) as response:
            listed = json.load(response)["data"]["result"]["result"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""
    alive = {node["labels"].get("zone") for node in listed if node["state"] == "ALIVE"}
    return " ".join(sorted(alive)) if alive == {node.zone for node in nodes} else ""


def _require_free(port: int, purpose: str) -> None:
    if port == 0 or _ray_node.is_free(port):
        return
    near = next((other for other in range(port + 1, min(port + 200, 65536)) if _ray_node.is_free(other)), 0)
    raise ClusterUnavailable(
        Reason.PORT_TAKEN,
        f"port {port}, wanted for {purpose}, is taken",
        f"use port {near}, which is free, or 0 for any" if near else "use port 0 for any",
    )


def _keep_logs(cluster: LocalCluster) -> None:
    """Keep the logs of a start that failed; no work has run, so there is no data in them."""
    for node in cluster.nodes:
        kept = cluster.state_dir / _KEPT / node.zone
        with suppress(OSError, shutil.Error):
            kept.mkdir(parents=True)
            shutil.copy(_ray_node.output_file(node.temp), kept)
            shutil.copytree(_ray_node.log_folder(node.temp), kept / "logs")
    if cluster.federated:
        with suppress(OSError, shutil.Error):
            (cluster.state_dir / _KEPT / BORDER).mkdir(parents=True)
            shutil.copy(_border_output(cluster.private_temp), cluster.state_dir / _KEPT / BORDER)


# Find.


def running(state_dir: Path) -> LocalCluster | None:
    """Return the cluster of `state_dir` whose head is alive; clean up after one that died.

    Raises:
        ClusterUnavailable: `CLUSTER_FAILED`, if the state file is not ours.
        InvalidInput: `CONFIG_INVALID`, if the folder cannot be read.
    """
    state_dir = state_dir.absolute()
    cluster = _read(state_dir)
    if cluster is None or _is_up(cluster):
        return cluster
    with suppress(ClusterUnavailable), _lock(state_dir, wait=False):  # If locked, somebody is at work on it.
        _refuse_second(state_dir)
    return None


def status(cluster: LocalCluster) -> list[NodeStatus]:
    """Return, for each zone's node, whether it lives, and how many processes and bytes of memory it takes.

    Where the zones are apart, the border service comes last.
    """
    border = [Node(zone=BORDER, temp=cluster.private_temp, pid=cluster.border_pid)] if cluster.federated else []
    return [_status_of(cluster, node) for node in [*cluster.nodes, *border]]


def _status_of(cluster: LocalCluster, node: Node) -> NodeStatus:
    sizes: list[int] = []
    if _is_alive(cluster, node):
        with suppress(psutil.Error):
            launcher = psutil.Process(node.pid)
            for process in [launcher, *launcher.children(recursive=True)]:
                with suppress(psutil.Error):
                    sizes.append(process.memory_info().rss)
    return NodeStatus(zone=node.zone, pid=node.pid, alive=bool(sizes), processes=len(sizes), rss_bytes=sum(sizes))


def _is_up(cluster: LocalCluster) -> bool:
    return bool(cluster.dashboard_url) and _is_alive(cluster, cluster.nodes[0])


def _is_alive(cluster: LocalCluster, node: Node) -> bool:
    with suppress(psutil.Error):
        return node.pid > 0 and _is_marked(psutil.Process(node.pid), cluster)
    return False


def _is_marked(process: psutil.Process, cluster: LocalCluster) -> bool:
    """Say whether a process carries the cluster's mark; one that is gone, a zombie or another user's does not."""
    with suppress(psutil.Error):
        return process.environ().get(MARK) == cluster.id
    return False


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# Stop.


def stop(state_dir: Path) -> bool:
    """Stop the cluster of `state_dir`; leave no process, folder, token or state of it. Return whether there was one.

    Raises:
        ClusterUnavailable: `CLUSTER_FAILED`, if a process of it does not die; the state stays, so try again.
    """
    state_dir = state_dir.absolute()
    if not state_dir.is_dir():
        return False
    with _lock(state_dir, wait=True):
        cluster = _read(state_dir)
        if cluster is not None:
            _erase(cluster)
        return cluster is not None


def _erase(cluster: LocalCluster) -> None:
    # 1. Ask the leaders of sessions, which are `ray start` and the drivers of jobs, to end what they began.
    pids = {pid for pid in [*(node.pid for node in cluster.nodes), cluster.border_pid] if pid}
    for process in _members(cluster):
        pids.add(process.pid)
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == process.pid:
                process.terminate()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and _members(cluster):
        time.sleep(0.1)
    # 2. Kill the rest, until two looks at the whole machine find none: one may meet a process while it starts.
    deadline = time.monotonic() + KILL_TIMEOUT_S
    looks_in_vain = 0
    while looks_in_vain < LOOKS_IN_VAIN:
        members = _members(cluster)
        looks_in_vain = 0 if members else looks_in_vain + 1
        for process in members:
            with suppress(psutil.Error):
                process.kill()
        if members and time.monotonic() > deadline:
            raise ClusterUnavailable(
                Reason.CLUSTER_FAILED,
                f"processes {sorted(process.pid for process in members)} of the local cluster do not die",
                "stop it once more; the operating system holds them",
            )
        time.sleep(0.05)
    for pid in pids:
        with suppress(ChildProcessError):  # Those that this very process started would stay as zombies.
            os.waitpid(pid, os.WNOHANG)
    # 3. Remove the files, the state last.
    for node in cluster.nodes:
        shutil.rmtree(node.temp, ignore_errors=True)
    for token in [cluster.token_path, *(cluster.outside_token_path(node.zone) for node in cluster.nodes)]:
        token.unlink(missing_ok=True)
    (cluster.state_dir / _STATE).unlink(missing_ok=True)


def _members(cluster: LocalCluster) -> list[psutil.Process]:
    """Return the cluster's processes: those that carry its mark, and what these started, but not this process."""
    every = {process.pid: process for process in psutil.process_iter(["ppid", "status"])}
    found = {pid for pid, process in every.items() if _is_marked(process, cluster)}
    while more := {pid for pid, process in every.items() if process.info["ppid"] in found} - found:
        found |= more
    dead = {pid for pid in found if every[pid].info["status"] == psutil.STATUS_ZOMBIE}
    return [every[pid] for pid in found - dead - {os.getpid()}]


# The watcher: `python -m fabric.local_cluster --watch PID CLUSTER_ID STATE_DIR`.


def _watch(owner: psutil.Process | None, cluster_id: str, state_dir: Path) -> None:
    """Stop the cluster when `owner` dies, however it dies; end when the cluster is gone."""
    while _reads_as(cluster_id, state_dir):
        if owner is None or not _lives(owner):
            with _lock(state_dir, wait=True):
                if (cluster := _reads_as(cluster_id, state_dir)) is not None:
                    _erase(cluster)
            return
        time.sleep(WATCH_EVERY_S)


def _reads_as(cluster_id: str, state_dir: Path) -> LocalCluster | None:
    cluster = _read(state_dir)
    return cluster if cluster is not None and cluster.id == cluster_id else None


# The state file and its lock.


@contextmanager
def _lock(state_dir: Path, *, wait: bool) -> Iterator[None]:
    """Hold the right to start or stop the cluster of `state_dir`; the kernel takes it back from a dead holder."""
    with (state_dir / _LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterUnavailable(
                Reason.FABRIC_ALREADY_UP, "a cluster with the same state folder is starting or stopping", "wait for it"
            ) from None
        yield


def _refuse_second(state_dir: Path) -> None:
    cluster = _read(state_dir)
    if cluster is not None and _is_up(cluster):
        raise ClusterUnavailable(
            Reason.FABRIC_ALREADY_UP,
            f"a local cluster is up since {cluster.started_at}",
            "use it, or stop it first",
        )
    if cluster is not None:
        _erase(cluster)


def _read(state_dir: Path) -> LocalCluster | None:
    try:
        value = json.loads((state_dir / _STATE).read_text())
    except FileNotFoundError:
        return None
    except OSError:
        hint = "set fabric.state in fabric.toml to a folder that is yours"
        raise InvalidInput(Reason.CONFIG_INVALID, f"the state folder {state_dir} cannot be read", hint) from None
    except ValueError:
        value = {}
    return LocalCluster.from_json(value)


def _write(cluster: LocalCluster) -> None:
    _write_private(cluster.state_dir / _STATE, json.dumps(cluster.to_json(), indent=2))


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, wholly or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


if __name__ == "__main__":
    _watch(_process(int(sys.argv[2])), sys.argv[3], Path(sys.argv[4]))
