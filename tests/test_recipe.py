"""Recipes: refused before they are believed, and the same digest everywhere."""

import json
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.artifacts import canonical
from fabric.errors import InvalidInput, Reason
from sanitize.recipe import Age, Encode, Role, Round, parse_recipe

RECIPE = """
name = "encounter-cost"
purpose = "cost-forecast"
records = "encounters"
subject = "PATIENT"
[join.patients]
left = "PATIENT"
right = "Id"
[columns.age]
from = "patients.BIRTHDATE"
treatment = "age"
at = "START"
role = "quasi-identifier"
[columns.cost]
from = "COST"
treatment = "round"
to = 0.5
high = 1_000
role = "target"
[columns.stay]
from = "START"
treatment = "duration"
until = "STOP"
role = "feature"
[columns.band]
from = "COST"
treatment = "bin"
edges = [1, 2.5]
role = "feature"
[columns.kind]
from = "CLASS"
treatment = "encode"
role = "feature"
"""


def refusal(old: str, new: str) -> InvalidInput:
    assert old in RECIPE
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(RECIPE.replace(old, new, 1), source="r.toml")
    assert caught.value.message.startswith("r.toml")
    return caught.value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("to = 0.5", "to = 0"),
        ("to = 0.5", "to = -1"),
        ("to = 0.5", "to = nan"),
        ("to = 0.5", "to = inf"),
        ("to = 0.5", "to = true"),
        ("to = 0.5", 'to = "10"'),
        ("to = 0.5", ""),
        ("high = 1_000", "high = 5\nlow = 5"),
        ("edges = [1, 2.5]", "edges = [2.5, 1]"),
        ("edges = [1, 2.5]", "edges = []"),
        ('treatment = "encode"', 'treatment = "encode"\nmin_count = 1'),
        ('treatment = "encode"', 'treatment = "encode"\nmin_count = true'),
        ('treatment = "encode"', ""),
        ('from = "CLASS"', "from = 7"),
        ('role = "target"', ""),
        ('role = "feature"', 'role = "target"'),
        ("[columns.age]", "[columns.Age]"),
        ("[columns.age]", "[columns.'a b']"),
        ("[join.patients]", "[join.encounters]"),
        ('name = "encounter-cost"', ""),
        ('name = "encounter-cost"', 'name = "'),
        ('records = "encounters"', "records = 1"),
    ],
)
def test_what_is_not_a_recipe_is_refused(old, new):
    assert refusal(old, new).reason is Reason.RECIPE_INVALID


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ('treatment = "encode"', 'treatment = "encod"', "'encode'"),
        ('role = "quasi-identifier"', 'role = "quasi_identifier"', "'quasi-identifier'"),
    ],
)
def test_an_unknown_treatment_or_role_is_answered_with_the_nearest(old, new, near):
    error = refusal(old, new)
    assert error.reason is Reason.RECIPE_INVALID
    assert f"did you mean {near}" in error.hint


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("high = 1_000", "hihg = 1_000", "high"),
        ("left =", "lft =", "left"),
        ("purpose =", "porpose =", "purpose"),
        ("[columns.age]", "[colums.age]", "columns"),
        ('at = "START"', 'at = "START"\nuntill = "X"', "at"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(old, new, near):
    error = refusal(old, new)
    assert error.reason is Reason.UNKNOWN_KEY
    assert near in error.hint


def test_a_recipe_that_lets_nothing_out_is_refused():
    with pytest.raises(InvalidInput) as caught:
        parse_recipe('name = "n"\npurpose = "p"\nrecords = "r"', source="r.toml")
    assert caught.value.reason is Reason.RECIPE_EMPTY


def test_a_wrong_value_is_not_quoted():
    assert "078-05-1126" not in str(refusal("to = 0.5", 'to = "078-05-1126"'))


def test_a_column_the_records_lack_is_answered_with_the_nearest():
    recipe = parse_recipe(RECIPE, source="r.toml")
    there = dict.fromkeys(("PATIENT", "patients.BIRTHDATE", "START", "STOP", "COST", "CLASS"), "string")
    recipe.check(there)
    for missing in there:
        with pytest.raises(InvalidInput) as caught:
            recipe.check({name: kind for name, kind in there.items() if name != missing} | {f"{missing}S": "string"})
        assert caught.value.reason is Reason.COLUMN_MISSING
        assert f"did you mean '{missing}S'" in caught.value.hint


def test_a_recipe_is_read_as_written():
    recipe = parse_recipe(RECIPE, source="r.toml")
    columns = {column.name: column for column in recipe.columns}
    assert list(columns) == ["age", "cost", "stay", "band", "kind"]
    assert columns["cost"].treatment == Round(to=Decimal("0.5"), high=Decimal(1000))
    assert columns["kind"].treatment == Encode(min_count=11)
    assert [c.name for c in recipe.columns if c.role is Role.TARGET] == ["cost"]
    assert columns["stay"].also_reads == ("STOP",)
    assert recipe.sources == ("encounters", "patients")


@pytest.mark.parametrize("at", ['"2026-01-01"', "2026-01-01"])
def test_an_age_may_be_at_a_literal_date(at):
    recipe = parse_recipe(RECIPE.replace('at = "START"', f"at = {at}"), source="r.toml")
    assert recipe.columns[0].treatment == Age(at=date(2026, 1, 1))
    assert recipe.columns[0].also_reads == ()


def test_the_digest_is_of_what_the_recipe_says_not_of_how_it_is_written():
    one = parse_recipe(RECIPE, source="a.toml")
    again = parse_recipe("# a comment\n" + RECIPE.replace("0.5", "0.50"), source="b.toml")
    other = parse_recipe(RECIPE.replace("0.5", "0.25"), source="a.toml")
    assert one.digest == again.digest != other.digest


def test_the_order_of_columns_is_part_of_the_digest():
    head, first, second = (
        'name = "n"\npurpose = "p"\nrecords = "r"\n',
        '[columns.a]\nfrom = "A"\ntreatment = "keep"\nrole = "feature"\n',
        '[columns.b]\nfrom = "B"\ntreatment = "keep"\nrole = "feature"\n',
    )
    assert (
        parse_recipe(head + first + second, source="r").digest != parse_recipe(head + second + first, source="r").digest
    )


def test_the_recipe_holds_no_float_in_json():
    def floats(value):
        if isinstance(value, dict):
            return any(floats(item) for item in value.values())
        return any(map(floats, value)) if isinstance(value, list) else isinstance(value, float)

    assert not floats(json.loads(canonical(parse_recipe(RECIPE, source="r.toml").to_json())))


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(text):
    with pytest.raises(InvalidInput):
        parse_recipe(text, source="r.toml")
    with pytest.raises(InvalidInput):
        parse_recipe(RECIPE + "\nx = " + json.dumps(text), source="r.toml")
