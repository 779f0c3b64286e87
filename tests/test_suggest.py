"""Suggestions: cautious recipes that parse. What is not understood, and what names a person, stays inside."""

import json
from datetime import date, timedelta
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.errors import InvalidInput, Reason, Refused
from fabric.people import write_people
from sanitize.inspection import Inspector
from sanitize.kinds import MIN_HOLDERS
from sanitize.presets import GDPR, HIPAA, check_preset
from sanitize.profile import profile
from sanitize.reading import read_records
from sanitize.recipe import Age, Bin, Join, Prefix, Role, Round, parse_recipe
from sanitize.suggest import suggest

SYNTHEA = Path(__file__).parents[2] / "shared" / "data" / "synthea"
TODAY = date(2026, 1, 1)


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


@pytest.fixture(scope="module")
def people(tmp_path_factory, inspector):
    path = tmp_path_factory.mktemp("people") / "people.csv"
    write_people(path, rows=5_000, seed=7)
    return profile({"people": read_records(path, name="people").table}, inspector)


def suggested(found, records, **options):
    given = {"joins": None, "purpose": "forecast", "name": "r", "subject": "", "today": TODAY, **options}
    text = suggest(found, records=records, **given)
    return parse_recipe(text, source="suggested"), text


def by_name(recipe):
    return {column.name: column for column in recipe.columns}


def test_people_leave_as_numbers_and_their_names_stay(people):
    recipe, text = suggested(people, "people")
    assert set(by_name(recipe)) == {"age", "region", "condition", "plan", "visits", "income", "cost"}
    roles = {column.name for column in recipe.columns if column.role is Role.QUASI_IDENTIFIER}
    assert roles == {"age", "region"}
    for stays in ("name", "email", "national_id", "phone", "notes"):
        assert f'# "{stays}": ' in text


def test_each_column_that_leaves_says_why_and_each_that_stays_too(people):
    _, text = suggested(people, "people")
    for line in text.splitlines():
        if line.startswith("[columns."):
            assert len(line.partition("]  # ")[2]) > 5
    stays = text.split("# What stays inside, and why:\n")[1].splitlines()
    assert all(line.startswith('# "') and len(line.partition('": ')[2]) > 5 for line in stays)


def test_nothing_is_a_target_unless_it_was_told_so(people):
    assert all(column.role is not Role.TARGET for column in suggested(people, "people")[0].columns)
    told, _ = suggested(people, "people", target="cost")
    assert [column.name for column in told.columns if column.role is Role.TARGET] == ["cost"]
    assert told.columns[-1].name == "cost"


def test_a_target_that_would_stay_is_refused_with_the_reason(people):
    with pytest.raises(Refused, match="'email' stays inside: its name says") as refused:
        suggested(people, "people", target="email")
    assert refused.value.reason is Reason.COLUMN_REFUSED


def test_an_unknown_target_is_refused_with_the_nearest(people):
    with pytest.raises(InvalidInput, match="did you mean 'cost'"):
        suggested(people, "people", target="costs")


def test_unknown_records_and_joins_are_refused(people):
    with pytest.raises(InvalidInput, match="did you mean 'people'"):
        suggested(people, "peopel")
    with pytest.raises(InvalidInput, match="no records 'visits'"):
        suggested(people, "people", joins={"visits": Join(left="a", right="b")})


def test_records_of_which_nothing_may_leave_are_refused(inspector):
    found = profile({"t": pa.table({"email": [f"p{i}@example.org" for i in range(100)]})}, inspector)
    with pytest.raises(Refused, match="no column") as refused:
        suggested(found, "t")
    assert refused.value.reason is Reason.RECIPE_EMPTY


def test_without_any_date_to_count_at_a_birth_date_stays(people):
    recipe, text = suggested(people, "people", today=None)
    assert "age" not in by_name(recipe)
    assert '# "birth_date": a birth date, and no date to count ages at' in text


def test_under_safe_harbor_the_suggestion_keeps_the_preset(people):
    recipe, _ = suggested(people, "people", preset=HIPAA)
    columns = [c.name for c in people.columns]
    check_preset(recipe, columns)
    assert recipe.identifiers["email"] == ("email",)
    assert recipe.identifiers["telephone"] == ("phone", "notes")
    assert recipe.identifiers["names"] == ("name",)
    assert recipe.identifiers["dates"] == ("birth_date",)
    assert recipe.identifiers["vehicle"] == ()


def test_under_the_gdpr_the_owner_still_has_to_say_why(people):
    recipe, text = suggested(people, "people", preset=GDPR)
    with pytest.raises(Refused, match="does not say why 'forecast' needs"):
        check_preset(recipe, [c.name for c in people.columns])
    said = text.replace("# why = ...", 'why = "it is needed" #')
    check_preset(parse_recipe(said, source="said"), [c.name for c in people.columns])


def test_an_unknown_preset_is_refused(people):
    with pytest.raises(InvalidInput, match="unknown preset 'hippa'"):
        suggested(people, "people", preset="hippa")


def test_quasi_identifiers_leave_only_while_their_cells_hold_enough_subjects(inspector):
    rows, random = 600, np.random.default_rng(2)
    table = {
        "sex": random.choice(["f", "m"], rows), "race": random.choice(list("abcd"), rows),
        "marital": random.choice(list("xyz"), rows), "region": random.choice(list("nesw"), rows),
        "age": random.integers(0, 95, rows), "cost": random.integers(0, 5_000, rows) / 100,
    }  # fmt: skip
    found = profile({"t": pa.table(table)}, inspector)
    recipe, text = suggested(found, "t")
    quasi = [column.name for column in recipe.columns if column.role is Role.QUASI_IDENTIFIER]
    levels = {"sex": 2, "race": 4, "marital": 3, "region": 4, "age": 10}
    assert quasi == ["sex", "age"]
    assert reduce(lambda a, b: a * b, (levels[name] for name in quasi)) * MIN_HOLDERS <= rows
    assert '# "race": ' in text
    assert "of 600 subjects to a cell" in text


def test_ages_and_postcodes_leave_coarsely(inspector):
    rows = 4_000
    table = {
        "age": [i % 97 for i in range(rows)],
        "zip": [f"{(2139, 2140, 10001, 94110)[i % 4]:05d}" for i in range(rows)],
        "cost": [i % 977 / 10 for i in range(rows)],
    }
    recipe, _ = suggested(profile({"t": pa.table(table)}, inspector), "t")
    columns = by_name(recipe)
    assert isinstance(columns["age"].treatment, Bin)
    assert columns["age"].treatment.edges[-1] == 90
    assert columns["zip"].treatment == Prefix()
    assert columns["zip"].role is Role.QUASI_IDENTIFIER


def test_one_place_is_enough(inspector):
    rows = 4_000
    table = {
        "state": ["a", "b"] * (rows // 2),
        "county": ["p", "q", "r", "s"] * (rows // 4),
        "n": list(range(10)) * 400,
    }
    recipe, text = suggested(profile({"t": pa.table(table)}, inspector), "t")
    assert "county" not in by_name(recipe)
    assert "another one tells the place" in text


def test_of_two_columns_that_tell_the_same_one_stays(inspector):
    table = {"code": [i % 7 + 7_000 for i in range(400)], "label": [f"kind {i % 7}" for i in range(400)]}
    recipe, text = suggested(profile({"t": pa.table(table)}, inspector), "t")
    assert set(by_name(recipe)) == {"code"}
    assert "# \"label\": it tells the same as 'code'" in text


def test_a_flag_that_few_have_stays(inspector):
    table = {"rare": [i < 5 for i in range(400)], "usual": [i % 2 == 0 for i in range(400)]}
    recipe, text = suggested(profile({"t": pa.table(table)}, inspector), "t")
    assert set(by_name(recipe)) == {"usual"}
    assert "5 subjects share a value" in text


def test_a_date_that_is_written_as_text_or_number_stays(inspector):
    days = [date(1990, 1, 1) + timedelta(days=17 * i) for i in range(400)]
    table = {
        "birth": [f"{d:%d/%m/%Y}" for d in days], "seen": [int(f"{d:%Y%m%d}") for d in days], "n": list(range(10)) * 40
    }  # fmt: skip
    recipe, text = suggested(profile({"t": pa.table(table)}, inspector), "t")
    assert set(by_name(recipe)) == {"n"}
    assert text.count("ISO 8601") == 2


def test_names_that_toml_would_misread_are_quoted(inspector):
    names = ['a "b"', "c\\d", "Ünïcode größe", "e # f", "[g]", "1st", "A-B", "a b"]
    table = pa.table({name: [f"{n}{i % (n + 3)}" for i in range(400)] for n, name in enumerate(names)})
    recipe, _ = suggested(profile({'rec "x"': table}, inspector), 'rec "x"')
    assert {column.source for column in recipe.columns} <= set(names)
    assert len(recipe.columns) >= 5
    assert len({column.name for column in recipe.columns}) == len(recipe.columns)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
CELLS = st.sampled_from(
    [
        lambda i: i % 2 == 0,
        lambda i: i % 9,
        lambda i: i * 7_919_993,
        lambda i: i / 7,
        lambda i: f"planted{i}",
        lambda i: f"planted{i % 4}",
        lambda i: date(1950, 1, 1) + timedelta(days=41 * i),
        lambda i: None,
        lambda i: f"planted text of many words, number {i}",
    ]
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    columns=st.dictionaries(TEXT, CELLS, min_size=1, max_size=6),
    preset=st.sampled_from([None, HIPAA, GDPR]),
    rows=st.sampled_from([5, 60, 300]),
)
def test_whatever_the_records_a_suggestion_parses_keeps_safe_harbor_and_holds_no_value(
    inspector, columns, preset, rows
):
    table = pa.table({name: pa.array([cell(i) for i in range(rows)]) for name, cell in columns.items()})
    try:
        recipe, text = suggested(profile({"t": table}, inspector), "t", preset=preset)
    except Refused as refused:
        if refused.reason is not Reason.RECIPE_EMPTY:
            raise
        return
    recipe.check(dict.fromkeys(table.column_names, ""))
    if not any("planted" in name for name in columns):
        assert "planted" not in text
    if preset == HIPAA:
        check_preset(recipe, table.column_names)


def synthea_tables(*names):
    return {name: read_records(SYNTHEA / f"{name}.csv", name=name).table for name in names}


@pytest.fixture(scope="module")
def synthea(inspector):
    if not SYNTHEA.is_dir():
        pytest.skip("the Synthea records are not on this machine")
    tables = {
        name: read_records(SYNTHEA / f"{name}.csv", name=name).table
        for name in ("encounters", "patients", "conditions")
    }
    return profile(tables, inspector)


@pytest.mark.parametrize("preset", [None, HIPAA, GDPR])
def test_of_synthea_every_identifier_stays_and_enough_leaves(synthea, preset):
    recipe, text = suggested(synthea, "encounters", preset=preset, target="TOTAL_CLAIM_COST")
    assert recipe.joins == {"patients": Join(left="PATIENT", right="Id")}
    assert recipe.subject == "PATIENT"
    identifiers = "SSN DRIVERS PASSPORT PREFIX FIRST MIDDLE LAST SUFFIX MAIDEN ADDRESS FIPS LAT LON Id DEATHDATE"
    kept = {f"patients.{name}" for name in identifiers.split()} | {"Id", "PATIENT", "ORGANIZATION", "PROVIDER", "PAYER"}
    assert not kept & {column.source for column in recipe.columns}
    assert kept <= {json.loads(line[2:].split('": ')[0] + '"') for line in text.splitlines() if line.startswith('# "')}
    born = [column for column in recipe.columns if column.source == "patients.BIRTHDATE"]
    assert [(type(column.treatment), column.role) for column in born] == [(Age, Role.QUASI_IDENTIFIER)]
    columns = by_name(recipe)
    useful = {"start_duration", "encounterclass", "code", "base_encounter_cost", "reasoncode", "gender", "income"}
    assert useful < set(columns)
    assert isinstance(columns["total_claim_cost"].treatment, Round)
    assert columns["total_claim_cost"].role is Role.TARGET


def test_of_synthea_conditions_both_other_tables_are_joined(synthea, inspector):
    tables = {
        name: read_records(SYNTHEA / f"{name}.csv", name=name).table
        for name in ("conditions", "encounters", "patients")
    }
    recipe, _ = suggested(profile(tables, inspector), "conditions")
    assert recipe.joins == {
        "encounters": Join(left="ENCOUNTER", right="Id"),
        "patients": Join(left="PATIENT", right="Id"),
    }
    assert recipe.subject == "PATIENT"
