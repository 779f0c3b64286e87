"""The price catalogue: what is refused, where it says so, and that a price is never guessed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.budget_tables import PriceSettings
from fabric.catalogue import Catalogue, PriceBook, Prices, parse_catalogue, parse_gpus
from fabric.charges import Usage
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.money import MAX_MICROS, micros, shown
from fabric.starter import write_starter
from fabric.zones import Zone, ZoneKind

HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone"
H200 = "big-8,H200,8.0,128,1600,\"{'Gpus': []}\",33.33,11.11,eu-1,"
ROW = ["big-8", "H200", "8", "128", "1600", "", "33.33", "11.11", "eu-1", ""]
NOW = 1_795_800_000.0
HOUR = 3600


def csv_of(*rows: str, header: str = HEADER) -> str:
    return "\n".join((header, *rows)) + "\n"


def with_cell(column: str, value: str) -> str:
    cells = list(ROW)
    cells[HEADER.split(",").index(column)] = value
    return csv_of(H200.replace("big-8", "other"), ",".join(cells))


def refused(text: str) -> FabricError:
    with pytest.raises(InvalidInput) as caught:
        parse_catalogue(text, source="c.csv")
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "price",
    ["", "-1", "nan", "NaN", "inf", "1e3", "1;5", " 1", "1 ", "0x10", "١", "1.", ".5", "+1", "12345678901", "secret-7"],
)
@pytest.mark.parametrize("column", ["Price", "SpotPrice"])
def test_a_price_that_is_none_is_refused_with_its_line_and_column_and_without_its_value(column: str, price: str):
    if column == "SpotPrice" and price == "":
        assert parse_catalogue(with_cell(column, price), source="c.csv").offers[1].spot is None
        return
    error = refused(with_cell(column, price))
    assert error.reason is Reason.PRICE_INVALID
    assert f"c.csv, line 3: {column}" in error.message
    assert len(price) < 4 or price not in str(error)


@pytest.mark.parametrize(
    ("column", "value"),
    [("AcceleratorCount", "0.5"), ("AcceleratorCount", "0"), ("AcceleratorCount", ""), ("AcceleratorName", "two words"),
     ("AcceleratorName", ""), ("InstanceType", ""), ("Region", " "), ("AcceleratorCount", "1000000")],
)  # fmt: skip
def test_a_row_that_says_too_little_is_refused_with_its_line(column: str, value: str):
    error = refused(with_cell(column, value))
    assert error.reason is Reason.CATALOGUE_INVALID
    assert "line 3" in error.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (csv_of(H200, H200), "line 3: the same instance type and place as line 2"),
        (csv_of(H200, header=HEADER.replace("SpotPrice", "SpotPrise")), "line 1: unknown column 'SpotPrise'"),
        (csv_of(H200, header=HEADER.replace(",Price", ",Region")), "no column 'Price'"),
        (csv_of(f"{H200},1"), "line 2: 11 cells for 10 columns"),
        (csv_of(), "has no row"),
        ("", "no column"),
        (csv_of('"open'), "not CSV"),
        (csv_of(H200)[:-1], "may be cut off"),
    ],
)
def test_a_file_that_is_no_catalogue_is_refused(text: str, said: str):
    error = refused(text)
    assert error.reason is Reason.CATALOGUE_INVALID
    assert said in error.message


def test_an_unknown_column_names_the_nearest():
    assert "'SpotPrice'" in refused(csv_of(H200, header=HEADER.replace("SpotPrice", "SpotPrise"))).hint


@pytest.mark.parametrize(("asked", "nearest"), [("H20", "H200"), ("h200", "H200"), ("H201", "H200")])
def test_a_model_that_nobody_offers_names_the_nearest(asked: str, nearest: str):
    with pytest.raises(InvalidInput) as caught:
        parse_catalogue(csv_of(H200), source="c").of_model(asked)
    assert caught.value.reason is Reason.GPU_MODEL_UNKNOWN
    assert f"did you mean {nearest!r}" in caught.value.hint


@pytest.mark.parametrize("text", ["", ":8", "H200:", "H200:0", "H200:-1", "H200:x", "H 200", "H200:8:8", "H200:1e3"])
def test_what_is_no_model_and_number_is_refused(text: str):
    with pytest.raises(InvalidInput):
        parse_gpus(text)


def test_a_model_and_its_number_are_read():
    assert parse_gpus("H200:8") == ("H200", 8)
    assert parse_gpus("A100-80GB") == ("A100-80GB", 1)


@given(st.text(max_size=30))
def test_text_becomes_an_exact_amount_or_none(text: str):
    found = micros(text)
    assert found is None or 0 <= found <= MAX_MICROS


@given(st.integers(0, MAX_MICROS))
def test_an_amount_reads_as_it_was_written(amount: int):
    assert micros(shown(amount).replace(",", "")) == amount


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str):
    for whole in (text, csv_of(text), csv_of(H200, text)):
        with suppress(InvalidInput):
            parse_catalogue(whole, source="c")


ZONE = Zone(
    name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU", provider="acme", region="eu-1", gpus=8, gpu_model="H200"
)
INSIDE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)


def prices(text: str, *, age_hours: float = 1, **changes: object) -> Prices:
    settings = replace(PriceSettings(inside_running=200_000, inside_idle=80_000), **changes)  # type: ignore[arg-type]
    made: Catalogue = parse_catalogue(text, source="c")
    return Prices(settings=settings, catalogue=made, written_s=NOW - age_hours * HOUR, now_s=NOW)


def test_a_zone_costs_what_its_cheapest_fitting_row_says_for_one_gpu():
    other = "big-1,H200,1,16,200,,5.00,,eu-1,"
    elsewhere = "cheap,H200,1,16,200,,0.01,,us-1,"
    found = prices(csv_of(H200, other, elsewhere)).of(ZONE)
    assert (found.hour, found.spot, found.egress) == (4_166_250, 1_388_750, None)
    assert found.offer is not None
    assert found.offer.instance_type == "big-8"


def test_a_row_of_another_provider_does_not_fit():
    text = csv_of(f"{H200},other", header=f"{HEADER},Provider")
    assert prices(text).of(ZONE).why == "PRICE_UNKNOWN"
    with pytest.raises(InvalidInput) as caught:
        prices(text).terms(ZONE)
    assert "'acme'" in caught.value.hint


@pytest.mark.parametrize("age", [169, -1])
def test_prices_that_are_stale_or_from_a_time_to_come_count_as_unknown(age: float):
    old = prices(csv_of(H200), age_hours=age)
    assert (old.of(ZONE).hour, old.of(ZONE).why) == (None, "PRICES_STALE")
    with pytest.raises(InvalidInput) as caught:
        old.terms(ZONE)
    assert caught.value.reason is Reason.PRICES_STALE
    # One's own hardware costs what fabric.toml says, whatever the file's age.
    assert old.terms(INSIDE).gpu_hour == 200_000


def test_a_broken_successor_leaves_the_last_good_file_in_use_and_says_so(tmp_path: Path):
    path = tmp_path / "c.csv"
    book = PriceBook(PriceSettings(catalogue=path))
    assert book.at(NOW).of(ZONE).why == "CATALOGUE_INVALID"
    write(path, csv_of(H200), NOW - HOUR)
    assert book.at(NOW).of(ZONE).hour == 4_166_250
    write(path, with_cell("Price", "-1"), NOW)
    found = book.at(NOW)
    assert found.problem is not None
    assert found.problem.reason is Reason.PRICE_INVALID
    assert found.of(ZONE).hour == 4_166_250
    # Its age is that of the file that was good.
    assert book.at(NOW + 168 * HOUR).of(ZONE).why == "PRICES_STALE"
    write(path, csv_of(H200.replace("33.33", "40.00")), NOW + 1)
    assert book.at(NOW + 1).of(ZONE).hour == 5_000_000
    path.unlink()
    assert book.at(NOW + 2).problem is not None
    assert book.at(NOW + 2).of(ZONE).hour == 5_000_000


def write(path: Path, text: str, at: float) -> None:
    path.write_text(text)
    os.utime(path, (at, at))


def test_a_larger_use_never_costs_less_and_own_hardware_sends_no_bill():
    text = csv_of(f"{H200},0.05,8.00", header=f"{HEADER},EgressPricePerGB,IdlePrice")
    terms = prices(text).terms(ZONE)
    usage = Usage(gpu_seconds=8 * HOUR, idle_gpu_seconds=HOUR, egress_bytes=2 * 10**9)
    assert terms.bill(usage) == 33_330_000 + 1_000_000 + 100_000
    assert [charge.inside for charge in terms.charges(usage)] == [1_600_000, 0, 0]
    inside = prices(text).terms(INSIDE)
    assert inside.bill(usage) == 0
    assert [charge.effective for charge in inside.charges(usage)] == [1_600_000, 80_000, 0]


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**9))
def test_parts_of_a_use_never_cost_less_than_the_whole(seconds: int, more: int, price: int):
    terms = replace(prices(csv_of(H200)).terms(ZONE), gpu_hour=price)
    whole = terms.bill(Usage(gpu_seconds=seconds + more))
    parts = terms.bill(Usage(gpu_seconds=seconds)) + terms.bill(Usage(gpu_seconds=more))
    assert whole <= parts <= whole + 1


def test_the_starters_catalogue_is_one_and_prices_its_public_zone(tmp_path: Path):
    from fabric.config import load_config

    write_starter(tmp_path)
    config = load_config(tmp_path / "fabric.toml")
    found = PriceBook(config.prices).at((tmp_path / "catalogue.csv").stat().st_mtime)
    assert found.terms(config.zones["public"]).gpu_hour == 100_000
    assert [limit.name for limit in config.limits] == ["all"]
