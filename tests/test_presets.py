"""Presets: what is left unsaid, or leaves under another treatment than the rule allows, is refused."""

from decimal import Decimal

import pytest

from fabric.errors import InvalidInput, Reason, Refused
from sanitize import presets, verdict
from sanitize.presets import GDPR, HIPAA, PRESETS, check_preset, describe, objections, words_of
from sanitize.recipe import (
    Age,
    Bin,
    Clip,
    Column,
    Duration,
    Encode,
    Grid,
    Keep,
    Prefix,
    Pseudonymise,
    Recipe,
    Role,
    Round,
    Vectorise,
    Year,
)  # fmt: skip

COLUMNS = ["mrn", "zip", "admitted", "discharged", "born", "lived_years", "cost", "ward", "patients.first"]
MAPPED = {
    "medical_record": ("mrn",),
    "geographic": ("zip",),
    "dates": ("admitted", "discharged", "born", "lived_years"),
    "names": ("patients.first",),
}


def column(source, treatment, *, name="out", why=""):
    return Column(name=name, source=source, treatment=treatment, role=Role.FEATURE, why=why)


def recipe(*columns, preset=HIPAA, mapped=MAPPED, without=()):
    keys = [category.key for category in PRESETS[preset].categories] if preset in PRESETS else []
    said = {key: mapped.get(key, ()) for key in keys if key not in without}
    said |= {key: value for key, value in mapped.items() if key not in said and key not in without}
    return Recipe(name="r", purpose="p", records="visits", preset=preset, identifiers=said, columns=columns)


COST = column("cost", Round(to=Decimal(10)), name="cost", why="it is predicted")


@pytest.mark.parametrize("key", [c.key for c in PRESETS[HIPAA].categories])
def test_each_of_the_eighteen_identifiers_left_unsaid_is_refused_by_name(key):
    with pytest.raises(Refused) as refused:
        check_preset(recipe(COST, without=(key,)), COLUMNS)
    assert refused.value.reason is Reason.RECIPE_INVALID
    assert f"{key} (" in refused.value.message
    assert "[identifiers]" in refused.value.hint


def test_the_eighteen_are_those_of_the_rule_in_its_order():
    clauses = [category.clause for category in PRESETS[HIPAA].categories]
    assert clauses == [f"164.514(b)(2)(i)({letter})" for letter in "ABCDEFGHIJKLMNOPQR"]


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'hipaa-safe-harbor'"):
        check_preset(recipe(COST, preset="hipaa-safeharbor"), COLUMNS)


def test_an_unknown_category_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'telephone'") as refused:
        check_preset(recipe(COST, mapped={**MAPPED, "telefone": ()}), COLUMNS)
    assert refused.value.reason is Reason.UNKNOWN_KEY


def test_a_category_that_names_a_column_which_is_not_there_is_refused():
    with pytest.raises(InvalidInput, match="did you mean 'mrn'") as refused:
        check_preset(recipe(COST, mapped={**MAPPED, "medical_record": ("mrm",)}), COLUMNS)
    assert refused.value.reason is Reason.COLUMN_MISSING


@pytest.mark.parametrize(
    ("source", "treatment", "why"),
    [
        ("mrn", Encode(), "may not leave by encode"),
        ("mrn", Keep(), "may not leave by keep"),
        ("mrn", Pseudonymise(by="hmac"), "pseudonymise by random"),
        ("ward", Pseudonymise(by="hmac"), "pseudonymise by random"),
        ("zip", Encode(), "allowed: prefix"),
        ("zip", Grid(), "allowed: prefix"),
        ("zip", Pseudonymise(), "allowed: prefix"),
        ("zip", Prefix(digits=4), "at most 3 digits"),
        ("zip", Prefix(restricted=("036", "059")), "15 areas of 20,000 people or fewer"),
        ("admitted", Encode(), "may not leave by encode"),
        ("admitted", Keep(), "may not leave by keep"),
        ("born", Year(), "tells ages over 89"),
        ("born", Duration(until="admitted"), "tells ages over 89"),
        ("lived_years", Keep(), "may not leave by keep"),
        ("lived_years", Round(to=Decimal(1)), "`high` of at most 90"),
        ("lived_years", Round(to=Decimal(1), high=Decimal(91)), "`high` of at most 90"),
        ("lived_years", Clip(low=Decimal(0), high=Decimal(95)), "`high` of at most 90"),
        ("lived_years", Bin(edges=(Decimal(50), Decimal(100))), "the last edge"),
        ("patients.first", Encode(), "may not leave by encode"),
        ("ward", Vectorise(), "derived from every identifier"),
    ],
)
def test_a_mapped_column_leaves_only_as_the_rule_allows(source, treatment, why):
    with pytest.raises(Refused, match="column 'out'") as refused:
        check_preset(recipe(COST, column(source, treatment)), COLUMNS)
    assert refused.value.reason is Reason.COLUMN_REFUSED
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("source", "treatment"),
    [
        ("mrn", Pseudonymise(by="random")),
        ("zip", Prefix()),
        ("zip", Prefix(digits=2)),
        ("admitted", Year()),
        ("admitted", Duration(until="discharged")),
        ("born", Age(at="admitted", band=5)),
        ("lived_years", Clip(low=Decimal(0), high=Decimal(90))),
        ("lived_years", Bin(edges=(Decimal(40), Decimal(90)))),
        ("ward", Encode()),
    ],
)
def test_what_the_rule_allows_passes(source, treatment):
    check_preset(recipe(COST, column(source, treatment)), COLUMNS)


@pytest.mark.parametrize("source", ["home_phone", "city", "patientId", "BIRTHDATE", "ipAddress_ip", "LAST", "age"])
def test_a_column_named_after_an_identifier_but_mapped_to_none_is_refused(source):
    with pytest.raises(Refused, match="mapped to no category"):
        check_preset(recipe(COST, column(source, Encode())), [*COLUMNS, source])


def test_a_column_that_a_treatment_also_reads_is_held_to_its_category():
    with pytest.raises(Refused, match="'died_date' is named after"):
        check_preset(recipe(COST, column("admitted", Duration(until="died_date"))), [*COLUMNS, "died_date"])


def test_a_duration_that_ends_at_a_birth_is_refused_too():
    assert any("89" in why for why in objections(recipe(COST), column("admitted", Duration(until="born"))))


def test_the_gdpr_asks_of_each_column_why_the_purpose_needs_it():
    silent = column("ward", Encode(), name="ward", why="  ")
    with pytest.raises(Refused, match="needs ward") as refused:
        check_preset(recipe(COST, silent, preset=GDPR, mapped={}), COLUMNS)
    assert "5(1)(c)" in refused.value.hint


def test_the_gdpr_lets_a_number_out_under_a_pseudonym_and_says_that_it_stays_personal():
    coded = column("mrn", Pseudonymise(by="hmac"), why="to join two matrices")
    check_preset(recipe(coded, preset=GDPR, mapped={"identification_numbers": ("mrn",)}), COLUMNS)
    assert "remain personal data" in PRESETS[GDPR].note


def test_special_data_must_be_mapped_and_may_then_leave():
    race = column("race", Encode(), why="fairness is measured over it")
    with pytest.raises(Refused, match="racial or ethnic origin"):
        check_preset(recipe(race, preset=GDPR, mapped={}), ["race"])
    check_preset(recipe(race, preset=GDPR, mapped={"racial_or_ethnic_origin": ("race",)}), ["race"])


def test_a_recipe_that_names_no_preset_is_not_held_to_one():
    check_preset(recipe(column("mrn", Keep()), preset="", mapped={}), COLUMNS)


def test_every_word_that_the_verdict_takes_for_an_identifier_is_in_both_presets():
    for word in verdict._DIRECT | verdict._POSTCODES | verdict._COORDINATES | presets._BIRTH:
        assert PRESETS[HIPAA].named(word) is not None, word
    for word in verdict._DIRECT | verdict._POSTCODES | verdict._COORDINATES:
        assert PRESETS[GDPR].named(word) is not None, word


def test_the_words_of_a_name_leave_out_the_records_it_was_joined_from():
    assert words_of("patients.firstName") == {"first", "name"}
    assert "id" in words_of("PATIENTID")
    assert "id" not in words_of("valid")


def test_the_description_states_a_source_for_each_preset_and_a_clause_for_each_category():
    for preset in describe():
        assert preset["source"]
        assert preset["note"]
        assert all(category["clause"] and category["what"] for category in preset["categories"])
