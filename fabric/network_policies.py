"""Kubernetes NetworkPolicies, made from the flows table: everything is denied, then each listed flow is opened.

A flow is one policy on each of its ends that lies in the namespace, named after it, with its reason as annotation. An
end elsewhere is found by its labels or by the network that fabric.toml gives; without one the flow stays closed.
KubeRay's own `networkPolicy` is not used: it opens every port between all pods of a RayCluster, and policies add up.
Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from fabric.admission_words import DOMAIN
from fabric.cluster_terms import ClusterTerms
from fabric.flows import Flow, Party, Peer, in_topology
from fabric.zones import Topology, ZoneKind

_API = "networking.k8s.io/v1"


def deny_all() -> dict[str, Any]:
    """Return the policy that closes everything for every pod of a namespace."""
    return {
        "apiVersion": _API,
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny-all", "annotations": {f"{DOMAIN}/why": "what the flows do not list is dropped"}},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }


def network_policies(
    flows: Iterable[Flow], topology: Topology, here: Collection[ZoneKind], terms: ClusterTerms
) -> list[dict[str, Any]]:
    """Return the policies of a namespace that holds the pods of the kinds `here`, in the table's order."""
    found = []
    for flow in in_topology(flows, topology):
        ends = (("in", "Ingress", flow.target, flow.source), ("out", "Egress", flow.source, flow.target))
        for suffix, direction, own, other in ends:
            peer = _peer(other, here, terms)
            if own.kind in here and peer is not None:
                found.append(_policy(flow, suffix, direction, own, peer))
    return found


def closed_flows(
    flows: Iterable[Flow], topology: Topology, here: Collection[ZoneKind], terms: ClusterTerms
) -> list[str]:
    """Return the names of flows that stay closed here, because the other end has no address."""
    return [
        flow.name
        for flow in in_topology(flows, topology)
        for own, other in ((flow.target, flow.source), (flow.source, flow.target))
        if own.kind in here and _peer(other, here, terms) is None
    ]


def _policy(flow: Flow, suffix: str, direction: str, own: Party, peer: dict[str, Any]) -> dict[str, Any]:
    ports = [
        {"protocol": protocol.upper(), "port": port.low, **({"endPort": port.high} if port.high > port.low else {})}
        for port in flow.ports
        for protocol in flow.protocols
    ]
    way = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    return {
        "apiVersion": _API,
        "kind": "NetworkPolicy",
        "metadata": {"name": f"flow-{flow.name}-{suffix}", "annotations": {f"{DOMAIN}/why": flow.reason}},
        "spec": {
            "podSelector": _pods(own),
            "policyTypes": [direction],
            way[0]: [{way[1]: [peer], "ports": ports}],
        },
    }


def _pods(party: Party) -> dict[str, Any]:
    kind = party.kind.value if party.kind else ""
    roles = sorted(party.roles)
    if len(roles) == 1:
        return {"matchLabels": {f"{DOMAIN}/kind": kind, f"{DOMAIN}/role": roles[0]}}
    return {
        "matchLabels": {f"{DOMAIN}/kind": kind},
        "matchExpressions": [{"key": f"{DOMAIN}/role", "operator": "In", "values": roles}],
    }


def _peer(party: Party, here: Collection[ZoneKind], terms: ClusterTerms) -> dict[str, Any] | None:
    if party.kind in here:
        return {"podSelector": _pods(party)}
    labelled = {
        Peer.DNS: ("kube-system", {"k8s-app": "kube-dns"}),
        Peer.PROMETHEUS: (terms.monitoring_namespace, {"app.kubernetes.io/name": "prometheus"}),
        Peer.OPERATOR: (terms.operator_namespace, {"app.kubernetes.io/name": "kuberay-operator"}),
    }
    if party.kind is None and party.role in labelled:
        namespace, labels = labelled[Peer(party.role)]
        return {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "podSelector": {"matchLabels": labels},
        }
    network = terms.addresses.get(party.kind.value if party.kind else party.role)
    return {"ipBlock": {"cidr": network}} if network else None
