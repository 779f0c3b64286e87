"""Drift: where manifests, built or live, are not what fabric.toml says. Pure.

Closed: a field or object that is not declared is drift, except what Kubernetes and its controllers add themselves, each
named here. A finding names the field and what is declared, never what was found there: that may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabric.errors import Reason
from fabric.kustomize import Document

_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference: in which object, at which field, what is wrong, and how to mend it."""

    thing: str
    path: str
    what: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """Return the difference as plain JSON."""
        return {
            "code": Reason.MANIFEST_DRIFT.value,
            "object": self.thing,
            "path": self.path,
            "what": self.what,
            "fix": self.fix,
        }

    def __str__(self) -> str:
        where = f"{self.thing} {self.path}".strip()
        return f"{Reason.MANIFEST_DRIFT.value}  {where}: {self.what}\n         Fix: {self.fix}"


def compare(expected: Iterable[Document], found: Iterable[Document], *, live: bool = True) -> tuple[Drift, ...]:
    """Return every difference, in the order of the declared objects, then what is there beside them.

    Args:
        live: whether controllers had a hand in what was found; in a folder of manifests nothing is theirs.
    """
    wanted = {key_of(each): each for each in expected}
    there: dict[tuple[str, str, str], Document] = {}
    drifts: list[Drift] = []
    for each in found:
        key = key_of(each)
        if key in there and key in wanted:
            drifts.append(_drift(key, "", "is there twice", "leave one of them out"))
        there[key] = each
    for key, document in wanted.items():
        if key not in there:
            drifts.append(_drift(key, "", "is missing", "apply it: what it refuses or closes is open without it"))
            continue
        drifts += _differences(key, "", document, there[key])
    images = frozenset(_images(list(wanted.values())))
    namespaces = {namespace for _, namespace, _ in wanted if namespace}
    for key, document in there.items():
        if key not in wanted:
            drifts += (
                _beside(key, document, namespaces, images) if live else (_secret(key, document) or [_undeclared(key)])
            )
    return tuple(drifts)


def compare_files(expected: Mapping[str, Sequence[Any]], found: Mapping[str, Sequence[Any]]) -> tuple[Drift, ...]:
    """Return which files of a folder hold other YAML than is rendered, by their documents."""
    fix = "render the folder again"
    other = [path for path, documents in expected.items() if documents != found.get(path, documents)]
    return tuple(Drift(thing=path, path="", what="is not what is rendered", fix=fix) for path in sorted(other))


def extra_folders(names: Iterable[str]) -> tuple[Drift, ...]:
    """Return a difference for each folder that somebody can apply and nobody declares."""
    fix = "remove it, or declare its zone in fabric.toml"
    return tuple(Drift(thing=name, path="", what="is not declared", fix=fix) for name in sorted(names))


def _images(value: Any) -> list[str]:
    """Return every image that the declared objects name."""
    if isinstance(value, list):
        return [image for each in value for image in _images(each)]
    if not isinstance(value, dict):
        return []
    own = [value["image"]] if isinstance(value.get("image"), str) else []
    return own + [image for each in value.values() for image in _images(each)]


def key_of(document: Document) -> tuple[str, str, str]:
    """Return kind, namespace and name of an object."""
    metadata = document.get("metadata") or {}
    return str(document.get("kind", "")), str(metadata.get("namespace", "")), str(metadata.get("name", ""))


# Fields.

# What Kubernetes, its controllers and GitOps tools write themselves. A value of None means whatever it is.
_SET_BY_OTHERS: Mapping[str, Any] = {
    "": ("status",),
    "metadata": (
        "uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "finalizers", "selfLink",
    ),
}  # fmt: skip
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {
    "protocol": ("TCP",),
    "defaultMode": (420, 0o440),
    "scheme": ("HTTP",),
    "successThreshold": (1,),
    "failureThreshold": (3,),
    "apiVersion": ("v1",),
    "dnsPolicy": ("ClusterFirst",),
    "restartPolicy": ("Always",),
    "schedulerName": ("default-scheduler",),
    "terminationMessagePath": ("/dev/termination-log",),
    "terminationMessagePolicy": ("File",),
    "matchPolicy": ("Equivalent",),
    "scope": ("*",),
    "progressDeadlineSeconds": (600,),
    "revisionHistoryLimit": (10,),
    "sessionAffinity": ("None",),
    "internalTrafficPolicy": ("Cluster",),
    "allocateLoadBalancerNodePorts": (True,),
    "numOfHosts": (1,),
    "priority": (0,),
    "volumeMode": ("Filesystem",),
    "serviceAccount": ("fabric-head", "fabric-worker", "fabric-border"),
}
_ASSIGNED = {
    "Service": ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "nodePort", "healthCheckNodePort"),
    "PersistentVolumeClaim": ("volumeName", "storageClassName"),
    "Namespace": ("finalizers",),
    "RayCluster": ("scaleStrategy",),
}
_ANY_OBJECT = (
    "objectSelector",
    "namespaceSelector",
)  # {} in an admission policy; of a network policy it opens everything
# What tools keep their books in; not what tells them to leave an object alone, such as argocd.argoproj.io/hook.
_FOREIGN_ANNOTATION = re.compile(
    r"(kubectl\.kubernetes\.io|deployment\.kubernetes\.io|pv\.kubernetes\.io|volume(\.beta)?\.kubernetes\.io)/|"
    r"argocd\.argoproj\.io/(tracking-id|installation-id)\Z|kustomize\.toolkit\.fluxcd\.io/checksum\Z"
)
_FOREIGN_LABEL = re.compile(
    r"kubernetes\.io/metadata\.name\Z|argocd\.argoproj\.io/instance\Z|"
    r"kustomize\.toolkit\.fluxcd\.io/(name|namespace)\Z"
)
_SCALED = re.compile(r"spec\.workerGroupSpecs\[[^]]+\]\.replicas\Z")
_NAMES = ("name", "groupName", "key")


def _differences(key: tuple[str, str, str], path: str, wanted: Any, there: Any) -> list[Drift]:
    if isinstance(wanted, dict) and isinstance(there, dict):
        return _of_maps(key, path, wanted, there)
    if isinstance(wanted, list) and isinstance(there, list):
        return _of_lists(key, path, wanted, there)
    if type(wanted) is type(there) and wanted == there:
        return []
    if key[0] == "RayCluster" and _SCALED.match(path) and type(there) is int:
        return []  # the autoscaler's, within bounds that are compared
    return [_drift(key, path, f"is not what is declared: {_shown(wanted)}", _fix(path))]


def _of_maps(key: tuple[str, str, str], path: str, wanted: Document, there: Document) -> list[Drift]:
    found: list[Drift] = []
    for name, value in wanted.items():
        below = f"{path}.{name}" if path else str(name)
        if name in there:
            found += _differences(key, below, value, there[name])
        elif value not in ({}, []):
            found.append(_drift(key, below, "is missing", _fix(below)))
    for name, value in there.items():
        if name not in wanted and not _is_theirs(key[0], path, name, value):
            below = f"{path}.{name}" if path else str(name)
            found.append(_drift(key, below, "is not declared", _fix(below)))
    return found


def _of_lists(key: tuple[str, str, str], path: str, wanted: list[Any], there: list[Any]) -> list[Drift]:
    name = next((each for each in _NAMES if _named(wanted, each) and _all_have(there, each)), "")
    if not name:
        if len(wanted) != len(there):
            return [_drift(key, path, f"has {len(there)} entries, declared are {len(wanted)}", _fix(path))]
        pairs = zip(wanted, there, strict=True)
        return [each for i, (one, other) in enumerate(pairs) for each in _differences(key, f"{path}[{i}]", one, other)]
    ours, theirs = {each[name]: each for each in wanted}, {each[name]: each for each in there}
    found: list[Drift] = []
    for label, value in ours.items():
        below = f"{path}[{label}]"
        if label in theirs:
            found += _differences(key, below, value, theirs[label])
        else:
            found.append(_drift(key, below, "is missing", _fix(path)))
    extra = [label for label in theirs if label not in ours]
    found += [_drift(key, f"{path}[{_shown(label)}]", "is not declared", _fix(path, theirs[label])) for label in extra]
    if len(theirs) != len(there):
        found.append(_drift(key, path, "names an entry twice", _fix(path)))
    return found


def _named(entries: Sequence[Any], name: str) -> bool:
    return _all_have(entries, name) and len({each[name] for each in entries}) == len(entries)


def _all_have(entries: Sequence[Any], name: str) -> bool:
    return bool(entries) and all(isinstance(each, dict) and isinstance(each.get(name), str) for each in entries)


def _is_theirs(kind: str, path: str, name: str, value: Any) -> bool:
    if name in _SET_BY_OTHERS.get(path, ()) or name in _ASSIGNED.get(kind, ()):
        return True
    if name in ("annotations", "labels") and path == "metadata" and isinstance(value, dict):
        return all(_is_theirs(kind, f"metadata.{name}", each, None) for each in value)
    if path == "metadata.annotations":
        return _FOREIGN_ANNOTATION.match(str(name)) is not None
    if path == "metadata.labels":
        return _FOREIGN_LABEL.match(str(name)) is not None
    if kind == "Namespace" and path == "" and name == "spec":
        return value is None or (isinstance(value, dict) and value.keys() <= {"finalizers"})
    if kind.startswith("ValidatingAdmissionPolicy") and name in _ANY_OBJECT:
        return bool(value == {})
    return any(type(value) is type(default) and value == default for default in _DEFAULTS.get(name, ()))


# What is there beside what is declared.

_MADE_BY_CONTROLLERS = frozenset({
    "Pod", "Endpoints", "EndpointSlice", "Event", "Lease", "ControllerRevision", "ConfigMap", "Certificate", "Issuer",
    "CertificateRequest", "Workload", "RayJob",
})  # fmt: skip
_MADE_FOR_AN_OWNER = frozenset({"Service", "Secret", "PersistentVolumeClaim", "Role", "RoleBinding", "ReplicaSet"})


def _beside(key: tuple[str, str, str], document: Document, namespaces: set[str], images: frozenset[str]) -> list[Drift]:
    kind, namespace, name = key
    if secret := _secret(key, document):
        return secret
    owned = bool((document.get("metadata") or {}).get("ownerReferences"))
    if kind == "Pod":
        return [*([_undeclared(key)] if namespace in namespaces and not owned else []), *_pod(key, document, images)]
    if namespace not in namespaces or kind in _MADE_BY_CONTROLLERS or (kind, name) == ("ServiceAccount", "default"):
        return []
    spec = document.get("spec") or {}
    if owned and kind in _MADE_FOR_AN_OWNER and isinstance(spec, dict) and spec.get("type", "ClusterIP") == "ClusterIP":
        return []
    return [_undeclared(key)]


def _secret(key: tuple[str, str, str], document: Document) -> list[Drift]:
    if key[0] != "Secret" or not (document.get("data") or document.get("stringData")):
        return []
    return [_drift(key, "data", "is a secret", "keep secrets out of manifests and exports; name them")]


def _undeclared(key: tuple[str, str, str]) -> Drift:
    return _drift(key, "", "is not declared", "remove it, or declare what it is for in fabric.toml")


def _pod(key: tuple[str, str, str], document: Document, images: frozenset[str]) -> list[Drift]:
    """Return what a running pod has that none of ours may."""
    spec = _map(document.get("spec"))
    found = [_drift(key, f"spec.{name}", "is on", _fix(name)) for name in _HOST if spec.get(name)]
    found += [
        _drift(key, f"spec.volumes[{_shown(each.get('name'))}].hostPath", "is a host path", _fix("hostPath"))
        for each in _maps(spec.get("volumes"))
        if "hostPath" in each
    ]
    for each in [each for name in _CONTAINERS for each in _maps(spec.get(name))]:
        path = f"spec.containers[{_shown(each.get('name'))}]"
        if each.get("image") not in images:
            found.append(_drift(key, f"{path}.image", "is not an image that fabric.toml declares", _fix(".image")))
        if _map(each.get("securityContext")).get("privileged"):
            found.append(_drift(key, f"{path}.securityContext.privileged", "is on", _fix("securityContext")))
    return found


def _map(value: Any) -> Document:
    return value if isinstance(value, dict) else {}


def _maps(value: Any) -> list[Document]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_HOST = ("hostNetwork", "hostPID", "hostIPC")
_FIXES = (
    (r"hostPath|volumes", "use emptyDir or a claim; a host path lets the pod at the node's files"),
    (r"[Ss]ecurityContext|host(Network|PID|IPC)", "restore it by applying the rendered manifests"),
    (r"[.]image\Z|image\Z", "name the image by digest in [clusters] of fabric.toml, then render"),
    (r"networkPolicy\Z", "leave it out: KubeRay's own policy opens every port between all pods of the cluster"),
    (r"(in|e)gress|podSelector|policyTypes", "flows are opened in the flows table only; apply the rendered policies"),
    (r"zone|resources|labels", "zones are declared in fabric.toml; render and apply, or rename the zone there"),
    (r"authOptions|tlsOptions", "restore it: without it any process that reaches a port is part of the cluster"),
    (r"validations|match|failurePolicy|validationActions", "apply the rendered admission policies"),
)
_DEFAULT_FIX = "render and apply again; if it should be so, change fabric.toml"


def _fix(path: str, entry: Any = None) -> str:
    if isinstance(entry, dict) and "hostPath" in entry:
        return _FIXES[0][1]
    return next((fix for pattern, fix in _FIXES if re.search(pattern, path)), _DEFAULT_FIX)


def _shown(value: Any) -> str:
    """Return a declared value, short; a structure is named by what it is."""
    if isinstance(value, dict | list):
        return f"{len(value)} entries"
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _drift(key: tuple[str, str, str], path: str, what: str, fix: str) -> Drift:
    kind, namespace, name = key
    return Drift(thing=f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}", path=path, what=what, fix=fix)
