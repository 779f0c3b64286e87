"""Admission: what Kubernetes refuses, by the CEL that it would run, evaluated by Google's CEL engine.

Every validation is needed: for each there is something bad that only it refuses. And nothing is admitted that the
fabric's own policy denies.
"""

import itertools

import pytest
from admission_cel import copy, refusals, selects
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_files import built, gpu_files, pods_of, starter_files

from fabric.errors import FabricError, Reason
from fabric.labels import Classification, ContractLimit, ExportControl, Labels, WorkloadClass
from fabric.policy import Policy
from fabric.requests import Action, ActRequest, RunRequest
from fabric.zones import Zone, ZoneKind

OPERATOR = "system:serviceaccount:kuberay-system:kuberay-operator"
ZONES = {
    "private": Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2),
    "public": Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU"),
}
BUILT = built(starter_files())
POLICIES = {d["metadata"]["name"].split(".")[0]: d for d in BUILT["admission"] if d["kind"].endswith("Policy")}
BINDINGS = {d["metadata"]["name"].split(".")[0]: d for d in BUILT["admission"] if d["kind"].endswith("Binding")}


def only(root, kind, name=None):
    found = [d for d in BUILT[root] if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1
    return copy(found[0])


NAMESPACES = {name: only(f"overlays/{name}", "Namespace") for name in ("private", "public", "stretched", "edge")}


def job(**changes):
    found = copy(BUILT["jobs"][1])
    found["metadata"].update(changes.pop("metadata_of", {}))
    for key, value in changes.items():
        found["spec"].pop(key) if value is None else found["spec"].update({key: value})
    return found


def relabelled(**labels):
    found = job()
    for key, value in labels.items():
        found["spec"]["metadata"].pop(key, None) if value is None else found["spec"]["metadata"].update({key: value})
    return found


def annotated(**annotations):
    found = job()
    found["metadata"]["annotations"] = {f"zonefabric.io/{k.replace('_', '-')}": v for k, v in annotations.items()}
    return found


def outside(*, prefixless=None, **labels):
    """Return work that somebody puts into the public namespace, well labelled but for what is changed."""
    good = {
        "data_classification": "internal",
        "allowed_execution_zone": "public",
        "burst_eligible": "true",
        "purpose": "cost-forecast",
        "residency": "EU",
        "export_control": "none",
        "workload_class": "training",
    }
    stated = {f"labels.zonefabric.io/{k}": v for k, v in {**good, **labels}.items() if v is not None}
    flags = {"zonefabric.io/justified": "true", "zonefabric.io/reads-records": "false", **(prefixless or {})}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work", "annotations": {k: v for k, v in {**stated, **flags}.items() if v is not None}},
        "spec": {"template": {"spec": {"containers": []}}},
    }


def changed(document, path, value=...):
    """Return a copy with one field set, or taken away."""
    found = copy(document)
    *parents, last = path
    here = found
    for part in parents:
        here = here[part]
    if value is ...:
        del here[last]
    elif isinstance(here, list) and last == "+":
        here.append(value)
    else:
        here[last] = value
    return found


CLUSTER = only("overlays/public", "RayCluster")
STRETCHED = only("overlays/stretched", "RayCluster")


def pod(root="overlays/private", group="private", **spec):
    """Return the pod that KubeRay would make of a group."""
    template = dict(pods_of(only(root, "RayCluster")))[group]
    found = {"apiVersion": "v1", "kind": "Pod", "metadata": copy(template["metadata"]), "spec": copy(template["spec"])}
    found["spec"].update(spec)
    return found


def pod_with(path, value=..., **where):
    return changed(pod(**where), path, value)


def container_with(path, value=...):
    return pod_with(["spec", "containers", 0, *path], value)


RAY = ["spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0]
HEAD, GROUP = ["spec", "headGroupSpec"], ["spec", "workerGroupSpecs", 0]
RETARGETED = job(metadata_of={"labels": {"zonefabric.io/zone": "publik"}})

LANDS_OUTSIDE = changed(
    changed(STRETCHED, [*GROUP, "template", "metadata", "labels", "zonefabric.io/zone"], "public"),
    [*GROUP, "template", "spec", "nodeSelector", "zonefabric.io/zone"],
    "public",
)

# gate, the rule that refuses it and no other, namespace, the object
BAD = [
    # Jobs: restricted work that may not leave, whatever its author wrote.
    ("fabric-jobs", "labels.shape", "private", job(metadata={"purpose": 7})),
    ("fabric-jobs", "labels.shape", "private", relabelled(team="")),
    ("fabric-jobs", "labels.known", "private", relabelled(data_clasification="public")),
    ("fabric-jobs", "labels.vocabulary", "private", relabelled(data_classification="restrictd")),
    ("fabric-jobs", "labels.vocabulary", "private", relabelled(purpose="two words")),
    ("fabric-jobs", "labels.vocabulary", "private", relabelled(residency="EU,XX")),
    ("fabric-jobs", "labels.vocabulary", "private", relabelled(team="x" * 64)),
    ("fabric-jobs", "labels.zones", "private", RETARGETED),
    ("fabric-jobs", "labels.zones", "private", relabelled(allowed_execution_zone="private,public,mars")),
    ("fabric-jobs", "labels.zone", "private", relabelled(allowed_execution_zone=None)),
    ("fabric-jobs", "labels.zone", "private", relabelled(allowed_execution_zone="public")),
    ("fabric-jobs", "labels.burst", "private", relabelled(burst_eligible=None)),
    ("fabric-jobs", "labels.purpose", "private", relabelled(purpose=None)),
    ("fabric-jobs", "labels.residency", "private", relabelled(residency=None)),
    ("fabric-jobs", "labels.residency", "private", relabelled(residency="DE")),
    ("fabric-jobs", "labels.export", "private", relabelled(export_control=None)),
    ("fabric-jobs", "contract.public", "private", relabelled(contract_limits="no-serving,no-public-zone")),
    ("fabric-jobs", "contract.public", "private", relabelled(contract="c-1", contract_limits="no-public-zone")),
    (
        "fabric-jobs",
        "contract.fine_tuning",
        "private",
        relabelled(contract_limits="no-fine-tuning", workload_class="fine-tuning"),
    ),
    (
        "fabric-jobs",
        "contract.fine_tuning",
        "private",
        relabelled(contract_limits="no-fine-tuning", workload_class=None),
    ),
    ("fabric-jobs", "public.justified", "private", annotated(reads_records="false")),
    ("fabric-jobs", "run.raw_stays", "private", annotated(justified="true")),
    ("fabric-jobs", "job.pinned", "private", job(entrypointResources=None)),
    ("fabric-jobs", "job.pinned", "private", job(entrypointResources='{"zone_private": 0}')),
    ("fabric-jobs", "job.pinned", "private", job(entrypointResources='{"zone_public": 0.001}')),
    ("fabric-jobs", "job.pinned", "private", job(entrypointResources='{"zone_private": 1, "zone_private": 0}')),
    ("fabric-jobs", "job.pinned", "private", job(entrypointResources='{"zone_private": 0.001, "zone_public": 1}')),
    ("fabric-jobs", "job.carries", "private", job(runtimeEnvYAML="working_dir: /srv/records")),
    ("fabric-jobs", "job.cluster", "private", job(clusterSelector={"ray.io/cluster": "mine"})),
    ("fabric-jobs", "job.cluster", "private", job(rayClusterSpec={})),
    ("fabric-jobs", "job.submitter", "private", job(submissionMode="K8sJobMode")),
    ("fabric-jobs", "submit.inside", "public", job(entrypointResources='{"zone_public": 0.001}')),
    # Work put into the public zone past the border.
    ("fabric-work", "labels.shape", "public", outside(prefixless={"x": 7})),
    ("fabric-work", "labels.shape", "public", outside(team="")),
    ("fabric-work", "labels.known", "public", outside(classification="public")),
    ("fabric-work", "labels.vocabulary", "public", outside(team="a team")),
    ("fabric-work", "labels.zones", "public", outside(allowed_execution_zone="public,mars")),
    ("fabric-work", "labels.zone", "public", outside(allowed_execution_zone="private")),
    ("fabric-work", "labels.burst", "public", outside(burst_eligible="false")),
    ("fabric-work", "labels.purpose", "public", outside(purpose=None)),
    ("fabric-work", "labels.residency", "public", outside(residency="US,GB")),
    ("fabric-work", "labels.export", "public", outside(export_control="ITAR")),
    ("fabric-work", "contract.public", "public", outside(contract_limits="no-public-zone")),
    ("fabric-work", "contract.fine_tuning", "public", outside(contract_limits="no-fine-tuning", workload_class=None)),
    ("fabric-work", "public.justified", "public", outside(prefixless={"zonefabric.io/justified": None})),
    ("fabric-work", "run.raw_stays", "public", outside(prefixless={"zonefabric.io/reads-records": "true"})),
    ("fabric-work", "outside.restricted", "public", outside(data_classification="restricted")),
    ("fabric-work", "outside.restricted", "public", outside(data_classification=None)),
    # Clusters.
    ("fabric-clusters", "cluster.shape", "public", changed(CLUSTER, ["spec", "workerGroupSpecs"], {})),
    ("fabric-clusters", "cluster.name", "public", changed(CLUSTER, ["metadata", "name"], "mine")),
    ("fabric-clusters", "cluster.token", "public", changed(CLUSTER, ["spec", "authOptions", "mode"], "disabled")),
    ("fabric-clusters", "cluster.token", "public", changed(CLUSTER, ["spec", "authOptions"])),
    ("fabric-clusters", "cluster.network", "public", changed(CLUSTER, ["spec", "networkPolicy"], {"mode": "DenyAll"})),
    ("fabric-clusters", "cluster.service", "public", changed(CLUSTER, [*HEAD, "serviceType"], "LoadBalancer")),
    ("fabric-clusters", "cluster.service", "public", changed(CLUSTER, [*HEAD, "enableIngress"], True)),
    (
        "fabric-clusters",
        "cluster.command",
        "public",
        changed(CLUSTER, ["metadata", "annotations"], {"ray.io/overwrite-container-cmd": "true"}),
    ),
    (
        "fabric-clusters",
        "cluster.zoned",
        "public",
        changed(CLUSTER, [*GROUP, "resources"], {"CPU": "0", "memory": "1"}),
    ),
    ("fabric-clusters", "cluster.zoned", "public", changed(CLUSTER, [*GROUP, "resources", "zone_private"], "1")),
    ("fabric-clusters", "cluster.zoned", "public", changed(CLUSTER, [*HEAD, "resources"])),
    ("fabric-clusters", "cluster.start", "public", changed(CLUSTER, [*GROUP, "rayStartParams", "num-cpus"], "8")),
    ("fabric-clusters", "cluster.start", "public", changed(CLUSTER, [*HEAD, "rayStartParams", "resources"], "{}")),
    (
        "fabric-clusters",
        "cluster.zones",
        "private",
        changed(
            only("overlays/private", "RayCluster"),
            ["spec", "workerGroupSpecs", "+"],
            copy(STRETCHED["spec"]["workerGroupSpecs"][1]),
        ),
    ),
    (
        "fabric-clusters",
        "cluster.cpus",
        "stretched",
        changed(STRETCHED, ["spec", "workerGroupSpecs", 1, "resources", "CPU"], "4"),
    ),
    (
        "fabric-clusters",
        "cluster.cpus",
        "stretched",
        changed(STRETCHED, ["spec", "workerGroupSpecs", 1, "resources", "memory"]),
    ),
    ("fabric-clusters", "cluster.plain", "public", changed(CLUSTER, [*RAY, "command"], ["python", "-c", "1"])),
    ("fabric-clusters", "cluster.plain", "public", changed(CLUSTER, [*RAY, "lifecycle"], {})),
    ("fabric-clusters", "cluster.plain", "public", changed(CLUSTER, [*RAY[:-2], "initContainers"], [])),
    (
        "fabric-clusters",
        "cluster.plain",
        "public",
        changed(CLUSTER, [*RAY, "readinessProbe"], {"exec": {"command": ["x"]}}),
    ),
    (
        "fabric-clusters",
        "cluster.plain",
        "public",
        changed(CLUSTER, [*RAY, "startupProbe"], {"exec": {"command": ["x"]}}),
    ),
    # A parameter of `ray start` is a word of a shell's command line, and bash reads BASH_ENV before it.
    ("fabric-clusters", "cluster.start", "public", changed(CLUSTER, [*GROUP, "rayStartParams", "node-name"], "n")),
    (
        "fabric-clusters",
        "cluster.start",
        "public",
        changed(CLUSTER, [*GROUP, "rayStartParams", "include-log-monitor"], "false; python -c 1"),
    ),
    ("fabric-clusters", "cluster.start", "public", changed(CLUSTER, [*HEAD, "rayStartParams", "port"], "$(id)")),
    (
        "fabric-clusters",
        "cluster.environment",
        "public",
        changed(CLUSTER, [*RAY, "env", "+"], {"name": "BASH_ENV", "value": "$(id)"}),
    ),
    (
        "fabric-clusters",
        "cluster.environment",
        "public",
        changed(CLUSTER, [*RAY, "env", "+"], {"name": "RAY_RUNTIME_ENV_HOOK", "value": "mine.hook"}),
    ),
    (
        "fabric-clusters",
        "cluster.environment",
        "stretched",
        changed(
            STRETCHED,
            ["spec", "workerGroupSpecs", 1, *RAY[3:], "env", "+"],
            {"name": "FABRIC_GUARD", "valueFrom": {"secretKeyRef": {"name": "fabric-redis", "key": "password"}}},
        ),
    ),
    (
        "fabric-clusters",
        "cluster.environment",
        "public",
        changed(CLUSTER, [*RAY, "envFrom"], [{"secretRef": {"name": "fabric-ray-token"}}]),
    ),
    (
        "fabric-clusters",
        "cluster.known",
        "public",
        changed(CLUSTER, [*HEAD, "headService"], {"spec": {"type": "LoadBalancer"}}),
    ),
    (
        "fabric-clusters",
        "cluster.known",
        "public",
        changed(CLUSTER, ["spec", "historyServerOptions"], {"collectorOptions": {"image": "busybox"}}),
    ),
    (
        "fabric-clusters",
        "cluster.known",
        "public",
        changed(CLUSTER, ["spec", "autoscalerOptions", "image"], "x@sha256:" + "0" * 64),
    ),
    (
        "fabric-clusters",
        "cluster.known",
        "public",
        changed(CLUSTER, ["spec", "autoscalerOptions", "command"], ["python", "-c", "1"]),
    ),
    (
        "fabric-clusters",
        "cluster.known",
        "public",
        changed(CLUSTER, ["spec", "autoscalerOptions", "env", "+"], {"name": "BASH_ENV", "value": "$(id)"}),
    ),
    # Ray is told that these nodes are inside, and they would stand outside, or be let at what is inside.
    ("fabric-clusters", "cluster.placed", "stretched", LANDS_OUTSIDE),
    (
        "fabric-clusters",
        "cluster.placed",
        "stretched",
        changed(
            STRETCHED,
            ["spec", "workerGroupSpecs", 1, "template", "metadata", "labels", "zonefabric.io/kind"],
            "private",
        ),
    ),
    (
        "fabric-clusters",
        "cluster.volumes",
        "stretched",
        changed(
            STRETCHED,
            ["spec", "workerGroupSpecs", 1, "template", "spec", "volumes", "+"],
            {"name": "records", "persistentVolumeClaim": {"claimName": "fabric-records", "readOnly": True}},
        ),
    ),
    (
        "fabric-clusters",
        "cluster.volumes",
        "private",
        changed(
            only("overlays/private", "RayCluster"),
            [*GROUP, "template", "spec", "volumes", "+"],
            {"name": "records", "persistentVolumeClaim": {"claimName": "fabric-records"}},
        ),
    ),
    (
        "fabric-clusters",
        "cluster.volumes",
        "public",
        changed(CLUSTER, [*RAY[:-2], "volumes", "+"], {"name": "code", "configMap": {"name": "mine"}}),
    ),
    (
        "fabric-clusters",
        "cluster.volumes",
        "public",
        changed(
            CLUSTER,
            [*HEAD, "template", "spec", "containers", 0, "volumeMounts", "+"],
            {"name": "kubernetes-api", "mountPath": "/t"},
        ),
    ),
    ("fabric-clusters", "cluster.cpus", "public", changed(CLUSTER, [*HEAD, "resources", "CPU"], "4")),
    ("fabric-clusters", "cluster.image", "public", changed(CLUSTER, [*RAY, "image"], "x@sha256:" + "0" * 64)),
    # Pods.
    ("fabric-pods", "pod.shape", "private", pod(containers=[])),
    ("fabric-pods", "pod.zone", "private", pod(root="overlays/public", group="public")),
    ("fabric-pods", "pod.zone", "stretched", pod(root="overlays/stretched", group="public")),
    ("fabric-pods", "pod.node", "private", pod_with(["spec", "nodeSelector", "zonefabric.io/zone"], "public")),
    ("fabric-pods", "pod.node", "private", pod_with(["spec", "nodeSelector"])),
    ("fabric-pods", "pod.digest", "private", container_with(["image"], "registry.example/zonefabric:latest")),
    (
        "fabric-pods",
        "pod.digest",
        "private",
        pod_with(["spec", "initContainers"], [{**pod()["spec"]["containers"][0], "name": "init", "image": "busybox"}]),
    ),
    (
        "fabric-pods",
        "pod.host_path",
        "private",
        pod_with(["spec", "volumes", "+"], {"name": "h", "hostPath": {"path": "/"}}),
    ),
    ("fabric-pods", "pod.host", "private", pod(hostNetwork=True)),
    ("fabric-pods", "pod.host", "private", pod(hostPID=True)),
    ("fabric-pods", "pod.root", "private", pod_with(["spec", "securityContext", "runAsNonRoot"])),
    ("fabric-pods", "pod.root", "private", container_with(["securityContext", "runAsUser"], 0)),
    ("fabric-pods", "pod.privileges", "private", container_with(["securityContext", "privileged"], True)),
    (
        "fabric-pods",
        "pod.privileges",
        "private",
        container_with(["securityContext", "capabilities"], {"drop": ["KILL"]}),
    ),
    (
        "fabric-pods",
        "pod.privileges",
        "private",
        container_with(["securityContext", "capabilities", "add"], ["SYS_ADMIN"]),
    ),
    ("fabric-pods", "pod.read_only", "private", container_with(["securityContext", "readOnlyRootFilesystem"], False)),
    (
        "fabric-pods",
        "pod.seccomp",
        "private",
        pod_with(["spec", "securityContext", "seccompProfile"], {"type": "Unconfined"}),
    ),
    (
        "fabric-pods",
        "pod.seccomp",
        "private",
        container_with(["securityContext", "seccompProfile"], {"type": "Unconfined"}),
    ),
    ("fabric-pods", "pod.limits", "private", container_with(["resources", "limits"], {"cpu": "1"})),
    (
        "fabric-pods",
        "pod.environment",
        "private",
        container_with(["env", "+"], {"name": "RAY_AUTH_MODE", "value": "disabled"}),
    ),
    (
        "fabric-pods",
        "pod.environment",
        "private",
        container_with(["env", "+"], {"name": "RAY_AUTH_TOKEN", "value": "abc"}),
    ),
    ("fabric-pods", "pod.token", "private", pod_with(["spec", "automountServiceAccountToken"])),
    (
        "fabric-pods",
        "pod.token",
        "private",
        pod_with(
            ["spec", "volumes", "+"],
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ),
    ),
]
NEEDED_TOGETHER = {
    "run.public": "in a fabric of a private and a public zone no other kind is declared",
    "labels.export_inside": "without it, export control of another jurisdiction would run inside",
    "cluster.home": "a namespace of an unknown zone fails the other rules too",
    "cluster.head": "a head elsewhere lacks the zone's label too",
}


def _values(thing):
    return [*thing["spec"].get("metadata", {}).values(), *(thing["metadata"].get("annotations") or {}).values()]


@pytest.mark.parametrize(
    ("gate", "rule", "namespace", "thing"), BAD, ids=[f"{g}-{r}-{i}" for i, (g, r, *_) in enumerate(BAD)]
)
def test_each_bad_manifest_is_refused_by_its_rule_and_would_be_let_in_without_it(gate, rule, namespace, thing):
    said = refusals(POLICIES[gate], thing, NAMESPACES[namespace])
    assert any(f"[{rule}]" in message for message in said), said
    # What has no shape at all, several rules refuse. Otherwise the rule stands alone: taking it away lets this in.
    if rule not in ("cluster.shape", "pod.shape") and 7 not in _values(thing):
        assert refusals(POLICIES[gate], thing, NAMESPACES[namespace], without=f"[{rule}]") == []


def test_no_validation_is_idle():
    named = {(gate, rule) for gate, rule, _, _ in BAD}
    for gate, policy in POLICIES.items():
        for each in policy["spec"]["validations"]:
            rule = each["message"].split("[")[1].split("]")[0]
            assert (gate, rule) in named or rule in NEEDED_TOGETHER, (gate, rule)


def test_work_for_an_edge_zone_or_under_another_jurisdiction_is_refused():
    found = built(gpu_files())
    policies = {d["metadata"]["name"].split(".")[0]: d for d in found["admission"] if d["kind"].endswith("Policy")}
    clinic = next(d for d in found["overlays/clinic"] if d["kind"] == "Namespace")
    good = job(
        entrypointResources='{"zone_clinic": 0.001}',
        metadata={
            "allowed_execution_zone": "clinic,ward",
            "burst_eligible": "true",
            "purpose": "p",
            "residency": "DE",
            "export_control": "none",
            "workload_class": "training",
        },
    )
    edge = changed(good, ["metadata", "labels", "zonefabric.io/zone"], "ward")
    inside = changed(good, ["metadata", "labels", "zonefabric.io/zone"], "clinic")
    assert refusals(policies["fabric-jobs"], inside, clinic) == []
    assert [m.split("]")[0] for m in refusals(policies["fabric-jobs"], edge, clinic)] == ["POLICY_DENIED [run.public"]
    assert refusals(policies["fabric-jobs"], edge, clinic, without="[run.public]") == []
    itar = changed(inside, ["spec", "metadata", "export_control"], "ITAR")
    assert "[labels.export_inside]" in refusals(policies["fabric-jobs"], itar, clinic)[0]
    assert refusals(policies["fabric-jobs"], itar, clinic, without="[labels.export_inside]") == []


def test_a_cluster_of_an_undeclared_zone_or_with_its_head_elsewhere_is_refused():
    mars = changed(NAMESPACES["public"], ["metadata", "labels", "zonefabric.io/zone"], "mars")
    assert any("UNKNOWN_ZONE [cluster.home]" in m for m in refusals(POLICIES["fabric-clusters"], CLUSTER, mars))
    moved = changed(STRETCHED, [*HEAD, "labels", "zone"], "public")
    moved["spec"]["headGroupSpec"] |= {
        "resources": {"CPU": "0", "memory": "1", "zone_public": "1"},
        "template": copy(CLUSTER["spec"]["headGroupSpec"]["template"]),
    }
    said = refusals(POLICIES["fabric-clusters"], moved, NAMESPACES["stretched"])
    assert [m.split(" ")[0] for m in said] == ["DRIVER_OUTSIDE"]
    assert refusals(POLICIES["fabric-clusters"], moved, NAMESPACES["stretched"], without="[cluster.head]") == []


def test_restricted_work_does_not_enter_the_public_namespace_whatever_its_author_wrote():
    everything = outside(data_classification="restricted", allowed_execution_zone="public,private")
    assert refusals(POLICIES["fabric-work"], everything, NAMESPACES["public"])
    assert refusals(POLICIES["fabric-jobs"], job(), NAMESPACES["public"])
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}
    assert len(refusals(POLICIES["fabric-work"], bare, NAMESPACES["public"])) > 4
    # An owner reference, which anybody can write, changes nothing; only who asks does.
    owned = {
        **bare,
        "metadata": {"name": "p", "ownerReferences": [{"kind": "RayCluster", "name": "fabric", "controller": True}]},
    }
    assert refusals(POLICIES["fabric-work"], owned, NAMESPACES["public"])
    assert refusals(POLICIES["fabric-work"], owned, NAMESPACES["public"], user=OPERATOR) == []


def test_what_we_render_is_admitted():
    for each in BUILT["jobs"]:
        assert refusals(POLICIES["fabric-jobs"], each, NAMESPACES["private"]) == []
    assert refusals(POLICIES["fabric-work"], outside(), NAMESPACES["public"]) == []
    for name in ("private", "public", "stretched"):
        for document in BUILT[f"overlays/{name}"]:
            if document["kind"] == "RayCluster":
                assert refusals(POLICIES["fabric-clusters"], document, NAMESPACES[name]) == []
            for _, template in pods_of(document):
                made = {"apiVersion": "v1", "kind": "Pod", **template}
                assert refusals(POLICIES["fabric-pods"], made, NAMESPACES[name], user=OPERATOR) == []


def test_every_message_begins_with_a_reason_token_of_ours_and_every_policy_fails_closed_and_audits():
    for policy in POLICIES.values():
        spec = policy["spec"]
        assert spec["failurePolicy"] == "Fail"
        assert spec["auditAnnotations"]
        assert ".shape]" in spec["validations"][0]["message"]
        for each in spec["validations"]:
            Reason(each["message"].split(" ")[0])
            assert "\n" not in each["message"]
        for condition in spec.get("matchConditions", []):
            assert "variables" not in condition["expression"]
            assert "namespaceObject" not in condition["expression"]
    for binding in BINDINGS.values():
        assert binding["spec"]["validationActions"] == ["Deny", "Audit"]


def test_the_gates_are_bound_to_every_namespace_of_the_fabric_and_no_other():
    for name, namespace in NAMESPACES.items():
        expected = {"fabric-jobs", "fabric-clusters", "fabric-pods"} | (
            {"fabric-work"} if name in ("public", "edge") else set()
        )
        assert {gate for gate, binding in BINDINGS.items() if selects(binding, namespace)} == expected
    assert not [b for b in BINDINGS.values() if selects(b, {"metadata": {"labels": {"team": "other"}}})]
    unknown = {"metadata": {"labels": {"zonefabric.io/zone": "mars"}}}
    assert all(selects(binding, unknown) for binding in BINDINGS.values())


# The same answer as Cedar, on the closed vocabulary.

CEDAR = Policy.default()
SOME = st.sampled_from
LABELS = st.fixed_dictionaries(
    {},
    optional={
        "data_classification": SOME([c.value for c in Classification]),
        "allowed_execution_zone": SOME(["private", "public", "private,public", "public,private", ""]),
        "burst_eligible": SOME(["true", "false"]),
        "purpose": SOME(["cost-forecast", "other"]),
        "residency": SOME(["", "EU", "DE", "US,EU", "EU,US-CA"]),
        "export_control": SOME([e.value for e in ExportControl]),
        "contract": SOME(["c-1"]),
        "contract_limits": st.lists(SOME([c.value for c in ContractLimit]), unique=True).map(",".join),
        "workload_class": SOME([w.value for w in WorkloadClass]),
        "retention_class": SOME(["job", "hold"]),
        "team": SOME(["t"]),
    },
)
GOOD = dict(BUILT["jobs"][1]["spec"]["metadata"])


def cedar_permits(raw, target, *, justified, reads):
    try:
        labels = Labels.parse(raw)
    except FabricError:
        return False
    common = {"person": "p", "labels": labels, "purpose": labels.purpose, "justification": "why" if justified else ""}
    asked = [
        ActRequest(
            action=Action.SUBMIT,
            zone=ZONES["private"],
            roles=frozenset(),
            own=True,
            verified=False,
            approved=False,
            **common,
        ),
        *(
            RunRequest(zone=ZONES[zone], reads_records=reads and zone == target, **common)
            for zone in {"private", target}
        ),
    ]
    return all(decision.permit for decision in CEDAR.decide_all(asked))


def admitted(raw, target, *, justified, reads):
    annotations = {"zonefabric.io/justified": str(justified).lower(), "zonefabric.io/reads-records": str(reads).lower()}
    thing = job(metadata=raw, metadata_of={"labels": {"zonefabric.io/zone": target}, "annotations": annotations})
    return refusals(POLICIES["fabric-jobs"], thing, NAMESPACES["private"]) == []


@settings(max_examples=400, deadline=None)
@given(
    changes=LABELS,
    dropped=st.sets(SOME(sorted(GOOD)), max_size=2),
    target=SOME(["private", "public"]),
    justified=st.booleans(),
    reads=st.booleans(),
)
def test_admission_and_cedar_give_one_answer_on_the_closed_vocabulary(changes, dropped, target, justified, reads):
    raw = {k: v for k, v in {**GOOD, **changes}.items() if k not in dropped}
    asked = {"justified": justified, "reads": reads}
    assert admitted(raw, target, **asked) == cedar_permits(raw, target, **asked)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(SOME([*Labels.__dataclass_fields__, "zone", "label"]), st.text(max_size=12), max_size=4),
    st.booleans(),
)
def test_admission_never_admits_labels_that_the_fabric_itself_would_refuse(changes, burst):
    raw, target = {**GOOD, **changes}, "public" if burst else "private"
    if admitted(raw, target, justified=True, reads=False):
        assert cedar_permits(raw, target, justified=True, reads=False)


ROWS = [
    ("nothing", {}, {}),
    ("labels.zone", {"allowed_execution_zone": "private"}, {}),
    ("labels.burst", {"burst_eligible": "false"}, {}),
    ("labels.purpose", {"purpose": None}, {}),
    ("labels.residency", {"residency": "US"}, {}),
    ("labels.export", {"export_control": "controlled"}, {}),
    ("labels.export", {"export_control": "UK-STRATEGIC"}, {}),
    ("contract.public", {"contract_limits": "no-public-zone"}, {}),
    ("contract", {"contract": "c-1"}, {}),
    ("contract.fine_tuning", {"contract_limits": "no-fine-tuning", "workload_class": "fine-tuning"}, {}),
    ("contract.fine_tuning", {"contract_limits": "no-fine-tuning", "workload_class": None}, {}),
    ("public.justified", {}, {"justified": False}),
    ("run.raw_stays", {}, {"reads": True}),
]


@pytest.mark.parametrize(("rule", "labels", "facts"), ROWS)
def test_each_condition_alone_turns_the_answer_in_cedar_and_in_admission(rule, labels, facts):
    raw = {k: v for k, v in {**GOOD, **labels}.items() if v is not None}
    asked = {"justified": True, "reads": False, **facts}
    expected = rule == "nothing"
    assert cedar_permits(raw, "public", **asked) is expected
    assert admitted(raw, "public", **asked) is expected


def test_every_classification_and_every_workload_gets_the_same_answer_in_both():
    for classification, workload, target in itertools.product(Classification, WorkloadClass, ["private", "public"]):
        raw = {**GOOD, "data_classification": classification.value, "workload_class": workload.value}
        asked = {"justified": True, "reads": False}
        assert admitted(raw, target, **asked) == cedar_permits(raw, target, **asked) is True
