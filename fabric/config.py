"""Configuration: `fabric.toml` and the environment, read once, here, and passed down.

No other module reads the environment, except the command line's edge, which hands it to this one.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fabric.budget_tables import BudgetTable, PriceSettings, PricesTable, QuotaTable, limits_of, price_settings
from fabric.budgets import Limit
from fabric.cluster_terms import ClustersTable, ClusterTerms, read_terms
from fabric.dispatch_rules import DispatchTable, Rules
from fabric.errors import InvalidInput, Reason, nearest
from fabric.labels import Classification, Labels
from fabric.specs import Spec, parse
from fabric.statements import PublicKey
from fabric.zones import Topology, Zone, ZoneKind, find_zone

FILE_NAME = "fabric.toml"
PAPERS_FILE = "papers.json"
"""What a node with a cluster of its own was given to reach the border, in its folder `given`."""
_RAYS_OWN = ("RAY_", "PYTHONUNBUFFERED")


class _ZoneTable(Spec):
    kind: Literal["private", "public", "edge"]
    jurisdiction: str
    provider: str = "local"
    region: str = "local"
    slots: int = 4
    cpus: int = 0
    gpus: int = 0
    gpu_model: str = ""


class _RecordsTable(Spec):
    path: str
    labels: Annotated[dict[str, Any], Field(default_factory=dict)]


class _RiskTable(Spec):
    classification: Literal["public", "internal", "confidential", "restricted"]
    purpose: str = ""
    k: Annotated[int, Field(ge=1)]
    l: Annotated[int, Field(ge=1)] = 1  # noqa: E741 - the literature's name
    t: Annotated[float | None, Field(ge=0, le=1)] = None


class _LocalTable(Spec):
    gcs_port: Annotated[int, Field(ge=0, le=65535)] = 0
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 0
    outside_jobs_port: Annotated[int, Field(ge=0, le=65535)] = 0


class _FabricTable(Spec):
    name: str
    topology: Literal["stretched", "federated"] = "stretched"
    state: str = ".fabric"
    statement_days: Annotated[int, Field(ge=1, le=366)] = 30
    crossing_minutes: Annotated[int, Field(ge=1, le=43_200)] = 10_080


class _ApproverTable(Spec):
    key: str
    roles: Annotated[
        list[Literal["approver", "operator", "security", "steward"]],
        Field(min_length=1, default_factory=lambda: ["approver"]),
    ]


class _PolicyTable(Spec):
    files: Annotated[list[str], Field(default_factory=list)]
    signature: str = ""
    signers: Annotated[list[str], Field(default_factory=list)]
    approvers: Annotated[dict[str, _ApproverTable], Field(default_factory=dict)]


class _EvidenceTable(Spec):
    database: str = ""
    witness: str = ""
    witness_key: str = ""
    witness_required: bool = False
    witness_behind_records: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    witness_behind_minutes: Annotated[int, Field(ge=0, le=43_200)] = 15


class _BorderTable(Spec):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    advertise: str = ""
    token_minutes: Annotated[int, Field(ge=1, le=15)] = 15
    certificate_hours: Annotated[int, Field(ge=1, le=168)] = 24
    streams: Annotated[int, Field(ge=1, le=256)] = 32
    streams_per_crossing: Annotated[int, Field(ge=1, le=256)] = 16
    connections: Annotated[int, Field(ge=1, le=4096)] = 256
    fetches: Annotated[int, Field(ge=1, le=100_000)] = 4_096
    return_mib: Annotated[int, Field(ge=1, le=1_048_576)] = 16_384
    stall_seconds: Annotated[int, Field(ge=5, le=600)] = 60
    memory_mib: Annotated[int, Field(ge=512, le=65_536)] = 2_048
    lost_seconds: Annotated[int, Field(ge=5, le=3_600)] = 120


class _OutsideTable(Spec):
    jobs: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$")]
    token_file: str


class _File(Spec):
    fabric: _FabricTable
    policy: Annotated[_PolicyTable, Field(default_factory=_PolicyTable)]
    zones: dict[str, _ZoneTable]
    records: Annotated[dict[str, _RecordsTable], Field(default_factory=dict)]
    risk: Annotated[list[_RiskTable], Field(default_factory=list)]
    local: _LocalTable = _LocalTable()
    evidence: _EvidenceTable = _EvidenceTable()
    prices: PricesTable = PricesTable()
    budgets: Annotated[list[BudgetTable], Field(default_factory=list)]
    quotas: Annotated[list[QuotaTable], Field(default_factory=list)]
    dispatch: Annotated[DispatchTable, Field(default_factory=DispatchTable)]
    border: _BorderTable = _BorderTable()
    clusters: ClustersTable | None = None
    outside: Annotated[dict[str, _OutsideTable], Field(default_factory=dict)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsSource:
    """Raw records as declared: where they lie in the private zone and what their owner labelled them."""

    name: str
    path: Path
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskLimit:
    """What the risk of a matrix must keep to, for records of one classification, and one purpose if it names one."""

    classification: Classification
    purpose: str
    k: int
    l: int  # noqa: E741 - the literature's name
    t: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredApprover:
    """A person whose approval counts: their key and roles."""

    name: str
    key: PublicKey
    roles: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """What `[policy]` declares: a site's own policies, who signs them, who approves.

    Attributes:
        files: Cedar files, absolute.
        signature: file of the signature over the set, absolute; None where there are no files.
        signers: keys whose signature of the policies counts.
    """

    files: tuple[Path, ...] = ()
    signature: Path | None = None
    signers: tuple[PublicKey, ...] = ()
    approvers: tuple[DeclaredApprover, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceTerms:
    """Where the ledger lies, and who watches it.

    Attributes:
        database: a PostgreSQL URL; empty for SQLite in the state folder.
        witness: the URL of a witness, or a folder that is mounted from elsewhere; empty for none.
        witness_key: the witness's key as `name+id+base64`; empty for a folder that only keeps.
        witness_required: whether nothing moves once the witness is too far behind.
    """

    database: str = ""
    witness: str = ""
    witness_key: str = ""
    witness_required: bool = False
    witness_behind_records: int = 100
    witness_behind_minutes: int = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderTerms:
    """Where the border service listens, and what it allows.

    Attributes:
        port: 0 takes any free one.
        advertise: the host under which other zones reach it; empty if that is `host`.
        streams: calls at once of all crossings; `streams_per_crossing` those of one.
        fetches: how many times over one crossing may be fetched: by its workers or trials, and again after failures.
        return_mib: of what one crossing returned, how much may lie in the inbox.
        stall_seconds: a call that does not move for so long is ended.
        memory_mib: of the service's process; past it the process ends and is started again.
        lost_seconds: a cluster outside that neither answers nor returns anything for so long counts as lost.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    token_minutes: int = 15
    certificate_hours: int = 24
    streams: int = 32
    streams_per_crossing: int = 16
    connections: int = 256
    fetches: int = 4_096
    return_mib: int = 16_384
    stall_seconds: int = 60
    memory_mib: int = 2_048
    lost_seconds: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideTerms:
    """How the cluster of another zone is reached.

    Attributes:
        jobs: URL of its jobs API.
        token_file: that holds its token; absolute.
    """

    jobs: str
    token_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of `fabric.toml`, checked.

    Attributes:
        path: the file itself, absolute.
        state: folder of keys, evidence and models, absolute.
        limits: budgets and quotas.
        dispatch: when work leaves, what is kept, and the answer to each failure.
        dispatches: whether the file has a `[dispatch]`, so that a dispatcher is started.
        outside_jobs_port: of the jobs API of each cluster outside; with a port, each needs an address of its own.
        outside: how the clusters of other zones are reached, where this machine does not run them itself.
    """

    path: Path
    name: str
    state: Path
    zones: Mapping[str, Zone]
    records: Mapping[str, RecordsSource]
    gcs_port: int
    dashboard_port: int
    statement_days: int
    crossing_minutes: int
    risk: tuple[RiskLimit, ...] = ()
    evidence: EvidenceTerms = EvidenceTerms()
    policy: PolicySettings = PolicySettings()
    prices: PriceSettings = field(default_factory=PriceSettings)
    limits: tuple[Limit, ...] = ()
    dispatch: Rules = field(default_factory=Rules)
    dispatches: bool = False
    topology: Topology = Topology.STRETCHED
    outside_jobs_port: int = 0
    outside: Mapping[str, OutsideTerms] = field(default_factory=dict)
    border: BorderTerms = BorderTerms()
    clusters: ClusterTerms | None = None

    @property
    def private(self) -> Zone:
        """Return the one private zone."""
        return next(zone for zone in self.zones.values() if zone.kind is ZoneKind.PRIVATE)

    def is_elsewhere(self, zone: Zone) -> bool:
        """Say whether a zone is another Ray cluster than the private one."""
        return self.topology is Topology.FEDERATED and zone.kind is not ZoneKind.PRIVATE

    def risk_limit(self, classification: Classification, purpose: str) -> RiskLimit | None:
        """Return the limit for such records; one that names the purpose goes before one that does not."""
        fitting = [each for each in self.risk if each.classification is classification]
        return next((e for e in fitting if e.purpose == purpose), next((e for e in fitting if not e.purpose), None))

    def source(self, name: str) -> RecordsSource:
        """Return the records declared as `name`.

        Raises:
            InvalidInput: `UNKNOWN_RECORDS`, with the nearest declared name.
        """
        if name not in self.records:
            raise InvalidInput(Reason.UNKNOWN_RECORDS, f"unknown records {name!r}", nearest(name, self.records))
        return self.records[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the process was told by its environment.

    Attributes:
        zone: the zone of the node this process runs on; empty outside a fabric's cluster.
        outside: whether that zone is not the private one.
        trusted: keys that the node believes; provisioned with the node, so they do not travel with the data.
        job_labels: metadata of the Ray job this process drives, less Ray's own keys.
        working_dir: the job's working directory URI, if it has one.
        carried: what else of the job's runtime environment reaches every node: "py_modules", "env_vars".
        given: the folder of what a node with a cluster of its own was given; None elsewhere.
        ticket: of the crossing that a program outside works on, as JSON; `order` says what it is to do.
        elastic: whether nodes of this cluster come when work asks for them, and go when they are idle.
    """

    config_path: Path | None
    zone: str
    outside: bool
    trusted: tuple[PublicKey, ...]
    job_id: str
    job_labels: Mapping[str, str]
    working_dir: str
    carried: tuple[str, ...]
    person: str
    ray_address: str
    variables: Mapping[str, str]
    given: Path | None = None
    ticket: str = field(default="", repr=False)
    order: str = ""
    elastic: bool = False

    @classmethod
    def read(cls, variables: Mapping[str, str] | None = None) -> Environment:
        """Read the environment (or `variables` in its place)."""
        env = dict(os.environ) if variables is None else dict(variables)
        job = _ray_job(env.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
        metadata = {str(k): str(v) for k, v in (job.get("metadata") or {}).items()}
        job_id = metadata.pop("job_submission_id", "")
        metadata.pop("job_name", None)
        return cls(
            config_path=Path(env["FABRIC_CONFIG"]) if env.get("FABRIC_CONFIG") else None,
            zone=env.get("FABRIC_ZONE", ""),
            outside=env.get("FABRIC_ZONE_KIND", "private") != "private",
            trusted=tuple(PublicKey.from_text(t) for t in env.get("FABRIC_TRUSTED_KEYS", "").split(",") if t),
            job_id=job_id,
            job_labels=metadata,
            working_dir=str((job.get("runtime_env") or {}).get("working_dir", "")),
            carried=_carried(job.get("runtime_env") or {}),
            person=env.get("FABRIC_PERSON") or _login(),
            ray_address=env.get("RAY_ADDRESS", ""),
            variables=env,
            given=Path(env["FABRIC_GIVEN"]) if env.get("FABRIC_GIVEN") else None,
            ticket=env.get("FABRIC_TICKET", ""),
            order=env.get("FABRIC_ORDER", ""),
            elastic=env.get("FABRIC_ELASTIC") == "1",
        )


def _risk_limit(table: _RiskTable) -> RiskLimit:
    return RiskLimit(
        classification=Classification(table.classification),
        purpose=table.purpose,
        k=table.k,
        l=table.l,
        t=None if table.t is None else Decimal(str(table.t)),
    )


def find_config(environment: Environment, given: Path | None, start: Path) -> Path:
    """Return the `fabric.toml` to use: the one given, the environment's, or the nearest at or above `start`.

    Raises:
        InvalidInput: `CONFIG_MISSING`.
    """
    chosen = given or environment.config_path
    if chosen is not None:
        path = chosen / FILE_NAME if chosen.is_dir() else chosen
        if path.is_file():
            return path.resolve()
        raise InvalidInput(Reason.CONFIG_MISSING, f"there is no {path}", "`fabric init` writes a first fabric.toml")
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return (folder / FILE_NAME).resolve()
    raise InvalidInput(
        Reason.CONFIG_MISSING,
        "there is no fabric.toml here or above",
        "`fabric init` writes a first one; or name one with --config",
    )


def load_config(path: Path) -> Config:
    """Read and check `fabric.toml`. Relative paths in it are relative to the file.

    Raises:
        InvalidInput: `CONFIG_MISSING`, `CONFIG_INVALID`, `UNKNOWN_KEY`, `UNKNOWN_LABEL` or `LABEL_INVALID`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(Reason.CONFIG_MISSING, f"{path} cannot be read as text", "check the path") from None
    raw = parse(_File, text, source=path.name)
    folder = path.resolve().parent
    zones = {
        name: Zone(name=name, **{**table.model_dump(), "kind": ZoneKind(table.kind)})
        for name, table in raw.zones.items()
    }
    private = [zone.name for zone in zones.values() if zone.kind is ZoneKind.PRIVATE]
    if len(private) != 1:
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"{path.name} declares {len(private)} private zones",
            "declare exactly one zone of kind private",
        )
    return Config(
        path=path.resolve(),
        name=raw.fabric.name,
        state=(folder / raw.fabric.state).resolve(),
        zones=zones,
        records={
            name: RecordsSource(name=name, path=(folder / table.path).resolve(), labels=_labels(table.labels, zones))
            for name, table in raw.records.items()
        },
        gcs_port=raw.local.gcs_port,
        dashboard_port=raw.local.dashboard_port,
        statement_days=raw.fabric.statement_days,
        crossing_minutes=raw.fabric.crossing_minutes,
        risk=tuple(_risk_limit(table) for table in raw.risk),
        evidence=_evidence(raw.evidence, folder),
        policy=_policy(raw.policy, folder),
        prices=price_settings(raw.prices, folder),
        limits=limits_of(raw.budgets, raw.quotas, zones),
        dispatch=raw.dispatch.rules(),
        dispatches="dispatch" in raw.model_fields_set,
        topology=Topology(raw.fabric.topology),
        outside_jobs_port=raw.local.outside_jobs_port,
        outside=_outside(raw.outside, zones, folder),
        border=BorderTerms(**raw.border.model_dump()),
        clusters=read_terms(raw.clusters),
    )


def _outside(raw: Mapping[str, _OutsideTable], zones: Mapping[str, Zone], folder: Path) -> dict[str, OutsideTerms]:
    for name in raw:
        if find_zone(zones, name).kind is ZoneKind.PRIVATE:
            raise InvalidInput(
                Reason.CONFIG_INVALID, f"[outside.{name}] names the private zone", "drivers join its cluster themselves"
            )
    return {
        name: OutsideTerms(jobs=table.jobs, token_file=(folder / table.token_file).resolve())
        for name, table in raw.items()
    }


def _policy(raw: _PolicyTable, folder: Path) -> PolicySettings:
    approvers = tuple(
        DeclaredApprover(name=name, key=PublicKey.from_text(table.key), roles=frozenset(table.roles))
        for name, table in raw.approvers.items()
    )
    if len({approver.key.raw for approver in approvers}) != len(approvers):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            "two of [policy.approvers] share a key",
            "every approver signs with a key of their own",
        )
    default = f"{raw.files[0]}.sig" if raw.files else ""
    return PolicySettings(
        files=tuple((folder / name).resolve() for name in raw.files),
        signature=(folder / (raw.signature or default)).resolve() if raw.files else None,
        signers=tuple(PublicKey.from_text(text) for text in raw.signers),
        approvers=approvers,
    )


def _evidence(table: _EvidenceTable, folder: Path) -> EvidenceTerms:
    if table.witness_required and not table.witness:
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            "evidence.witness_required is true, and evidence.witness names none",
            "name a folder or a URL: `fabric witness serve` is one",
        )
    terms = EvidenceTerms(**table.model_dump())
    if not terms.witness or "://" in terms.witness:
        return terms
    return replace(terms, witness=str((folder / terms.witness).resolve()))


def _labels(raw: Mapping[str, object], zones: Mapping[str, Zone]) -> Labels:
    labels = Labels.parse(raw)
    check_zones(labels, zones)
    return labels


def check_zones(labels: Labels, zones: Mapping[str, Zone]) -> None:
    """Refuse labels that allow a zone which is not declared.

    Raises:
        InvalidInput: `UNKNOWN_ZONE`, with the nearest declared name.
    """
    for name in sorted(labels.allowed_execution_zone):
        if name not in zones:
            raise InvalidInput(
                Reason.UNKNOWN_ZONE,
                f"label 'allowed_execution_zone' names an unknown zone {name!r}",
                nearest(name, zones),
            )


def _ray_job(text: str) -> dict[str, Any]:
    try:
        job = json.loads(text or "{}")
    except ValueError:
        return {}
    return job if isinstance(job, dict) else {}


def _carried(runtime_env: Mapping[str, Any]) -> tuple[str, ...]:
    """Name what of a runtime environment Ray gives to every node, less the variables that it sets itself."""
    variables = [name for name in runtime_env.get("env_vars") or {} if not str(name).startswith(_RAYS_OWN)]
    return (*(["py_modules"] if runtime_env.get("py_modules") else []), *(["env_vars"] if variables else []))


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
