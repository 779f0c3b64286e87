"""The border service of the private zone, what it and the head keep, and templates of RayJobs. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fabric import manifest_pods
from fabric.admission_labels import JUSTIFIED, READS_RECORDS
from fabric.admission_words import DOMAIN
from fabric.cluster_terms import ClusterTerms
from fabric.config import Config, RecordsSource
from fabric.errors import InvalidInput, Reason
from fabric.flows import Port, ports
from fabric.labels import WorkloadClass
from fabric.zones import Zone, ZoneKind

_CLAIMS = ((manifest_pods.STATE, "ReadWriteMany", "100Gi"), (manifest_pods.RECORDS, "ReadOnlyMany", "1Ti"))
_DAY_S = 86_400
_KINDS = (("train", "training", WorkloadClass.TRAINING), ("sweep", "sweep", WorkloadClass.SWEEP))


def claims() -> list[dict[str, Any]]:
    """Return the claims of the private zone: the fabric's state, and the records, which are read only."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {"accessModes": [mode], "resources": {"requests": {"storage": size}}},
        }
        for name, mode, size in _CLAIMS
    ]


def border(home: Zone, terms: ClusterTerms) -> list[dict[str, Any]]:
    """Return the border service: its account, its one replica, and the one way in."""
    pins = ports()
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "fabric-border"},
        "automountServiceAccountToken": False,
    }
    return [account, _deployment(home, terms), _service(terms, pins["border"])]


def _deployment(home: Zone, terms: ClusterTerms) -> dict[str, Any]:
    pins = ports()
    labels = manifest_pods.labels(home, "border")
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "fabric-border", "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # two of them would write one staging folder
            "selector": {"matchLabels": {f"{DOMAIN}/role": "border"}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **manifest_pods.pod_base("fabric-border", pins),
                    **manifest_pods.on_nodes_of(home),
                    "containers": [_border_container(home, terms)],
                    "volumes": [manifest_pods.volumes()[0], *manifest_pods.private_volumes()[:2]],
                },
            },
        },
    }


def _border_container(home: Zone, terms: ClusterTerms) -> dict[str, Any]:
    pins = ports()
    probe = {"tcpSocket": {"port": pins["border"].low}, "periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "name": "border",
        "image": terms.border_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["fabric", "border", "serve"],
        "env": [{"name": "HOME", "value": "/tmp"}, *manifest_pods.zone_environment(home)],  # noqa: S108
        "ports": [{"name": "border", "containerPort": pins["border"].low}],
        "resources": manifest_pods.share("border"),
        "securityContext": manifest_pods.container_security(),
        "livenessProbe": {**probe, "failureThreshold": 6},
        "readinessProbe": {**probe, "failureThreshold": 2},
        "volumeMounts": [
            manifest_pods.mounts()[0],
            *manifest_pods.private_mounts()[:2],
        ],
    }


def _service(terms: ClusterTerms, port: Port) -> dict[str, Any]:
    """Return the service; it is reachable from outside only where the public zone has an address, and only from it."""
    spec: dict[str, Any] = {
        "type": "ClusterIP",
        "selector": {f"{DOMAIN}/role": "border"},
        "ports": [{"name": "border", "port": port.low, "targetPort": "border", "protocol": "TCP"}],
    }
    if network := terms.addresses.get("public"):
        spec |= {
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",  # else a node's address comes before the network policy
            "loadBalancerSourceRanges": [network],
        }
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "fabric-border"}, "spec": spec}


# Jobs.


def job_files(config: Config, dump: Callable[[list[Any]], str]) -> dict[str, str]:
    """Return a RayJob of each kind for each of the records, as templates: applying one starts a run.

    Raises:
        InvalidInput: `CONFIG_INVALID` for two records whose jobs would have one name: one of them would be lost, and
            its labels with it.
    """
    named: dict[str, str] = {}
    for records in sorted(config.records):
        if (other := named.setdefault(_name("train", records), records)) != records:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"the jobs of records {other!r} and {records!r} would have one name",
                "records differ in their first 40 lower-case letters and digits; rename one of them",
            )
    files = {
        f"jobs/{_name(name, records)}.yaml": dump([_job(config, config.records[records], name, table, workload)])
        for records in sorted(config.records)
        for name, table, workload in _KINDS
    }
    head = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": f"fabric-{config.private.name}",
        "resources": sorted(path.removeprefix("jobs/") for path in files),
    }
    return {**files, "jobs/kustomization.yaml": dump([head])}


def _job(config: Config, records: RecordsSource, name: str, table: str, workload: WorkloadClass) -> dict[str, Any]:
    home, target = config.private, _target(config, records)
    stated = {**records.labels.to_json(), "workload_class": workload.value}
    metadata = {key: _text(value) for key, value in sorted(stated.items()) if value not in ("", [])}
    annotations = {JUSTIFIED: "true", READS_RECORDS: "false"} if target.kind is not ZoneKind.PRIVATE else {}
    del table
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": _name(name, records.name),
            "labels": {"app.kubernetes.io/part-of": "zonefabric", f"{DOMAIN}/zone": target.name},
            "annotations": annotations,
        },
        "spec": {
            "submissionMode": "HTTPMode",
            "clusterSelector": {"ray.io/cluster": "fabric"},
            "entrypoint": f"python -m jobs.{name} /etc/fabric/{name}.toml",
            "entrypointResources": f'{{"{home.resource}": 0.001}}',
            "metadata": metadata,
            "backoffLimit": 0,
            "activeDeadlineSeconds": _DAY_S,
        },
    }


def _name(kind: str, records: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{records}".lower())[:47].strip("-")


def _target(config: Config, records: RecordsSource) -> Zone:
    """Return where the work may go by its labels: the first public zone they allow, else the private one."""
    labels = records.labels
    allowed = [
        zone
        for name, zone in sorted(config.zones.items())
        if zone.kind is ZoneKind.PUBLIC and labels.burst_eligible and name in labels.allowed_execution_zone
    ]
    return allowed[0] if allowed else config.private


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
