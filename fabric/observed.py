"""What is seen of a running cluster: nodes, settings, jobs, work. Names, sizes and zones, never a data value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.zones import Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenNode:
    """One node that is alive.

    Attributes:
        resources: everything it offers; without Ray's own `node:...` entries.
        address: at which the others reach it.
        listens: addresses its processes listen at; empty if that cannot be seen from here.
        variables: names of its environment's variables; empty if they cannot be seen from here.
        flags: the values of Ray's own switches among them, such as `RAY_AUTH_MODE`; no other value is read.
        guarded: whether its workers start behind the fabric's guard; None if that cannot be seen from here.
        ray_version: "" if it cannot be seen from here.
        folder_mode: permission bits of its folder of sessions, logs and spilled objects; None if unseen.
        spills_to: where it spills objects; "" is its own folder.
        core_bytes: the limit of core dumps, -1 for none; None if unseen.
        streams_logs: whether it streams what its workers print to drivers.
    """

    id: str
    name: str
    head: bool = False
    address: str = "127.0.0.1"
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    listens: tuple[str, ...] = ()
    variables: frozenset[str] = frozenset()
    flags: Mapping[str, str] = field(default_factory=dict)
    guarded: bool | None = None
    ray_version: str = ""
    folder_mode: int | None = None
    spills_to: str = ""
    core_bytes: int | None = None
    streams_logs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenJob:
    """One job.

    Attributes:
        node: where its driver runs; "" if it has none yet.
        over: it has ended.
        env_vars, metadata: names only.
        odd_metadata: names of the metadata whose value is no short token.
        working_dir, py_modules: how many packages Ray gives to every worker of the job.
        setup_hook: it names a `worker_process_setup_hook`.
    """

    id: str
    node: str = ""
    over: bool = False
    env_vars: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    odd_metadata: tuple[str, ...] = ()
    working_dir: bool = False
    py_modules: int = 0
    setup_hook: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenWork:
    """One task, actor, or bundle of a placement group that was placed on a node.

    Attributes:
        kind: "task", "actor" or "bundle".
        what: the name of its function or class, as far as it is an identifier.
        requires: the resources it asked for.
        within: what the bundles of its placement group ask for.
    """

    kind: str
    id: str
    node: str
    what: str = ""
    job: str = ""
    requires: Mapping[str, float] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    detached: bool = False
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A running cluster, beside what its fabric.toml declares.

    Attributes:
        ray_version: of this process's environment.
        cluster_version: what the head says; "" if it does not.
        auth: what the head says of token authentication: "token", "disabled" or "".
        unseen: what could not be looked at, or not wholly.
        apart: the heads of other zones' own clusters, as the operating system shows them.
    """

    zones: tuple[Zone, ...]
    nodes: tuple[SeenNode, ...]
    jobs: tuple[SeenJob, ...] = ()
    work: tuple[SeenWork, ...] = ()
    ray_version: str = ""
    cluster_version: str = ""
    auth: str = ""
    unseen: tuple[str, ...] = ()
    apart: tuple[SeenNode, ...] = ()
