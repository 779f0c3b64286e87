"""Manifests: valid by the official schemas and their rules, safe by the usual lints, the same every time, no secret."""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from importlib.resources import files as package_files
from pathlib import Path

import jsonschema
import pytest
import yaml
from admission_cel import copy, evaluate
from manifest_files import GPUS, built, config_of, gpu_files, pods_of, starter_config, starter_files

from fabric import flows, manifests
from fabric.errors import InvalidInput, Reason
from fabric.kustomize import build, parse_documents
from fabric.manifests import render, roots

ROOT = Path(__file__).parent.parent
CRDS = ROOT.parent / "shared" / "schemas" / "kuberay-1.7.0"
KUBERNETES = ("1.32", "1.37")
RENDERINGS = {"starter": starter_files, "gpus": gpu_files}


def documents(rendering):
    return [(root, d) for root, found in built(RENDERINGS[rendering]()).items() for d in found]


ALL = [pytest.param(name, id=name) for name in RENDERINGS]


# What is wrong is refused.


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("@sha256:" + "a" * 64, ":latest", "by digest"),
        ("@sha256:" + "a" * 64, "@sha256:" + "a" * 63, "by digest"),
        ("@sha256:" + "b" * 64, ":1.0", "border_image"),
        ("[clusters]", '[clusters]\nredis = "rediss://user:secret@redis:6379"', "no address"),
        ("[clusters]", "[clusters]\ncpus = 0", "clusters.cpus"),
        ("[clusters]", '[clusters.addresses]\nwitnes = "10.0.0.1/32"\n[clusters]', "did you mean 'witness'"),
        ("[clusters]", '[clusters.addresses]\nwitness = "10.0.0.1/8"\n[clusters]', "no network"),
        ("[clusters]", '[clusters.addresses]\nwitness = "0.0.0.0/0"\n[clusters]', "no network"),
        ("[clusters]", '[clusters.addresses]\ndns = "10.0.0.1/32"\n[clusters]', "unknown party"),
        ("[zones.cloud]", "[border]\nport = 9999\n[zones.cloud]", "flows table opens 8815"),
        ("[zones.cloud]", "[zones.stretched]", "overlay's name"),
        ("[zones.ward]", "[zones.cloud-spot]", "the spot pool of zone 'cloud'"),
        ("[zones.cloud]", "[zones.cloud-]", "no '-' at the end"),
        ("slots = 8", "slots = 99999999999", "more than there can be"),
        ("gpus = 8", "gpus = 99999999999", "more than there can be"),
        (
            "[clusters]",
            """[records.a_b]
path = "a.csv"
labels = { allowed_execution_zone = ["clinic"] }
[records.A-B]
path = "b.csv"
labels = { allowed_execution_zone = ["clinic"] }
[clusters]""",
            "would have one name",
        ),
        ('jurisdiction = "DE"\nslots', "jurisdiction = 'D\"E'\nslots", "cannot stand in an admission policy"),
        ("[clusters]", '[clusters]\nmonitoring_namespace = "Mon itoring"', "no name of a namespace"),
    ],
)
def test_what_cannot_be_rendered_safely_is_refused(tmp_path, old, new, says):
    with pytest.raises(InvalidInput, match=re.escape(says)) as refused:
        render(config_of(tmp_path, GPUS.replace(old, new)))
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert "secret" not in str(refused.value).split("its password")[0]


def test_an_unknown_key_of_clusters_and_a_missing_table_are_refused(tmp_path):
    with pytest.raises(InvalidInput) as refused:
        config_of(tmp_path, GPUS.replace("border_image", "boarder_image"))
    assert refused.value.reason is Reason.UNKNOWN_KEY
    with pytest.raises(InvalidInput) as refused:
        render(config_of(tmp_path, GPUS.split("[clusters]")[0]))
    assert refused.value.reason is Reason.CONFIG_MISSING


# Valid.


@cache
def crd(kind):
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip("../shared/schemas is not beside the checkout")
    found = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in found["spec"]["versions"] if v["name"] == "v1"]
    return schema


def structural(schema):
    """Return a JSON schema that refuses unknown fields, as Kubernetes does with strict field validation."""
    found = {k: v for k, v in schema.items() if not k.startswith("x-kubernetes") and k not in ("format", "nullable")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if "properties" in found:
        found["properties"] = {k: structural(v) for k, v in found["properties"].items()}
        if "additionalProperties" not in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = structural(found[key])
    return found


def crd_errors(document):
    schema = copy(crd(document["kind"]))
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    errors = [e.message[:200] for e in jsonschema.Draft202012Validator(structural(schema)).iter_errors(document)]
    return [*errors, *rule_errors(schema, document)]


def rule_errors(schema, value):
    """Return what the schema's x-kubernetes-validations refuse; a rule about a change does not apply at first."""
    found = []
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not evaluate(
            re.sub(r"\bself\b", "object", rule["rule"]), {"object": value}
        ):
            found.append(rule["message"])
    for name, below in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            found += rule_errors(below, value[name])
    if isinstance(schema.get("items"), dict) and isinstance(value, list):
        found += [e for each in value for e in rule_errors(schema["items"], each)]
    return found


@pytest.mark.parametrize("rendering", ALL)
def test_ray_objects_are_valid_by_the_official_crds_and_their_rules(rendering):
    ours = [d for _, d in documents(rendering) if d["apiVersion"] == "ray.io/v1"]
    assert {d["kind"] for d in ours} >= {"RayCluster"}
    for document in ours:
        assert crd_errors(document) == []


def test_the_validation_sees_unknown_fields_wrong_types_and_broken_rules():
    cluster = next(d for _, d in documents("starter") if d["kind"] == "RayCluster")
    job = next(d for _, d in documents("starter") if d["kind"] == "RayJob")
    assert crd_errors({**cluster, "spec": {**cluster["spec"], "networkIsolation": {}}})
    assert crd_errors({**cluster, "spec": {**cluster["spec"], "rayVersion": 2}})
    assert crd_errors({**cluster, "spec": {**cluster["spec"], "managedBy": "somebody"}})
    assert crd_errors({**job, "spec": {**job["spec"], "deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}})


@cache
def kubernetes_schema(kind, group, kubernetes):
    folder = package_files("kubernetes_validate") / "kubernetes-json-schema" / f"v{kubernetes}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    name = _name(definitions["$defs"], kind, group)
    return {"$ref": f"#/$defs/{name}", "$defs": definitions["$defs"]}


def _name(definitions, kind, group):
    api, _, number = group.rpartition("/")
    wanted = {"group": api, "kind": kind, "version": number}
    return next(name for name, body in definitions.items() if wanted in body.get("x-kubernetes-group-version-kind", []))


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_own_objects_are_valid_by_its_own_schemas(kubernetes):
    kinds = set()
    for rendering in RENDERINGS:
        for _, document in documents(rendering):
            if "." in document["apiVersion"].partition("/")[0] and not document["apiVersion"].split("/")[0].endswith(
                ".k8s.io"
            ):
                continue
            kinds.add(document["kind"])
            schema = kubernetes_schema(document["kind"], document["apiVersion"], kubernetes)
            assert [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(document)] == []
    assert {"NetworkPolicy", "Deployment", "Service", "ValidatingAdmissionPolicy", "Namespace"} <= kinds


def test_that_validation_sees_an_unknown_field():
    policy = next(copy(d) for _, d in documents("starter") if d["kind"] == "NetworkPolicy")
    policy["spec"]["podSelectr"] = {}
    schema = kubernetes_schema("NetworkPolicy", "networking.k8s.io/v1", KUBERNETES[0])
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(policy))


@pytest.mark.parametrize("rendering", ALL)
def test_pods_inside_ray_clusters_are_valid_by_kubernetes_own_schema(rendering):
    schema = kubernetes_schema("Pod", "v1", KUBERNETES[0])
    for _, document in documents(rendering):
        for _, template in pods_of(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
            assert [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(pod)] == []


@pytest.mark.parametrize("rendering", ALL)
def test_kubectl_builds_what_our_own_builder_builds(tmp_path, rendering):
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    files = RENDERINGS[rendering]()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with_queue = {f"overlays/{zone}" for zone in ("private", "public", "clinic", "cloud")} & set(roots(files))
    for root in with_queue:  # the same with the optional component
        zone, path = root.split("/")[1], f"q-{root.split('/')[1]}/kustomization.yaml"
        text = yaml.dump({"resources": [f"../{root}"], "components": [f"../components/kueue/{zone}"]})
        files = {**files, path: text}
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)
    for root in [*roots(files), *(path.split("/")[0] for path in files if path.startswith("q-"))]:
        done = subprocess.run(["kubectl", "kustomize", tmp_path / root], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        key = lambda d: (d["kind"], d["metadata"]["name"])  # noqa: E731
        theirs = {key(d): d for d in yaml.safe_load_all(done.stdout)}
        assert {key(d): d for d in build(files, root)} == theirs


# Safe, as kube-linter and the like would have it.


def containers(rendering):
    for root, document in documents(rendering):
        for name, template in pods_of(document):
            for container in template["spec"]["containers"]:
                yield f"{root} {name}", template["spec"], container
        if document["kind"] == "RayCluster":
            scaler = document["spec"]["autoscalerOptions"]
            yield f"{root} autoscaler", document["spec"]["headGroupSpec"]["template"]["spec"], {"env": [], **scaler}


@pytest.mark.parametrize("rendering", ALL)
def test_no_container_is_privileged_runs_as_root_or_can_change_its_image(rendering):
    for name, pod, container in containers(rendering):
        secured = container["securityContext"]
        assert secured["allowPrivilegeEscalation"] is secured["privileged"] is False, name
        assert secured["readOnlyRootFilesystem"] is secured["runAsNonRoot"] is True, name
        assert secured["capabilities"] == {"drop": ["ALL"]}, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


@pytest.mark.parametrize("rendering", ALL)
def test_requests_equal_limits_images_are_digests_and_probes_are_there(rendering):
    for name, _, container in containers(rendering):
        resources = container["resources"]
        assert resources["limits"] == resources["requests"], name
        assert {"cpu", "memory"} <= resources["limits"].keys()
        if not name.endswith("autoscaler"):  # KubeRay gives it the head's image, and no probe can be set
            assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])
            assert {"livenessProbe", "readinessProbe"} <= container.keys()


@pytest.mark.parametrize("rendering", ALL)
def test_no_pod_has_a_host_path_and_what_is_written_is_an_empty_folder_or_a_claim(rendering):
    for name, pod, container in containers(rendering):
        kinds = {key for volume in pod["volumes"] for key in volume if key != "name"}
        assert kinds <= {"emptyDir", "projected", "configMap", "persistentVolumeClaim", "secret"}, name
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in mounted
        assert {m["name"] for m in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("rendering", ALL)
def test_only_the_autoscaler_holds_a_token_of_the_kubernetes_api_and_it_lives_an_hour(rendering):
    for name, pod, container in containers(rendering):
        assert pod["automountServiceAccountToken"] is False
        mounts = [m for m in container["volumeMounts"] if m["name"] == "kubernetes-api"]
        assert bool(mounts) == name.endswith("autoscaler"), name
    for _, document in documents(rendering):
        if document["kind"] == "ServiceAccount":
            assert document["automountServiceAccountToken"] is False
    lives = re.findall(r"expirationSeconds: (\d+)", "".join(RENDERINGS[rendering]().values()))
    assert set(lives) == {"3600"}


@pytest.mark.parametrize("rendering", ALL)
def test_there_is_no_secret_in_the_output(rendering):
    for name, text in RENDERINGS[rendering]().items():
        assert "kind: Secret\n" not in text, name
        assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY|stringData|auth_token:|password: [^\n]", text), name
        for document in parse_documents(text, name) if "patch" not in name else []:
            assert "data" not in document


# Zones.


def ray_cluster(root, rendering="starter"):
    (found,) = [d for d in built(RENDERINGS[rendering]())[root] if d["kind"] == "RayCluster"]
    return found["spec"]


@pytest.mark.parametrize(("rendering", "overlay"), [
    ("starter", "private"), ("starter", "public"), ("starter", "stretched"),
    ("gpus", "clinic"), ("gpus", "cloud"), ("gpus", "stretched"),
])  # fmt: skip
def test_every_group_has_its_zones_resource_label_and_nodes(rendering, overlay):
    spec = ray_cluster(f"overlays/{overlay}", rendering)
    home = spec["headGroupSpec"]["labels"]["zone"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        zone = group["labels"]["zone"]
        assert [r for r in group["resources"] if r.startswith("zone_")] == [f"zone_{zone}"]
        pod = group["template"]
        assert (
            pod["spec"]["nodeSelector"]["zonefabric.io/zone"] == pod["metadata"]["labels"]["zonefabric.io/zone"] == zone
        )
        assert {"key": "zonefabric.io/zone", "operator": "Equal", "value": zone, "effect": "NoSchedule"} in pod["spec"][
            "tolerations"
        ]
        assert "labels" not in group["rayStartParams"]  # KubeRay refuses it beside the group's own
        assert not {"num-cpus", "memory", "resources"} & group["rayStartParams"].keys()
    assert home in ("private", "public", "clinic", "cloud")
    assert spec["authOptions"] == {"mode": "token", "secretName": "fabric-ray-token"}
    assert spec["tlsOptions"] == {"enabled": True}
    assert "networkPolicy" not in spec


def test_public_groups_offer_no_cpu_and_one_byte_of_memory_and_drivers_stay_inside():
    for rendering, overlay in (
        ("starter", "stretched"),
        ("starter", "public"),
        ("gpus", "stretched"),
        ("gpus", "cloud"),
    ):
        spec = ray_cluster(f"overlays/{overlay}", rendering)
        outside = [g for g in spec["workerGroupSpecs"] if g["labels"]["zone"] in ("public", "cloud")]
        assert outside
        for group in outside:
            assert (group["resources"]["CPU"], group["resources"]["memory"]) == ("0", "1")
            seen = {v["name"] for v in group["template"]["spec"]["volumes"]}
            assert seen == {"tmp", "shared-memory"}
            env = {e["name"] for e in group["template"]["spec"]["containers"][0]["env"]}
            assert "FABRIC_CONFIG" not in env
            assert {"FABRIC_ZONE", "FABRIC_ZONE_KIND", "FABRIC_TRUSTED_KEYS"} <= env
    for _, job in documents("starter"):
        if job["kind"] == "RayJob":
            assert json.loads(job["spec"]["entrypointResources"]) == {"zone_private": 0.001}
            assert "runtimeEnvYAML" not in job["spec"]


def test_gpu_pools_are_tainted_bounded_and_have_a_spot_pool_beside_them():
    groups = {g["groupName"]: g for g in ray_cluster("overlays/cloud", "gpus")["workerGroupSpecs"]}
    assert set(groups) == {"cloud", "cloud-spot"}
    for name, group in groups.items():
        pod = group["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["nodeSelector"]["zonefabric.io/gpu-model"] == "H100"
        assert pod["nodeSelector"]["zonefabric.io/capacity"] == ("spot" if "spot" in name else "on-demand")
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
        assert (group["minReplicas"], group["maxReplicas"]) == (0, 8)
    assert ray_cluster("overlays/clinic", "gpus")["workerGroupSpecs"][0]["maxReplicas"] == 2


def test_the_control_store_of_the_private_zone_survives_its_head_and_its_password_is_a_reference():
    options = ray_cluster("overlays/private")["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "rediss://redis.example:6380"
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "fabric-redis", "key": "password"}}}
    assert "gcsFaultToleranceOptions" not in ray_cluster("overlays/public")


def test_an_edge_zone_is_a_closed_namespace_with_room_for_no_pod():
    for rendering, name in (("starter", "edge"), ("gpus", "ward")):
        found = built(RENDERINGS[rendering]())[f"overlays/{name}"]
        assert {d["kind"] for d in found} == {"Namespace", "NetworkPolicy", "ResourceQuota"}
        assert next(d for d in found if d["kind"] == "ResourceQuota")["spec"]["hard"] == {"pods": "0"}


@pytest.mark.parametrize("overlay", ["private", "public", "stretched"])
def test_every_namespace_is_closed_and_opens_the_listed_flows_and_no_other(overlay):
    topology = "stretched" if overlay == "stretched" else "federated"
    kinds = {"private", "public"} if overlay == "stretched" else {overlay}
    policies = {
        d["metadata"]["name"]: d["spec"]
        for d in built(starter_files())[f"overlays/{overlay}"]
        if d["kind"] == "NetworkPolicy"
    }
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    expected = {
        f"flow-{flow.name}-{suffix}": flow
        for flow in flows.in_topology(flows.load(), topology)
        for suffix, end in (("in", flow.target), ("out", flow.source))
        if end.kind and end.kind.value in kinds
    }
    assert policies.keys() == expected.keys()
    for name, flow in expected.items():
        (rule,) = policies[name]["ingress" if name.endswith("-in") else "egress"]
        opened = {(p["port"], p.get("endPort", p["port"]), p["protocol"].lower()) for p in rule["ports"]}
        assert opened == {(p.low, p.high, protocol) for p in flow.ports for protocol in flow.protocols}
        assert len(rule["from" if name.endswith("-in") else "to"]) == 1  # never an empty list, which is everybody


def test_a_flow_whose_other_end_has_no_address_stays_closed(tmp_path):
    text = tmp_path / "fabric.toml"
    config = starter_config(tmp_path)
    without = text.read_text().replace('public = "198.51.100.10/32"', "#")
    text.write_text(without)
    from fabric.config import load_config

    assert config.clusters.addresses["public"]
    found = built(render(load_config(text)))["overlays/private"]
    names = {d["metadata"]["name"] for d in found if d["kind"] == "NetworkPolicy"}
    assert not {"flow-border-in-in", "flow-jobs-out-out"} & names
    service = next(d for d in found if d["kind"] == "Service")
    assert service["spec"]["type"] == "ClusterIP"


def test_rays_ports_are_the_flows_tables_in_pods_probes_and_monitors():
    spec = ray_cluster("overlays/private")
    head = spec["headGroupSpec"]
    pins = flows.ray_start_params(flows.ports(), head=True)
    assert pins.items() <= head["rayStartParams"].items()
    for group in spec["workerGroupSpecs"]:
        assert flows.ray_start_params(flows.ports(), head=False).items() <= group["rayStartParams"].items()
    named = {p["name"]: p["containerPort"] for p in head["template"]["spec"]["containers"][0]["ports"]}
    assert named == {"gcs-server": 6379, "dashboard": 8265, "metrics": flows.ports()["ray-metrics"].low}
    monitors = [d for _, d in documents("starter") if d["kind"] == "PodMonitor"]
    assert {e["port"] for d in monitors for e in d["spec"]["podMetricsEndpoints"]} == {"metrics"}


# The same every time, and what is checked in.


def test_the_same_configuration_gives_the_same_bytes_whatever_the_order_of_its_tables(tmp_path):
    parts = GPUS.split("[zones.cloud]")
    cloud, rest = parts[1].split("[zones.ward]")
    turned = f"{parts[0]}[zones.ward]{rest}\n[zones.cloud]{cloud}"
    assert render(config_of(tmp_path / "a", GPUS)) == render(config_of(tmp_path / "b", turned)) == gpu_files()


def test_the_folder_that_is_checked_in_is_what_render_writes_for_the_starter():
    there = {p.relative_to(ROOT / "clusters").as_posix(): p.read_text() for p in (ROOT / "clusters").rglob("*.yaml")}
    assert there == starter_files(), "fabric init STARTER && fabric clusters render --config STARTER --out clusters"


def test_no_file_of_the_manifests_is_a_copy_of_another():
    seen = {}
    for name, text in starter_files().items():
        if not name.endswith("kustomization.yaml"):  # which lists the files of its folder
            assert text not in seen.values(), name
        seen[name] = text


def test_the_ray_of_the_manifests_is_the_ray_that_is_tested():
    assert version("ray") == manifests.RAY_VERSION
    assert f"ray=={manifests.RAY_VERSION}\n" in (ROOT / "constraints.txt").read_text()


def test_render_and_check_import_neither_ray_nor_torch(tmp_path):
    starter_config(tmp_path)
    code = (
        "import sys; sys.argv = ['fabric', 'clusters', 'render']\nfrom fabric.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(*(set(sys.modules) & {'ray', 'torch', 'pandas'}), 'end')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "end"
    assert (tmp_path / "clusters" / "overlays" / "private" / "kustomization.yaml").exists()
