"""The labels of a piece of work as CEL: read from where its author wrote them, and held to the policy's own rules.

What a label may say comes from `fabric.labels`, why it is refused from the Cedar rule of the same name, so the words
are the same in the command line and in Kubernetes. A label that is missing has its most restrictive value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import lru_cache

from fabric.admission_words import DOMAIN, Check, quoted, quoted_list
from fabric.errors import Reason
from fabric.labels import (
    JURISDICTIONS,
    Classification,
    ContractLimit,
    ExportControl,
    Labels,
    RetentionClass,
    WorkloadClass,
)
from fabric.policy import Policy, Rule
from fabric.zones import Zone

Source = Callable[[str], tuple[str, str]]
"""From a label's name to CEL that says whether it is there, and CEL that reads it."""

PREFIX = f"labels.{DOMAIN}/"
JUSTIFIED, READS_RECORDS = f"{DOMAIN}/justified", f"{DOMAIN}/reads-records"
_TOKEN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"  # noqa: S105 - a pattern of labels
_DEFAULTS = {
    "data_classification": Labels().data_classification.value,
    "allowed_execution_zone": ",".join(sorted(Labels().allowed_execution_zone)),
    "burst_eligible": "false",
    "export_control": Labels().export_control.value,
}


def of_map(path: str, present: str) -> Source:
    """Return the source of labels that are keys of a map."""
    return lambda name: (f"{present} && {quoted(name)} in {path}", f"{path}[{quoted(name)}]")


def of_annotations() -> Source:
    """Return the source of labels that are annotations of the object."""
    path = "object.metadata.annotations"
    return lambda name: (f'has({path}) && "{PREFIX}{name}" in {path}', f'{path}["{PREFIX}{name}"]')


def variables(source: Source) -> tuple[tuple[str, str], ...]:
    """Return each label as a variable that has a value, whatever was written."""
    found = []
    for name in Labels.__dataclass_fields__:
        present, value = source(name)
        if name != "contract_limits":
            found.append((name, f"{present} ? {value} : {quoted(_DEFAULTS.get(name, ''))}"))
    # A contract whose limits nobody has stated has all of them.
    present, value = source("contract_limits")
    everything = ",".join(limit.value for limit in ContractLimit)
    found.append(("contract_limits", f'{present} ? {value} : (variables.contract == "" ? "" : "{everything}")'))
    found.append(("justified", _flag(JUSTIFIED, "false")))
    found.append(("reads_records", _flag(READS_RECORDS, "true")))
    found.append(("regime", _regime()))
    return tuple(found)


def _flag(name: str, missing: str) -> str:
    path = "object.metadata.annotations"
    return f'has({path}) && "{name}" in {path} ? {path}["{name}"] : "{missing}"'


def _regime() -> str:
    """Return where work under the regime may be done, as CEL; empty where nobody has said."""
    text = '""'
    for regime in ExportControl:
        if regime.jurisdiction:
            text = f"variables.export_control == {quoted(regime.value)} ? {quoted(regime.jurisdiction)} : {text}"
    return text


# Shape: before everything else, because an error in CEL may be absorbed.


def shape_of_metadata() -> tuple[Check, ...]:
    """Return what holds of the labels of a RayJob: a map of text, with no key that is no label."""
    known = quoted_list(sorted(Labels.__dataclass_fields__))
    path = "object.spec.metadata"
    return (
        Check(
            id="labels.shape",
            reason=Reason.LABEL_INVALID,
            expression=f"has(object.spec) && type(object.spec) == map && (!has({path}) || (type({path}) == map && "
            f"{path}.all(k, type({path}[k]) == string && (k in {_lists('')} || {path}[k] != ''))))",
            says="the labels are not a map of text, or one is written empty; write them under spec.metadata",
        ),
        Check(
            id="labels.known",
            reason=Reason.UNKNOWN_LABEL,
            expression=f"!has({path}) || {path}.all(k, k in {known})",
            says=f"spec.metadata has a key that is no label; allowed are {known[1:-1]}".replace('"', ""),
        ),
    )


def shape_of_annotations() -> tuple[Check, ...]:
    """Return what holds of labels that are annotations: a map of text, with no label that is unknown."""
    known = quoted_list([PREFIX + name for name in sorted(Labels.__dataclass_fields__)])
    path = "object.metadata.annotations"
    return (
        Check(
            id="labels.shape",
            reason=Reason.LABEL_INVALID,
            expression=f"!has({path}) || (type({path}) == map && {path}.all(k, type({path}[k]) == string && "
            f"(!k.startsWith({quoted(PREFIX)}) || k in {_lists(PREFIX)} || {path}[k] != '')))",
            says=f"the annotations are not a map of text, or a label is written empty; write {PREFIX}<label>",
        ),
        Check(
            id="labels.known",
            reason=Reason.UNKNOWN_LABEL,
            expression=f'!has({path}) || {path}.all(k, !k.startsWith("{PREFIX}") || k in {known})',
            says=f"an annotation {PREFIX}… names no label",
        ),
    )


def _lists(prefix: str) -> str:
    """Return the labels that are sets, and may be empty."""
    return quoted_list([f"{prefix}{name}" for name in ("allowed_execution_zone", "contract_limits", "residency")])


# The rules.


def checks(zones: Sequence[Zone]) -> tuple[Check, ...]:
    """Return the rules about labels that hold for a job and for work put outside alike."""
    names = [zone.name for zone in zones]
    return (*_vocabulary(names), *_rules())


def _vocabulary(zones: list[str]) -> tuple[Check, ...]:
    closed = [
        _one_of("data_classification", Classification, optional=False),
        _one_of("workload_class", WorkloadClass, optional=True),
        _one_of("export_control", ExportControl, optional=False),
        _one_of("retention_class", RetentionClass, optional=True),
        'variables.burst_eligible in ["true", "false"]',
        *(f'(variables.{name} == "" || variables.{name}.matches("{_TOKEN}"))' for name in _FREE),
        _list_of("contract_limits", [limit.value for limit in ContractLimit]),
        _list_of("residency", sorted(JURISDICTIONS), suffix="(-[A-Z0-9]{1,3})?"),
    ]
    return (
        Check(
            id="labels.vocabulary",
            reason=Reason.LABEL_INVALID,
            expression=" && ".join(closed),
            says="a label has a value that is not in its vocabulary; ARCHITECTURE.md lists them",
        ),
        Check(
            id="labels.zones",
            reason=Reason.UNKNOWN_ZONE,
            expression=f"{_list_of('allowed_execution_zone', zones)} && variables.target in {quoted_list(zones)}"
            f" && variables.home in {quoted_list(zones)}",
            says=f"a zone is named that fabric.toml does not declare; declared are {', '.join(zones)}",
        ),
    )


_FREE = ("purpose", "team", "project", "contract")


def _one_of(name: str, words: type[StrEnum], *, optional: bool) -> str:
    return f"variables.{name} in {quoted_list([*([''] if optional else []), *(word.value for word in words)])}"


def _list_of(name: str, words: Iterable[str], suffix: str = "") -> str:
    one = f"({'|'.join(words)}){suffix}"
    return f'variables.{name}.matches("^({one}(,{one})*)?$")'


def _rules() -> tuple[Check, ...]:
    inside = 'p.kind == "private"'
    return (
        _like("run.public", f'{inside} || p.kind == "public"', reason="no rule permits work in a zone of this kind"),
        _like("labels.zone", f"{_has_word('allowed_execution_zone', 'p.name')}"),
        _like("labels.burst", f'{inside} || variables.burst_eligible == "true"'),
        _like("labels.purpose", f'{inside} || variables.purpose != ""'),
        _like("labels.residency", f"{inside} || {_has_word('residency', 'p.jurisdiction')}"),
        _like(
            "labels.export",
            f'{inside} || variables.export_control == "none" || variables.regime == p.jurisdiction',
        ),
        _like("labels.export_inside", f'!({inside}) || variables.regime == "" || variables.regime == p.jurisdiction'),
        _like("contract.public", f'p.kind != "public" || !{_limit("no-public-zone")}'),
        _like(
            "contract.fine_tuning",
            f'!{_limit("no-fine-tuning")} || !(variables.workload_class == "fine-tuning" || '
            f'(variables.workload_class == "" && !({inside})))',
        ),
        _like("public.justified", f'{inside} || variables.justified == "true"'),
        _like("run.raw_stays", f'{inside} || variables.reads_records == "false"'),
    )


def submit_checks() -> tuple[Check, ...]:
    """Return what holds of the zone in which a job's driver starts."""
    return (
        _check(
            "submit.inside",
            'variables.zones.exists(z, z.name == variables.home && z.kind == "private")',
            _rule("submit.inside").reason,
            "apply it in the private zone's namespace",
        ),
    )


def outside_checks() -> tuple[Check, ...]:
    """Return what holds of work that comes into a zone outside without having passed the border."""
    return (
        _check(
            "outside.restricted",
            'variables.data_classification in ["public", "internal"]',
            "confidential and restricted work comes into this zone through the border only",
            "submit it in the private zone; a missing label counts as restricted",
        ),
    )


def _has_word(name: str, word: str) -> str:
    return f'("," + variables.{name} + ",").contains("," + {word} + ",")'


def _limit(limit: str) -> str:
    return f'("," + variables.contract_limits + ",").contains(",{limit},")'


def _like(rule: str, expression: str, *, reason: str = "") -> Check:
    cedar = _rule(rule)
    return _check(rule, f"variables.places.all(p, {expression})", reason or cedar.reason, cedar.way_out)


def _check(rule: str, expression: str, why: str, way_out: str) -> Check:
    says = f"{why}. Way out: {way_out}" if way_out else why
    return Check(id=rule, reason=Reason.POLICY_DENIED, expression=expression, says=says)


@lru_cache(maxsize=1)
def _cedar() -> dict[str, Rule]:
    return {rule.id: rule for rule in Policy.default().rules}


def _rule(rule: str) -> Rule:
    return _cedar()[rule]
