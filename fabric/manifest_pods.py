"""Pods as the manifests have them: what every pod of the fabric is, and what each of its roles adds.

Always: no root, no privilege, a read-only image, no host path, no token of the Kubernetes API that nobody uses, an
image by digest, requests equal to limits, a node of its own zone. Ray's ports are pinned from the flows table. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fabric.admission_words import DOMAIN
from fabric.cluster_terms import ClusterTerms
from fabric.flows import Port, ray_start_params
from fabric.zones import Zone, ZoneKind

USER = 1000
RAY_TOKEN, TRUST, CONFIG, STATE, RECORDS = (
    "fabric-ray-token",
    "fabric-trust",
    "fabric-config",
    "fabric-state",
    "fabric-records",
)
"""What a site brings: a secret with Ray's token, and by name the trusted keys, the configuration and two claims."""
API_TOKEN_S = 3600
_SHARE = {"head": ("2", "8Gi"), "border": ("2", "6Gi"), "autoscaler": ("500m", "512Mi")}
_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - the pod's own empty folder; the image is read-only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def labels(zone: Zone, role: str) -> dict[str, str]:
    """Return the labels by which policies and monitors find a pod."""
    return {**common_labels(role), f"{DOMAIN}/zone": zone.name, f"{DOMAIN}/kind": zone.kind.value}


def common_labels(role: str) -> dict[str, str]:
    """Return those of them that hold in every zone."""
    return {"app.kubernetes.io/part-of": "zonefabric", f"{DOMAIN}/role": role}


def container_security() -> dict[str, Any]:
    """Return what no container may: gain privileges, or change its image's files."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def pod_security(ports: Mapping[str, Port]) -> dict[str, Any]:
    """Return the pod's own: no root, the runtime's seccomp profile, and the ports that torch may take."""
    free = ports["collectives"]
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
        "sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": f"{free.low} {free.high}"}],
    }


def same(cpu: str, memory: str, **more: str) -> dict[str, Any]:
    """Return requests that equal their limits, so that a pod is not evicted for a neighbour."""
    amounts = {"cpu": cpu, "memory": memory, "ephemeral-storage": "20Gi", **more}
    return {"limits": dict(amounts), "requests": dict(amounts)}


def share(role: str) -> dict[str, Any]:
    """Return the resources of a role whose size is not the site's to choose."""
    return same(*_SHARE[role])


def on_nodes_of(zone: Zone, *, gpu: bool = False, spot: bool = False) -> dict[str, Any]:
    """Return the node selector and the tolerations that keep a pod to one zone's pool."""
    selector = {f"{DOMAIN}/zone": zone.name}
    tolerations = [_tolerate(f"{DOMAIN}/zone", zone.name)]
    if spot:
        selector[f"{DOMAIN}/capacity"] = "spot"
        tolerations.append(_tolerate(f"{DOMAIN}/capacity", "spot"))
    elif zone.kind is not ZoneKind.PRIVATE:
        selector[f"{DOMAIN}/capacity"] = "on-demand"
    if gpu:
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", zone.gpu_model).strip("-._")
        selector.update({f"{DOMAIN}/gpu-model": model} if model else {})
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    return {"nodeSelector": selector, "tolerations": tolerations}


def _tolerate(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


def zone_environment(zone: Zone) -> list[dict[str, Any]]:
    """Return the variables that tell a node which zone it is in, and whose statements it believes."""
    found: list[dict[str, Any]] = [{"name": "FABRIC_ZONE", "value": zone.name}]
    if zone.kind is ZoneKind.PRIVATE:
        found.append({"name": "FABRIC_CONFIG", "value": "/etc/fabric/fabric.toml"})
        # The dispatcher inside counts nodes that the autoscaler has not started yet, and asks for them.
        found.append({"name": "FABRIC_ELASTIC", "value": "1"})
    else:
        found.append({"name": "FABRIC_ZONE_KIND", "value": zone.kind.value})
    trusted = {"configMapKeyRef": {"name": TRUST, "key": "trusted-keys"}}
    return [*found, {"name": "FABRIC_TRUSTED_KEYS", "valueFrom": trusted}]


def volumes() -> list[dict[str, Any]]:
    """Return the empty folders that stand in for what is read-only."""
    return [
        {"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
    ]


def mounts() -> list[dict[str, Any]]:
    """Return where they are mounted."""
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shared-memory", "mountPath": "/dev/shm"}]  # noqa: S108


def private_volumes() -> list[dict[str, Any]]:
    """Return what only pods of the private zone see: the configuration, the state, the records."""
    return [
        {"name": "config", "configMap": {"name": CONFIG}},
        {"name": "state", "persistentVolumeClaim": {"claimName": STATE}},
        {"name": "records", "persistentVolumeClaim": {"claimName": RECORDS, "readOnly": True}},
    ]


def private_mounts() -> list[dict[str, Any]]:
    """Return where they are mounted; records are read only."""
    return [
        {"name": "config", "mountPath": "/etc/fabric", "readOnly": True},
        {"name": "state", "mountPath": "/var/lib/fabric"},
        {"name": "records", "mountPath": "/srv/records", "readOnly": True},
    ]


def api_token_volume() -> dict[str, Any]:
    """Return a token of the Kubernetes API that lives an hour, for the one container that mounts it."""
    return {
        "name": "kubernetes-api",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": API_TOKEN_S}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]
        },
    }


def api_token_mount() -> dict[str, Any]:
    """Return where a Kubernetes client looks for it."""
    return {
        "name": "kubernetes-api",
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": True,
    }


def ray_container(
    name: str, terms: ClusterTerms, ports: Mapping[str, Port], resources: dict[str, Any]
) -> dict[str, Any]:
    """Return a Ray node's container; `ports` are those that others may know by name."""
    named = ["gcs", "jobs", "ray-metrics"] if name == "ray-head" else ["ray-metrics"]
    return {
        "name": name,
        "image": terms.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": key, "value": value} for key, value in _ENVIRONMENT.items()],
        "ports": [{"name": _PORT_NAMES[each], "containerPort": ports[each].low} for each in named],
        "resources": resources,
        "securityContext": container_security(),
        "livenessProbe": _probe(ports, failures=12),
        "readinessProbe": _probe(ports, failures=3),
        "volumeMounts": mounts(),
    }


_PORT_NAMES = {"gcs": "gcs-server", "jobs": "dashboard", "ray-metrics": "metrics"}


def _probe(ports: Mapping[str, Port], *, failures: int) -> dict[str, Any]:
    """Return Ray's own health check, the one that KubeRay would put in."""
    return {
        "httpGet": {"path": "/api/healthz", "port": ports["agent"].low},
        "initialDelaySeconds": 10,
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def worker_group(
    zone: Zone, terms: ClusterTerms, ports: Mapping[str, Port], *, spot: bool = False, guard: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return a group of workers of one zone, with that zone's label and resource and no other's."""
    inside = zone.kind is ZoneKind.PRIVATE
    gpu = zone.gpus > 0
    container = ray_container(
        "ray-worker",
        terms,
        ports,
        same(str(terms.cpus), f"{terms.memory_gib}Gi", **({"nvidia.com/gpu": "1"} if gpu else {})),
    )
    container["env"] += [*zone_environment(zone), *guard]
    container["volumeMounts"] += private_mounts() if inside else []
    return {
        "groupName": f"{zone.name}-spot" if spot else zone.name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": _most(zone, terms),
        "labels": zone.node_label,
        "resources": group_resources(zone, terms),
        "rayStartParams": {
            **ray_start_params(ports, head=False),
            # What code prints outside is not streamed into private drivers.
            **({} if inside else {"include-log-monitor": "false"}),
        },
        "template": {
            "metadata": {"labels": labels(zone, "worker")},
            "spec": {
                **pod_base("fabric-worker", ports),
                **on_nodes_of(zone, gpu=gpu, spot=spot),
                "containers": [container],
                "volumes": [*volumes(), *(private_volumes() if inside else [])],
            },
        },
    }


def _most(zone: Zone, terms: ClusterTerms) -> int:
    if zone.gpus:
        return zone.gpus
    return -(-zone.cpus // terms.cpus) if zone.kind is ZoneKind.PRIVATE else zone.slots


def group_resources(zone: Zone, terms: ClusterTerms) -> dict[str, str]:
    """Return what Ray is told that a worker has: outside no CPU and one byte, so that nothing else lands there."""
    if zone.kind is ZoneKind.PRIVATE:
        return {"CPU": str(terms.cpus), zone.resource: "1000"}
    return {"CPU": "0", "memory": "1", zone.resource: "1"}


def pod_base(account: str, ports: Mapping[str, Port]) -> dict[str, Any]:
    """Return what every pod's spec begins with."""
    return {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": pod_security(ports),
    }


def guard_environment(home: Zone, zone: Zone, outside: list[str]) -> list[dict[str, Any]]:
    """Return the variables by which drivers of a stretched cluster stand behind the guard."""
    ground = {"zone": zone.name, "home": home.name, "outside": outside}
    return [
        {"name": "FABRIC_GUARD", "value": json.dumps(ground)},
        {"name": "RAY_RUNTIME_ENV_HOOK", "value": "fabric.guard.on_init"},
        {"name": "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "value": "0"},
    ]
