"""What the admission policies hold of jobs, Ray clusters and pods, whatever their labels say."""

from __future__ import annotations

from fabric.admission_words import DOMAIN, Check, quoted_list
from fabric.errors import Reason
from fabric.flows import ports, ray_start_params

_DIGEST = "@sha256:[0-9a-f]{64}$"


def _refuses(rule: str, expression: str, says: str, reason: Reason = Reason.MANIFEST_REFUSED) -> Check:
    return Check(id=rule, reason=reason, expression=expression, says=says)


JOB_RULES = (
    _refuses(
        "job.pinned",
        "has(object.spec.entrypointResources) && "
        "object.spec.entrypointResources.matches('^ *[{] *\"zone_' + variables.home + "
        "'\" *: *[0-9]*[.]?[0-9]*[1-9][0-9]* *[}] *$')",
        "the driver is not pinned to this zone; set entrypointResources to a pinch of the zone's resource alone",
        Reason.DRIVER_OUTSIDE,
    ),
    _refuses(
        "job.carries",
        '!has(object.spec.runtimeEnvYAML) || object.spec.runtimeEnvYAML == ""',
        "Ray copies a runtime environment to every node; leave runtimeEnvYAML out, code comes with the image",
        Reason.WORKING_DIR_CARRIES_DATA,
    ),
    _refuses(
        "job.cluster",
        "!has(object.spec.rayClusterSpec) && has(object.spec.clusterSelector) && "
        '"ray.io/cluster" in object.spec.clusterSelector && '
        'object.spec.clusterSelector["ray.io/cluster"] == "fabric"',
        "a job runs on the fabric's own cluster; set clusterSelector to ray.io/cluster: fabric",
    ),
    _refuses(
        "job.submitter",
        'has(object.spec.submissionMode) && object.spec.submissionMode == "HTTPMode"',
        "another mode starts a pod that submits; set submissionMode: HTTPMode",
    ),
)


_HEAD = "object.spec.headGroupSpec"


def _group(
    name: str, check: str, says: str, reason: Reason = Reason.MANIFEST_REFUSED, *, of_head: str = "false"
) -> Check:
    """Return a check, with `{g}` for the group, of the head and of every group of workers.

    Args:
        of_head: what `{of_head}` in the check stands for in the head's; in the workers' it is false.
    """
    head, worker = check.format(g=_HEAD, of_head=of_head), check.format(g="g", of_head="false")
    return _refuses(name, f"({head}) && variables.workers.all(g, {worker})", says, reason)


_TEMPLATE = "{g}.template.metadata.labels"
_ZONED = (
    'has({g}.labels) && has({g}.resources) && "zone" in {g}.labels && (\'zone_\' + {g}.labels["zone"]) in {g}.resources'
    " && {g}.resources.all(r, !r.startsWith('zone_') || r == 'zone_' + {g}.labels[\"zone\"])"
)
# Ray believes the group's label; where the pod lands and what it may reach, its template's decide.
_PLACED = (
    f"has({{g}}.template.metadata) && has({_TEMPLATE}) && '{DOMAIN}/zone' in {_TEMPLATE} && "
    f"'{DOMAIN}/kind' in {_TEMPLATE} && has({{g}}.template.spec.nodeSelector) && "
    f"'{DOMAIN}/zone' in {{g}}.template.spec.nodeSelector && "
    f"{_TEMPLATE}['{DOMAIN}/zone'] == {{g}}.labels[\"zone\"] && "
    f"{{g}}.template.spec.nodeSelector['{DOMAIN}/zone'] == {{g}}.labels[\"zone\"] && "
    f"variables.zones.exists(z, z.name == {{g}}.labels[\"zone\"] && z.kind == {_TEMPLATE}['{DOMAIN}/kind'])"
)
_PLAIN = (
    "!has({g}.template.spec.initContainers) && {g}.template.spec.containers.size() == 1 && "
    "{g}.template.spec.containers.all(c, !has(c.command) && !has(c.args) && !has(c.lifecycle) && "
    "c.all(k, !(k in ['livenessProbe', 'readinessProbe', 'startupProbe']) || !has(c[k].exec)))"
)
_IMAGE = "{g}.template.spec.containers.all(c, has(c.image) && c.image == variables.image)"
_WORDS = quoted_list(sorted({"dashboard-host", "include-log-monitor", *ray_start_params(ports(), head=True)}))
# Its values become words of a shell's command line.
_STARTED = (
    "!has({g}.rayStartParams) || {g}.rayStartParams.all(k, "
    f"k in {_WORDS} && {{g}}.rayStartParams[k].matches('^[0-9a-z.]*$'))"
)
_VARIABLES = quoted_list([
    "FABRIC_CONFIG", "FABRIC_ELASTIC", "FABRIC_GUARD", "FABRIC_TRUSTED_KEYS", "FABRIC_ZONE", "FABRIC_ZONE_KIND", "HOME",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_RUNTIME_ENV_HOOK", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
    "RAY_TRAIN_V2_ENABLED", "RAY_USAGE_STATS_ENABLED",
])  # fmt: skip
_ENVIRONMENT = (
    "{g}.template.spec.containers.all(c, !has(c.envFrom) && (!has(c.env) || c.env.all(e, "
    f"e.name in {_VARIABLES} && "
    "(!has(e.valueFrom) || (e.name == 'FABRIC_TRUSTED_KEYS' && has(e.valueFrom.configMapKeyRef))) && "
    "(e.name != 'FABRIC_ZONE' || e.value == {g}.labels[\"zone\"]) && (e.name != 'HOME' || e.value == '/tmp') && "
    "(e.name != 'RAY_RUNTIME_ENV_HOOK' || e.value == 'fabric.guard.on_init'))))"
)
_VOLUMES = (
    "!has({g}.template.spec.volumes) || {g}.template.spec.volumes.all(v, has(v.emptyDir) || ({of_head}) || "
    "(variables.zones.exists(z, z.name == {g}.labels[\"zone\"] && z.kind == 'private') && "
    "((has(v.configMap) && v.configMap.name == 'fabric-config') || (has(v.persistentVolumeClaim) && "
    "(v.persistentVolumeClaim.claimName == 'fabric-state' || (v.persistentVolumeClaim.claimName == 'fabric-records' "
    "&& has(v.persistentVolumeClaim.readOnly) && v.persistentVolumeClaim.readOnly))))))"
)
# The head's pod has a token of the Kubernetes API for the autoscaler, which Ray's own container does not mount.
_TOKEN = (
    f"has(v.projected) && {_HEAD}.template.spec.containers.all(c, !has(c.volumeMounts) || "
    "!c.volumeMounts.exists(m, m.name == v.name))"
)
_BARE = (
    '(!has({g}.labels) || !has({g}.resources) || !("zone" in {g}.labels) || variables.zones.exists(z, '
    'z.name == {g}.labels["zone"] && z.kind == "private") || ("CPU" in {g}.resources && '
    '{g}.resources["CPU"] == "0" && "memory" in {g}.resources && {g}.resources["memory"] == "1"))'
)
_SPEC = quoted_list([
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "managedBy", "networkPolicy", "rayVersion", "suspend", "tlsOptions", "upgradeStrategy", "workerGroupSpecs",
])  # fmt: skip
_HEADS = quoted_list(["enableIngress", "labels", "rayStartParams", "resources", "serviceType", "template"])
_SCALER = quoted_list([
    "env", "idleTimeoutSeconds", "imagePullPolicy", "resources", "securityContext", "upscalingMode", "version",
    "volumeMounts",
])  # fmt: skip

CLUSTER_RULES = (
    _refuses(
        "cluster.shape",
        f"has(object.spec) && type(object.spec) == map && has({_HEAD}) && type({_HEAD}) == map && "
        "(!has(object.spec.workerGroupSpecs) || type(object.spec.workerGroupSpecs) == list)",
        "the cluster has no head group",
    ),
    _refuses(
        "cluster.known",
        f"object.spec.all(k, k in {_SPEC}) && {_HEAD}.all(k, k in {_HEADS}) && (!has(object.spec.autoscalerOptions) || "
        f"(object.spec.autoscalerOptions.all(k, k in {_SCALER}) && (!has(object.spec.autoscalerOptions.env) || "
        "object.spec.autoscalerOptions.env.all(e, e.name == 'HOME' && has(e.value) && e.value == '/tmp'))))",
        "the cluster has a service, a history server or an autoscaler of its author's own; leave it to KubeRay",
    ),
    _refuses(
        "cluster.name",
        'object.metadata.name == "fabric"',
        "a zone has one cluster, called fabric; another would take work past the dispatcher",
    ),
    _refuses(
        "cluster.home",
        "variables.zones.exists(z, z.name == variables.home)",
        "the namespace is labelled with a zone that fabric.toml does not declare",
        Reason.UNKNOWN_ZONE,
    ),
    _refuses(
        "cluster.token",
        'has(object.spec.authOptions) && has(object.spec.authOptions.mode) && object.spec.authOptions.mode == "token"'
        " && has(object.spec.authOptions.secretName)",
        "Ray's token authentication is off; set authOptions to mode: token with a secretName",
    ),
    _refuses(
        "cluster.network",
        "!has(object.spec.networkPolicy)",
        "KubeRay's networkPolicy opens every port between all pods of the cluster; leave it out, the flows are listed",
    ),
    _refuses(
        "cluster.service",
        f'(!has({_HEAD}.serviceType) || {_HEAD}.serviceType == "ClusterIP") && '
        f"(!has({_HEAD}.enableIngress) || !{_HEAD}.enableIngress)",
        "the head would be reachable from outside the cluster; set serviceType: ClusterIP and no ingress",
    ),
    _refuses(
        "cluster.command",
        "!has(object.metadata.annotations) || !('ray.io/overwrite-container-cmd' in object.metadata.annotations)",
        "the start command would be replaced, and with it the pins; leave ray.io/overwrite-container-cmd out",
    ),
    _group(
        "cluster.zoned",
        _ZONED,
        "every group has the label zone and that zone's resource, and no other zone's",
    ),
    _group(
        "cluster.start",
        _STARTED,
        "rayStartParams would override the group's zone, labels or resources, or say more than ports to the shell; use "
        "the group's own fields",
    ),
    _group(
        "cluster.placed",
        _PLACED,
        "a group's pods would land in, or be taken for, another zone than Ray is told; label and select by its zone",
        Reason.WRONG_ZONE,
    ),
    _group(
        "cluster.environment",
        _ENVIRONMENT,
        "a group has a variable that fabric.toml does not give it: it could run code before Ray, or hold a secret",
    ),
    _group(
        "cluster.volumes",
        _VOLUMES,
        "a group mounts more than it is given; records, state and configuration are mounted in the private zone only",
        of_head=_TOKEN,
    ),
    _group(
        "cluster.plain",
        _PLAIN,
        "a group has more than its Ray container, or runs something before Ray; code comes as jobs",
    ),
    _group(
        "cluster.image",
        _IMAGE,
        "a group runs another image than [clusters] of fabric.toml declares",
    ),
    _refuses(
        "cluster.head",
        f'has({_HEAD}.labels) && "zone" in {_HEAD}.labels && {_HEAD}.labels["zone"] == variables.home',
        "the head, and with it every driver, is not in this namespace's zone",
        Reason.DRIVER_OUTSIDE,
    ),
    _refuses(
        "cluster.zones",
        'variables.workers.all(g, has(g.labels) && "zone" in g.labels && (g.labels["zone"] == variables.home || '
        '(variables.stretched && variables.zones.exists(z, z.name == g.labels["zone"]))))',
        "a group of another zone is in this cluster; only a stretched cluster has nodes of several zones",
        Reason.WRONG_ZONE,
    ),
    _group(
        "cluster.cpus",
        _BARE,
        'a group outside the private zone offers CPU or memory; set resources to CPU: "0" and memory: "1"',
    ),
)

_SECURE = (
    "has(c.securityContext) && has(c.securityContext.{field}) && c.securityContext.{field} == {value}"
)  # fmt: skip

POD_RULES = (
    _refuses(
        "pod.shape",
        "has(object.spec) && type(object.spec) == map && has(object.spec.containers) && "
        "type(object.spec.containers) == list && object.spec.containers.size() > 0",
        "the pod has no containers",
    ),
    _refuses(
        "pod.zone",
        f"has(object.metadata.labels) && '{DOMAIN}/zone' in object.metadata.labels && "
        f"(object.metadata.labels['{DOMAIN}/zone'] == variables.home || (variables.stretched && variables.operator && "
        f"variables.zones.exists(z, z.name == object.metadata.labels['{DOMAIN}/zone'])))",
        f"the pod is not labelled with this namespace's zone; set {DOMAIN}/zone. Only KubeRay puts pods of a stretched "
        "cluster into another zone",
        Reason.WRONG_ZONE,
    ),
    _refuses(
        "pod.node",
        f"has(object.metadata.labels) && '{DOMAIN}/zone' in object.metadata.labels && has(object.spec.nodeSelector) && "
        f"'{DOMAIN}/zone' in object.spec.nodeSelector && "
        f"object.spec.nodeSelector['{DOMAIN}/zone'] == object.metadata.labels['{DOMAIN}/zone']",
        "the pod may land on a node of another zone; select nodes by the zone of its label",
        Reason.WRONG_ZONE,
    ),
    _refuses(
        "pod.digest",
        f"variables.containers.all(c, has(c.image) && c.image.matches('{_DIGEST}'))",
        "an image is named by a tag, which can come to mean another one; name it by digest",
    ),
    _refuses(
        "pod.host_path",
        "!has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.hostPath))",
        "a host path lets the pod at the node's files; use emptyDir or a claim",
    ),
    _refuses(
        "pod.host",
        "(!has(object.spec.hostNetwork) || !object.spec.hostNetwork) && (!has(object.spec.hostPID) || "
        "!object.spec.hostPID) && (!has(object.spec.hostIPC) || !object.spec.hostIPC)",
        "the pod would share the node's network, processes or memory, past every network policy",
    ),
    _refuses(
        "pod.root",
        "has(object.spec.securityContext) && has(object.spec.securityContext.runAsNonRoot) && "
        "object.spec.securityContext.runAsNonRoot && (!has(object.spec.securityContext.runAsUser) || "
        "object.spec.securityContext.runAsUser != 0) && variables.containers.all(c, !has(c.securityContext) || "
        "((!has(c.securityContext.runAsNonRoot) || c.securityContext.runAsNonRoot) && "
        "(!has(c.securityContext.runAsUser) || c.securityContext.runAsUser != 0)))",
        "the pod may run as root; set runAsNonRoot: true",
    ),
    _refuses(
        "pod.privileges",
        "variables.containers.all(c, "
        + _SECURE.format(field="allowPrivilegeEscalation", value="false")
        + " && (!has(c.securityContext.privileged) || !c.securityContext.privileged)"
        + " && has(c.securityContext.capabilities) && has(c.securityContext.capabilities.drop)"
        + ' && "ALL" in c.securityContext.capabilities.drop && !has(c.securityContext.capabilities.add))',
        "a container could gain privileges; set allowPrivilegeEscalation: false and drop ALL capabilities",
    ),
    _refuses(
        "pod.read_only",
        "variables.containers.all(c, " + _SECURE.format(field="readOnlyRootFilesystem", value="true") + ")",
        "a container could change its own image's files; set readOnlyRootFilesystem: true",
    ),
    _refuses(
        "pod.seccomp",
        "has(object.spec.securityContext) && has(object.spec.securityContext.seccompProfile) && "
        "has(object.spec.securityContext.seccompProfile.type) && object.spec.securityContext.seccompProfile.type == "
        '"RuntimeDefault" && variables.containers.all(c, !has(c.securityContext) || '
        "!has(c.securityContext.seccompProfile))",
        "the pod runs without the runtime's seccomp profile; set seccompProfile to RuntimeDefault",
    ),
    _refuses(
        "pod.limits",
        "variables.containers.all(c, has(c.resources) && has(c.resources.limits) && "
        '"cpu" in c.resources.limits && "memory" in c.resources.limits)',
        "a container has no limit of CPU or memory, so it can starve its node",
    ),
    _refuses(
        "pod.environment",
        "variables.containers.all(c, !has(c.env) || c.env.all(e, !(e.name in ['RAY_AUTH_TOKEN', "
        "'RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES'] && has(e.value)) && (!(e.name in ['RAY_AUTH_MODE', 'RAY_auth_mode']) "
        "|| (has(e.value) && e.value == 'token'))))",
        "the environment turns token authentication off, holds a token, or lets drivers leave the head",
    ),
    # Of a pod that is there, its volumes cannot change: who may not make one with a token may still label it.
    _refuses(
        "pod.token",
        "has(object.spec.automountServiceAccountToken) && !object.spec.automountServiceAccountToken && "
        "(variables.operator || oldObject != null || !has(object.spec.volumes) || "
        "object.spec.volumes.all(v, !has(v.projected) || "
        "!has(v.projected.sources) || v.projected.sources.all(s, !has(s.serviceAccountToken))))",
        "a container would get a token of the Kubernetes API; set automountServiceAccountToken: false, project none",
    ),
)
