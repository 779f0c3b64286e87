"""Labels: closed, strict where unsaid, as sensitive as the most sensitive input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidInput, Reason
from fabric.labels import (
    Classification,
    ContractLimit,
    ExportControl,
    Labels,
    RetentionClass,
    WorkloadClass,
    most_restrictive,
)

OPEN = {
    "data_classification": "internal",
    "allowed_execution_zone": "private,public",
    "burst_eligible": "true",
    "purpose": "cost-forecast",
    "residency": "EU",
    "export_control": "none",
}


def test_an_unknown_label_is_refused_with_the_nearest_right_one():
    with pytest.raises(InvalidInput) as caught:
        Labels.parse({"data_clasification": "public"})
    assert caught.value.reason is Reason.UNKNOWN_LABEL
    assert "did you mean 'data_classification'?" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_classification", "restrcted"),
        ("workload_class", "trainning"),
        ("burst_eligible", "yes"),
        ("burst_eligible", 1),
        ("purpose", "a purpose with spaces"),
        ("purpose", ""),
        ("allowed_execution_zone", 5),
        ("residency", ["EU", "not a token"]),
        ("residency", "eu"),
        ("residency", "UE"),
        ("residency", "US-californ"),
        ("export_control", "ITARR"),
        ("contract_limits", "no-public-zones"),
        ("retention_class", "forever"),
    ],
)
def test_a_value_outside_the_vocabulary_is_refused(name, value):
    with pytest.raises(InvalidInput) as caught:
        Labels.parse({name: value})
    assert caught.value.reason is Reason.LABEL_INVALID
    assert repr(name) in caught.value.message


def test_a_missing_label_means_the_most_restrictive_value():
    labels = Labels.parse({})
    assert labels.data_classification is Classification.RESTRICTED
    assert labels.allowed_execution_zone == {"private"}
    assert not labels.burst_eligible
    assert labels.residency == frozenset()
    assert labels.export_control != "none"


def test_labels_read_alike_from_metadata_and_from_a_file():
    from_file = {**OPEN, "allowed_execution_zone": ["private", "public"], "burst_eligible": True, "residency": ["EU"]}
    assert Labels.parse(OPEN) == Labels.parse(from_file)


FULL = {
    **OPEN, "workload_class": "sweep", "contract": "c1", "contract_limits": "no-serving,two-person",
    "retention_class": "years-6", "team": "t", "project": "p", "residency": "EU,US-CA",
}  # fmt: skip


@pytest.mark.parametrize("raw", [{}, OPEN, FULL, {**FULL, "contract_limits": ""}])
def test_labels_are_read_back_as_they_were_written(raw):
    labels = Labels.parse(raw)
    assert Labels.from_json(labels.to_json()) == labels


@pytest.mark.parametrize(
    ("label", "value", "right"),
    [("export_control", "ITARR", "ITAR"), ("contract_limits", "no-servin", "no-serving"), ("residency", "UE", "EU")],
)
def test_a_misspelt_value_is_refused_with_the_nearest_right_one(label, value, right):
    with pytest.raises(InvalidInput) as caught:
        Labels.parse({label: value})
    assert f"did you mean {right!r}?" in caught.value.hint


def test_a_contract_without_stated_limits_has_all_of_them():
    assert Labels.parse({}).limits == frozenset()
    assert Labels.parse({"contract": "c1"}).limits == frozenset(ContractLimit)
    assert Labels.parse({"contract": "c1", "contract_limits": []}).limits == frozenset()
    stated = Labels.parse({"contract": "c1", "contract_limits": "no-serving"})
    assert most_restrictive(stated, Labels.parse({"contract": "c1"})).limits == frozenset(ContractLimit)


def test_two_regimes_leave_no_place_where_both_allow_the_work():
    itar, european = Labels.parse({"export_control": "ITAR"}), Labels.parse({"export_control": "EU-DUAL-USE"})
    assert most_restrictive(itar, european).export_control.jurisdiction == ""
    assert most_restrictive(itar, Labels.parse({"export_control": "none"})).export_control.jurisdiction == "US"


def test_what_data_leave_unsaid_of_the_workload_the_job_says():
    assert most_restrictive(Labels.parse(OPEN), Labels.parse(FULL)).workload_class is WorkloadClass.SWEEP


def test_inputs_of_different_purposes_do_not_mix():
    with pytest.raises(InvalidInput) as caught:
        most_restrictive(Labels.parse(OPEN), Labels.parse({**OPEN, "purpose": "research"}))
    assert caught.value.reason is Reason.LABELS_CONFLICT


labels = st.builds(
    Labels,
    data_classification=st.sampled_from(Classification),
    allowed_execution_zone=st.frozensets(st.sampled_from(["private", "public", "edge"])),
    burst_eligible=st.booleans(),
    residency=st.frozensets(st.sampled_from(["EU", "US"])),
    export_control=st.sampled_from(ExportControl),
    contract=st.sampled_from(["", "c1"]),
    contract_limits=st.one_of(st.none(), st.frozensets(st.sampled_from(ContractLimit))),
    retention_class=st.one_of(st.none(), st.sampled_from(RetentionClass)),
)


@given(labels, labels)
def test_what_is_made_from_two_inputs_is_never_less_restricted_than_either(a, b):
    both = most_restrictive(a, b)
    for one in (a, b):
        assert both.data_classification.rank >= one.data_classification.rank
        assert both.allowed_execution_zone <= one.allowed_execution_zone
        assert both.burst_eligible <= one.burst_eligible
        assert both.residency <= one.residency
        assert both.export_control != "none" or one.export_control == "none"
        assert both.export_control.jurisdiction in ("", one.export_control.jurisdiction) or one.export_control == "none"
        assert both.limits >= one.limits
        assert both.retention_class == "hold" or one.retention_class != "hold"
    assert both == most_restrictive(b, a)
