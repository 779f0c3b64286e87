"""Explaining: every zone has its answer, and no way out is shown that policy would not take."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.explain import NO_PRICE, Case, Moving, explain, ways_to_yes
from fabric.labels import Classification, ContractLimit, ExportControl, Labels
from fabric.policy import Policy
from fabric.requests import MoveRequest, Risk, RunRequest
from fabric.zones import Zone, ZoneKind

PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU")
AMERICAN = Zone(name="american", kind=ZoneKind.PUBLIC, jurisdiction="US")
EDGE = Zone(name="edge", kind=ZoneKind.EDGE, jurisdiction="EU")
POLICY = Policy.default()
LABELS = Labels(
    data_classification=Classification.RESTRICTED,
    allowed_execution_zone=frozenset({"private", "public"}),
    burst_eligible=True,
    purpose="cost-forecast",
    residency=frozenset({"EU"}),
    export_control=ExportControl.NONE,
)


def case(zone=PUBLIC, *, labels=LABELS, purpose="cost-forecast", justification="queue", reads_records=False, **matrix):
    common = {"person": "p-1", "zone": zone, "labels": labels, "purpose": purpose, "justification": justification}
    move = {"artifact": "matrix", "inspected": True, "expired": False, "statement_purpose": "cost-forecast"}
    return Case(
        run=RunRequest(**common, reads_records=reads_records),
        moves=(MoveRequest(**common, **{**move, "risk": Risk(k=20, k_required=11), **matrix}),),
    )


def ways(one, policy=POLICY):
    return [[change.id for change in way.changes] for way in ways_to_yes(policy, one)]


ITAR = replace(LABELS, export_control=ExportControl.ITAR, residency=frozenset({"EU", "US"}))
TEXT = {"text_columns": frozenset({"notes"})}


@pytest.mark.parametrize(
    ("one", "first"),
    [
        (case(justification=""), ["justification"]),
        (case(purpose="research"), ["purpose=cost-forecast"]),
        (case(reads_records=True), ["sanitize_first"]),
        (case(expired=True), ["sanitize"]),
        (case(inspected=False, risk=None), ["sanitize"]),
        (case(**TEXT), ["drop:notes"]),
        (case(text_columns=frozenset({"notes", "name", "street"})), ["drop:text"]),
        (case(risk=Risk(k=3, k_required=11)), ["raise_k"]),
        (case(risk=Risk(l=1, l_required=2)), ["raise_l"]),
        (case(risk=Risk(t=600_000, t_allowed=500_000)), ["lower_t"]),
        (case(keyed_tokens=1), ["surrogates"]),
        (case(statement_purpose="other"), ["recipe_purpose"]),
        (case(labels=replace(LABELS, burst_eligible=False)), ["label:burst_eligible"]),
        (case(labels=replace(LABELS, allowed_execution_zone=frozenset())), ["label:allowed_execution_zone"]),
        (case(labels=replace(LABELS, residency=frozenset())), ["label:residency"]),
        (case(labels=replace(LABELS, contract_limits=frozenset({ContractLimit.TWO_PERSON}))), ["approval"]),
        (case(labels=replace(LABELS, contract="c-1", contract_limits=frozenset({ContractLimit.NO_PUBLIC_ZONE}))),
         ["label:contract_limits"]),
        (case(AMERICAN, labels=replace(ITAR, allowed_execution_zone=frozenset({"american"}))), ["approval"]),
        # Two at a time.
        (case(justification="", **TEXT), ["justification", "drop:notes"]),
        (case(keyed_tokens=1, justification=""), ["justification", "surrogates"]),
        # More than two.
        (case(justification="", purpose="research", expired=True, **TEXT),
         ["justification", "purpose=cost-forecast", "sanitize", "drop:notes"]),
    ],
)  # fmt: skip
def test_the_easiest_way_to_a_yes_comes_first(one, first):
    assert ways(one)[0] == first


def test_each_of_many_ways_is_named():
    assert ways(case(keyed_tokens=1)) == [["surrogates"], ["approval"], ["lower=internal"]]
    assert ways(case(risk=None)) == [["sanitize"], ["lower=internal"]]


def test_a_classification_is_lowered_no_further_than_needed():
    site = """
    @id("site.open") @reason("only open data leave") @way_out("lower it")
    forbid (principal, action == Action::"move", resource)
    when { resource.kind != "private" && context.labels.data_classification >= 1 };
    """
    from fabric.policy import default_texts

    policy = Policy(*default_texts(), additions=[site])
    assert ways(case(), policy) == [["lower=public"]]


def test_where_no_change_helps_none_is_named():
    assert ways(case(EDGE)) == []
    answer = explain(POLICY, case, [EDGE], records="people", moving=Moving(columns=())).zones[0]
    assert "no change that is known here" in str(explain(POLICY, case, [EDGE], records="x", moving=Moving(columns=())))
    assert answer.ways == ()


def test_every_zone_has_an_answer_and_a_no_names_a_zone_that_says_yes():
    found = explain(
        POLICY, case, [PRIVATE, PUBLIC, AMERICAN, EDGE], records="people", moving=Moving(columns=()),
        prices={"public": "1.20 EUR per GPU hour"},
    )  # fmt: skip
    assert [answer.permit for answer in found.zones] == [True, True, False, False]
    assert [answer.price for answer in found.zones][:3] == [NO_PRICE, "1.20 EUR per GPU hour", NO_PRICE]
    assert [rule.id for rule in found.zones[2].rules()] == ["labels.residency", "labels.zone"]
    assert found.zones[2].ways[0].changes[0].id == "zone=private"
    plain = found.to_json()
    assert [zone["permit"] for zone in plain["zones"]] == [True, True, False, False]
    assert plain["zones"][2]["ways"][1] == [
        {"change": "label:allowed_execution_zone", "text": "add 'american' to allowed_execution_zone",
         "who": "the data owner"},
        {"change": "label:residency", "text": "add 'US' to residency", "who": "the data owner"},
    ]  # fmt: skip
    assert "<strong>no</strong>" in found._repr_html_()


cases = st.builds(
    case,
    zone=st.sampled_from([PUBLIC, AMERICAN, EDGE]),
    labels=st.builds(
        replace,
        st.just(LABELS),
        burst_eligible=st.booleans(),
        residency=st.sampled_from([frozenset({"EU"}), frozenset()]),
        export_control=st.sampled_from(ExportControl),
        contract_limits=st.one_of(st.none(), st.frozensets(st.sampled_from(ContractLimit), max_size=1)),
    ),
    purpose=st.sampled_from(["cost-forecast", "", "research"]),
    justification=st.sampled_from(["queue", ""]),
    reads_records=st.booleans(),
    inspected=st.booleans(),
    keyed_tokens=st.integers(0, 1),
    text_columns=st.frozensets(st.sampled_from(["a", "b"])),
    risk=st.sampled_from([None, Risk(k=3, k_required=11), Risk(k=20, k_required=11)]),
)


@given(cases)
@settings(max_examples=60, deadline=None)
def test_every_way_holds_when_policy_is_asked_again_and_none_of_its_changes_is_idle(one):
    def permitted(changes):
        changed = one
        for change in changes:
            changed = change.apply(changed)
        return all(Policy.decide(POLICY, request).permit for request in changed.requests)

    for way in ways_to_yes(POLICY, one):
        assert permitted(way.changes)
        for change in way.changes:
            assert not permitted([other for other in way.changes if other is not change])
