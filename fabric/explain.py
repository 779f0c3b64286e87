"""Explaining: for every zone yes or no, by which rules, and what would turn a no into a yes.

A way to a yes is found by search: each single change, then each pair, then all that help together, cut down to what is
needed. None is shown that policy, asked again with the change made, does not permit. Pure: nothing moves and nothing
is recorded.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from fabric.egress import ColumnPlan
from fabric.labels import Classification, ExportControl, Labels
from fabric.policy import Decision, Policy
from fabric.requests import MoveRequest, Risk, RunRequest
from fabric.zones import Zone

NO_PRICE = "no price declared"
MAX_WAYS = 8
"""Ways shown for one zone, easiest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked about one zone: may the work run there, and may each artifact move there."""

    run: RunRequest
    moves: tuple[MoveRequest, ...]

    @property
    def requests(self) -> tuple[RunRequest | MoveRequest, ...]:
        """Return every question; the answer is yes if each is permitted."""
        return (self.run, *self.moves)

    def with_work(self, **changes: Any) -> Case:
        """Return the case with something else asked of the work and of all that moves for it."""
        return Case(run=replace(self.run, **changes), moves=tuple(replace(move, **changes) for move in self.moves))

    def with_moves(self, **changes: Any) -> Case:
        """Return the case with something else true of all that moves."""
        return replace(self, moves=tuple(replace(move, **changes) for move in self.moves))

    def with_matrix(self, **changes: Any) -> Case:
        """Return the case with something else true of the matrix."""
        made = (replace(move, **changes) if move.artifact == "matrix" else move for move in self.moves)
        return replace(self, moves=tuple(made))

    def with_labels(self, **changes: Any) -> Case:
        """Return the case under other labels."""
        moves = tuple(replace(move, labels=replace(move.labels, **changes)) for move in self.moves)
        return Case(run=replace(self.run, labels=replace(self.run.labels, **changes)), moves=moves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that somebody could do.

    Attributes:
        who: "you", "the recipe's owner", "a second person", "the data owner" or "a data steward"; easiest first.
    """

    id: str
    text: str
    who: str
    apply: Callable[[Case], Case] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Changes that together turn a no into a yes; policy was asked again with all of them made."""

    changes: tuple[Change, ...]

    def to_json(self) -> list[dict[str, str]]:
        """Return the changes as plain JSON."""
        return [{"change": c.id, "text": c.text, "who": c.who} for c in self.changes]

    def __str__(self) -> str:
        return "; and ".join(f"{change.text} ({change.who})" for change in self.changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneAnswer:
    """Whether the work may go to one zone, why, what would change that, and at what price."""

    zone: Zone
    decisions: tuple[Decision, ...]
    ways: tuple[Way, ...]
    price: str

    @property
    def permit(self) -> bool:
        """Say whether everything that the work needs is permitted."""
        return all(decision.permit for decision in self.decisions)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain JSON."""
        return {
            "zone": self.zone.name,
            "kind": self.zone.kind.value,
            "jurisdiction": self.zone.jurisdiction,
            "permit": self.permit,
            "price": self.price,
            "decisions": [decision.brief() for decision in self.decisions],
            "rules": [rule.to_json() for rule in self.rules()],
            "ways": [way.to_json() for way in self.ways],
        }

    def rules(self) -> list[Any]:
        """Return the rules that decided, each once: those that said no, or else those that said yes."""
        counted = [decision for decision in self.decisions if decision.permit == self.permit]
        return list({rule.id: rule for decision in counted for rule in decision.rules}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """What would move.

    Attributes:
        rows: None, like the size and the digest, while nothing is sanitized.
    """

    columns: tuple[ColumnPlan, ...]
    rows: int | None = None
    size_bytes: int | None = None
    digest: str = ""
    statement: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "columns": [{"name": c.name, "from": c.source, "fate": c.fate, "why": c.why} for c in self.columns],
            "rows": self.rows,
            "bytes": self.size_bytes,
            "digest": self.digest,
            "statement": self.statement,
        }

    def __str__(self) -> str:
        names = ", ".join(column.name for column in self.columns if column.fate == "crosses")
        if self.rows is None:
            return f"{names}; not sanitized yet, so rows, bytes and digest are not known"
        size = "size not known" if self.size_bytes is None else f"{self.size_bytes:,} bytes"
        return f"{names}; {self.rows:,} rows, {size}, {self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer for every zone."""

    records: str
    moving: Moving
    zones: tuple[ZoneAnswer, ...]
    policy: str

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as plain JSON."""
        return {
            "records": self.records,
            "policy": self.policy,
            "moving": self.moving.to_json(),
            "zones": [answer.to_json() for answer in self.zones],
        }

    def __str__(self) -> str:
        lines = [f"Work on {self.records}", f"  would move: {self.moving}"]
        for answer in self.zones:
            verdict = "yes" if answer.permit else "NO"
            lines.append(
                f"{answer.zone.name} ({answer.zone.kind.value}, {answer.zone.jurisdiction}): {verdict}; {answer.price}"
            )
            lines += [f"  [{rule.id}] {rule.reason}" for rule in answer.rules()]
            lines += [f"  would be yes: {way}" for way in answer.ways]
            if not answer.permit and not answer.ways:
                lines.append("  no change that is known here would make it yes")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(a.zone.name)}</td><td>{'yes' if a.permit else '<strong>no</strong>'}</td>"
            f"<td>{'<br>'.join(html.escape(f'{r.reason} [{r.id}]') for r in a.rules())}</td>"
            f"<td>{'<br>'.join(html.escape(str(way)) for way in a.ways)}</td><td>{html.escape(a.price)}</td></tr>"
            for a in self.zones
        )
        head = "<tr><th>zone</th><th>may it</th><th>rules</th><th>would be yes</th><th>price</th></tr>"
        moving = html.escape(f"{self.records}: {self.moving}")
        return f"<p>{moving}</p><table>{head}{rows}</table>"


def explain(
    policy: Policy,
    case: Callable[[Zone], Case],
    zones: Sequence[Zone],
    *,
    records: str,
    moving: Moving,
    prices: Mapping[str, str] | None = None,
) -> Explanation:
    """Answer for every zone.

    Args:
        case: what is asked about a zone.
        records: name of the records, or of whatever else the work is on.
        prices: what a zone costs, by its name, in words.
    """
    cases = [case(zone) for zone in zones]
    decisions = _decided(policy, cases)
    good = [zone for zone, taken in zip(zones, decisions, strict=True) if all(d.permit for d in taken)]
    answers = []
    for zone, one, taken in zip(zones, cases, decisions, strict=True):
        ways = () if zone in good else (*_elsewhere(good, case), *ways_to_yes(policy, one))
        price = (prices or {}).get(zone.name, NO_PRICE)
        answers.append(ZoneAnswer(zone=zone, decisions=taken, ways=ways[: MAX_WAYS + 1], price=price))
    return Explanation(records=records, moving=moving, zones=tuple(answers), policy=policy.digest)


def ways_to_yes(policy: Policy, case: Case) -> tuple[Way, ...]:
    """Return the smallest sets of changes under which everything is permitted, easiest first.

    A single change is never part of a longer way, nor a pair of a longer one.
    """
    changes = list(_changes(case))
    # 1. Every change alone.
    singles = _permitted(policy, case, [(change,) for change in changes])
    # 2. Pairs of those that did not do it alone, and that do not undo each other.
    done = {change.id for (change,) in singles}
    rest = [change for change in changes if change.id not in done]
    pairs = _permitted(policy, case, list(combinations(rest, 2)))
    found = [*singles, *pairs]
    # 3. Where two are not enough: all that help, cut down to what is needed.
    if not found:
        found = _together(policy, case, rest)
    found = _least_lowering(found)
    return tuple(Way(changes=way) for way in sorted(found, key=len)[:MAX_WAYS])


_Set = tuple[Change, ...]
_OWNER = "the recipe's owner"
_WHO = ("you", _OWNER, "a second person", "the data owner", "a data steward")


def _permitted(policy: Policy, case: Case, sets: Sequence[_Set]) -> list[_Set]:
    """Return the sets of changes under which policy, asked again, permits everything."""
    decided = _decided(policy, [_applied(case, way) for way in sets])
    return [way for way, taken in zip(sets, decided, strict=True) if all(decision.permit for decision in taken)]


def _decided(policy: Policy, cases: Sequence[Case]) -> list[tuple[Decision, ...]]:
    """Return the decisions on each case, all asked in one call."""
    decided = iter(policy.decide_all([request for case in cases for request in case.requests]))
    return [tuple(next(decided) for _ in case.requests) for case in cases]


def _applied(case: Case, way: _Set) -> Case:
    for change in way:
        case = change.apply(case)
    return case


def _together(policy: Policy, case: Case, changes: Sequence[Change]) -> list[_Set]:
    """Return one set that is permitted and from which nothing can be left out; none if there is none."""
    # Lowering a classification by one step or by more are one change.
    way = tuple({change.id.partition("=")[0]: change for change in changes}.values())
    if not _permitted(policy, case, [way]):
        return []
    # What asks most of others is left out first.
    for change in sorted(way, key=lambda c: -_WHO.index(c.who)):
        without = tuple(other for other in way if other is not change)
        if _permitted(policy, case, [without]):
            way = without
    return [way]


def _least_lowering(ways: Sequence[_Set]) -> list[_Set]:
    """Keep, of ways that differ only in how far a classification is lowered, the one that lowers it least."""
    kept: dict[tuple[str, ...], _Set] = {}
    for way in ways:
        kept.setdefault(tuple(change.id.partition("=")[0] for change in way), way)
    return list(kept.values())


def _elsewhere(good: Sequence[Zone], case: Callable[[Zone], Case]) -> Iterator[Way]:
    for zone in good[:1]:
        there = case(zone)
        text = f"send the work to zone {zone.name!r} instead"
        yield Way(changes=(Change(id=f"zone={zone.name}", text=text, who="you", apply=lambda _: there),))  # noqa: B023


def _changes(case: Case) -> Iterator[Change]:
    """Yield what could be done about this case; what would change nothing is left out."""
    for change in (*_of_the_asker(case), *_of_the_matrix(case), *_of_others(case)):
        if change.apply(case) != case:
            yield change


def _of_the_asker(case: Case) -> Iterator[Change]:
    if not case.run.justification.strip():
        yield Change(
            id="justification",
            text="say why in justification",
            who="you",
            apply=lambda c: c.with_work(justification="a justification"),
        )
    purpose = case.run.labels.purpose
    if purpose and purpose != case.run.purpose:
        yield Change(
            id=f"purpose={purpose}",
            text=f"state the purpose {purpose!r}, which the records are labelled with",
            who="you",
            apply=lambda c: c.with_work(purpose=purpose),
        )
    if case.run.reads_records:
        yield Change(
            id="sanitize_first",
            text="give the work the sanitized matrix in place of the records",
            who="you",
            apply=lambda c: replace(c, run=replace(c.run, reads_records=False)),
        )


def _of_the_matrix(case: Case) -> Iterator[Change]:
    matrix = next((move for move in case.moves if move.artifact == "matrix"), None)
    if matrix is None:
        return
    if not matrix.inspected or matrix.expired or matrix.risk is None:
        yield Change(
            id="sanitize",
            text="sanitize the records by this recipe, with a risk within its limits",
            who="you",
            apply=lambda c: c.with_matrix(inspected=True, expired=False, risk=Risk()),
        )
    if matrix.statement_purpose != matrix.purpose:
        yield Change(
            id="recipe_purpose",
            text=f"have a recipe written for the purpose {matrix.labels.purpose!r}",
            who=_OWNER,
            apply=lambda c: c.with_matrix(statement_purpose=matrix.labels.purpose),
        )
    yield from _of_the_columns(matrix)
    if matrix.risk is not None:
        yield from _of_the_risk(matrix.risk)


def _of_the_columns(matrix: MoveRequest) -> Iterator[Change]:
    for name in sorted(matrix.text_columns):
        yield Change(
            id=f"drop:{name}",
            text=f"drop the text column {name!r} from the recipe, or encode it",
            who=_OWNER,
            apply=_without_text(name),
        )
    if len(matrix.text_columns) > 1:
        yield Change(
            id="drop:text",
            text=f"drop all {len(matrix.text_columns)} text columns from the recipe, or encode them",
            who=_OWNER,
            apply=lambda c: c.with_matrix(text_columns=frozenset()),
        )
    if matrix.keyed_tokens:
        yield Change(
            id="surrogates",
            text="make random surrogates in place of keyed hashes",
            who=_OWNER,
            apply=lambda c: c.with_matrix(keyed_tokens=0),
        )


def _of_the_risk(risk: Risk) -> Iterator[Change]:
    if risk.k < risk.k_required:
        yield Change(
            id="raise_k",
            text=f"raise k from {risk.k} to {risk.k_required}: coarsen or drop quasi-identifiers",
            who=_OWNER,
            apply=_with_risk(k=risk.k_required),
        )
    if risk.l < risk.l_required:
        yield Change(
            id="raise_l",
            text=f"raise l from {risk.l} to {risk.l_required}: coarsen or drop quasi-identifiers",
            who=_OWNER,
            apply=_with_risk(l=risk.l_required),
        )
    if risk.t > risk.t_allowed:
        yield Change(
            id="lower_t",
            text=f"lower t from {risk.t / 1e6:.3f} to {risk.t_allowed / 1e6:.3f}: coarsen or drop quasi-identifiers",
            who=_OWNER,
            apply=_with_risk(t=risk.t_allowed),
        )


def _without_text(name: str) -> Callable[[Case], Case]:
    def apply(case: Case) -> Case:
        moves = (replace(move, text_columns=move.text_columns - {name}) for move in case.moves)
        return replace(case, moves=tuple(moves))

    return apply


def _with_risk(**measures: int) -> Callable[[Case], Case]:
    def apply(case: Case) -> Case:
        moves = (replace(m, risk=replace(m.risk, **measures)) if m.risk is not None else m for m in case.moves)
        return replace(case, moves=tuple(moves))

    return apply


def _lower_to(classification: Classification) -> Callable[[Case], Case]:
    return lambda case: case.with_labels(data_classification=classification)


def _of_others(case: Case) -> Iterator[Change]:
    zone = case.run.zone
    labels: Labels = case.moves[0].labels if case.moves else case.run.labels
    yield Change(
        id="approval",
        text="have it approved: fabric plan --ask, then fabric approve",
        who="a second person",
        apply=lambda c: c.with_moves(approved=True),
    )
    owner = "the data owner"
    yield Change(
        id="label:allowed_execution_zone",
        text=f"add {zone.name!r} to allowed_execution_zone",
        who=owner,
        apply=lambda c: c.with_labels(allowed_execution_zone=labels.allowed_execution_zone | {zone.name}),
    )
    yield Change(
        id="label:burst_eligible",
        text="set burst_eligible = true",
        who=owner,
        apply=lambda c: c.with_labels(burst_eligible=True),
    )
    yield Change(
        id="label:residency",
        text=f"add {zone.jurisdiction!r} to residency",
        who=owner,
        apply=lambda c: c.with_labels(residency=labels.residency | {zone.jurisdiction}),
    )
    yield Change(
        id="label:export_control",
        text="have the export office say that nothing is controlled: export_control = none",
        who=owner,
        apply=lambda c: c.with_labels(export_control=ExportControl.NONE),
    )
    yield Change(
        id="label:contract_limits",
        text="change the contract, and say so in contract_limits",
        who=owner,
        apply=lambda c: c.with_labels(contract_limits=frozenset()) if labels.limits else c,
    )
    # The least lowering first.
    lower = [c for c in Classification if c.rank < labels.data_classification.rank]
    for classification in reversed(lower):
        yield Change(
            id=f"lower={classification.value}",
            text=f"state, signed, that the matrix is {classification.value}: fabric policy lower",
            who="a data steward",
            apply=_lower_to(classification),
        )
