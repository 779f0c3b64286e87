"""The cost report: that it adds up to the settlements, in FOCUS columns, in each format; and `fabric gpus`."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spenders import AT, KEYED, WORK, order
from typer.testing import CliRunner

from fabric.budget_store import Reservation, State
from fabric.budget_tables import PriceSettings
from fabric.catalogue import Prices, parse_catalogue
from fabric.charges import Terms, Usage
from fabric.cli import app
from fabric.config import load_config
from fabric.cost_commands import parquet
from fabric.costs import COLUMNS, TIMES, WAYS, Told, currency_of, period_named, rows_of, told_by, totals
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.observed import Observed, SeenNode, SeenWork
from fabric.recording import now, open_budgets, open_ledger
from fabric.spending import Spending
from fabric.starter import write_starter
from fabric.stores import Home
from fabric.vacancies import free_gpus, vacancies
from fabric.zones import Zone, ZoneKind

HOUR = 3600
# FOCUS 1.2, columns of feature level Mandatory.
MANDATORY = [
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
    "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity",
    "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
]  # fmt: skip
TERMS = Terms(
    zone="public", currency="EUR", gpu_hour=1_000_000, list_gpu_hour=3_000_000, idle_hour=500_000, egress_gb=50_000,
    inside_hour=200_000, provider="acme", region="eu-1", sku="big-8", gpu_model="H200", spot=True,
)  # fmt: skip
USED = Usage(gpu_seconds=2 * HOUR, idle_gpu_seconds=HOUR, egress_bytes=10**9)


def settled(
    name: str = "r", *, spent: int | None = None, terms: Terms | None = TERMS, usage: Usage | None = USED
) -> Reservation:
    bill = terms.bill(usage) if terms and usage else 0
    return Reservation(
        id=name, job=f"j-{name}", state=State.SETTLED, order=replace(order(10_000_000), terms=terms), at=AT,
        spent_micros=bill if spent is None else spent, usage=usage, ended_at=AT + HOUR,
    )  # fmt: skip


def rows(*reservations: Reservation, told: Told | None = None) -> list[dict]:
    return rows_of(reservations, told or Told(), account="starter", currency="EUR")


def test_every_mandatory_column_of_focus_is_there_and_filled_and_others_begin_with_x():
    for row in rows(settled(), settled("adjusted", spent=9), settled("bare", terms=None, spent=5)):
        assert set(MANDATORY) <= row.keys()
        empty = {name for name in MANDATORY if row[name] is None}
        unpriced = {"PricingQuantity", "PricingUnit"} if row["ChargeCategory"] == "Adjustment" else set()
        assert empty == {"ChargeClass", *unpriced}  # null where nothing is corrected, as FOCUS asks
        assert row["ChargeCategory"] in ("Usage", "Adjustment")
        assert row["ServiceCategory"] in ("Compute", "Networking", "Other")
    assert [name for name in COLUMNS if not name[0].isupper() and not name.startswith("x_")] == []


def test_a_settlement_becomes_gpu_time_idle_time_and_egress():
    found = {row["x_Kind"]: row for row in rows(settled())}
    assert {kind: row["BilledCost"] for kind, row in found.items()} == {
        "gpu": Decimal("2.000000"), "idle": Decimal("0.500000"), "egress": Decimal("0.050000"),
    }  # fmt: skip
    gpu = found["gpu"]
    assert (gpu["ListCost"], gpu["x_InsideCost"], gpu["PricingCategory"]) == (Decimal(6), Decimal("0.4"), "Dynamic")
    assert (gpu["ConsumedQuantity"], gpu["ConsumedUnit"]) == (2, "GPU-Hours")
    assert (found["egress"]["ConsumedQuantity"], found["egress"]["ConsumedUnit"]) == (1, "GB")
    assert json.loads(gpu["Tags"])["team"] == "oncology"


def test_what_is_held_or_released_costs_nothing():
    assert rows(replace(settled(), state=State.HELD), replace(settled(), state=State.RELEASED)) == []


def test_owned_hardware_is_billed_to_nobody_and_its_use_is_told():
    inside = replace(TERMS, owned=True, gpu_hour=200_000, list_gpu_hour=200_000, egress_gb=0)
    found = rows(settled(terms=inside))
    assert [row["BilledCost"] for row in found] == [0, 0, 0]
    assert found[0]["EffectiveCost"] == Decimal("0.4")


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**8), st.integers(0, 10**6), st.integers(0, 10**12), st.none() | st.integers(0, 10**12)
        ),
        max_size=6,
    )
)
def test_the_rows_add_up_to_the_settlements_to_the_micro(uses: list[tuple[int, int, int, int | None]]):
    made = [
        settled(f"r-{n}", spent=spent, usage=Usage(gpu_seconds=a, idle_gpu_seconds=b, egress_bytes=c))
        for n, (a, b, c, spent) in enumerate(uses)
    ]
    found = rows(*made)
    whole = sum(one.spent_micros or 0 for one in made)
    assert sum((row["BilledCost"] for row in found), Decimal(0)) == Decimal(whole).scaleb(-6)
    for by in WAYS:
        assert sum(one.billed for one in totals(found, by)) == whole
        assert sum(one.gpu_seconds for one in totals(found, by)) == sum(a for a, *_ in uses)


def test_the_ledger_tells_which_model_and_crossings_a_cost_belongs_to():
    def record(action: str, **body: str) -> dict:
        return {"action": action, "phase": "intent", "body": body}

    told = told_by(
        [
            record("crossing", job="fabric-j-r-1", crossing="c1"),
            record("crossing", job="j-r", crossing="c2"),
            record("return", job="fabric-j-r-2", model="cost-forecast-1"),
            record("sanitize", commit="x"),
        ]
    )
    found = rows(settled(), settled("other"), told=told)
    assert {row["x_Model"] for row in found} == {"cost-forecast-1", None}
    assert found[0]["x_Crossings"] == "c1 c2"
    assert [one.name for one in totals(found, "model")] == ["(none)", "cost-forecast-1"]


def test_amounts_of_several_currencies_are_not_added_up_and_one_is_named_as_it_was_charged():
    francs = settled("s", terms=replace(TERMS, currency="CHF"))
    assert currency_of(rows(francs), "EUR") == "CHF"
    assert currency_of([], "EUR") == "EUR"
    with pytest.raises(InvalidInput) as caught:
        currency_of(rows(settled(), francs), "EUR")
    assert "CHF and EUR" in caught.value.message
    assert "--format csv" in caught.value.hint


def test_inside_is_unknown_where_nobody_has_said():
    (total,) = totals(rows(settled(), settled("s", terms=replace(TERMS, inside_hour=None))), "team")
    assert total.inside is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026",
        "2026-13",
        "2026-Q5",
        "2026-02-30",
        "2026-Q1-02",
        "0000-01",
        "26-11",
        "9999-12",
        "9999-Q4",
        "9999-12-31",
    ],
)
def test_what_is_no_period_is_refused(text: str):
    with pytest.raises(InvalidInput):
        period_named(text)


def test_parquet_holds_exact_decimals_and_times():
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = rows(settled(), settled("s", spent=1))
    table = pq.read_table(pa.BufferReader(parquet(found)))
    assert table.column_names == list(COLUMNS)
    assert table.to_pylist() == found
    assert pa.types.is_decimal(table.schema.field("BilledCost").type)
    assert all(pa.types.is_timestamp(table.schema.field(name).type) for name in TIMES)
    assert pq.read_table(pa.BufferReader(parquet([]))).num_rows == 0


# The commands, on a fabric as `fabric init` writes it.


@pytest.fixture
def started(tmp_path: Path) -> Path:
    write_starter(tmp_path)
    config = load_config(tmp_path / "fabric.toml")
    home = Home.open(config.state)
    ledger = open_ledger(config, home, home.signing_key())
    money = Spending(open_budgets(config, home), ledger, config.prices.currency)
    at = now().timestamp()
    for name, amount in (("a", 3_000_000), ("b", 5_000_000)):
        one = replace(order(amount, scope=WORK), terms=replace(TERMS, spot=False))
        money.reserve(name, f"job-{name}", one, at, justification_key=KEYED)
    money.settle("a", TERMS.bill(USED), at, usage=USED)
    ledger.close()
    money.store.close()
    return tmp_path


def run(folder: Path, *command: str) -> str:
    done = CliRunner().invoke(app, [*command, "--config", str(folder)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_the_cost_command_tells_the_same_in_each_format(started: Path):
    told = json.loads(run(started, "cost", "--json", "--by", "class"))
    assert told["totals"][0] | {"name": "confidential", "billed": "2.550000", "inside": "0.400000"} == told["totals"][0]
    assert told["limits"][0]["reserved"] == 5_000_000
    assert "oncology" in run(started, "cost")
    read = list(csv.DictReader(io.StringIO(run(started, "cost", "--format", "csv"))))
    assert tuple(read[0]) == COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in read) == Decimal("2.55")
    assert read[0]["ChargePeriodStart"].endswith("Z")
    run(started, "cost", "--format", "parquet", "--out", str(started / "cost.parquet"))
    assert (started / "cost.parquet").read_bytes()[:4] == b"PAR1"
    assert json.loads(run(started, "cost", "--json", "--period", "2001-01"))["totals"] == []


@pytest.mark.parametrize(
    "command", [("--by", "person"), ("--format", "xml"), ("--period", "now"), ("--format", "parquet"),
                ("--format", "csv", "--out", "/nowhere/x.csv")],
)  # fmt: skip
def test_a_report_that_there_is_not_is_refused(started: Path, command: tuple[str, ...]):
    with pytest.raises(FabricError) as caught:
        run(started, "cost", *command)
    assert caught.value.hint


def test_gpus_shows_each_zone_with_every_reason_why_not_and_guesses_nothing(started: Path):
    told = json.loads(run(started, "gpus", "H200:8", "--json", "--records", "people", "--justification", "x"))
    assert [zone["free"] for zone in told["zones"]] == [None, None]
    assert {o["code"] for zone in told["zones"] for o in zone["objections"]} == {
        "GPU_MODEL_UNKNOWN",
        "ZONE_HAS_NO_ROOM",
    }
    assert told["elsewhere"][0]["instance_type"] == "made-up-h200-8"
    text = run(started, "gpus")
    assert "unknown" in text
    assert "POLICY_DENIED" in text


def test_gpus_takes_a_label_only_to_be_stricter(started: Path):
    allowed = json.loads(run(started, "gpus", "--json", "--records", "people", "--justification", "x"))
    assert {zone["zone"] for zone in allowed["zones"] if zone["takes"]} == {"private", "public"}
    given = ("--records", "people", "--justification", "x", "--label", "burst_eligible=false")
    stricter = json.loads(run(started, "gpus", "--json", *given))
    assert {zone["zone"] for zone in stricter["zones"] if zone["takes"]} == {"private"}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("H201",), Reason.GPU_MODEL_UNKNOWN),
        (("H200:x",), Reason.CONFIG_INVALID),
        (("--label", "tean=x"), Reason.UNKNOWN_LABEL),
        (("--label", "team"), Reason.LABEL_INVALID),
        (("--records", "poeple"), Reason.UNKNOWN_RECORDS),
        (("--label", "allowed_execution_zone=pubic"), Reason.UNKNOWN_ZONE),
    ],
)
def test_gpus_refuses_what_it_does_not_know(started: Path, command: tuple[str, ...], reason: Reason):
    with pytest.raises(FabricError) as caught:
        run(started, "gpus", *command)
    assert caught.value.reason is reason
    assert caught.value.hint


PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU", gpus=8, gpu_model="H200")


def node(**changes: object) -> SeenNode:
    return SeenNode(id="n", name="public", labels={"zone": "public"}, resources={"GPU": 8.0}, **changes)  # type: ignore[arg-type]


def work(gpus: float, *, over: bool = False) -> SeenWork:
    return SeenWork(kind="actor", id="a", node="n", requires={"GPU": gpus}, over=over)


def test_free_is_what_nothing_holds_and_unknown_where_a_list_was_cut():
    seen = Observed(zones=(PUBLIC,), nodes=(node(),), work=(work(3), work(0.5), work(2, over=True)))
    assert free_gpus(seen) == {"public": 4}
    assert free_gpus(replace(seen, unseen=("the list of actors",))) == {}
    assert free_gpus(replace(seen, work=(work(9),))) == {"public": 0}


def test_a_zone_that_policy_was_not_asked_about_takes_nothing():
    text = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,SpotPrice,Region\nx,H200,8,8,8,,local\n"
    prices = Prices(settings=PriceSettings(), catalogue=parse_catalogue(text, source="c"), written_s=AT, now_s=AT)
    (one,) = vacancies([PUBLIC], {}, prices, {})
    assert [o.code for o in one.objections] == ["POLICY_DENIED"]
