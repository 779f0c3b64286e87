"""Drift: every weakening of manifests, rendered, built or live, is named with its field and a fix; nothing else is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from admission_cel import copy
from manifest_files import built, starter_config, starter_files

from fabric.drift import compare
from fabric.errors import InvalidInput, Reason
from fabric.kustomize import build, parse_documents

BUILT = built(starter_files())
PRIVATE, PUBLIC, ADMISSION = BUILT["overlays/private"], BUILT["overlays/public"], BUILT["admission"]
HEAD = "spec.headGroupSpec.template.spec"


def at(document, path):
    here = document
    for part in path:
        here = here[part]
    return here


def drifts_of(documents, change):
    there = copy(documents)
    change({(d["kind"], d["metadata"]["name"]): d for d in there}, there)
    return compare(documents, there)


def test_what_is_the_same_has_not_drifted_in_any_order():
    for documents in BUILT.values():
        assert compare(documents, list(reversed(copy(documents)))) == ()


CLUSTER, POLICY = ("RayCluster", "fabric"), ("NetworkPolicy", "flow-border-in-in")
POD = lambda all_: all_[CLUSTER]["spec"]["headGroupSpec"]["template"]["spec"]  # noqa: E731
CONTAINER = lambda all_: POD(all_)["containers"][0]  # noqa: E731
JOBS = ("ValidatingAdmissionPolicy", "fabric-jobs.zonefabric.io")
BINDING = ("ValidatingAdmissionPolicyBinding", "fabric-jobs.zonefabric.io")

CASES = [
    # what is done to it, and the path that must be named
    (
        PRIVATE,
        lambda a, _: a[CLUSTER]["spec"]["headGroupSpec"]["labels"].update(zone="privat"),
        "spec.headGroupSpec.labels.zone",
    ),
    (
        PRIVATE,
        lambda a, _: a["Namespace", "fabric-private"]["metadata"]["labels"].update({"zonefabric.io/zone": "public"}),
        "metadata.labels.zonefabric.io/zone",
    ),
    (
        PRIVATE,
        lambda a, _: a[CLUSTER]["spec"]["workerGroupSpecs"][0]["resources"].update(zone_public="1"),
        "spec.workerGroupSpecs[private].resources.zone_public",
    ),
    (
        PUBLIC,
        lambda a, _: a[CLUSTER]["spec"]["workerGroupSpecs"][0]["resources"].update(CPU="8"),
        "spec.workerGroupSpecs[public].resources.CPU",
    ),
    (
        PUBLIC,
        lambda a, _: a[CLUSTER]["spec"]["workerGroupSpecs"][0].update(maxReplicas=400),
        "spec.workerGroupSpecs[public].maxReplicas",
    ),
    (
        PUBLIC,
        lambda a, _: a[CLUSTER]["spec"]["workerGroupSpecs"].append({"groupName": "more"}),
        "spec.workerGroupSpecs[more]",
    ),
    (PRIVATE, lambda a, d: d.remove(a[POLICY]), ""),
    # What tells a tool to leave the object alone, and the garbage collector to take it away.
    (
        PRIVATE,
        lambda a, _: a["NetworkPolicy", "deny-all"]["metadata"]["annotations"].update(
            {"argocd.argoproj.io/hook": "Skip"}
        ),
        "metadata.annotations.argocd.argoproj.io/hook",
    ),
    (
        PRIVATE,
        lambda a, _: a["NetworkPolicy", "deny-all"]["metadata"]["annotations"].update(
            {"kustomize.toolkit.fluxcd.io/reconcile": "disabled"}
        ),
        "metadata.annotations.kustomize.toolkit.fluxcd.io/reconcile",
    ),
    (
        PRIVATE,
        lambda a, _: a["NetworkPolicy", "deny-all"]["metadata"].update(ownerReferences=[{"kind": "Pod", "uid": "u"}]),
        "metadata.ownerReferences",
    ),
    (PRIVATE, lambda a, d: d.remove(a["NetworkPolicy", "deny-all"]), ""),
    (PRIVATE, lambda a, _: a[POLICY]["spec"]["ingress"].append({}), "spec.ingress"),
    (PRIVATE, lambda a, _: a[POLICY]["spec"]["ingress"][0].update({"from": []}), "spec.ingress[0].from"),
    (
        PRIVATE,
        lambda a, _: a[POLICY]["spec"]["ingress"][0]["ports"][0].update(endPort=65535),
        "spec.ingress[0].ports[0].endPort",
    ),
    (
        PRIVATE,
        lambda a, d: d.append(
            {**copy(a[POLICY]), "metadata": {"name": "mine", "namespace": "fabric-private", "ownerReferences": [{}]}}
        ),
        "",
    ),
    (
        PRIVATE,
        lambda a, _: POD(a)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        f"{HEAD}.volumes[host]",
    ),
    (PRIVATE, lambda a, _: POD(a)["volumes"][0].update(hostPath={"path": "/"}), f"{HEAD}.volumes[tmp].hostPath"),
    (PRIVATE, lambda a, _: POD(a).update(hostNetwork=True), f"{HEAD}.hostNetwork"),
    (PRIVATE, lambda a, _: POD(a).update(automountServiceAccountToken=True), f"{HEAD}.automountServiceAccountToken"),
    (PRIVATE, lambda a, _: POD(a)["securityContext"].pop("seccompProfile"), f"{HEAD}.securityContext.seccompProfile"),
    (
        PRIVATE,
        lambda a, _: CONTAINER(a)["securityContext"].update(readOnlyRootFilesystem=False),
        f"{HEAD}.containers[ray-head].securityContext.readOnlyRootFilesystem",
    ),
    (
        PRIVATE,
        lambda a, _: CONTAINER(a)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
        f"{HEAD}.containers[ray-head].securityContext.capabilities.add",
    ),
    (
        PRIVATE,
        lambda a, _: CONTAINER(a).update(image="registry.example/zonefabric:latest"),
        f"{HEAD}.containers[ray-head].image",
    ),
    (
        PRIVATE,
        lambda a, _: CONTAINER(a)["env"].append({"name": "RAY_AUTH_MODE", "value": "disabled"}),
        f"{HEAD}.containers[ray-head].env[RAY_AUTH_MODE]",
    ),
    (
        PRIVATE,
        lambda a, _: POD(a)["containers"].append({"name": "sidecar", "image": "x"}),
        f"{HEAD}.containers[sidecar]",
    ),
    (PRIVATE, lambda a, _: a[CLUSTER]["spec"].update(networkPolicy={"mode": "DenyAll"}), "spec.networkPolicy"),
    (PRIVATE, lambda a, _: a[CLUSTER]["spec"]["authOptions"].update(mode="disabled"), "spec.authOptions.mode"),
    (PRIVATE, lambda a, _: a[CLUSTER]["spec"].pop("tlsOptions"), "spec.tlsOptions"),
    (
        PRIVATE,
        lambda a, _: a[CLUSTER]["metadata"].update(annotations={"ray.io/overwrite-container-cmd": "true"}),
        "metadata.annotations",
    ),
    (
        PRIVATE,
        lambda a, _: a["Service", "fabric-border"]["spec"].update(loadBalancerSourceRanges=["0.0.0.0/0"]),
        "spec.loadBalancerSourceRanges[0]",
    ),
    (
        PRIVATE,
        lambda a, d: d.append(
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x", "namespace": "fabric-private"}}
        ),
        "",
    ),
    (ADMISSION, lambda a, d: d.remove(a[JOBS]), ""),
    (ADMISSION, lambda a, _: a[JOBS]["spec"].update(failurePolicy="Ignore"), "spec.failurePolicy"),
    (ADMISSION, lambda a, _: a[JOBS]["spec"]["validations"].pop(), "spec.validations"),
    (
        ADMISSION,
        lambda a, _: a[JOBS]["spec"]["validations"][3].update(expression="true"),
        "spec.validations[3].expression",
    ),
    (
        ADMISSION,
        lambda a, _: a[JOBS]["spec"].update(matchConditions=[{"name": "x", "expression": "false"}]),
        "spec.matchConditions",
    ),
    (
        ADMISSION,
        lambda a, _: a[JOBS]["spec"]["matchConstraints"].update(excludeResourceRules=[{"resources": ["*"]}]),
        "spec.matchConstraints.excludeResourceRules",
    ),
    (
        ADMISSION,
        lambda a, _: a[JOBS]["spec"]["matchConstraints"].update(objectSelector={"matchLabels": {"x": "y"}}),
        "spec.matchConstraints.objectSelector",
    ),
    (ADMISSION, lambda a, _: a[BINDING]["spec"].update(validationActions=["Warn"]), "spec.validationActions"),
    (
        ADMISSION,
        lambda a, _: a[BINDING]["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"].append(
            {"key": "x", "operator": "Exists"}
        ),
        "spec.matchResources.namespaceSelector.matchExpressions[x]",
    ),
]


@pytest.mark.parametrize(("documents", "change", "path"), CASES, ids=range(len(CASES)))
def test_each_weakening_is_named_with_its_field_and_a_fix(documents, change, path):
    found = drifts_of(documents, change)
    assert [each.path for each in found] == [path]
    assert found[0].fix
    assert found[0].to_json()["code"] == Reason.MANIFEST_DRIFT.value


def test_what_only_claims_to_belong_to_a_controller_is_named():
    owner = {"ownerReferences": [{"kind": "RayCluster", "name": "fabric"}]}
    where = {"namespace": "fabric-private", "name": "x"}
    for kind, meta, spec, ours in (
        ("Service", owner, {"type": "LoadBalancer"}, False),
        ("Service", owner, {"type": "ClusterIP"}, True),
        ("RoleBinding", {}, {}, False),
        ("RoleBinding", owner, {}, True),
        ("ReplicaSet", {}, {}, False),
        ("DaemonSet", owner, {}, False),
    ):
        found = compare(PRIVATE, [*PRIVATE, {"kind": kind, "metadata": {**where, **meta}, "spec": spec}])
        assert (found == ()) is ours, kind


def test_a_network_policy_that_lets_in_every_namespace_is_no_default():
    def widen(all_, _):
        all_["NetworkPolicy", "flow-private-ray-in"]["spec"]["ingress"][0]["from"][0]["namespaceSelector"] = {}

    assert [each.path for each in drifts_of(PRIVATE, widen)] == ["spec.ingress[0].from[0].namespaceSelector"]


def test_what_is_found_is_never_shown_because_it_may_be_anything():
    found = drifts_of(PRIVATE, lambda a, _: CONTAINER(a)["env"].append({"name": "TOKEN", "value": "s3cret-value"}))
    found += drifts_of(PRIVATE, lambda a, _: CONTAINER(a).update(image="s3cret-value"))
    assert found
    assert "s3cret-value" not in "".join(map(str, found)) + json.dumps([each.to_json() for each in found])


def live(documents):
    """Return documents as a live cluster exports them: with what the API server and controllers add."""
    there = copy(documents)
    for each in there:
        each["metadata"] |= {
            "uid": "u",
            "resourceVersion": "1",
            "generation": 2,
            "creationTimestamp": "t",
            "managedFields": [],
        }
        each["metadata"].setdefault("annotations", {})["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
        each["metadata"]["annotations"]["argocd.argoproj.io/tracking-id"] = "x"
        if each["kind"] == "PersistentVolumeClaim":
            each["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-provisioner"] = "x"
        if each["kind"] in ("RayCluster", "Deployment", "Service", "Namespace"):
            each["status"] = {"phase": "x"}
        if each["kind"] == "Namespace":
            each["metadata"]["labels"]["kubernetes.io/metadata.name"] = each["metadata"]["name"]
            each["spec"] = {"finalizers": ["kubernetes"]}
        if each["kind"] == "RayCluster":
            each["spec"]["workerGroupSpecs"][0] |= {
                "replicas": 3,
                "numOfHosts": 1,
                "scaleStrategy": {"workersToDelete": []},
            }
        if each["kind"] == "Service":
            each["spec"] |= {
                "clusterIP": "10.0.0.9",
                "clusterIPs": ["10.0.0.9"],
                "sessionAffinity": "None",
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": True,
                "healthCheckNodePort": 31000,
            }
            each["spec"]["ports"][0]["nodePort"] = 30815
        if each["kind"] == "Deployment":
            each["spec"] |= {"progressDeadlineSeconds": 600, "revisionHistoryLimit": 10}
            pod = each["spec"]["template"]["spec"]
            pod |= {
                "dnsPolicy": "ClusterFirst",
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
                "serviceAccount": "fabric-border",
            }
            pod["containers"][0] |= {
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }
            pod["containers"][0]["livenessProbe"]["successThreshold"] = 1
        if each["kind"] == "ValidatingAdmissionPolicy":
            each["spec"]["matchConstraints"] |= {"namespaceSelector": {}, "objectSelector": {}}
            for rule in each["spec"]["matchConstraints"]["resourceRules"]:
                rule["scope"] = "*"
    return there


def test_what_kubernetes_adds_itself_is_no_drift():
    for root in ("overlays/private", "overlays/public", "overlays/stretched", "overlays/edge", "admission"):
        assert compare(BUILT[root], live(BUILT[root])) == ()


def test_a_running_pod_with_a_host_path_a_tag_or_privileges_is_named():
    pod = {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "fabric-private", "ownerReferences": [{}]},
        "spec": {
            "hostPID": True,
            "volumes": [{"name": "h", "hostPath": {"path": "/"}}],
            "containers": [{"name": "c", "image": "x:1", "securityContext": {"privileged": True}}],
        },
    }
    found = compare(PRIVATE, [*PRIVATE, pod])
    assert {each.path for each in found} == {
        "spec.hostPID",
        "spec.volumes[h].hostPath",
        "spec.containers[c].image",
        "spec.containers[c].securityContext.privileged",
    }


def test_a_running_pod_that_nobody_owns_or_of_another_image_is_named():
    image = CONTAINER({CLUSTER: {(d["kind"], d["metadata"]["name"]): d for d in PRIVATE}[CLUSTER]})["image"]
    where, owner = {"name": "p", "namespace": "fabric-private"}, {"ownerReferences": [{}]}
    ours = {"kind": "Pod", "metadata": {**where, **owner}, "spec": {"containers": [{"name": "c", "image": image}]}}
    assert compare(PRIVATE, [*PRIVATE, ours]) == ()
    assert [d.what for d in compare(PRIVATE, [*PRIVATE, {**ours, "metadata": where}])] == ["is not declared"]
    other = {"containers": [{"name": "c", "image": "mine@sha256:" + "0" * 64}]}
    assert [d.path for d in compare(PRIVATE, [*PRIVATE, {**ours, "spec": other}])] == ["spec.containers[c].image"]


@pytest.mark.parametrize("kind", ["Pod", "ConfigMap", "RayJob", "Workload", "Secret", "ClusterRoleBinding"])
def test_in_a_folder_nothing_is_a_controllers_so_whatever_is_beside_is_named(kind):
    beside = {"kind": kind, "metadata": {"name": "x", "namespace": "fabric-private", "ownerReferences": [{}]}}
    assert [d.what for d in compare(PRIVATE, [*PRIVATE, beside], live=False)] == ["is not declared"]


@pytest.mark.parametrize("wrong", [1, "x", [1], {"a": 1}, None, [None], [{}], {1: 2}])
def test_an_object_of_any_shape_is_compared_and_none_is_a_defect(wrong):
    for kind in ("Pod", "Service", "Namespace", "NetworkPolicy", "RayCluster", "Secret"):
        name = {"Namespace": "fabric-private", "RayCluster": "fabric"}.get(kind, "x")
        meta = {"name": name} if kind == "Namespace" else {"name": name, "namespace": "fabric-private"}
        for more in (
            {"spec": wrong}, {"spec": {"volumes": wrong, "containers": wrong, "type": wrong}},
            {"metadata": {**meta, "annotations": wrong, "labels": wrong, "ownerReferences": wrong}},
            {"metadata": {**meta, "annotations": {7: wrong}, "labels": {7: wrong}}, 7: wrong},
        ):  # fmt: skip
            there = [d for d in PRIVATE if (d["kind"], d["metadata"]["name"]) != (kind, name)]
            compare(PRIVATE, [*there, {"kind": kind, "metadata": meta, **more}])


def test_a_secret_in_manifests_or_an_export_is_named_without_what_it_holds():
    secret = {"kind": "Secret", "metadata": {"name": "s", "namespace": "fabric-private"}, "data": {"k": "aGVsbG8="}}
    (found,) = compare(PRIVATE, [*PRIVATE, secret])
    assert (found.thing, found.path) == ("Secret fabric-private/s", "data")
    assert "aGVsbG8=" not in str(found)


# The builder.


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a/kustomization.yaml": "resources: [x.yaml]\nhelmCharts: []"}, "helmCharts"),
        ({"a/kustomization.yaml": "resources: [x.yaml]"}, "there is no a/x.yaml"),
        ({"a/kustomization.yaml": "resources: [../a]"}, "includes itself"),
        ({"a/kustomization.yaml": "resources: [x.yaml]", "a/x.yaml": "a: &a [1]\nb: *a"}, "not YAML"),
        ({"a/kustomization.yaml": "resources: [x.yaml]", "a/x.yaml": "- 1"}, "no Kubernetes object"),
        ({"a/kustomization.yaml": "resources: [x.yaml]", "a/x.yaml": "kind: A\nkind: B"}, "not YAML"),
        ({"a/kustomization.yaml": "resources: [x.yaml]", "a/x.yaml": "kind: PodList\nitems: 5"}, "lists nothing"),
        ({"a/kustomization.yaml": "resources: 5"}, "a list or a name of another kind"),
        ({"a/kustomization.yaml": "resources: [{s3cret: 1}]"}, "a/kustomization.yaml lists something"),
        # kustomize would leave these patches out, or follow what we do not see.
        (
            {"a/kustomization.yaml": "patches: [{path: p, target: {kind: X, name: y, labelSelector: a=b}}]"},
            "a patch of another form",
        ),
        ({"a/kustomization.yaml": "patches: [{path: p}]"}, "a patch of another form"),
        ({"a/kustomization.yaml": "patches: [{patch: p, target: {kind: X, name: y}}]"}, "a patch of another form"),
        (
            {"a/kustomization.yaml": "components: [c]", "a/c/kustomization.yaml": "components: [../d]"},
            "uses components",
        ),
        ({"a/kustomization.yaml": "components: [c]", "a/c/kustomization.yaml": "namespace: x"}, "uses namespace"),
        *(
            (
                {
                    "a/kustomization.yaml": "resources: [x]\npatches: [{path: p, target: {kind: X, name: y}}]",
                    "a/x": "kind: X\nmetadata: {name: y}",
                    "a/p": patch,
                },
                says,
            )
            for patch, says in (
                ("kind: X", "no JSON Patch"),
                ("- {op: add, value: 1}", "without its path or value"),
                ("- {op: add, path: /a}", "without its path or value"),
                ("- {op: add, path: a, value: 1}", "without its path or value"),
                ("- {op: remove, path: /kind}", "not known here"),
                ("- 7", "not known here"),
            )
        ),
        ({"a/kustomization.yaml": "resources: [x.yaml]", "a/x.yaml": "{" * 5000}, "not YAML"),
        (
            {"a/kustomization.yaml": "patches: [{path: p, target: {kind: X, name: y}}]", "a/p": "[]"},
            "of which there are 0",
        ),
    ],
)
def test_a_folder_that_is_not_ours_to_build_is_refused(files, says):
    with pytest.raises(InvalidInput, match=says):
        build(files, "a")


def test_a_list_is_what_it_lists():
    listed = {"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "p"}}]}
    assert parse_documents(yaml.dump(listed), "x") == listed["items"]
    nested = {"apiVersion": "v1", "kind": "List", "items": [listed, {"kind": "RayJobList", "items": None}]}
    assert parse_documents(yaml.dump(nested), "x") == listed["items"]


# The commands.


def fabric(folder, *words):
    done = subprocess.run([Path(sys.executable).parent / "fabric", *words], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    starter_config(folder)
    status, out, _ = fabric(folder, "clusters", "render", "--json")
    assert status == 0
    assert len(json.loads(out)["files"]) == len(starter_files())
    return folder


def test_check_names_a_weakened_component_and_a_folder_that_no_zone_is_of(rendered):
    component = rendered / "clusters" / "components" / "kueue" / "public" / "raycluster-patch.yaml"
    stale, before = rendered / "clusters" / "overlays" / "gone", component.read_text()
    try:
        component.write_text(before + "- {op: add, path: /spec/headGroupSpec/template/spec/hostNetwork, value: true}\n")
        shutil.copytree(rendered / "clusters" / "overlays" / "public", stale)
        status, out, _ = fabric(rendered, "clusters", "check", "clusters", "--json")
    finally:
        component.write_text(before)
        shutil.rmtree(stale)
    assert status == 3
    assert [each["object"] for each in json.loads(out)["drift"]] == [
        "components/kueue/public/raycluster-patch.yaml",
        "overlays/gone",
    ]


def test_check_holds_what_was_rendered_and_names_a_changed_zone_and_a_missing_policy(rendered, tmp_path):
    status, out, _ = fabric(rendered, "clusters", "check", "clusters")
    assert (status, out.splitlines()[-1]) == (0, "Nothing has drifted.")
    patch = rendered / "clusters" / "overlays" / "public" / "raycluster-patch.yaml"
    policies = rendered / "clusters" / "overlays" / "private" / "network-policies.yaml"
    before = patch.read_text(), policies.read_text()
    try:
        patch.write_text(before[0].replace("    zone: public\n", "    zone: pubic\n"))
        policies.write_text("---\n".join(before[1].split("---\n")[1:]))
        status, out, _ = fabric(rendered, "clusters", "check", "clusters", "--json")
    finally:
        patch.write_text(before[0])
        policies.write_text(before[1])
    assert status == 3
    found = json.loads(out)["drift"]
    assert {each["code"] for each in found} == {"MANIFEST_DRIFT"}
    assert any(each["object"].startswith("NetworkPolicy fabric-private/flow-jobs-out") for each in found)
    assert any(each["path"].endswith("labels.zone") for each in found)


def test_check_holds_an_export_of_a_live_zone_and_says_what_is_missing_in_it(rendered):
    export = rendered / "export.yaml"
    export.write_text(yaml.dump({"kind": "List", "items": live([*ADMISSION, *PRIVATE])}))
    assert fabric(rendered, "clusters", "check", "export.yaml")[0] == 0
    export.write_text(yaml.dump_all(live(PRIVATE)))  # without the admission policies, which it needs
    status, out, _ = fabric(rendered, "clusters", "check", "export.yaml")
    assert status == 3
    assert "ValidatingAdmissionPolicy fabric-work.zonefabric.io: is missing" in out


@pytest.mark.parametrize(
    ("words", "token"),
    [
        (("clusters", "check", "nowhere"), "CONFIG_MISSING"),
        (("clusters", "check", "fabric.toml"), "CONFIG_INVALID"),
        (("clusters", "check", "clusters", "--zone", "pubic"), "UNKNOWN_ZONE"),
        (("clusters", "render", "--zone", "privat"), "UNKNOWN_ZONE"),
        (("clusters", "render", "--out", "fabric.toml"), "FILE_EXISTS"),
    ],
)
def test_the_commands_refuse_with_a_token_and_the_nearest_right_name(rendered, words, token):
    status, _, err = fabric(rendered, *words)
    assert status == 2
    assert f"Code: {token}" in err


def test_one_zone_can_be_rendered_and_checked_alone(rendered, tmp_path):
    status, _, _ = fabric(rendered, "clusters", "render", "--zone", "public", "--out", str(tmp_path / "one"))
    assert status == 0
    assert {p.name for p in (tmp_path / "one" / "overlays").iterdir()} == {"public"}
    assert fabric(rendered, "clusters", "check", str(tmp_path / "one"), "--zone", "public")[0] == 0
