"""Admission: what Kubernetes itself refuses, whatever its author wrote.

ValidatingAdmissionPolicies in CEL, made from the closed vocabulary of labels, the zones of fabric.toml and the texts of
our Cedar rules. They admit nothing that the fabric's own policy would deny to run or to submit; a missing label means
its most restrictive value. Each policy begins with a rule about shape, because CEL absorbs errors: what has the wrong
shape could slip past the rules after it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fabric import admission_labels as labels
from fabric.admission_shapes import CLUSTER_RULES, JOB_RULES, POD_RULES
from fabric.admission_words import DOMAIN, Check, quoted, quoted_account
from fabric.zones import Zone, ZoneKind

_API = "admissionregistration.k8s.io/v1"
_WORKLOADS = (
    ("ray.io", ("rayservices", "raycronjobs")),
    ("batch", ("jobs", "cronjobs")),
    ("apps", ("deployments", "statefulsets", "daemonsets", "replicasets")),
    ("", ("pods", "replicationcontrollers")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One ValidatingAdmissionPolicy with its binding.

    Attributes:
        matches: API groups and their resources.
        conditions: what a request must be for the gate to look at it, as name and CEL; Kubernetes gives these no
            namespace, so which namespaces a gate is for stands in its binding.
        outside_of: zones whose namespaces the gate leaves alone.
        variables: named CEL that the checks share, in order.
        audit: what the audit log shall hold, as key and CEL.
    """

    name: str
    matches: tuple[tuple[str, tuple[str, ...]], ...]
    checks: tuple[Check, ...]
    variables: tuple[tuple[str, str], ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    outside_of: tuple[str, ...] = ()
    audit: tuple[tuple[str, str], ...] = ()


def gates(zones: Iterable[Zone], operator: str, image: str) -> tuple[Gate, ...]:
    """Return every gate of a fabric with these zones, KubeRay's operator under this account, and this image of Ray."""
    declared = sorted(zones, key=lambda zone: zone.name)
    return (_jobs(declared), _work(declared, operator), _clusters(declared, image), _pods(declared, operator))


def _jobs(zones: Sequence[Zone]) -> Gate:
    """RayJobs: the labels are Ray's job metadata, which the fabric's own jobs read as labels too."""
    source = labels.of_map("object.spec.metadata", "has(object.spec) && has(object.spec.metadata)")
    target = f'"{DOMAIN}/zone"'
    declared = "has(object.metadata.labels)"
    variables = (
        *_place_variables(zones),
        (
            "target",
            f"{declared} && {target} in object.metadata.labels ? object.metadata.labels[{target}] : variables.home",
        ),
        ("places", "variables.zones.filter(z, z.name == variables.home || z.name == variables.target)"),
        *labels.variables(source),
    )
    return Gate(
        name="fabric-jobs",
        matches=(("ray.io", ("rayjobs",)),),
        variables=variables,
        checks=(*labels.shape_of_metadata(), *labels.checks(zones), *labels.submit_checks(), *JOB_RULES),
        audit=_audit(),
    )


def _work(zones: Sequence[Zone], operator: str) -> Gate:
    """Work that is put into a namespace outside the private zone directly, past the border: labels are annotations.

    What a controller makes of it was judged when its author applied it. Who made an object is asked of the request, not
    of its owner references, which anybody can write.
    """
    made = "request.userInfo.username"
    controllers = (
        f'{made} == {quoted_account(operator)} || {made} == "system:kube-controller-manager" || '
        f'{made}.startsWith("system:serviceaccount:kube-system:")'
    )
    return Gate(
        name="fabric-work",
        matches=_WORKLOADS,
        conditions=(("made-by-an-author", f"!({controllers})"),),
        outside_of=tuple(zone.name for zone in zones if zone.kind is ZoneKind.PRIVATE),
        variables=(
            *_place_variables(zones),
            ("target", "variables.home"),
            ("places", "variables.zones.filter(z, z.name == variables.home)"),
            *labels.variables(labels.of_annotations()),
        ),
        checks=(*labels.shape_of_annotations(), *labels.checks(zones), *labels.outside_checks()),
        audit=_audit(),
    )


def _clusters(zones: Sequence[Zone], image: str) -> Gate:
    return Gate(
        name="fabric-clusters",
        matches=(("ray.io", ("rayclusters",)),),
        variables=(
            *_place_variables(zones),
            _STRETCHED,
            ("image", quoted_account(image)),
            ("workers", "has(object.spec.workerGroupSpecs) ? object.spec.workerGroupSpecs : []"),
        ),
        checks=CLUSTER_RULES,
        audit=(("zone", "variables.home"),),
    )


def _pods(zones: Sequence[Zone], operator: str) -> Gate:
    return Gate(
        name="fabric-pods",
        matches=(("", ("pods", "pods/ephemeralcontainers")),),
        variables=(
            *_place_variables(zones),
            _STRETCHED,
            ("operator", f"request.userInfo.username == {quoted_account(operator)}"),
            (
                "containers",
                "object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : [])"
                " + (has(object.spec.ephemeralContainers) ? object.spec.ephemeralContainers : [])",
            ),
        ),
        checks=POD_RULES,
        audit=(("zone", "variables.home"),),
    )


_STRETCHED = (
    "stretched",
    f'"{DOMAIN}/topology" in namespaceObject.metadata.labels && '
    f'namespaceObject.metadata.labels["{DOMAIN}/topology"] == "stretched"',
)


def _place_variables(zones: Sequence[Zone]) -> tuple[tuple[str, str], ...]:
    rows = ", ".join(
        f'{{"name": {quoted(zone.name)}, "kind": {quoted(zone.kind.value)},'
        f' "jurisdiction": {quoted(zone.jurisdiction)}}}'
        for zone in zones
    )
    return (("zones", f"[{rows}]"), ("home", f'namespaceObject.metadata.labels["{DOMAIN}/zone"]'))


def _audit() -> tuple[tuple[str, str], ...]:
    return (("zone", "variables.target"), ("data-classification", "variables.data_classification"))


# As manifests.


def documents(found: Iterable[Gate]) -> list[dict[str, Any]]:
    """Return each gate as a ValidatingAdmissionPolicy and its binding."""
    return [document for gate in found for document in (_policy(gate), _binding(gate))]


def _policy(gate: Gate) -> dict[str, Any]:
    rules = [
        {
            "apiGroups": [group],
            "apiVersions": ["*"],
            "operations": ["CREATE", "UPDATE"],
            "resources": list(resources),
        }
        for group, resources in gate.matches
    ]
    spec: dict[str, Any] = {
        "failurePolicy": "Fail",
        "matchConstraints": {"matchPolicy": "Equivalent", "resourceRules": rules},
    }
    if gate.conditions:
        spec["matchConditions"] = [{"name": name, "expression": text} for name, text in gate.conditions]
    spec["variables"] = [{"name": name, "expression": text} for name, text in gate.variables]
    spec["validations"] = [
        {"expression": check.expression, "message": check.message, "reason": "Forbidden"} for check in gate.checks
    ]
    spec["auditAnnotations"] = [{"key": key, "valueExpression": text} for key, text in gate.audit]
    return {
        "apiVersion": _API,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": f"{gate.name}.{DOMAIN}"},
        "spec": spec,
    }


def _binding(gate: Gate) -> dict[str, Any]:
    expressions: list[dict[str, Any]] = [{"key": f"{DOMAIN}/zone", "operator": "Exists"}]
    if gate.outside_of:
        expressions.append({"key": f"{DOMAIN}/zone", "operator": "NotIn", "values": list(gate.outside_of)})
    return {
        "apiVersion": _API,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": f"{gate.name}.{DOMAIN}"},
        "spec": {
            "policyName": f"{gate.name}.{DOMAIN}",
            "validationActions": ["Deny", "Audit"],
            "matchResources": {"namespaceSelector": {"matchExpressions": expressions}},
        },
    }
