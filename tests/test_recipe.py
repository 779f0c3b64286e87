"""Recipes: refused before they are believed, and the same digest everywhere."""

import json
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.artifacts import canonical
from fabric.errors import InvalidInput, Reason
from sanitize.recipe import (
    Age,
    Column,
    Encode,
    Grid,
    Perturb,
    Prefix,
    Pseudonymise,
    Recipe,
    Redact,
    RiskTable,
    Role,
    Round,
    Vectorise,
    parse_recipe,
)

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


FULL = (
    RECIPE.replace(
        'subject = "PATIENT"',
        """subject = "PATIENT"
preset = "hipaa-safe-harbor"
[identifiers]
names = ["FIRST", "LAST"]
faxes = []
[risk]
k = 11
l = 2
t = 0.3
suppress = 0.05
sensitive = ["cost", "note_3"]""",
    ).replace('treatment = "age"', 'treatment = "age"\nband = 5\nwhy = "older patients cost more"')
    + """
[columns.area]
from = "ZIP"
treatment = "prefix"
role = "quasi-identifier"
[columns.north]
from = "LAT"
treatment = "grid"
to = 0.25
role = "quasi-identifier"
[columns.person]
from = "PATIENT"
treatment = "pseudonymise"
by = "hmac"
role = "feature"
[columns.note]
from = "NOTE"
treatment = "vectorise"
size = 8
ngram = 3
role = "feature"
[columns.paid]
from = "PAID"
treatment = "perturb"
low = 0
high = 100
epsilon = 0.5
to = 0.25
role = "feature"
[columns.text]
from = "NOTE"
treatment = "redact"
role = "feature"
"""
)


def full_refusal(old, new):
    assert old in FULL
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(FULL.replace(old, new, 1), source="r.toml")
    assert caught.value.message.startswith("r.toml")
    return caught.value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k = 11", "k = 1"),
        ("k = 11", "k = 11.0"),
        ("k = 11", "k = true"),
        ("l = 2", "l = 0"),
        ("t = 0.3", "t = 1.01"),
        ("t = 0.3", "t = -0.1"),
        ("suppress = 0.05", "suppress = 0.21"),
        ("suppress = 0.05", "suppress = -0.01"),
        ('"note_3"', '"note_8"'),
        ('"note_3"', '"note"'),
        ('"note_3"', "3"),
        ('preset = "hipaa-safe-harbor"', "preset = 1"),
        ('preset = "hipaa-safe-harbor"', 'preset = ""'),
        ('names = ["FIRST", "LAST"]', 'names = "FIRST"'),
        ('names = ["FIRST", "LAST"]', "names = [1]"),
        ("band = 5", "band = 0"),
        ("band = 5", "band = 91"),
        ("band = 5", "band = 2.5"),
        ('why = "older patients cost more"', "why = 1"),
        ('why = "older patients cost more"', f'why = "{"x" * 501}"'),
        ('treatment = "prefix"', 'treatment = "prefix"\ndigits = 0'),
        ('treatment = "prefix"', 'treatment = "prefix"\ndigits = 9'),
        ('treatment = "prefix"', 'treatment = "prefix"\nmin_count = 1'),
        ('treatment = "prefix"', 'treatment = "prefix"\nrestricted = [36]'),
        ('treatment = "prefix"', 'treatment = "prefix"\nrestricted = [""]'),
        ('treatment = "prefix"', 'treatment = "prefix"\nrestricted = ["03*"]'),
        ("to = 0.25\nrole", "to = 0.09\nrole"),
        ("to = 0.25\nrole", "to = 91\nrole"),
        ("size = 8", "size = 7"),
        ("size = 8", "size = 513"),
        ("ngram = 3", "ngram = 1"),
        ("ngram = 3", "words = false"),
        ("ngram = 3", "words = 1"),
        ("ngram = 3", "cap = 0"),
        ("epsilon = 0.5", ""),
        ("epsilon = 0.5", "epsilon = 0"),
        ("epsilon = 0.5", "epsilon = -1"),
        ("epsilon = 0.5", "epsilon = 101"),
        ("epsilon = 0.5", "epsilon = 0.0000000000001"),
        ("low = 0", "low = 100"),
        ("low = 0", "low = 0.1"),
        ("high = 100", "high = 100.1"),
        ("high = 100", "high = 100_000_000_000_000_000"),
        ("low = 0\nhigh = 100", "low = 99_999_999_999_999_900\nhigh = 100_000_000_000_000_000"),
        ("epsilon = 0.5\nto = 0.25", "epsilon = 0.5\nto = 0"),
        ("epsilon = 0.5\nto = 0.25", "epsilon = 0.5\nto = 0.000000000000001"),
        ('treatment = "redact"\nrole = "feature"', 'treatment = "redact"\nrole = "target"'),
    ],
)
def test_what_asks_too_little_or_too_much_is_refused(old, new):
    assert full_refusal(old, new).reason is Reason.RECIPE_INVALID


@pytest.mark.parametrize(
    ("old", "new", "near"),
    [
        ("suppress =", "supress =", "suppress"),
        ("sensitive =", "sensible =", "sensitive"),
        ("[risk]", "[risks]", "risk"),
        ("[identifiers]", "[identifier]", "identifiers"),
        ("preset =", "presets =", "preset"),
        ("band = 5", "bands = 5", "band"),
        ("why =", "wyh =", "why"),
        ("epsilon =", "epsilom =", "epsilon"),
    ],
)
def test_an_unknown_key_of_the_new_tables_is_answered_with_the_nearest(old, new, near):
    error = full_refusal(old, new)
    assert error.reason is Reason.UNKNOWN_KEY
    assert f"did you mean {near!r}" in error.hint


def test_what_may_stand_for_a_choice_is_told():
    error = full_refusal('by = "hmac"', 'by = "hamc"')
    assert error.reason is Reason.RECIPE_INVALID
    assert "'random'" in error.hint
    assert "'hmac'" in error.hint
    assert "hamc" not in str(error)


def test_a_sensitive_column_that_does_not_leave_is_answered_with_the_nearest():
    assert "did you mean 'cost'" in full_refusal('sensitive = ["cost"', 'sensitive = ["costs"').hint


@pytest.mark.parametrize("role", ["vectorise", "redact"])
def test_what_is_more_than_one_number_is_no_target(role):
    treatment = {"vectorise": Vectorise(), "redact": Redact()}[role]
    with pytest.raises(InvalidInput) as caught:
        Recipe(
            name="n",
            purpose="p",
            records="r",
            columns=(Column(name="a", source="A", treatment=treatment, role=Role.TARGET),),
        )
    assert "not one number" in caught.value.message


def test_a_vectors_names_may_not_be_anothers():
    error = full_refusal("[columns.person]", "[columns.note_7]")
    assert "share a name" in error.message
    parse_recipe(FULL.replace("[columns.person]", "[columns.note_8]"), source="r.toml")


def test_a_vectors_names_are_tokens_too():
    long = "n" * 62
    assert "not a token" in full_refusal("[columns.note]", f"[columns.{long}]").message


def test_a_matrix_has_at_most_a_thousand_columns():
    many = "".join(
        f'[columns.v{i}]\nfrom = "A"\ntreatment = "vectorise"\nsize = 500\nrole = "feature"\n' for i in range(2)
    )
    head = 'name = "n"\npurpose = "p"\nrecords = "r"\n'
    assert len(parse_recipe(head + many, source="r.toml").outgoing) == 1_000
    one = '[columns.x]\nfrom = "A"\ntreatment = "keep"\nrole = "feature"\n'
    with pytest.raises(InvalidInput) as caught:
        parse_recipe(head + many + one, source="r.toml")
    assert "more than 1000 columns" in caught.value.message


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

    for text in (RECIPE, FULL):
        assert not floats(json.loads(canonical(parse_recipe(text, source="r.toml").to_json())))


def test_a_full_recipe_is_read_as_written():
    recipe = parse_recipe(FULL, source="r.toml")
    columns = {column.name: column.treatment for column in recipe.columns}
    assert recipe.preset == "hipaa-safe-harbor"
    assert recipe.identifiers == {"names": ("FIRST", "LAST"), "faxes": ()}
    assert recipe.risk == RiskTable(k=11, l=2, t=Decimal("0.3"), suppress=Decimal("0.05"), sensitive=("cost", "note_3"))
    assert recipe.sensitive == ("cost", "note_3")
    assert columns["age"] == Age(at="START", band=5)
    assert (columns["area"], columns["north"]) == (Prefix(), Grid(to=Decimal("0.25")))
    assert len(columns["area"].restricted) == 17
    assert (columns["person"], columns["note"]) == (Pseudonymise(by="hmac"), Vectorise(size=8, ngram=3))
    assert columns["paid"] == Perturb(low=Decimal(0), high=Decimal(100), epsilon=Decimal("0.5"), to=Decimal("0.25"))
    assert recipe.columns[0].why == "older patients cost more"


def test_what_leaves_is_named_in_order():
    recipe = parse_recipe(FULL, source="r.toml")
    vector = tuple(f"note_{place}" for place in range(8))
    names = ("age", "cost", "stay", "band", "kind", "area", "north", "person", *vector, "paid", "text")
    assert recipe.outgoing == names
    assert [column.name for column in recipe.columns if column.leveled] == ["kind", "area", "text"]


def test_a_literal_birth_date_keeps_its_band():
    recipe = parse_recipe(FULL.replace('at = "START"', 'at = "2026-01-01"'), source="r.toml")
    assert recipe.columns[0].treatment == Age(at=date(2026, 1, 1), band=5)


def test_without_a_risk_table_the_target_is_sensitive_and_nothing_more_is_asked():
    recipe = parse_recipe(RECIPE, source="r.toml")
    assert recipe.sensitive == ("cost",)
    assert recipe.risk == RiskTable() == RiskTable(k=1, l=1, t=None, suppress=Decimal(0), sensitive=())
    assert parse_recipe(RECIPE.replace('role = "target"', 'role = "feature"'), source="r.toml").sensitive == ()


def test_a_recipe_that_asks_nothing_new_keeps_its_digest():
    told = parse_recipe(RECIPE, source="r.toml")
    assert told.to_json().keys() == {"name", "purpose", "records", "subject", "join", "columns"}
    assert told.digest == "sha256:4ec0ae1644378c2bf40fe081034ec5a5ae4b862cd8f372983edb2e82f9611169"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k = 11", "k = 12"),
        ("t = 0.3", "t = 0.4"),
        ("suppress = 0.05", "suppress = 0"),
        ('["FIRST", "LAST"]', '["FIRST"]'),
        ("faxes = []", ""),
        ("hipaa-safe-harbor", "other"),
        ("older patients", "old patients"),
        ("band = 5", "band = 10"),
        ('by = "hmac"', ""),
        ("ngram = 3", "cap = 3"),
    ],
)
def test_all_that_a_recipe_asks_is_in_its_digest(old, new):
    assert parse_recipe(FULL, source="r").digest != parse_recipe(FULL.replace(old, new, 1), source="r").digest


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(text):
    with pytest.raises(InvalidInput):
        parse_recipe(text, source="r.toml")
    with pytest.raises(InvalidInput):
        parse_recipe(RECIPE + "\nx = " + json.dumps(text), source="r.toml")
