"""Treatment: text never comes out, cells that do not fit refuse their column, blocks give what the whole gives."""

import hashlib
import hmac
import json
from dataclasses import asdict
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.errors import InvalidInput, Reason, Refused
from sanitize.keyed import tokens
from sanitize.recipe import (
    TREATMENTS,
    Age,
    Bin,
    Clip,
    Column,
    Duration,
    Encode,
    Grid,
    Keep,
    Perturb,
    Prefix,
    Pseudonymise,
    Recipe,
    Redact,
    Role,
    Round,
    Vectorise,
    Year,
)
from sanitize.treatment import MISSING, OTHER, Secrets, apply, dtype_of, make, note, settle

SECRETS = Secrets(rows=b"r" * 32, purpose=b"p" * 32)
PLANTED = "078-05-1126"


class Stars:
    """Redacts digits."""

    def redact(self, texts):
        return ["".join("*" if c.isdigit() else c for c in text) for text in texts]


def drawn(values):
    """Return numbers as a map of surrogates would: the same for the same value, whatever is asked with it."""
    return [1 + int.from_bytes(hashlib.sha256(value.encode()).digest()[:6], "big") for value in values]


def treat(treatment, *, subject="", **columns):
    recipe = Recipe(
        name="n",
        purpose="p",
        records="r",
        subject=subject,
        columns=(Column(name="x", source="a", treatment=treatment, role=Role.FEATURE),),
    )
    return apply(recipe, pa.table(columns), secrets=SECRETS, surrogates=drawn, redactor=Stars())


def values(treatment, **columns):
    return treat(treatment, **columns).table.column("x").to_pylist()


def refusal(treatment, **columns):
    with pytest.raises(Refused) as caught:
        treat(treatment, **columns)
    assert caught.value.reason is Reason.COLUMN_REFUSED
    assert "'x' (from 'a'" in caught.value.message
    assert PLANTED not in str(caught.value)
    return caught.value


# --- refusals


@pytest.mark.parametrize(
    "treatment", [Keep(), Round(to=Decimal(1)), Clip(low=Decimal(0), high=Decimal(1)), Bin(edges=(Decimal(1),))]
)
def test_text_is_no_number_and_the_cells_are_counted(treatment):
    assert "2 of 4 cells" in refusal(treatment, a=["1", PLANTED, None, "N/A"]).message


@pytest.mark.parametrize("treatment", [Year(), Age(at=date(2026, 1, 1)), Duration(until="b")])
def test_text_is_no_date(treatment):
    assert "1 cells" in refusal(treatment, a=[PLANTED, None], b=[PLANTED, None]).message


def test_infinite_and_huge_numbers_are_refused():
    assert "2 cells" in refusal(Keep(), a=[float("inf"), 2.0**54, 1.0]).message


def test_an_age_before_birth_is_refused():
    assert "1 cells" in refusal(Age(at=date(2000, 1, 1)), a=[date(2001, 1, 1), date(1999, 1, 1)]).message


def test_a_duration_that_ends_before_it_begins_is_refused():
    early, late = datetime(2020, 1, 1), datetime(2020, 1, 2)
    assert "1 cells" in refusal(Duration(until="b"), a=[late, early], b=[early, late]).message


def test_times_with_and_without_a_zone_are_not_subtracted():
    zoned = pa.array([datetime(2020, 1, 1)], pa.timestamp("us", tz="UTC"))
    refusal(Duration(until="b"), a=zoned, b=[datetime(2020, 1, 1)])


def test_nested_cells_have_no_levels():
    refusal(Encode(), a=[[PLANTED]])


def test_a_refusal_names_the_row_of_the_first_cell_and_no_value():
    column = Column(name="x", source="a", treatment=Keep(), role=Role.FEATURE)
    for cells, row in (([1.0, float("inf"), -float("inf")], 1_000_001), (["1", None, PLANTED], 1_000_002)):
        with pytest.raises(Refused) as caught:
            make(column, pa.table({"a": cells}), first_row=1_000_000, secrets=SECRETS)
        assert f"the first in row {row:,}" in caught.value.message
        assert PLANTED not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([2**53 + 1], pa.int64()),
        ([2**53], pa.uint64()),
        ([-(2**53)], pa.int64()),
        ([Decimal(2**53 + 1)], pa.decimal128(20, 0)),
        ([Decimal(10**39)], pa.decimal256(60, 0)),
        ([-float("inf")], pa.float32()),
    ],
)
def test_a_number_that_no_real_holds_is_refused(cells, kind):
    assert "1 cells" in refusal(Keep(), a=pa.array(cells, kind)).message


NO_NUMBERS = [
    pa.array([date(2020, 1, 1)]),
    pa.array([datetime(2020, 1, 1)], pa.timestamp("us", "UTC")),
    pa.array([time(1)]),
    pa.array([timedelta(1)]),
    pa.array([b"1"]),
    pa.array([b"1"], pa.binary(1)),
    pa.array(["1"], pa.string_view()),
    pa.array(["1"], pa.large_string()),
    pa.array([PLANTED]).dictionary_encode(),
    pa.array([[1]]),
    pa.array([{"a": 1}]),
]


@pytest.mark.parametrize("cells", NO_NUMBERS, ids=lambda cells: str(cells.type))
def test_what_is_no_number_is_refused_whatever_its_type(cells):
    for treatment in (Keep(), Grid(), Perturb(low=Decimal(0), high=Decimal(1), epsilon=Decimal(1), to=Decimal(1))):
        refusal(treatment, a=cells)


@pytest.mark.parametrize(
    "cells", [[1], [True], [Decimal(1)], [b"x"], [time(1)], [timedelta(1)], [[date(2020, 1, 1)]], [{"a": 1}]], ids=str
)
def test_what_is_no_date_is_refused_whatever_its_type(cells):
    for treatment in (Year(), Age(at=date(2030, 1, 1)), Age(at="a"), Duration(until="a")):
        assert "1 cells" in refusal(treatment, a=cells).message


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([2**31 - 1], pa.date32()),
        pa.array([2**62], pa.timestamp("s")),
        pa.array([-(2**62)], pa.timestamp("ms", "UTC")),
        pa.array([86_400_000 * 10**8], pa.date64()),
    ],
    ids=lambda cells: str(cells.type),
)
def test_a_time_outside_every_calendar_is_refused_and_does_not_wrap_around(cells):
    for treatment in (Year(), Age(at=date(2030, 1, 1)), Duration(until="a")):
        assert "the years 1 to 9999" in refusal(treatment, a=cells).message


@pytest.mark.parametrize(
    "cells", [[[PLANTED]], [{"a": PLANTED}], [b"\xff\xfe"], pa.array([b"\xff"], pa.binary(1))], ids=str
)
def test_what_has_no_text_has_no_levels(cells):
    for treatment in (Encode(), Prefix(), Pseudonymise(), Pseudonymise(by="hmac")):
        refusal(treatment, a=cells)


@pytest.mark.parametrize("cells", [[1], [1.5], [date(2020, 1, 1)], [["a"]], [b"\xff"]], ids=str)
@pytest.mark.parametrize("treatment", [Vectorise(), Redact()])
def test_what_is_no_text_is_neither_vectorised_nor_redacted(treatment, cells):
    refusal(treatment, a=cells)


@pytest.mark.parametrize("cell", ["2139", "021390", "0213a", "02139-12", PLANTED, "", "SW1A 1AA"])
def test_what_is_no_zip_code_is_refused(cell):
    assert "1 cells are not ZIP codes" in refusal(Prefix(), a=["02139", cell]).message


@pytest.mark.parametrize("cells", [[-2139], [2139.5], [10**9]])
def test_a_number_that_is_no_zip_code_is_refused(cells):
    refusal(Prefix(), a=cells)


def test_a_postcode_shorter_than_what_is_asked_is_refused():
    refusal(Prefix(digits=5), a=["021"])
    refusal(Prefix(digits=4, restricted=()), a=["SW1"])
    refusal(Prefix(digits=3, restricted=()), a=["x@y.z"])


@pytest.mark.parametrize("degrees", [180.5, -181.0])
def test_what_is_no_degree_is_refused(degrees):
    assert "not decimal degrees" in refusal(Grid(), a=[degrees, 1.0]).message


def test_a_secret_of_the_wrong_length_is_refused():
    for short in ({"rows": b"r", "purpose": b"p" * 32}, {"rows": b"r" * 32, "purpose": b""}):
        with pytest.raises(InvalidInput):
            Secrets(**short)


def test_secrets_and_cells_are_not_in_any_repr():
    treated = treat(Encode(min_count=2), a=[PLANTED] * 3)
    made = make(COLUMNS["encode"], TABLE, first_row=0, secrets=SECRETS)
    assert PLANTED not in repr(treated) + repr(made)
    assert "rrr" not in repr(SECRETS)


@pytest.mark.parametrize("numbers", [None, [1, 1], [1], [0, 1], [-1, 1], [1, 2**53]], ids=str)
def test_surrogates_that_cannot_be_told_apart_are_refused(numbers):
    surrogates = None if numbers is None else lambda _: numbers
    with pytest.raises(InvalidInput) as caught:
        settle(COLUMNS["pseudonymise"], [PLANTED, "b"], np.array([1, 1]), lambda _: 2, surrogates)
    assert PLANTED not in str(caught.value)


def test_a_measure_has_nothing_to_settle():
    with pytest.raises(InvalidInput):
        settle(COLUMNS["keep"], [], np.array([]), lambda _: 0)


# --- measures


def test_numbers_and_booleans_are_kept_as_reals():
    assert values(Keep(), a=[1, 2]) == [1.0, 2.0]
    assert values(Keep(), a=[True, False]) == [1.0, 0.0]
    assert values(Keep(), a=[Decimal("1.50")]) == [1.5]


def test_a_missing_number_is_not_a_number():
    treated = treat(Keep(), a=[1, None])
    assert np.isnan(treated.table.column("x").to_pylist()[1])
    assert treated.notes["x"].nulls == 1


@pytest.mark.parametrize(
    ("to", "there"), [("10", [20.0, -10.0, 0.0]), ("0.1", [15.2, -12.3, 0.3]), ("0.5", [15.0, -12.5, 0.5])]
)
def test_rounding_gives_multiples_without_a_tail(to, there):
    assert values(Round(to=Decimal(to)), a=[15.2, -12.34, 0.3]) == there


def test_bounds_hold_and_what_they_cut_is_counted():
    treated = treat(Round(to=Decimal(10), low=Decimal(0), high=Decimal(100)), a=[-5, 50, 104, 1_000])
    assert treated.table.column("x").to_pylist() == [0.0, 50.0, 100.0, 100.0]
    assert treated.notes["x"].clipped == 3
    assert values(Clip(low=Decimal(1), high=Decimal(2)), a=[0.5, 1.25, 9]) == [1.0, 1.25, 2.0]


def test_a_bin_is_the_interval_a_number_lies_in():
    assert values(Bin(edges=(Decimal(0), Decimal(10))), a=[-1, 0, 9.9, 10, None]) == [1, 2, 2, 3, 0]


def test_only_the_year_of_a_date_comes_out():
    assert values(Year(), a=[date(1969, 12, 31), date(2020, 2, 29)]) == [1969.0, 2020.0]


@pytest.mark.parametrize(
    ("born", "at", "age"),
    [
        (date(2000, 6, 15), date(2020, 6, 14), 19),
        (date(2000, 6, 15), date(2020, 6, 15), 20),
        (date(2000, 2, 29), date(2021, 2, 28), 20),
        (date(2000, 2, 29), date(2021, 3, 1), 21),
        (date(1930, 1, 2), date(2020, 1, 1), 89),
        (date(1930, 1, 1), date(2020, 1, 1), 90),
        (date(1900, 1, 1), date(2020, 1, 1), 90),
        (date(2020, 1, 1), date(2020, 1, 1), 0),
    ],
)
def test_ages_are_whole_years_and_over_89_is_one_category(born, at, age):
    assert values(Age(at=at), a=[born]) == [age]
    assert values(
        Age(at="b"), a=[born], b=pa.array([datetime(at.year, at.month, at.day, 23)], pa.timestamp("us", tz="UTC"))
    ) == [age]


def test_an_age_without_a_birth_date_is_missing():
    assert np.isnan(values(Age(at="b"), a=[None, date(2000, 1, 1)], b=[date(2020, 1, 1), None])).all()


@pytest.mark.parametrize(("age", "band"), [(0, 0), (4, 0), (5, 5), (84, 80), (89, 85), (90, 90), (110, 90)])
def test_an_age_in_bands_is_the_lowest_of_its_band(age, band):
    assert values(Age(at=date(2020, 1, 1), band=5), a=[date(2020 - age, 1, 1)]) == [band]


def test_a_band_that_reaches_over_89_does_not_hide_the_oldest():
    born = [date(2020 - age, 1, 1) for age in (59, 60, 89, 90, 99)]
    assert values(Age(at=date(2020, 1, 1), band=60), a=born) == [0, 60, 60, 90, 90]


@settings(deadline=None)
@given(st.lists(st.tuples(st.none() | st.dates(), st.none() | st.dates()), min_size=1, max_size=30))
def test_ages_are_what_a_calendar_says(pairs):
    born, at = (pa.array(days, pa.date32()) for days in zip(*pairs, strict=True))
    told = [
        None if b is None or a is None else a.year - b.year - ((a.month, a.day) < (b.month, b.day)) for b, a in pairs
    ]
    if any(age is not None and age < 0 for age in told):
        refusal(Age(at="b"), a=born, b=at)
    else:
        expected = [np.nan if age is None else min(age, 90) for age in told]
        np.testing.assert_array_equal(values(Age(at="b"), a=born, b=at), expected)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Paris"])
def test_times_of_every_unit_are_read_alike(unit, zone):
    cells = pa.array([datetime(1969, 12, 31, 23, 59), None], pa.timestamp(unit, zone))
    np.testing.assert_array_equal(values(Year(), a=cells), [1969.0, np.nan])
    np.testing.assert_array_equal(values(Duration(until="b"), a=cells, b=cells), [0.0, np.nan])


@pytest.mark.parametrize(
    "treatment", [Keep(), Year(), Bin(edges=(Decimal(1),)), Grid(), Encode(), Prefix(), Vectorise()]
)
def test_a_column_without_any_value_is_missing_whatever_its_type(treatment):
    for kind in (pa.null(), pa.string(), pa.float64() if treatment != Year() else pa.date32()):
        if treatment != Vectorise() or kind != pa.float64():
            assert treat(treatment, a=pa.nulls(3, kind)).notes["x"].nulls == 3


def test_numbers_of_every_type_are_read_alike():
    kinds = [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(5, 2), pa.decimal256(50, 2)]
    for cells in (pa.array([3.0, None, 1.0]).cast(kind) for kind in kinds):
        np.testing.assert_array_equal(values(Keep(), a=cells), [3.0, np.nan, 1.0])
        np.testing.assert_array_equal(values(Bin(edges=(Decimal(2),)), a=cells), [2, 0, 1])
    assert values(Keep(), a=pa.array([3, 3, 1]).dictionary_encode()) == [3.0, 3.0, 1.0]


def test_a_place_is_rounded_to_the_grid():
    assert values(Grid(), a=[52.3676, -0.1276, 180.0]) == [52.5, 0.0, 180.0]
    assert values(Grid(to=Decimal("0.1")), a=[52.3676, -0.1276]) == [52.4, -0.1]


def test_a_duration_is_in_minutes():
    day = datetime(2020, 1, 1)
    assert values(Duration(until="b", to=Decimal(5)), a=[day], b=[datetime(2020, 1, 1, 1, 3)]) == [65.0]


# --- codes


def test_rare_levels_fold_into_one_code_and_the_dictionary_names_the_rest():
    treated = treat(Encode(min_count=2), a=["b", "b", "a", "a", "a", PLANTED, "z", None, None])
    assert treated.dictionaries["x"] == (OTHER, MISSING, "a", "b")
    assert treated.table.column("x").to_pylist() == [3, 3, 2, 2, 2, 0, 0, 1, 1]
    assert (treated.notes["x"].folded, treated.notes["x"].nulls, treated.notes["x"].levels) == (2, 2, 4)


def test_levels_are_counted_by_subject():
    treated = treat(Encode(min_count=2), subject="who", a=["a"] * 5 + ["b", "b"], who=[1, 1, 1, 1, 1, 2, 3])
    assert OTHER in treated.dictionaries["x"]
    assert "a" not in treated.dictionaries["x"]


def test_one_rare_level_takes_the_next_with_it():
    treated = treat(Encode(min_count=3), a=["a"] * 9 + ["b"] * 4 + ["c"])
    assert treated.dictionaries["x"] == (OTHER, MISSING, "a")


def test_a_level_called_like_ours_is_no_special_code():
    treated = treat(Encode(min_count=2), a=[OTHER] * 3 + [MISSING] * 3)
    assert sorted(set(treated.table.column("x").to_pylist())) == [2, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([None, *"abcdefg"]), st.integers(0, 20)), min_size=1, max_size=120),
    st.integers(2, 8),
)
def test_no_code_is_shared_by_fewer_subjects_than_asked(rows, min_count):
    treated = treat(
        Encode(min_count=min_count),
        subject="who",
        a=pa.array([a for a, _ in rows], pa.string()),
        who=[w for _, w in rows],
    )
    holders = {}
    for code, (_, who) in zip(treated.table.column("x").to_pylist(), rows, strict=True):
        holders.setdefault(code, set()).add(who)
    everyone = {who for _, who in rows}
    assert all(len(held) >= min(min_count, len(everyone)) for held in holders.values())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), "dictionary"])
def test_text_of_every_type_has_the_same_levels(kind):
    cells = pa.array(["b", "a", None, "b", "a"])
    cells = cells.dictionary_encode() if kind == "dictionary" else cells.cast(kind)
    treated = treat(Encode(min_count=2), a=pa.chunked_array([cells, cells]))
    assert treated.dictionaries["x"] == (OTHER, MISSING, "a", "b")
    assert treated.table.column("x").to_pylist() == [3, 2, 1, 3, 2] * 2


def test_not_a_number_is_a_missing_level():
    treated = treat(Encode(min_count=2), a=pa.array([float("nan"), None, 1.5, 1.5]))
    assert treated.dictionaries["x"] == (OTHER, MISSING, "1.5")
    assert treated.table.column("x").to_pylist() == [1, 1, 2, 2]


def test_a_level_that_no_row_has_any_more_folds_nothing_else():
    settled = settle(COLUMNS["encode"], ["a", "b", None], np.array([3, 0, 5]), lambda _: pytest.fail("nothing is rare"))
    assert settled.codes.tolist() == [2, 0, 1]


def test_of_levels_alike_in_holders_the_first_by_name_folds():
    for order in (["b", "a", None, "z"], ["a", None, "b", "z"], [None, "b", "a", "z"]):
        holders = np.array([1 if level == "z" else 3 for level in order])
        settled = settle(COLUMNS["encode"], order, holders, lambda _: 1)
        assert dict(zip(order, settled.codes.tolist(), strict=True)) == {"a": 0, "b": 2, None: 1, "z": 0}


# --- postcodes


def test_a_postcode_of_few_people_is_zeros_and_the_rest_its_first_digits():
    cells = ["03601", "036", "03599", "02139", "02139-1234", "021391234", " 02139 ", None]
    treated = treat(Prefix(min_count=2), a=cells * 2)
    assert treated.dictionaries["x"] == (OTHER, MISSING, "000", "021", "035")
    assert treated.table.column("x").to_pylist() == [2, 2, 4, 3, 3, 3, 3, 1] * 2


@pytest.mark.parametrize("cells", [[3601, 21391234, 501], [3601.0, 21391234.0, 501.0]])
def test_a_zip_code_that_was_read_as_a_number_gets_its_zeros_back(cells):
    treated = treat(Prefix(min_count=2), a=cells * 2)
    assert treated.dictionaries["x"] == (OTHER, MISSING, "000", "005", "021")


def test_an_area_of_few_people_stays_hidden_in_a_longer_prefix_and_needs_no_hiding_in_a_shorter():
    assert treat(Prefix(digits=5, min_count=2), a=["03601", "02139"] * 2).dictionaries["x"][2:] == ("00000", "02139")
    assert treat(Prefix(digits=2, min_count=2), a=["03601", "02139"] * 2).dictionaries["x"][2:] == ("02", "03")


def test_postcodes_of_other_countries_have_letters_and_rare_ones_fold():
    treated = treat(Prefix(restricted=(), min_count=2), a=["SW1A 1AA", "sw1a1aa", "sw1 2", "EC4", "N1 9GU", "N19GU"])
    assert treated.dictionaries["x"] == (OTHER, MISSING, "SW1")  # one of EC4 takes the two of N19 with it
    assert treated.table.column("x").to_pylist() == [2, 2, 2, 0, 0, 0]
    assert treated.notes["x"].folded == 2


# --- pseudonyms


def test_random_pseudonyms_are_the_maps_and_the_map_is_no_dictionary():
    treated = treat(Pseudonymise(), a=["b", None, "a", "b"])
    (b, a) = drawn(["b", "a"])
    assert treated.table.column("x").to_pylist() == [b, 0, a, b]
    assert treated.dictionaries == {}
    assert (treated.notes["x"].tokens, treated.notes["x"].nulls) == ("random", 1)


def test_keyed_pseudonyms_are_hmac_sha256_under_the_purpose():
    treated = treat(Pseudonymise(by="hmac"), a=["b", None, "é", "b", ""])
    told = [int.from_bytes(hmac.digest(b"p" * 32, t.encode(), "sha256")[:8], "big") >> 12 for t in ("b", "é", "")]
    assert treated.table.column("x").to_pylist() == [told[0], 0, told[1], told[0], told[2]]
    assert treated.notes["x"].tokens == "hmac"
    assert 0 < min(told) <= max(told) < 2**52


@given(st.binary(max_size=64), st.lists(st.text(max_size=300), max_size=5))
def test_tokens_are_those_of_the_standard_library(key, texts):
    told = [int.from_bytes(hmac.digest(key, text.encode(), "sha256")[:8], "big") >> 12 for text in texts]
    assert tokens(texts, key).tolist() == told


def test_an_identifier_written_as_a_number_or_as_text_has_one_token():
    assert values(Pseudonymise(by="hmac"), a=[5]) == values(Pseudonymise(by="hmac"), a=["5"])


# --- vectors


def vector(*texts, **options):
    table = treat(Vectorise(**{"size": 64, **options}), a=pa.array(texts, pa.string())).table
    return np.array([column.to_numpy() for column in table.columns]).T


def test_a_text_becomes_as_many_numbers_as_asked_named_in_order():
    treated = treat(Vectorise(size=8), a=["fever and cough", None])
    assert treated.table.column_names == [f"x_{place}" for place in range(8)]
    assert {str(field.type) for field in treated.table.schema} == {"float"}
    assert treated.notes["x"].nulls == 1


def test_a_missing_text_is_missing_and_an_empty_one_is_zero():
    rows = vector(None, "", " -- ", "a")
    assert np.isnan(rows[0]).all()
    assert not rows[1:3].any()
    assert not np.isnan(rows[1:]).any()


def test_words_count_whatever_their_order_case_and_marks():
    first, *others = vector("Fever, cough", "cough fever", "COUGH\n(fever)", "ﬁrst", "FIRST")
    assert (others[:2] == first).all()
    assert (others[2] == others[3]).all()
    assert (others[2] != first).any()


def test_text_outside_ascii_is_split_into_words_too():
    one, other, apart = vector("Älter – krank", "krank “ÄLTER”", "älterkrank")
    assert (one == other).all()
    assert (one != apart).any()


def test_a_row_has_length_1_to_a_64th_or_counts_within_the_cap():
    (row,) = vector(" ".join(f"w{i}" for i in range(10)))
    assert np.array_equal(row * 64, np.rint(row * 64))
    assert abs(float((row**2).sum()) - 1) < 0.2
    (row,) = vector("a a a a b", cap=3)
    assert sorted(np.abs(row[row != 0])) == [1.0, 3.0]


def test_vectors_need_the_key_and_each_column_has_its_own():
    column, table = COLUMNS["vectorise"], pa.table({"NOTE": ["fever"]})
    rows = [
        list(make(at, table, first_row=0, secrets=secrets).values.values())
        for at, secrets in (
            (column, SECRETS),
            (column, Secrets(rows=b"x" * 32, purpose=b"p" * 32)),
            (column, Secrets(rows=b"r" * 32, purpose=b"q" * 32)),
            (Column(name="other", source="NOTE", treatment=column.treatment, role=Role.FEATURE), SECRETS),
        )
    ]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[3])


def test_like_words_share_their_characters_in_a_row():
    one, like, unlike = vector("diabetes", "diabetic", "fracture", words=False, ngram=3, size=512)
    assert float(one @ like) > 0.4 > abs(float(one @ unlike))


def test_words_and_characters_in_a_row_add_up():
    both, words, grams = (vector("a b a", cap=99, **o) for o in ({"ngram": 2}, {}, {"ngram": 2, "words": False}))
    assert np.array_equal(both, words + grams)
    assert np.abs(words).sum() == 3
    assert np.abs(grams).sum() == 6  # "<a" and "a>" for each word


def test_a_word_and_the_same_characters_within_one_are_two_features():
    word, within = vector("bcd", cap=9), vector("abcde", cap=9, words=False, ngram=3)
    assert not (word * within).any()


def test_features_have_both_signs_and_no_zero_has_one():
    rows = vector(*(f"w{i} v{i} u{i}" for i in range(50)))
    assert min((rows > 0).sum(), (rows < 0).sum()) > 40
    (long,) = vector("often " * 300 + " ".join(f"w{i}" for i in range(20)))
    for numbers in (rows, long):
        assert not np.signbit(numbers[numbers == 0]).any()
    cells = values(PERTURB, a=[0.0] * 2_000)
    assert 0.0 in cells
    assert not np.signbit([cell for cell in cells if cell == 0]).any()


def test_a_slice_of_texts_is_what_it_is_alone():
    table = pa.table({"NOTE": [f"w{i} v{i}" for i in range(20)]})
    part = make(COLUMNS["vectorise"], table.slice(7, 5), first_row=7, secrets=SECRETS).values
    alone = make(
        COLUMNS["vectorise"], pa.table({"NOTE": table["NOTE"].to_pylist()[7:12]}), first_row=7, secrets=SECRETS
    )
    assert all(np.array_equal(part[name], alone.values[name]) for name in part)
    many = [f"w{i}" for i in range(8_300)]  # more than are hashed at once
    assert np.array_equal(vector(*many, size=512)[8_250:], vector(*many[8_250:], size=512))


def test_texts_far_apart_are_far_apart():
    generator = np.random.default_rng(3)
    texts = [" ".join(f"w{i}" for i in generator.integers(0, 10_000, 30)) for _ in range(40)]
    rows = vector(*texts, size=512)
    inner = rows @ rows.T
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 0.3


# --- noise


PERTURB = Perturb(low=Decimal(0), high=Decimal(100), epsilon=Decimal(2), to=Decimal("0.5"))


def noise(count, *, first_row=0, secrets=SECRETS, treatment=PERTURB, value=50.0):
    column = Column(name="x", source="a", treatment=treatment, role=Role.FEATURE)
    made = make(column, pa.table({"a": np.full(count, value)}), first_row=first_row, secrets=secrets)
    return made.values["x"] - value


def test_noise_lies_on_the_grid_and_the_epsilon_is_noted():
    treated = treat(PERTURB, a=[0.26, 50.0, 1_000.0, None])
    cells = np.array(treated.table.column("x").to_pylist()[:3])
    assert np.array_equal(cells * 2, np.rint(cells * 2))
    assert np.isnan(treated.table.column("x").to_pylist()[3])
    found = treated.notes["x"]
    assert (found.epsilon, found.grain, found.clipped, found.nulls) == ("2", 0.5, 1, 1)


def test_noise_depends_on_the_key_of_the_rows_and_on_the_row():
    whole = noise(1_000)
    assert np.array_equal(whole[400:], noise(600, first_row=400))
    assert np.array_equal(whole, noise(1_000, secrets=Secrets(rows=b"r" * 32, purpose=b"q" * 32)))
    other = noise(1_000, secrets=Secrets(rows=b"s" * 32, purpose=b"p" * 32))
    assert (whole == other).mean() < 0.05
    assert abs(np.corrcoef(whole, other)[0, 1]) < 0.15
    assert abs(np.corrcoef(whole[1:], whole[:-1])[0, 1]) < 0.15


def test_noise_is_the_same_whatever_the_value():
    assert np.array_equal(noise(1_000, value=0.0), noise(1_000, value=100.0))


def test_two_columns_have_noise_of_their_own():
    """Else the difference of the two would be that of the values."""
    column = Column(name="x", source="b", treatment=PERTURB, role=Role.FEATURE)
    other = make(column, pa.table({"b": np.full(1_000, 50.0)}), first_row=0, secrets=SECRETS).values["x"] - 50.0
    assert (noise(1_000) == other).mean() < 0.05


def test_noise_is_discrete_laplace_of_the_stated_epsilon():
    """Of 400,000 draws each frequency lies within five standard errors of the law's."""
    wide = Perturb(low=Decimal(-1), high=Decimal(3), epsilon=Decimal(2), to=Decimal(1))
    count, decay = 400_000, 2 / 4
    steps = noise(count, treatment=wide, value=2.0)
    for k in range(-6, 7):
        chance = np.tanh(decay / 2) * np.exp(-decay * abs(k))
        assert abs((steps == k).mean() - chance) < 5 * np.sqrt(chance / count)


# --- blocks


N = 40
TABLE = pa.table(
    {
        "who": [f"p{row % 23}" for row in range(N)],
        "COST": [None if row % 7 == 0 else row * 37.25 for row in range(N)],
        "BORN": [None if row % 9 == 0 else date(1920 + row * 2, 1 + row % 12, 1 + row % 28) for row in range(N)],
        "AT": [datetime(2020, 1, 1) + timedelta(hours=row) for row in range(N)],
        "END": [datetime(2020, 1, 3, 17) + timedelta(hours=row * 3) for row in range(N)],
        "KIND": [None if row % 11 == 0 else "abcdefg"[row * row % 7] for row in range(N)],
        "ZIP": [f"{(501 + row % 5 * 13_701) % 99_999:05}" for row in range(N)],
        "LAT": [None if row % 5 == 0 else row * 4.3 - 85 for row in range(N)],
        "ID": [None if row % 13 == 0 else f"id-{row % 17}" for row in range(N)],
        "NOTE": [None if row % 6 == 0 else f"fever {row % 4} ångström {'cough ' * (row % 3)}" for row in range(N)],
    }
)
_TREATED = {
    "keep": ("COST", Keep()),
    "round": ("COST", Round(to=Decimal(5), high=Decimal(900))),
    "clip": ("COST", Clip(low=Decimal(10), high=Decimal(500))),
    "bin": ("COST", Bin(edges=(Decimal(100), Decimal(700)))),
    "year": ("BORN", Year()),
    "age": ("BORN", Age(at=date(2026, 1, 1), band=5)),
    "duration": ("AT", Duration(until="END", to=Decimal(30))),
    "encode": ("KIND", Encode(min_count=3)),
    "prefix": ("ZIP", Prefix(min_count=5)),
    "grid": ("LAT", Grid()),
    "pseudonymise": ("ID", Pseudonymise()),
    "hmac": ("ID", Pseudonymise(by="hmac")),
    "vectorise": ("NOTE", Vectorise(size=16, ngram=3)),
    "perturb": ("COST", PERTURB),
    "redact": ("NOTE", Redact()),
}
COLUMNS = {
    name: Column(name=name, source=source, treatment=treatment, role=Role.FEATURE)
    for name, (source, treatment) in _TREATED.items()
}


def recipe(subject=""):
    return Recipe(name="n", purpose="p", records="r", subject=subject, columns=tuple(COLUMNS.values()))


def streamed(table, cuts, column, subjects):
    """Return what a pipeline makes of blocks: the columns, the codes' names, the note."""
    bounds = [0, *sorted(cuts), table.num_rows]
    made = [
        make(column, table.slice(a, b - a), first_row=a, secrets=SECRETS, redactor=Stars()) for a, b in pairwise(bounds)
    ]
    nulls, clipped = sum(block.nulls for block in made), sum(block.clipped for block in made)
    if not column.leveled:
        assert all(block.levels is None for block in made)
        values = {name: np.concatenate([block.values[name] for block in made]) for name in column.outgoing}
        return values, None, note(column, None, nulls=nulls, clipped=clipped)
    known = {level for block in made for level in block.levels}
    levels = [*sorted(level for level in known if level is not None), *({None} & known)]
    place = {level: i for i, level in enumerate(levels)}
    cells = np.concatenate(
        [np.array([place[level] for level in b.levels], dtype=int)[b.values[column.name]] for b in made]
    )

    def holding(some):
        return len({subjects[row] for row in np.flatnonzero(np.isin(cells, some))})

    holders = np.array([holding([i]) for i in range(len(levels))])
    settled = settle(column, levels, holders, holding, drawn)
    return {column.name: settled.codes[cells]}, settled.names, note(column, settled, nulls=nulls, clipped=clipped)


@settings(deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, N), max_size=6), subject=st.sampled_from(["", "who"]))
def test_blocks_of_any_size_give_what_the_whole_gives(cuts, subject):
    whole = apply(recipe(subject), TABLE, secrets=SECRETS, surrogates=drawn, redactor=Stars())
    subjects = TABLE.column("who").to_pylist() if subject else range(N)
    for column in COLUMNS.values():
        values, names, found = streamed(TABLE, cuts, column, subjects)
        for name in column.outgoing:
            told = whole.table.column(name).to_numpy()
            assert values[name].dtype == told.dtype == np.dtype(dtype_of(column))
            assert values[name].tobytes() == told.tobytes()
        assert (names or None) == whole.dictionaries.get(column.name)
        assert found == whole.notes[column.name]


def test_every_treatment_is_among_those_that_are_cut_into_blocks():
    assert {type(column.treatment) for column in COLUMNS.values()} == set(TREATMENTS.values())


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_block_without_rows_is_made_into_nothing(column):
    made = make(column, TABLE.slice(0, 0), first_row=7, secrets=SECRETS, redactor=Stars())
    assert {len(values) for values in made.values.values()} == {0}
    assert (made.nulls, made.clipped) == (0, 0)


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_what_was_noted_can_be_written_down(column):
    *_, found = streamed(TABLE, [], column, range(N))
    assert json.loads(json.dumps(asdict(found))) == asdict(found)
    assert found.why


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=1, max_size=60))
def test_what_comes_out_is_numbers(cells):
    kinds = {str(field.type) for field in treat(Encode(min_count=2), a=pa.array(cells, pa.string())).table.schema}
    assert kinds == {"int32"}
