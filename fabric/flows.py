"""Flows: who may talk to whom, on which port, and why.

One table, `cluster_files/flows.toml`, is the only place that names a port or opens a way. The Kubernetes
NetworkPolicies, the port pins of `ray start`, the firewall between two network namespaces of one machine and the table
in clusters/README.md are made from it. What is not in it is dropped. Pure, but for `load`, which reads the package.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from importlib import resources
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field

from fabric.errors import InvalidInput, Reason, nearest
from fabric.specs import Spec, parse
from fabric.zones import Topology, ZoneKind

_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}\Z")
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")


class Peer(StrEnum):
    """A service outside the zones."""

    DNS = "dns"
    KUBERNETES_API = "kubernetes-api"
    OPERATOR = "operator"
    POSTGRESQL = "postgresql"
    PROMETHEUS = "prometheus"
    REDIS = "redis"
    WITNESS = "witness"


ROLES: Mapping[str, frozenset[str]] = {
    "head": frozenset({"head"}),
    "worker": frozenset({"worker"}),
    "ray": frozenset({"head", "worker"}),
    "border": frozenset({"border"}),
}
"""What a role of the table covers: `ray` is every node of a Ray cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One end of a flow: pods of a zone's kind in a role, or a service outside the zones.

    Attributes:
        kind: None for a service outside.
        role: a key of `ROLES`, or the service's name.
    """

    kind: ZoneKind | None
    role: str

    def __str__(self) -> str:
        return f"{self.kind.value}.{self.role}" if self.kind else self.role

    @property
    def roles(self) -> frozenset[str]:
        """Return the roles of pods that it covers; none for a service outside."""
        return ROLES[self.role] if self.kind else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A named port or range of ports.

    Attributes:
        flags: the words of `ray start` that pin it, without dashes; two are the ends of a range.
        node: "head" where only the head has it, else "any".
    """

    name: str
    low: int
    high: int
    flags: tuple[str, ...] = ()
    node: str = "any"

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One way that is open: from whom, to whom, on which ports, and why."""

    name: str
    topologies: frozenset[Topology]
    source: Party
    target: Party
    ports: tuple[Port, ...]
    protocols: tuple[str, ...]
    reason: str


class _PortTable(Spec):
    port: str
    flags: Annotated[list[str], Field(max_length=2, default_factory=list)]
    node: Literal["any", "head"] = "any"


class _FlowTable(Spec):
    name: str
    topologies: Annotated[list[Literal["federated", "stretched"]], Field(min_length=1)]
    source: Annotated[str, Field(alias="from")]
    target: Annotated[str, Field(alias="to")]
    ports: Annotated[list[str], Field(min_length=1)]
    protocols: Annotated[list[Literal["tcp", "udp"]], Field(min_length=1, default_factory=lambda: ["tcp"])]
    reason: str


class _Table(Spec):
    ports: dict[str, _PortTable]
    flows: list[_FlowTable]


# Read.


@lru_cache(maxsize=1)
def table() -> tuple[tuple[Flow, ...], Mapping[str, Port]]:
    """Return the fabric's own flows and ports."""
    return read((resources.files("fabric") / "cluster_files" / "flows.toml").read_text(encoding="utf-8"))


def load() -> tuple[Flow, ...]:
    """Return the fabric's own flows."""
    return table()[0]


def ports() -> Mapping[str, Port]:
    """Return the fabric's own ports by name."""
    return table()[1]


def read(text: str) -> tuple[tuple[Flow, ...], Mapping[str, Port]]:
    """Return the flows and ports of a table in TOML.

    Raises:
        InvalidInput: `UNKNOWN_KEY`; `CONFIG_INVALID` for an unknown party or port, a port out of range, two ports of
            Ray that overlap, a flow that is there twice or gives no reason.
    """
    raw = parse(_Table, text, source="flows.toml")
    named = {name: _port(name, each) for name, each in raw.ports.items()}
    _refuse_overlaps([port for port in named.values() if port.flags])
    flows = tuple(_flow(each, named) for each in raw.flows)
    _refuse_twice("name", Counter(flow.name for flow in flows))
    ways = Counter(
        f"{topology.value}: {flow.source} to {flow.target}, {port.name}/{protocol}"
        for flow in flows
        for topology in flow.topologies
        for port in flow.ports
        for protocol in flow.protocols
    )
    _refuse_twice("way", ways)
    return flows, named


def _port(name: str, raw: _PortTable) -> Port:
    found = _PORT.match(raw.port)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not _NAME.match(name) or not 1 <= low <= high <= 65535:
        raise _wrong(f"port {name!r} is {raw.port!r}", "write 1 to 65535, or a range such as 10002-10999")
    if raw.flags and len(raw.flags) != (1 if low == high else 2):
        raise _wrong(f"port {name!r} has {len(raw.flags)} flags", "one flag for a port, two for the ends of a range")
    return Port(name=name, low=low, high=high, flags=tuple(raw.flags), node=raw.node)


def _flow(raw: _FlowTable, named: Mapping[str, Port]) -> Flow:
    if not _NAME.match(raw.name):
        raise _wrong(f"a flow is called {raw.name!r}", "use lower-case letters, digits and '-'")
    if not raw.reason.strip():
        raise _wrong(f"flow {raw.name!r} gives no reason", "say why it is open, or leave it out")
    for name in raw.ports:
        if name not in named:
            raise _wrong(f"flow {raw.name!r} names an unknown port {name!r}", nearest(name, named))
    return Flow(
        name=raw.name,
        topologies=frozenset(Topology(each) for each in raw.topologies),
        source=_party(raw.name, raw.source),
        target=_party(raw.name, raw.target),
        ports=tuple(named[name] for name in raw.ports),
        protocols=tuple(raw.protocols),
        reason=raw.reason.strip(),
    )


def _party(flow: str, text: str) -> Party:
    if text in [peer.value for peer in Peer]:
        return Party(kind=None, role=text)
    kind, _, role = text.partition(".")
    if kind not in [each.value for each in ZoneKind] or role not in ROLES:
        known = [*(peer.value for peer in Peer), *(f"{each.value}.{role}" for each in ZoneKind for role in ROLES)]
        raise _wrong(f"flow {flow!r} names an unknown party {text!r}", nearest(text, known))
    return Party(kind=ZoneKind(kind), role=role)


def _refuse_overlaps(pinned: Iterable[Port]) -> None:
    for one, other in combinations(pinned, 2):
        if one.low <= other.high and other.low <= one.high:
            raise _wrong(
                f"ports {one.name!r} and {other.name!r} overlap", "every port of a Ray node is a port of its own"
            )


def _refuse_twice(what: str, counted: Counter[str]) -> None:
    for key, count in counted.items():
        if count > 1:
            raise _wrong(f"the flows have the same {what} twice: {key}", "leave one of them out")


def _wrong(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.CONFIG_INVALID, f"flows.toml: {message}", hint)


# What is made of them.


def in_topology(flows: Iterable[Flow], topology: Topology | str) -> tuple[Flow, ...]:
    """Return the flows of one topology."""
    return tuple(flow for flow in flows if Topology(topology) in flow.topologies)


def ray_start_params(named: Mapping[str, Port], *, head: bool) -> dict[str, str]:
    """Return the flags of `ray start`, without dashes, that pin every port which Ray would choose itself."""
    pins: dict[str, str] = {}
    for port in named.values():
        if head or port.node != "head":
            pins.update(zip(port.flags, [str(port.low), str(port.high)], strict=False))
    return pins


def nftables(
    flows: Iterable[Flow],
    topology: Topology | str,
    side: str,
    addresses: Mapping[str, str],
    ports: Mapping[str, int | tuple[int, int]],
) -> str:
    """Return the nftables ruleset of one network namespace: what it may send and take, and nothing else.

    Each rule has a counter and its flow's name as comment; what is dropped is counted too. Replies are accepted as
    part of a connection that a flow opened, so a flow's own counter shows who opened it.

    Args:
        flows: the table, as `load` returns it.
        topology: whose flows are open.
        side: whose namespace it is: a zone's kind.
        addresses: of a party ("private.border"), a zone's kind ("private") or a service ("dns"); a flow with an end
            that has no address is not opened.
        ports: where something listens elsewhere than the table says, by the port's name; empty for nowhere.

    Raises:
        InvalidInput: `CONFIG_INVALID` for an unknown side, address, party or port.
    """
    chosen = in_topology(flows, topology)
    if side not in [kind.value for kind in ZoneKind] or side not in addresses:
        raise _wrong(f"there is no side {side!r} with an address", nearest(side, addresses))
    _check_addresses(addresses)
    elsewhere = _elsewhere(chosen, ports)
    taken, sent = [], []
    for flow in chosen:
        source, target = _address(flow.source, addresses), _address(flow.target, addresses)
        if not source or not target or source == target:
            continue
        words = _nft_rules(flow, source, target, elsewhere)
        sent += words if _is_on(flow.source, side) else []
        taken += words if _is_on(flow.target, side) else []
    versions: set[int] = {ipaddress.ip_address(address).version for address in addresses.values()}
    return "\n".join(
        [
            "table inet fabric {",
            *_nft_chain("input", "iif", taken, versions),
            *_nft_chain("output", "oif", sent, versions),
            "  chain forward {",
            "    type filter hook forward priority filter; policy drop;",
            '    counter drop comment "dropped"',
            "  }",
            "}",
            "",
        ]
    )


def _nft_chain(hook: str, interface: str, rules: Sequence[str], versions: set[int]) -> list[str]:
    neighbours = (
        ['icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } counter accept comment "neighbours"']
        if 6 in versions
        else []
    )
    lines = [
        f"type filter hook {hook} priority filter; policy drop;",
        f'{interface} "lo" counter accept comment "loopback"',
        'ct state invalid counter drop comment "invalid"',
        'ct state established,related counter accept comment "established"',
        *neighbours,
        *rules,
        'counter drop comment "dropped"',
    ]
    return [f"  chain {hook} {{", *(f"    {line}" for line in lines), "  }"]


def _nft_rules(flow: Flow, source: str, target: str, elsewhere: Mapping[str, Port]) -> list[str]:
    family = "ip6" if ":" in source else "ip"
    listed = ", ".join(str(elsewhere.get(port.name, port)) for port in flow.ports)
    return [
        f"{family} saddr {source} {family} daddr {target} {protocol} dport {{ {listed} }} counter accept"
        f' comment "{flow.name}"'
        for protocol in flow.protocols
    ]


def _elsewhere(flows: Iterable[Flow], given: Mapping[str, int | tuple[int, int]]) -> dict[str, Port]:
    known = {port.name: port for flow in flows for port in flow.ports}
    found = {}
    for name, where in given.items():
        low, high = (where, where) if isinstance(where, int) else where
        if name not in known or not 1 <= low <= high <= 65535:
            raise _wrong(f"port {name!r} cannot be {low} to {high}", nearest(name, known))
        found[name] = replace(known[name], low=low, high=high)
    return found


def _check_addresses(addresses: Mapping[str, str]) -> None:
    known = {*Peer, *(kind.value for kind in ZoneKind)} | {f"{k.value}.{r}" for k in ZoneKind for r in ROLES}
    for name, address in addresses.items():
        if name not in known:
            raise _wrong(f"an address is given for an unknown party {name!r}", nearest(name, known))
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise _wrong(f"the address of {name!r} is no IP address", "such as 10.0.0.1") from None


def _address(party: Party, addresses: Mapping[str, str]) -> str:
    return addresses.get(str(party)) or (addresses.get(party.kind.value, "") if party.kind else "")


def _is_on(party: Party, side: str) -> bool:
    return party.kind is not None and party.kind.value == side


def markdown(flows: Iterable[Flow]) -> str:
    """Return the flows as the table that stands in the documents."""
    rows = [
        f"| `{flow.name}` | {', '.join(sorted(flow.topologies))} | {flow.source} | {flow.target} | "
        f"{', '.join(f'{port.name} {port}' for port in flow.ports)}{_protocols(flow)} | {flow.reason} |"
        for flow in flows
    ]
    return "\n".join(["| flow | topology | from | to | ports | why |", "|---|---|---|---|---|---|", *rows, ""])


def _protocols(flow: Flow) -> str:
    return "" if flow.protocols == ("tcp",) else f" ({', '.join(flow.protocols)})"
