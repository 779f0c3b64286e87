"""Manifests for KubeRay 1.7, made from fabric.toml: a kustomize base, and an overlay per zone that only adds to it.

The same fabric.toml gives the same bytes. There is no secret in them: they name what a site brings. Pure: a
configuration goes in, a mapping from path to text comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml

from fabric import admission, manifest_jobs, manifest_pods
from fabric.admission_words import DOMAIN
from fabric.cluster_terms import ClusterTerms
from fabric.config import Config
from fabric.errors import InvalidInput, Reason
from fabric.flows import load, ports, ray_start_params
from fabric.manifest_kueue import kueue
from fabric.manifest_pods import TRUST, ray_container
from fabric.network_policies import deny_all, network_policies
from fabric.zones import Topology, Zone, ZoneKind

RAY_VERSION = "2.60.0"
OPERATOR = "kuberay-operator"
STRETCHED, EDGE = "stretched", "edge"
_HEADER = "# Made by `fabric clusters render` from fabric.toml. Change that, and render again.\n"

Files = dict[str, str]


def render(config: Config) -> Files:
    """Return every file of the manifests by its path.

    Raises:
        InvalidInput: `CONFIG_MISSING` if fabric.toml has no [clusters]; `CONFIG_INVALID` for a zone whose name is
            one of our folders or pools, or records whose jobs would have one name.
    """
    terms = terms_of(config)
    if config.border.port not in (0, ports()["border"].low):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"[border] port is {config.border.port}, and the flows table opens {ports()['border']}",
            f"set it to {ports()['border']}: what the table does not open is dropped",
        )
    if STRETCHED in config.zones:
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"a zone is called {STRETCHED!r}",
            "that is an overlay's name; call the zone otherwise",
        )
    for name in config.zones:
        if terms.spot and name.endswith("-spot") and name.removesuffix("-spot") in config.zones:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"a zone is called {name!r}",
                f"that is the spot pool of zone {name.removesuffix('-spot')!r}; call the zone otherwise",
            )
    zones = [config.zones[name] for name in sorted(config.zones)]
    files = {**_base(terms), **_admission(zones, terms), **manifest_jobs.job_files(config, dump)}
    for zone in zones:
        overlay = _edge if zone.kind is ZoneKind.EDGE else _overlay
        files.update(overlay(zone, terms))
        if zone.kind is not ZoneKind.EDGE:
            files.update(kueue(zone, terms, dump))
    if EDGE not in config.zones and not any(zone.kind is ZoneKind.EDGE for zone in zones):
        files.update(_edge(Zone(name=EDGE, kind=ZoneKind.EDGE, jurisdiction=config.private.jurisdiction), terms))
    files.update(_stretched(config.private, [zone for zone in zones if zone.kind is ZoneKind.PUBLIC], terms))
    return dict(sorted(files.items()))


def terms_of(config: Config) -> ClusterTerms:
    """Return `[clusters]`.

    Raises:
        InvalidInput: `CONFIG_MISSING` if there is none.
    """
    if config.clusters is None:
        raise InvalidInput(
            Reason.CONFIG_MISSING,
            f"{config.path.name} has no [clusters]",
            "add one with image = an image by digest; `fabric init` writes an example",
        )
    return config.clusters


def operator_account(terms: ClusterTerms) -> str:
    """Return the service account of KubeRay's operator, as Kubernetes names it."""
    return f"system:serviceaccount:{terms.operator_namespace}:{OPERATOR}"


def dump(documents: Iterable[dict[str, Any]] | list[Any], *, header: bool = True) -> str:
    """Return documents as YAML text, always the same."""
    text = "---\n".join(yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120) for each in documents)
    return (_HEADER if header else "") + text


class _Dumper(yaml.SafeDumper):
    """YAML that repeats itself rather than point back: an anchor is hard to read, and a reader of ours refuses it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def kustomization(resources: Sequence[str], **more: Any) -> str:
    """Return a kustomization file."""
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return dump([{**head, **more, "resources": list(resources)}])


# What every zone has.


def _base(terms: ClusterTerms) -> Files:
    accounts = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": f"fabric-{role}"},
            "automountServiceAccountToken": False,
        }
        for role in ("head", "worker")
    ]
    return {
        "base-private/storage.yaml": dump(manifest_jobs.claims()),
        "base-private/kustomization.yaml": kustomization(["../base", "storage.yaml"]),
        "base/service-accounts.yaml": dump(accounts),
        "base/raycluster.yaml": dump([_ray_cluster(terms)]),
        "base/deny-all.yaml": dump([deny_all()]),
        "base/pod-monitor.yaml": dump([pod_monitor("fabric-ray", ["head", "worker"], "metrics")]),
        "base/kustomization.yaml": kustomization(
            ["service-accounts.yaml", "raycluster.yaml", "deny-all.yaml", "pod-monitor.yaml"]
        ),
    }


def pod_monitor(name: str, roles: list[str], port: str) -> dict[str, Any]:
    """Return what tells Prometheus where numbers are."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": name},
        "spec": {
            "selector": {
                "matchLabels": {"app.kubernetes.io/part-of": "zonefabric"},
                "matchExpressions": [{"key": f"{DOMAIN}/role", "operator": "In", "values": roles}],
            },
            "podTargetLabels": [f"{DOMAIN}/zone", f"{DOMAIN}/role"],
            "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": "30s"}],
        },
    }


def _ray_cluster(terms: ClusterTerms) -> dict[str, Any]:
    pins = ports()
    head = ray_container("ray-head", terms, pins, manifest_pods.share("head"))
    spec: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": _autoscaler(),
        "authOptions": {"mode": "token", "secretName": manifest_pods.RAY_TOKEN},
        **({"tlsOptions": {"enabled": True}} if terms.tls else {}),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "enableIngress": False,
            "labels": {},
            "resources": {},
            "rayStartParams": {"dashboard-host": "0.0.0.0", **ray_start_params(pins, head=True)},  # noqa: S104
            "template": {
                "metadata": {"labels": manifest_pods.common_labels("head")},
                "spec": {
                    **manifest_pods.pod_base("fabric-head", pins),
                    "containers": [head],
                    "volumes": [*manifest_pods.volumes(), manifest_pods.api_token_volume()],
                },
            },
        },
        "workerGroupSpecs": [],
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "fabric", "labels": {}}, "spec": spec}


def _autoscaler() -> dict[str, Any]:
    """Return the options of the one container that talks to the Kubernetes API, and the only one that can."""
    return {
        "version": "v2",
        "upscalingMode": "Conservative",
        "idleTimeoutSeconds": 300,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108
        "resources": manifest_pods.share("autoscaler"),
        "securityContext": manifest_pods.container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, manifest_pods.api_token_mount()],  # noqa: S108
    }


# What a zone adds.


def _namespace(name: str, zone: Zone, topology: Topology) -> dict[str, Any]:
    enforced = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    own = {"zone": zone.name, "kind": zone.kind.value, "topology": topology.value}
    labels = {**{f"{DOMAIN}/{key}": value for key, value in own.items()}, **enforced}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"fabric-{name}", "labels": labels}}


def _overlay(zone: Zone, terms: ClusterTerms) -> Files:
    return _zone_files(zone.name, zone, [zone], Topology.FEDERATED, terms)


def _stretched(private: Zone, public: Sequence[Zone], terms: ClusterTerms) -> Files:
    return _zone_files(STRETCHED, private, [private, *public], Topology.STRETCHED, terms)


def _zone_files(name: str, home: Zone, zones: Sequence[Zone], topology: Topology, terms: ClusterTerms) -> Files:
    inside = home.kind is ZoneKind.PRIVATE
    folder = f"overlays/{name}"
    resources = ["../../base-private" if inside else "../../base", "namespace.yaml", "network-policies.yaml"]
    here = {zone.kind for zone in zones}
    files = {
        f"{folder}/namespace.yaml": dump([_namespace(name, home, topology)]),
        f"{folder}/network-policies.yaml": dump(network_policies(load(), topology, here, terms)),
        f"{folder}/raycluster-patch.yaml": dump([_patch(name, home, zones, terms)]),
    }
    if inside and topology is Topology.FEDERATED:
        files[f"{folder}/border.yaml"] = dump(manifest_jobs.border(home, terms))
        resources.append("border.yaml")
    patch = {"path": "raycluster-patch.yaml", "target": {"kind": "RayCluster", "name": "fabric"}}
    files[f"{folder}/kustomization.yaml"] = kustomization(resources, namespace=f"fabric-{name}", patches=[patch])
    return files


def _patch(name: str, home: Zone, zones: Sequence[Zone], terms: ClusterTerms) -> list[dict[str, Any]]:
    """Return what an overlay adds to the base's cluster: its zone, what its head sees, its groups."""
    outside = [zone.name for zone in zones if zone.kind is not ZoneKind.PRIVATE]
    inside = home.kind is ZoneKind.PRIVATE
    guard = manifest_pods.guard_environment(home, home, outside) if inside and outside else []
    spec = "/spec/headGroupSpec/template/spec"
    zone_labels = manifest_pods.labels(home, "head")
    found: list[tuple[str, Any]] = [
        ("/metadata/labels", {"app.kubernetes.io/part-of": "zonefabric", f"{DOMAIN}/zone": home.name}),
        ("/spec/headGroupSpec/labels", home.node_label),
        ("/spec/headGroupSpec/resources", _head_resources(home)),
        ("/spec/headGroupSpec/template/metadata/labels", zone_labels),
        *((f"{spec}/{key}", value) for key, value in manifest_pods.on_nodes_of(home).items()),
        *((f"{spec}/containers/0/env/-", each) for each in (*manifest_pods.zone_environment(home), *guard)),
    ]
    if inside:
        found += [(f"{spec}/volumes/-", each) for each in manifest_pods.private_volumes()]
        found += [(f"{spec}/containers/0/volumeMounts/-", each) for each in manifest_pods.private_mounts()]
    if inside and terms.redis:
        found.append(("/spec/gcsFaultToleranceOptions", _fault_tolerance(name, terms)))
    found.append(("/spec/workerGroupSpecs", _groups(home, zones, terms)))
    return [{"op": "add", "path": path, "value": value} for path, value in found]


def _head_resources(home: Zone) -> dict[str, str]:
    """Return what Ray is told of the head: no CPU, and of the zone enough for drivers.

    Outside it is a pinch (10m), so a driver's pin fits there and no worker's slot does.
    """
    if home.kind is ZoneKind.PRIVATE:
        return {"CPU": "0", home.resource: "1000"}
    return {"CPU": "0", "memory": "1", home.resource: "10m"}


def _fault_tolerance(name: str, terms: ClusterTerms) -> dict[str, Any]:
    return {
        "backend": "redis",
        "redisAddress": terms.redis,
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "fabric-redis", "key": "password"}}},
        "externalStorageNamespace": f"fabric-{name}",
    }


def _groups(home: Zone, zones: Sequence[Zone], terms: ClusterTerms) -> list[dict[str, Any]]:
    outside = [zone.name for zone in zones if zone.kind is not ZoneKind.PRIVATE]
    stretched = home.kind is ZoneKind.PRIVATE and bool(outside)
    found = []
    for zone in zones:
        guard = manifest_pods.guard_environment(home, zone, outside) if stretched else []
        pools = [False, True] if terms.spot and zone.kind is not ZoneKind.PRIVATE else [False]
        found += [manifest_pods.worker_group(zone, terms, ports(), spot=spot, guard=guard) for spot in pools]
    return found


def _edge(zone: Zone, terms: ClusterTerms) -> Files:
    """Return the placeholder of an edge zone: its namespace, closed, with room for no pod."""
    del terms
    folder = f"overlays/{zone.name}"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "nothing-runs-here-yet"},
        "spec": {"hard": {"pods": "0"}},
    }
    return {
        f"{folder}/namespace.yaml": dump([_namespace(zone.name, zone, Topology.FEDERATED)]),
        f"{folder}/closed.yaml": dump([deny_all(), quota]),
        f"{folder}/kustomization.yaml": kustomization(
            ["namespace.yaml", "closed.yaml"], namespace=f"fabric-{zone.name}"
        ),
    }


def _admission(zones: Sequence[Zone], terms: ClusterTerms) -> Files:
    gates = admission.gates(zones, operator_account(terms), terms.image)
    return {
        "admission/policies.yaml": dump(admission.documents(gates)),
        "admission/kustomization.yaml": kustomization(["policies.yaml"]),
    }


def roots(files: Iterable[str]) -> list[str]:
    """Return the folders that are applied: overlays, admission and jobs, not what they are made of."""
    folders = {path.rpartition("/")[0] for path in files if path.endswith("/kustomization.yaml")}
    return sorted(folder for folder in folders if not folder.startswith(("base", "components")))


Dump = Callable[[list[Any]], str]
__all__ = ["RAY_VERSION", "TRUST", "Dump", "dump", "kustomization", "operator_account", "render", "roots", "terms_of"]
