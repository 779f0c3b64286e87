"""What `[clusters]` of fabric.toml declares: images by digest, sizes, and where the services outside the zones are.

Pure words. There is no place for a secret in it: manifests name secrets and never hold one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from fabric.errors import InvalidInput, Reason, nearest
from fabric.flows import Peer
from fabric.specs import Spec

DIGEST = re.compile(r"[a-z0-9][a-z0-9.:/_-]*@sha256:[0-9a-f]{64}\Z")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_HOST = re.compile(r"rediss?://[a-z0-9.-]+:[0-9]{2,5}\Z")
FAR = {"private": "the border service as the public zone sees it", "public": "the Jobs API as the private zone sees it"}
"""Parties of another Kubernetes cluster that need an address."""
IN_CLUSTER = frozenset({Peer.DNS, Peer.PROMETHEUS, Peer.OPERATOR})
"""Services that are found by their labels, so that they need no address."""


class ClustersTable(Spec):
    """`[clusters]` of fabric.toml, as it stands in the file."""

    image: str
    border_image: str = ""
    cpus: Annotated[int, Field(ge=1, le=1024)] = 4
    memory_gib: Annotated[int, Field(ge=2, le=16_384)] = 16
    tls: bool = True
    spot: bool = True
    redis: str = ""
    monitoring_namespace: str = "monitoring"
    operator_namespace: str = "kuberay-system"
    addresses: Annotated[dict[str, str], Field(default_factory=dict)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTerms:
    """`[clusters]`, checked.

    Attributes:
        image: of every Ray node, by digest.
        border_image: of the border service, by digest.
        cpus: of a worker's pod; outside the private zone Ray is told of none of them.
        memory_gib: of a worker's pod.
        tls: whether Ray's own connections are mutual TLS (KubeRay's gate RayClusterMTLS, with cert-manager).
        spot: whether public zones have a pool of spot nodes beside the one on demand.
        redis: of the GCS's fault tolerance, as a URL without credentials; empty for none.
        addresses: a network (CIDR) by party or service; a flow to one that is left out stays closed.
    """

    image: str
    border_image: str
    cpus: int = 4
    memory_gib: int = 16
    tls: bool = True
    spot: bool = True
    redis: str = ""
    monitoring_namespace: str = "monitoring"
    operator_namespace: str = "kuberay-system"
    addresses: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in ("image", "border_image"):
            if not DIGEST.match(getattr(self, name)):
                raise _wrong(
                    f"{name} is not an image by digest", "such as registry.example/name@sha256:<64 hex digits>"
                )
        if self.redis and not _HOST.match(self.redis):
            raise _wrong("redis is no address", "such as rediss://redis.example:6380; its password is a secret's")
        for name in ("monitoring_namespace", "operator_namespace"):
            if not _NAMESPACE.match(getattr(self, name)):
                raise _wrong(f"{name} is no name of a namespace", "use lower-case letters, digits and '-'")
        known = {*FAR, *(peer.value for peer in Peer if peer not in IN_CLUSTER)}
        for name, network in self.addresses.items():
            if name not in known:
                raise _wrong(f"addresses names an unknown party {name!r}", nearest(name, known))
            if _network(network) is None:
                raise _wrong(f"the address of {name!r} is no network", "write it as CIDR, such as 192.0.2.10/32")


def read_terms(raw: ClustersTable | None) -> ClusterTerms | None:
    """Return the terms of the table; None where fabric.toml has none.

    Raises:
        InvalidInput: `CONFIG_INVALID`.
    """
    if raw is None:
        return None
    values = raw.model_dump()
    return ClusterTerms(**{**values, "border_image": raw.border_image or raw.image})


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        return None
    return found if found.prefixlen else None  # the whole Internet is no address


def _wrong(message: str, hint: str) -> InvalidInput:
    return InvalidInput(Reason.CONFIG_INVALID, f"[clusters]: {message}", hint)
