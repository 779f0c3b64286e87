"""Looking at a running cluster from the head's machine: the dashboard's lists, and what the operating system says.

Reads only, without Ray. Of an environment it takes names, and the values of a closed list of Ray's own switches; of
jobs and work, names that are identifiers. What it cannot see, it says.
"""

from __future__ import annotations

import base64
import json
import re
import stat
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from fabric import _ray_node
from fabric.errors import ClusterUnavailable, Reason
from fabric.local_cluster import LocalCluster, Node
from fabric.observed import Observed, SeenJob, SeenNode, SeenWork
from fabric.zones import Zone

AT_MOST = 10_000
"""Rows of a list that Ray's dashboard gives at once."""
FLAGS = ("RAY_AUTH_MODE", "RAY_USE_TLS", "RAY_USAGE_STATS_ENABLED", "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES")
_TIMEOUT_S = 20.0
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,80}\Z")
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,:+-]{0,63}\Z")
_OF_GROUP = re.compile(r"_group_(?:\d+_)?([0-9a-f]{36})\Z")
_OVER = frozenset({"FINISHED", "FAILED", "DEAD", "REMOVED", "SUCCEEDED", "STOPPED"})
_MAPPED = "::ffff:"

Rows = Sequence[Mapping[str, Any]]


def observe(cluster: LocalCluster, zones: Sequence[Zone], *, ray_version: str) -> Observed:
    """Return what is seen of a running cluster.

    Args:
        ray_version: of this process's environment.

    Raises:
        ClusterUnavailable: `CLUSTER_FAILED`: the dashboard does not answer.
    """
    unseen: list[str] = []
    listed = {name: _listed(cluster, name, unseen) for name in ("nodes", "actors", "tasks", "placement_groups")}
    alive = [row for row in listed["nodes"] if row.get("state") == "ALIVE"]
    return Observed(
        zones=tuple(zones),
        nodes=tuple(_node(row, cluster, unseen) for row in alive),
        jobs=tuple(job_of(row) for row in _ask(cluster, "/api/jobs/")),
        work=tuple(work_of(listed["tasks"], listed["actors"], listed["placement_groups"])),
        ray_version=ray_version,
        cluster_version=str(_ask(cluster, "/api/version").get("ray_version", "")),
        auth=str(_ask(cluster, "/api/authentication_mode").get("authentication_mode", "")),
        unseen=tuple(unseen),
        apart=tuple(_apart(node, unseen) for node in cluster.nodes[1:]) if cluster.federated else (),
    )


def _apart(node: Node, unseen: list[str]) -> SeenNode:
    """Return the head of a zone's own cluster, by the operating system alone: what it says itself is not asked."""
    seen: dict[str, Any] = {}
    with suppress(psutil.Error, OSError):
        seen = _of_process(node, node)
    if not seen:
        unseen.append(f"the processes of node {node.zone!r}")
    return SeenNode(id=node.zone, name=node.zone, head=True, address=node.address, **seen)


# What the dashboard lists.


def _ask(cluster: LocalCluster, path: str) -> Any:
    request = urllib.request.Request(  # noqa: S310 - the address of our own cluster
        f"{cluster.dashboard_url}{path}", headers={"Authorization": f"Bearer {cluster.token_path.read_text()}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            return json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        raise ClusterUnavailable(
            Reason.CLUSTER_FAILED,
            f"the dashboard does not answer {path.split('?')[0]} ({type(error).__name__})",
            "`fabric down`, then `fabric up`",
        ) from None


def _listed(cluster: LocalCluster, name: str, unseen: list[str]) -> Rows:
    answer = _ask(cluster, f"/api/v0/{name}?detail=true&limit={AT_MOST}")
    rows, whole = rows_of(answer)
    if not whole:
        unseen.append(f"the list of {name.replace('_', ' ')}")
    return rows


def rows_of(answer: Mapping[str, Any]) -> tuple[Rows, bool]:
    """Return the rows of a list of Ray's state API, and whether they are all there are."""
    listing = (answer.get("data") or {}).get("result") or {}
    rows = listing.get("result")
    if not isinstance(rows, list):
        return (), False
    shown = len(rows) == listing.get("num_filtered") and listing.get("total") == listing.get("num_after_truncation")
    return rows, bool(answer.get("result")) and shown and not listing.get("partial_failure_warning")


def job_of(row: Mapping[str, Any]) -> SeenJob:
    """Return a job of the jobs API: names of what it was given, none of the values."""
    environment = row.get("runtime_env") or {}
    metadata = row.get("metadata") or {}
    return SeenJob(
        id=str(row.get("submission_id") or row.get("job_id") or "?"),
        node=str(row.get("driver_node_id") or ""),
        over=row.get("status") in _OVER,
        env_vars=tuple(sorted(map(_named, environment.get("env_vars") or {}))),
        metadata=tuple(sorted(map(_named, metadata))),
        odd_metadata=tuple(sorted(_named(name) for name, value in metadata.items() if not _is_short(name, value))),
        working_dir=bool(environment.get("working_dir")),
        py_modules=len(environment.get("py_modules") or ()),
        setup_hook=bool(environment.get("worker_process_setup_hook")),
    )


def work_of(tasks: Rows, actors: Rows, groups: Rows) -> Iterator[SeenWork]:
    """Yield all work that was placed on a node. What actors are called to do runs where they are, so it is left out."""
    within = {str(group["placement_group_id"]): _asked_by(group) for group in groups}
    for row in tasks:
        if row.get("type") == "NORMAL_TASK" and row.get("node_id"):
            name = str(row.get("name"))
            what = name if name.startswith("fabric.") else row.get("func_or_class_name")
            yield _work("task", row["task_id"], row, what, within)
    for row in actors:
        if row.get("node_id"):
            yield _work("actor", row["actor_id"], row, row.get("class_name"), within)
    for group in groups:
        for bundle in group.get("bundles") or ():
            if bundle.get("node_id"):
                shown = {
                    "job_id": group.get("creator_job_id"),
                    "state": group.get("state"),
                    "node_id": bundle["node_id"],
                    "required_resources": bundle.get("unit_resources"),
                }
                yield _work("bundle", group["placement_group_id"], shown, "", {})


def _work(
    kind: str, identity: object, row: Mapping[str, Any], what: object, within: Mapping[str, tuple[str, ...]]
) -> SeenWork:
    requires = row.get("required_resources") or {}
    groups = {found.group(1) for name in requires if (found := _OF_GROUP.search(name))}
    groups |= {str(row["placement_group_id"])} if row.get("placement_group_id") else set()
    return SeenWork(
        kind=kind,
        id=str(identity),
        node=str(row["node_id"]),
        what=_named(str(what).rpartition(".")[2] if kind == "actor" else str(what)) if what else "",
        job=str(row.get("job_id") or ""),
        requires={str(name): float(amount) for name, amount in requires.items()},
        within=tuple(sorted({name for group in groups for name in within.get(group, ())})),
        detached=bool(row.get("is_detached")),
        over=row.get("state") in _OVER,
    )


def _asked_by(group: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted({name for bundle in group.get("bundles") or () for name in bundle.get("unit_resources") or {}}))


def _named(name: object) -> str:
    return str(name) if _IDENTIFIER.match(str(name)) else "(no identifier)"


def _is_short(name: object, value: object) -> bool:
    # Why something moves is a sentence by its nature; it stays in the private zone's job store.
    return bool(_IDENTIFIER.match(str(name)) and _SHORT.match(str(value)))


# What the operating system says.


def _node(row: Mapping[str, Any], cluster: LocalCluster, unseen: list[str]) -> SeenNode:
    name = str(row.get("node_name") or "")
    resources = {r: float(amount) for r, amount in (row.get("resources_total") or {}).items() if r[:5] != "node:"}
    own = next((node for node in cluster.nodes if node.zone == name), None)
    seen: dict[str, Any] = {}
    with suppress(psutil.Error, OSError):
        seen = _of_process(own, cluster.nodes[0]) if own else {}
    if not seen:
        unseen.append(f"the processes of node {name!r}")
    return SeenNode(
        id=str(row["node_id"]),
        name=name,
        head=bool(row.get("is_head_node")),
        address=str(row.get("node_ip") or ""),
        resources=resources,
        labels={str(k): str(v) for k, v in (row.get("labels") or {}).items()},
        **seen,
    )


def _of_process(node: Node, head: Node) -> dict[str, Any]:
    launcher = psutil.Process(node.pid)
    environment = launcher.environ()
    processes = [launcher, *launcher.children(recursive=True)]
    commands = [(process, _command(process)) for process in processes]
    raylets = [(p, words) for p, words in commands if words and Path(words[0]).name == "raylet"]
    if not raylets:
        return {}
    listens = {address for process in processes for address in _listening(process)}
    return {
        "variables": frozenset(environment),
        "flags": {flag: environment[flag] for flag in FLAGS if flag in environment},
        "listens": tuple(sorted(listens)),
        "guarded": all(str(_ray_node.guard_file(node.temp)) in " ".join(words) for _, words in raylets),
        "folder_mode": stat.S_IMODE(node.temp.stat().st_mode),
        "spills_to": next(filter(None, (spilling(words, [node.temp, head.temp]) for _, words in commands)), ""),
        "core_bytes": max((raylet.rlimit(psutil.RLIMIT_CORE)[0] for raylet, _ in raylets), key=abs),
        "streams_logs": any(word.endswith("log_monitor.py") for _, words in commands for word in words[:4]),
    }


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _listening(process: psutil.Process) -> Iterator[str]:
    with suppress(psutil.Error):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                yield str(connection.laddr.ip).removeprefix(_MAPPED)


def spilling(command: Sequence[str], own: Sequence[Path]) -> str:
    """Return where a Ray process of this command line was told to spill objects, or "" if to a folder of `own`."""
    for word in command:
        name, _, value = word.partition("=")
        if name.lstrip("-") != "config_list":
            continue
        try:
            config = json.loads(base64.b64decode(value)).get("object_spilling_config") or "{}"
            told = json.loads(config) if isinstance(config, str) else config
            target = (told.get("params") or {}).get("directory_path") or (told.get("params") or {}).get("uri") or []
        except (ValueError, AttributeError):
            return "(unreadable)"
        for each in [target] if isinstance(target, str) else target:
            if not any(Path(each).is_relative_to(folder) for folder in own):
                return str(each)
    return ""
