"""Labels: the closed vocabulary that policy reads.

A label that is missing means the most restrictive value; one that is misspelt is refused with the nearest right one.
Something derived from several inputs is as sensitive as the most sensitive of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from fabric.errors import InvalidInput, Reason, nearest

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels of records, a matrix or a job. Defaults are the most restrictive values."""

    data_classification: Classification = Classification.RESTRICTED
    allowed_execution_zone: frozenset[str] = frozenset({"private"})
    burst_eligible: bool = False
    purpose: str = ""
    residency: frozenset[str] = frozenset()
    export_control: str = "controlled"
    contract: str = ""
    retention_class: str = ""
    team: str = ""
    project: str = ""
    workload_class: WorkloadClass | None = None

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
        export_control="none" if a.export_control == b.export_control == "none" else _stricter_export(a, b),
        contract=_agree("contract", a.contract, b.contract),
        retention_class=_agree("retention_class", a.retention_class, b.retention_class),
        team=a.team if a.team == b.team else "",
        project=a.project if a.project == b.project else "",
        workload_class=a.workload_class if a.workload_class == b.workload_class else None,
    )


def _agree(name: str, a: str, b: str) -> str:
    if a and b and a != b:
        raise InvalidInput(
            Reason.LABELS_CONFLICT,
            f"the inputs carry different values of the label {name!r}",
            "join only records of one value, or ask their owners to relabel them",
        )
    return a or b


def _stricter_export(a: Labels, b: Labels) -> str:
    return a.export_control if a.export_control != "none" else b.export_control


def _classification(name: str, value: object) -> Classification:
    return Classification(_one_of(name, value, [c.value for c in Classification]))


def _workload(name: str, value: object) -> WorkloadClass:
    return WorkloadClass(_one_of(name, value, [w.value for w in WorkloadClass]))


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
    "residency": _tokens,
    "export_control": _token,
    "contract": _token,
    "retention_class": _token,
    "team": _token,
    "project": _token,
    "workload_class": _workload,
}
