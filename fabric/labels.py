"""Labels: the closed vocabulary that policy reads.

A label that is missing means the most restrictive value; one that is misspelt is refused with the nearest right one.
Something derived from several inputs is as sensitive as the most sensitive of them, until a signed statement lowers it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from fabric.errors import InvalidInput, Reason, nearest

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_SUBDIVISION = re.compile(r"[A-Z0-9]{1,3}\Z")

# ISO 3166-1 alpha-2.
_COUNTRIES = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO
FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE
JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO
MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW
PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM
TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""
JURISDICTIONS = frozenset({"EU", "EEA", *_COUNTRIES.split()})
"""Where data may lie: a country, one of its subdivisions (ISO 3166-2, such as US-CA), the EU or the EEA."""


class Classification(StrEnum):
    """Sensitivity of data, from least to most."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    RESTRICTED = "restricted"

    @property
    def rank(self) -> int:
        """Return 0 for public to 3 for restricted."""
        return list(Classification).index(self)


class WorkloadClass(StrEnum):
    """What kind of work a job is."""

    TRAINING = "training"
    FINE_TUNING = "fine-tuning"
    SWEEP = "sweep"
    BATCH_INFERENCE = "batch-inference"
    ONLINE_INFERENCE = "online-inference"
    EDGE_INFERENCE = "edge-inference"


class ExportControl(StrEnum):
    """The export-control regime that the data, or what is made with them, falls under."""

    NONE = "none"
    CONTROLLED = "controlled"
    ITAR = "ITAR"
    EAR = "EAR"
    EU_DUAL_USE = "EU-DUAL-USE"
    UK_STRATEGIC = "UK-STRATEGIC"

    @property
    def jurisdiction(self) -> str:
        """Return where work under the regime may be done; empty for none and for one that is not named."""
        return {"ITAR": "US", "EAR": "US", "EU-DUAL-USE": "EU", "UK-STRATEGIC": "GB"}.get(self.value, "")


class ContractLimit(StrEnum):
    """What the contract with whoever gave the data rules out, or asks for."""

    NO_PUBLIC_ZONE = "no-public-zone"
    NO_EDGE_ZONE = "no-edge-zone"
    NO_FINE_TUNING = "no-fine-tuning"
    NO_SERVING = "no-serving"
    TWO_PERSON = "two-person"


class RetentionClass(StrEnum):
    """How long something is kept, from shortest to longest; under a legal hold it is not deleted."""

    JOB = "job"
    DAYS_30 = "days-30"
    YEAR_1 = "year-1"
    YEARS_6 = "years-6"
    YEARS_10 = "years-10"
    HOLD = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels of records, a matrix or a job. Defaults are the most restrictive values.

    Attributes:
        contract: the contract that the data are held under; empty where there is none.
        contract_limits: None where nobody has stated any: a contract without stated limits has all of them.
        retention_class: None means what `job` means.
        workload_class: of a job; data have none.
    """

    data_classification: Classification = Classification.RESTRICTED
    allowed_execution_zone: frozenset[str] = frozenset({"private"})
    burst_eligible: bool = False
    purpose: str = ""
    residency: frozenset[str] = frozenset()
    export_control: ExportControl = ExportControl.CONTROLLED
    contract: str = ""
    contract_limits: frozenset[ContractLimit] | None = None
    retention_class: RetentionClass | None = None
    team: str = ""
    project: str = ""
    workload_class: WorkloadClass | None = None

    @property
    def limits(self) -> frozenset[ContractLimit]:
        """Return what the contract rules out: everything it could, where a contract is named and its limits are not."""
        if self.contract_limits is not None:
            return self.contract_limits
        return frozenset(ContractLimit) if self.contract else frozenset()

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Labels:
        """Check labels from job metadata or a file.

        Lists may be given as comma-separated text, booleans as `true` or `false`, because Ray's job metadata holds
        text only.

        Raises:
            InvalidInput: `UNKNOWN_LABEL` or `LABEL_INVALID`.
        """
        known = {field.name for field in fields(cls)}
        for name in raw:
            if name not in known:
                raise InvalidInput(Reason.UNKNOWN_LABEL, f"unknown label {name!r}", nearest(name, known))
        return cls(**{name: _READERS[name](name, value) for name, value in raw.items()})  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> Labels:
        """Read what `to_json` wrote; an empty value is a label that was not set.

        Raises:
            InvalidInput: `UNKNOWN_LABEL` or `LABEL_INVALID`.
        """
        return cls.parse({name: value for name, value in raw.items() if value != ""})

    def to_json(self) -> dict[str, str | bool | list[str]]:
        """Return the labels as plain JSON values, sorted where the label is a set."""
        out: dict[str, str | bool | list[str]] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "contract_limits" and value is None:
                continue  # an empty list would say that there are none
            if isinstance(value, frozenset):
                out[field.name] = sorted(value)
            elif isinstance(value, bool):
                out[field.name] = value
            else:
                out[field.name] = "" if value is None else str(value)
        return out


def most_restrictive(*inputs: Labels) -> Labels:
    """Return the labels of something made from all `inputs`.

    Raises:
        InvalidInput: `LABELS_CONFLICT` if two inputs name different purposes, contracts or export controls.
    """
    first, *rest = inputs
    for other in rest:
        first = _combine(first, other)
    return first


def _combine(a: Labels, b: Labels) -> Labels:
    return Labels(
        data_classification=max(a.data_classification, b.data_classification, key=lambda c: c.rank),
        allowed_execution_zone=a.allowed_execution_zone & b.allowed_execution_zone,
        burst_eligible=a.burst_eligible and b.burst_eligible,
        purpose=_agree("purpose", a.purpose, b.purpose),
        residency=a.residency & b.residency,
        export_control=_stricter_export(a.export_control, b.export_control),
        contract=_agree("contract", a.contract, b.contract),
        contract_limits=_both_limits(a, b),
        retention_class=_stricter_retention(a.retention_class, b.retention_class),
        team=a.team if a.team == b.team else "",
        project=a.project if a.project == b.project else "",
        workload_class=_one_workload(a.workload_class, b.workload_class),
    )


def _agree(name: str, a: str, b: str) -> str:
    if a and b and a != b:
        raise InvalidInput(
            Reason.LABELS_CONFLICT,
            f"the inputs carry different values of the label {name!r}",
            "join only records of one value, or ask their owners to relabel them",
        )
    return a or b


def _stricter_export(a: ExportControl, b: ExportControl) -> ExportControl:
    if a == b or b == ExportControl.NONE:
        return a
    # Two regimes leave no place where both allow the work.
    return b if a == ExportControl.NONE else ExportControl.CONTROLLED


def _both_limits(a: Labels, b: Labels) -> frozenset[ContractLimit] | None:
    if a.contract_limits is None and b.contract_limits is None:
        return None
    return a.limits | b.limits


def _stricter_retention(a: RetentionClass | None, b: RetentionClass | None) -> RetentionClass | None:
    if RetentionClass.HOLD in (a, b):
        return RetentionClass.HOLD
    order = [None, *RetentionClass]
    return min(a, b, key=order.index)


def _one_workload(a: WorkloadClass | None, b: WorkloadClass | None) -> WorkloadClass | None:
    if a is None or b is None:
        return a or b
    return a if a == b else None


def _classification(name: str, value: object) -> Classification:
    return Classification(_one_of(name, value, [c.value for c in Classification]))


def _workload(name: str, value: object) -> WorkloadClass:
    return WorkloadClass(_one_of(name, value, [w.value for w in WorkloadClass]))


def _export(name: str, value: object) -> ExportControl:
    return ExportControl(_one_of(name, value, [e.value for e in ExportControl]))


def _retention(name: str, value: object) -> RetentionClass:
    return RetentionClass(_one_of(name, value, [r.value for r in RetentionClass]))


def _limits(name: str, value: object) -> frozenset[ContractLimit]:
    allowed = [limit.value for limit in ContractLimit]
    return frozenset(ContractLimit(_one_of(name, item, allowed)) for item in _tokens(name, value))


def _jurisdictions(name: str, value: object) -> frozenset[str]:
    for item in (found := _tokens(name, value)):
        country, dash, part = item.partition("-")
        if country not in JURISDICTIONS or (dash and not _SUBDIVISION.match(part)):
            close = [code for code in sorted(JURISDICTIONS) if sorted(code) == sorted(item.upper())]
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InvalidInput(
                Reason.LABEL_INVALID,
                f"label {name!r} names an unknown jurisdiction {item!r}",
                hint + "Allowed: EU, EEA, an ISO 3166-1 code such as DE, or a subdivision such as US-CA.",
            )
    return found


def _one_of(name: str, value: object, allowed: list[str]) -> str:
    text = _token(name, value)
    if text not in allowed:
        raise InvalidInput(
            Reason.LABEL_INVALID, f"label {name!r} has an unknown value {text!r}", nearest(text, allowed)
        )
    return text


def _token(name: str, value: object) -> str:
    if not isinstance(value, str) or not _TOKEN.match(value):
        raise InvalidInput(
            Reason.LABEL_INVALID,
            f"label {name!r} is not a token",
            "use up to 63 letters, digits, '.', '_' or '-', starting with a letter or digit",
        )
    return value


def is_token(text: str) -> bool:
    """Say whether `text` has the form of a label: up to 63 letters, digits, dots, underscores and hyphens."""
    return _TOKEN.match(text) is not None


def _tokens(name: str, value: object) -> frozenset[str]:
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list | tuple | frozenset | set):
        raise InvalidInput(Reason.LABEL_INVALID, f"label {name!r} is not a list", 'write ["a", "b"] or "a,b"')
    return frozenset(_token(name, item) for item in items if item != "")


def _boolean(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise InvalidInput(Reason.LABEL_INVALID, f"label {name!r} is not a boolean", "write true or false")


_READERS = {
    "data_classification": _classification,
    "allowed_execution_zone": _tokens,
    "burst_eligible": _boolean,
    "purpose": _token,
    "residency": _jurisdictions,
    "export_control": _export,
    "contract": _token,
    "contract_limits": _limits,
    "retention_class": _retention,
    "team": _token,
    "project": _token,
    "workload_class": _workload,
}
