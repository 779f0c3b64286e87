"""Labels: closed, strict where unsaid, as sensitive as the most sensitive input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidInput, Reason
from fabric.labels import Classification, Labels, WorkloadClass, most_restrictive

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
    assert Labels.parse(Labels.parse(from_file).to_json() | {"workload_class": "sweep", "contract": "c1",
        "retention_class": "r", "team": "t", "project": "p"}).workload_class is WorkloadClass.SWEEP  # fmt: skip


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
    export_control=st.sampled_from(["none", "ITAR", "controlled"]),
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
