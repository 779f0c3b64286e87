"""Kueue, as an option: flavors and a queue of a zone, and the component by which its cluster waits in it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fabric import manifest_pods
from fabric.cluster_terms import ClusterTerms
from fabric.flows import ports
from fabric.zones import Zone, ZoneKind

_API = "kueue.x-k8s.io/v1beta1"


def kueue(zone: Zone, terms: ClusterTerms, dump: Callable[[list[Any]], str]) -> dict[str, str]:
    """Return a zone's component, and what of it belongs to the whole Kubernetes cluster, which is applied once."""
    pools = [False, True] if terms.spot and zone.kind is not ZoneKind.PRIVATE else [False]
    flavors = [_flavor(zone, spot) for spot in pools]
    group = manifest_pods.worker_group(zone, terms, ports(), guard=[])
    queue = _cluster_queue(zone, flavors, group)
    local = {
        "apiVersion": _API,
        "kind": "LocalQueue",
        "metadata": {"name": "fabric"},
        "spec": {"clusterQueue": queue["metadata"]["name"]},
    }
    # Kueue admits a cluster as a whole: it does not start one whose size the autoscaler sets.
    patch = [
        {"op": "add", "path": "/metadata/labels/kueue.x-k8s.io~1queue-name", "value": "fabric"},
        {"op": "add", "path": "/spec/enableInTreeAutoscaling", "value": False},
        {"op": "add", "path": "/spec/workerGroupSpecs/0/replicas", "value": group["maxReplicas"]},
    ]
    folder, once = f"components/kueue/{zone.name}", f"components/kueue/{zone.name}/cluster"
    component = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["local-queue.yaml"],
        "patches": [{"path": "raycluster-patch.yaml", "target": {"kind": "RayCluster", "name": "fabric"}}],
    }
    applied_once = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["queues.yaml"],
    }
    return {
        f"{folder}/kustomization.yaml": dump([component]),
        f"{folder}/local-queue.yaml": dump([local]),
        f"{folder}/raycluster-patch.yaml": dump([patch]),
        f"{once}/kustomization.yaml": dump([applied_once]),
        f"{once}/queues.yaml": dump([*flavors, queue]),
    }


def _flavor(zone: Zone, spot: bool) -> dict[str, Any]:
    nodes = manifest_pods.on_nodes_of(zone, gpu=zone.gpus > 0, spot=spot)
    return {
        "apiVersion": _API,
        "kind": "ResourceFlavor",
        "metadata": {"name": f"fabric-{zone.name}{'-spot' if spot else ''}"},
        "spec": {"nodeLabels": nodes["nodeSelector"], "tolerations": nodes["tolerations"]},
    }


def _cluster_queue(zone: Zone, flavors: list[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    amounts = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    quotas = {name: f"{_number(amount) * group['maxReplicas']}{_unit(amount)}" for name, amount in amounts.items()}
    # The head and the autoscaler beside it take their share too.
    quotas["cpu"] = str(int(quotas["cpu"]) + 3)
    quotas["memory"] = f"{_number(quotas['memory']) + 9}Gi"
    quotas["ephemeral-storage"] = f"{_number(quotas['ephemeral-storage']) + 40}Gi"
    return {
        "apiVersion": _API,
        "kind": "ClusterQueue",
        "metadata": {"name": f"fabric-{zone.name}"},
        "spec": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": f"fabric-{zone.name}"}},
            "resourceGroups": [
                {
                    "coveredResources": list(quotas),
                    "flavors": [
                        {
                            "name": flavor["metadata"]["name"],
                            "resources": [{"name": name, "nominalQuota": amount} for name, amount in quotas.items()],
                        }
                        for flavor in flavors
                    ],
                }
            ],
        },
    }


def _number(amount: str) -> int:
    return int(amount.removesuffix("Gi"))


def _unit(amount: str) -> str:
    return "Gi" if amount.endswith("Gi") else ""
