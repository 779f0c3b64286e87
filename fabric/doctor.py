"""What is open in a running cluster: work or objects that could land outside, or did, without the border.

Pure: `judge` reads one `Observed`. A finding names nodes, zones, jobs and variables, never a data value, and the fix.
What could not be seen is a finding too: nobody is told that all is well where nobody looked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from fabric.observed import Observed, SeenJob, SeenNode, SeenWork
from fabric.zones import Zone, ZoneKind

MEMORY_AT_MOST = 1024.0
"""Bytes of schedulable memory outside: fewer than any placement group would ask for."""
OURS = frozenset({"fabric.burst", "RayTrainWorker", "ImplicitFunc", "_work", "fabric.sweep"})
"""Names of the work that the fabric itself starts outside, as Ray lists it."""
OUTSIDE_VARIABLES = frozenset(
    {
        "FABRIC_ZONE", "FABRIC_ZONE_KIND", "FABRIC_TRUSTED_KEYS", "FABRIC_CLUSTER_ID", "FABRIC_GUARD",
        "FABRIC_AWAIT_FILE", "FABRIC_GIVEN", "FABRIC_PYTHON",
        "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PWD", "OLDPWD",
        "PYTHONPATH", "PYTHONUSERBASE", "SHLVL", "SPT_NOENV", "TMPDIR", "TZ", "VIRTUAL_ENV", "DASHBOARD_METRIC_PORT",
        "CUDA_VISIBLE_DEVICES", "_",
    }
)  # fmt: skip
"""What a node outside is given. Anything else came from somebody's shell. Names that begin with RAY_ are Ray's own."""
PASSED_ENV_VARS = frozenset({"RAY_ADDRESS", "PYTHONUNBUFFERED", "OMP_NUM_THREADS", "TZ", "LANG"})


class Severity(StrEnum):
    """How bad a finding is."""

    OPEN = "open"
    WARNING = "warning"


class Code(StrEnum):
    """What a finding is. Stable, for scripts."""

    LOOK_INCOMPLETE = "LOOK_INCOMPLETE"
    HEAD_NOT_PRIVATE = "HEAD_NOT_PRIVATE"
    NODE_ZONELESS = "NODE_ZONELESS"
    NODE_TWO_ZONES = "NODE_TWO_ZONES"
    NODE_UNDECLARED = "NODE_UNDECLARED"
    LABEL_CONTRADICTS = "LABEL_CONTRADICTS"
    CPUS_OUTSIDE = "CPUS_OUTSIDE"
    MEMORY_OUTSIDE = "MEMORY_OUTSIDE"
    RESOURCE_OUTSIDE = "RESOURCE_OUTSIDE"
    GUARD_MISSING = "GUARD_MISSING"
    VERSIONS_DIFFER = "VERSIONS_DIFFER"
    AUTH_OFF = "AUTH_OFF"
    TLS_OFF = "TLS_OFF"
    BOUND_TO_ALL = "BOUND_TO_ALL"
    TELEMETRY_ON = "TELEMETRY_ON"
    DRIVERS_ANYWHERE = "DRIVERS_ANYWHERE"
    VARIABLES_OUTSIDE = "VARIABLES_OUTSIDE"
    FOLDER_OPEN = "FOLDER_OPEN"
    SPILLS_ELSEWHERE = "SPILLS_ELSEWHERE"
    CORE_DUMPS_ON = "CORE_DUMPS_ON"
    LOGS_STREAMED = "LOGS_STREAMED"
    DRIVER_OUTSIDE = "DRIVER_OUTSIDE"
    JOB_WORKING_DIR = "JOB_WORKING_DIR"
    JOB_PY_MODULES = "JOB_PY_MODULES"
    JOB_ENV_VARS = "JOB_ENV_VARS"
    JOB_SETUP_HOOK = "JOB_SETUP_HOOK"
    JOB_METADATA = "JOB_METADATA"
    DETACHED_OUTSIDE = "DETACHED_OUTSIDE"
    WORK_UNASKED = "WORK_UNASKED"
    WORK_PAST_BORDER = "WORK_PAST_BORDER"
    ZONES_JOINED = "ZONES_JOINED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is open: what it is, in one sentence, and the fix, in one line."""

    code: Code
    severity: Severity
    what: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """Return the finding as a JSON object."""
        return {"code": self.code.value, "severity": self.severity.value, "what": self.what, "fix": self.fix}


def judge(observed: Observed) -> tuple[Finding, ...]:
    """Return what is open, the open before the warnings; nothing for a cluster that is set up well and seen wholly."""
    cluster = _Cluster.of(observed)
    found = [
        *_looks(observed),
        *(finding for node in observed.nodes for finding in _node(node, cluster)),
        *_settings(observed, cluster),
        *(finding for node in observed.apart for finding in _apart(node, cluster)),
        *_joined(observed, cluster),
        *(finding for job in observed.jobs for finding in _job(job, cluster)),
        *(finding for work in observed.work for finding in _work(work, cluster)),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity is not Severity.OPEN))


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What is declared, and which zone each node was found to be in."""

    by_resource: dict[str, Zone]
    zone_of: dict[str, Zone | None]
    names: dict[str, str]
    crosses_network: bool

    @classmethod
    def of(cls, observed: Observed) -> _Cluster:
        by_resource = {zone.resource: zone for zone in observed.zones}
        zone_of: dict[str, Zone | None] = {}
        for node in observed.nodes:
            offered = [zone for name, zone in by_resource.items() if node.resources.get(name, 0) > 0]
            zone_of[node.id] = offered[0] if len(offered) == 1 else None
        return cls(
            by_resource,
            zone_of,
            {node.id: node.name or node.id[:8] for node in [*observed.nodes, *observed.apart]},
            any(not _is_loopback(node.address) for node in observed.nodes),
        )

    def inside(self, node_id: str) -> bool:
        """Say whether a node is known to be in the private zone."""
        zone = self.zone_of.get(node_id)
        return zone is not None and zone.kind is ZoneKind.PRIVATE

    def name(self, node_id: str) -> str:
        """Return a node's name, for a sentence."""
        return self.names.get(node_id, "one that is gone")


def _looks(observed: Observed) -> Iterator[Finding]:
    for what in observed.unseen:
        yield _open(Code.LOOK_INCOMPLETE, f"{what} could not be seen, or not wholly", "run it on the head's machine")
    heads = [node for node in observed.nodes if node.head]
    if len(heads) != 1:
        yield _open(Code.LOOK_INCOMPLETE, f"{len(heads)} head nodes are listed", "`fabric down`, then `fabric up`")


# Nodes.


def _node(node: SeenNode, cluster: _Cluster) -> Iterator[Finding]:
    yield from _zone_of_node(node, cluster)
    inside = cluster.inside(node.id)
    name = cluster.name(node.id)
    if node.head and not inside:
        fix = "start the head in the private zone: drivers, jobs and the GCS run there"
        yield _open(Code.HEAD_NOT_PRIVATE, f"the head, node {name!r}, is not in the private zone", fix)
    if not inside:
        yield from _offers_outside(node, name)
        yield from _carries_outside(node, name)
    if node.guarded is False:
        fix = "start it by `fabric up`, so that its workers start behind the guard"
        yield _open(Code.GUARD_MISSING, f"workers of node {name!r} start without the fabric's guard", fix)
    yield from _keeps(node, name, inside)


def _apart(node: SeenNode, cluster: _Cluster) -> Iterator[Finding]:
    """Judge the head of a zone's own cluster by what it was given and shows; what runs there is its own affair."""
    # The way between the clusters is the border's, which has TLS of its own; a cluster's inner ways are that zone's.
    yield from (found for found in _flags(node, cluster) if found.code is not Code.TLS_OFF)
    yield from (found for found in _carries_outside(node, node.name) if found.code is not Code.LOGS_STREAMED)
    yield from _keeps(node, node.name, inside=False)


def _joined(observed: Observed, cluster: _Cluster) -> Iterator[Finding]:
    for node in observed.nodes if observed.apart else ():
        if not cluster.inside(node.id):
            what = f"node {cluster.name(node.id)!r} of another zone has joined the private cluster"
            yield _open(
                Code.ZONES_JOINED, what, "stop it: where every zone is a cluster of its own, only the border joins them"
            )


def _zone_of_node(node: SeenNode, cluster: _Cluster) -> Iterator[Finding]:
    name = cluster.name(node.id)
    claimed = sorted(r for r, amount in node.resources.items() if r.startswith("zone_") and amount > 0)
    label = node.labels.get("zone", "")
    declared = sorted(zone.name for zone in cluster.by_resource.values())
    fix = f"start it with the resource and the label of one declared zone ({', '.join(declared)})"
    if not claimed:
        yield _open(Code.NODE_ZONELESS, f"node {name!r} offers no zone's resource", fix)
    elif len(claimed) > 1:
        yield _open(Code.NODE_TWO_ZONES, f"node {name!r} offers {' and '.join(claimed)}", fix)
    elif claimed[0] not in cluster.by_resource:
        yield _open(Code.NODE_UNDECLARED, f"node {name!r} offers {claimed[0]}, which fabric.toml does not declare", fix)
    if claimed and f"zone_{label}" not in claimed:
        yield _open(Code.LABEL_CONTRADICTS, f"node {name!r} offers {claimed[0]} and is labelled zone={label!r}", fix)


def _offers_outside(node: SeenNode, name: str) -> Iterator[Finding]:
    cpus, memory = node.resources.get("CPU", 0), node.resources.get("memory", 0)
    if cpus > 0:
        what = f"node {name!r} is outside and offers {cpus:g} CPUs, which any task takes"
        yield _open(Code.CPUS_OUTSIDE, what, "start it with --num-cpus 0")
    if memory > MEMORY_AT_MOST:
        what = f"node {name!r} is outside and offers {memory:g} bytes of memory, which placement groups take"
        yield _open(Code.MEMORY_OUTSIDE, what, "start it with --memory 1")
    known = {"CPU", "GPU", "memory", "object_store_memory"}
    other = sorted(r for r in node.resources if r not in known and not r.startswith(("zone_", "accelerator_type:")))
    if other:
        what = f"node {name!r} is outside and offers {len(other)} resources beside its zone's"
        yield _open(Code.RESOURCE_OUTSIDE, what, "give it only its zone's resource and its GPUs")


def _carries_outside(node: SeenNode, name: str) -> Iterator[Finding]:
    extra = sorted(v for v in node.variables - OUTSIDE_VARIABLES if not v.startswith(("RAY_", "__", "TF_", "XDG_")))
    if extra:
        what = f"node {name!r} is outside and its environment has {len(extra)} more variables: {', '.join(extra[:5])}"
        yield _open(Code.VARIABLES_OUTSIDE, what, "start it from a minimal environment, as `fabric up` does")
    if node.streams_logs:
        what = f"node {name!r} is outside and streams what code prints there into private drivers"
        yield _warn(Code.LOGS_STREAMED, what, "start it with --include-log-monitor false")


def _keeps(node: SeenNode, name: str, inside: bool) -> Iterator[Finding]:
    """Judge what a node writes to its disk: spilled objects are plain bytes, and so are core dumps."""
    if node.folder_mode is not None and node.folder_mode & 0o077:
        what = f"the folder of node {name!r} is open to other users (mode {node.folder_mode:04o})"
        yield _open(Code.FOLDER_OPEN, what, "chmod 700: logs and spilled objects lie there in the clear")
    if node.spills_to:
        what = f"node {name!r} spills objects outside of its own folder"
        yield _open(Code.SPILLS_ELSEWHERE, what, "leave out object_spilling_config and --object-spilling-directory")
    if inside and node.core_bytes not in (None, 0):
        what = f"processes of node {name!r} leave core dumps, which hold raw records"
        yield _warn(Code.CORE_DUMPS_ON, what, "ulimit -c 0 before `fabric up`")


# Settings.


def _settings(observed: Observed, cluster: _Cluster) -> Iterator[Finding]:
    if observed.auth != "token":
        what = f"token authentication is {observed.auth or 'not known to be on'}: who reaches a port runs code"
        yield _open(Code.AUTH_OFF, what, "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node")
    for node in observed.nodes:
        yield from _flags(node, cluster)
    versions = sorted({observed.ray_version, observed.cluster_version, *(n.ray_version for n in observed.nodes)} - {""})
    if len(versions) > 1:
        what = f"Ray differs: {', '.join(versions)}; the guard stands on one version's inside"
        yield _open(Code.VERSIONS_DIFFER, what, "install the same Ray everywhere (constraints.txt)")


def _flags(node: SeenNode, cluster: _Cluster) -> Iterator[Finding]:
    name, flags = cluster.name(node.id), node.flags
    if node.variables and flags.get("RAY_AUTH_MODE") != "token":
        what = f"node {name!r} was started without RAY_AUTH_MODE=token"
        yield _open(Code.AUTH_OFF, what, "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node")
    if cluster.crosses_network and flags.get("RAY_USE_TLS") != "1":
        what = f"node {name!r} talks over a network without TLS"
        yield _open(Code.TLS_OFF, what, "set RAY_USE_TLS=1 and the three RAY_TLS_* files on every node")
    everywhere = sorted({address for address in node.listens if _is_unspecified(address)})
    if everywhere:
        what = f"node {name!r} listens on all addresses of its machine ({', '.join(everywhere)})"
        yield _open(Code.BOUND_TO_ALL, what, "give --dashboard-host and --node-ip-address, or close its ports")
    if node.variables and flags.get("RAY_USAGE_STATS_ENABLED") != "0":
        what = f"node {name!r} may report usage statistics to Ray's makers"
        yield _open(Code.TELEMETRY_ON, what, "set RAY_USAGE_STATS_ENABLED=0 on every node")
    if flags.get("RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES", "0") not in ("", "0"):
        what = f"node {name!r} lets drivers of jobs run on any node"
        yield _open(Code.DRIVERS_ANYWHERE, what, "unset RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES")


# Jobs.


def _job(job: SeenJob, cluster: _Cluster) -> Iterator[Finding]:
    say = _warn if job.over else _open
    if job.node and not cluster.inside(job.node):
        what = f"the driver of job {job.id} runs outside, on node {cluster.name(job.node)!r}"
        yield say(Code.DRIVER_OUTSIDE, what, "submit with --entrypoint-resources of the private zone")
    if job.working_dir:
        what = f"job {job.id} has a working directory, which Ray gives to every node that works for it"
        yield say(Code.JOB_WORKING_DIR, what, "submit without --working-dir; install the code")
    if job.py_modules:
        what = f"job {job.id} has {job.py_modules} py_modules, which Ray gives to every node that works for it"
        yield say(Code.JOB_PY_MODULES, what, "submit without py_modules; install the code")
    if names := sorted(set(job.env_vars) - PASSED_ENV_VARS):
        what = f"job {job.id} has env_vars, which every worker and node sees: {', '.join(names[:5])}"
        yield say(Code.JOB_ENV_VARS, what, "submit without env_vars; read secrets from files of the private zone")
    if job.setup_hook:
        what = f"job {job.id} names a worker_process_setup_hook, which runs in every worker"
        yield say(Code.JOB_SETUP_HOOK, what, "submit without it")
    if job.odd_metadata:
        what = f"job {job.id} has metadata that is no short word: {', '.join(sorted(job.odd_metadata)[:5])}"
        yield say(Code.JOB_METADATA, what, "metadata are labels: `fabric policy show --schema` lists them")


# Work.


def _work(work: SeenWork, cluster: _Cluster) -> Iterator[Finding]:
    if work.node not in cluster.zone_of or cluster.inside(work.node):
        return
    say = _warn if work.over else _open
    zone = cluster.zone_of[work.node]
    name = f"{work.kind} {work.what or '(unnamed)'}"
    where = f"node {cluster.name(work.node)!r}"
    if work.detached:
        what = f"{name} is detached and lives outside, on {where}, after its job has ended"
        yield say(Code.DETACHED_OUTSIDE, what, "ray.kill it; nothing of the fabric outside outlives its job")
    if zone is None or not _asks(work, zone):
        what = f"{name} of job {work.job or '?'} ran outside, on {where}, and did not ask for its zone"
        yield say(Code.WORK_UNASKED, what, 'label_selector={"zone": "private"}, or drivers behind the guard')
    elif work.kind != "bundle" and work.what not in OURS:
        what = f"{name} of job {work.job or '?'} asked for zone {zone.name!r} by Ray's own API, past the border"
        yield say(Code.WORK_PAST_BORDER, what, "use fabric.connect(): train, sweep or burst")


def _asks(work: SeenWork, zone: Zone) -> bool:
    """Say whether the work, or a bundle of its placement group, names the zone; Ray adds `_group_...` in a group."""
    asked = [name for name, amount in work.requires.items() if amount > 0]
    return any(n == zone.resource or n.startswith(f"{zone.resource}_group_") for n in [*asked, *work.within])


def _open(code: Code, what: str, fix: str) -> Finding:
    return Finding(code=code, severity=Severity.OPEN, what=what, fix=fix)


def _warn(code: Code, what: str, fix: str) -> Finding:
    return Finding(code=code, severity=Severity.WARNING, what=what, fix=fix)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
