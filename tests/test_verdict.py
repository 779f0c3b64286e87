"""Verdicts: what refuses a column, each rule alone, and what passes."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanitize.inspection import ColumnFindings
from sanitize.recipe import Age, Column, Encode, Keep, Role, Round, Year
from sanitize.verdict import Shape, Thresholds, objections

LIMITS = Thresholds()
SPREAD = Shape(distinct=200, holders=5_000, steps=400, decimals=0)


def column(source="COST", treatment=None):
    return Column(name="x", source=source, treatment=treatment or Keep(), role=Role.FEATURE)


def findings(distinct=200, **entities):
    return ColumnFindings(entities=entities, distinct=distinct, cells=5_000)


def against(of=None, found=None, shape=SPREAD, levels=None, *, subject_known=True):
    return objections(
        of or column(), found or findings(), shape, levels=levels, subject_known=subject_known, limits=LIMITS
    )


@pytest.mark.parametrize(
    "source", ["SSN", "patients.ZIP", "patient_id", "PatientId", "LAT", "home_phone", "Driver License", "FirstName"]
)
def test_a_column_named_after_a_direct_identifier_is_refused(source):
    assert against(column(source))
    assert against(column(source, Round(to=Decimal(100))))
    assert against(column(source, Encode()), levels=findings())


@pytest.mark.parametrize(
    "source", ["COST", "valid", "humidity", "latency", "zipped", "renamed", "paid", "patients.INCOME"]
)
def test_a_name_that_only_contains_such_a_word_is_not_refused(source):
    assert not against(column(source))


def test_a_birth_date_crosses_as_an_age_only():
    assert against(column("BIRTHDATE", Year()))
    assert against(column("date_of_birth", Encode()), levels=findings())
    assert not against(column("BIRTHDATE", Age(at="START")))


@pytest.mark.parametrize("hits", [(1, 0), (0, 1)])
def test_one_finding_refuses(hits):
    assert against(found=findings(US_SSN=hits))


def test_phone_numbers_refuse_from_a_share_of_the_distinct_values():
    assert not against(found=findings(PHONE_NUMBER=(0, 19)))
    assert against(found=findings(PHONE_NUMBER=(0, 20)))
    assert against(found=findings(PHONE_NUMBER=(20, 0)))
    assert not against(found=findings(distinct=5, PHONE_NUMBER=(0, 2)))
    assert against(found=findings(distinct=5, PHONE_NUMBER=(0, 3)))


def test_values_that_are_nearly_one_to_a_subject_are_refused():
    dense = Shape(distinct=4_600, holders=5_000, steps=6_000, decimals=0)
    assert against(shape=dense)
    assert not against(column(treatment=Round(to=Decimal(10))), shape=dense)


@pytest.mark.parametrize("shape", [{"steps": 20_000}, {"distinct": 5_000}])
def test_rounding_does_not_save_a_record_number(shape):
    made = {"distinct": 4_600, "holders": 5_000, "steps": 6_000, "decimals": 0} | shape
    assert against(column(treatment=Round(to=Decimal(1))), shape=Shape(**made))


def test_whole_numbers_far_apart_are_refused():
    assert against(shape=Shape(distinct=116, holders=5_000, steps=9_000_000, decimals=0))
    assert not against(shape=Shape(distinct=19, holders=5_000, steps=9_000_000, decimals=0))


def test_reals_of_many_decimals_are_refused_unless_rounded():
    precise = Shape(distinct=200, holders=5_000, steps=400, decimals=4)
    assert against(shape=precise)
    assert not against(column(treatment=Round(to=Decimal("0.5"))), shape=precise)


def test_a_value_that_few_subjects_have_is_refused():
    assert against(shape=Shape(distinct=2, holders=10, steps=1, decimals=0))
    assert not against(shape=Shape(distinct=2, holders=11, steps=1, decimals=0))
    assert not against(shape=Shape(distinct=0, holders=0, steps=0, decimals=0))


def test_levels_that_are_identifiers_need_a_subject():
    encoded, uuids = column("ORG", Encode()), findings(distinct=30, UUID=(30, 0))
    assert "subject" in against(encoded, levels=uuids, subject_known=False)[0]
    assert not against(encoded, levels=uuids)


def test_too_many_levels_are_refused():
    assert against(column("ORG", Encode()), levels=findings(distinct=1_001))


def test_an_objection_names_no_value():
    shape = Shape(distinct=5_000, holders=5_000, steps=98_765_432, decimals=7)
    assert "98" not in " ".join(against(shape=shape)).replace(",", "")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["US_SSN", "UUID", "PHONE_NUMBER"]), st.tuples(st.integers(0, 9), st.integers(0, 9))
    )
)
def test_more_findings_never_make_a_verdict_milder(entities):
    entities = {name: hits for name, hits in entities.items() if sum(hits)}
    more = {name: (strong + 1, weak) for name, (strong, weak) in entities.items()}
    assert len(against(found=findings(**more))) >= len(against(found=findings(**entities)))
