"""`fabric cost`: what work has cost, by model, team, project, class or zone, in FOCUS columns for those who bill."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.budgets import Balance, Period, Unit, Window, window_of
from fabric.config import Config, Environment, find_config, load_config
from fabric.costs import (
    COLUMNS,
    FOCUS_VERSION,
    MONEY,
    QUANTITIES,
    TIMES,
    Row,
    Total,
    currency_of,
    period_named,
    rows_of,
    told_by,
)
from fabric.costs import totals as totals_of
from fabric.errors import InvalidInput, Reason, nearest
from fabric.fleet import HOUR_S
from fabric.money import shown
from fabric.recording import now, open_budgets, open_ledger
from fabric.stores import Home

FORMATS = ("table", "csv", "parquet")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def cost(
    by: Annotated[str, typer.Option(help="Sum by model, team, project, class or zone.")] = "team",
    period: Annotated[str, typer.Option(help="2026-11, 2026-Q4 or 2026-11-28; by default this month.")] = "",
    form: Annotated[str, typer.Option("--format", help="table, or FOCUS rows as csv or parquet.")] = "table",
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what work has cost, with idle time and egress, and what it would have cost inside."""
    if form not in FORMATS:
        raise InvalidInput(Reason.CONFIG_INVALID, "the report has no such format", nearest(form, FORMATS))
    if form == "parquet" and out is None:
        raise InvalidInput(Reason.CONFIG_INVALID, "parquet is not for a terminal", "name a file with --out")
    loaded = load_config(find_config(Environment.read(), config, Path.cwd()))
    at = now().timestamp()
    window = period_named(period) if period else window_of(Period.MONTH, at)
    rows, balances = _read(loaded, window, at)
    totals = totals_of(rows, by)
    currency = currency_of(rows, loaded.prices.currency) if form == "table" else ""
    if form == "csv":
        _put(_csv(rows).encode(), out)
    elif form == "parquet":
        _put(parquet(rows), out)
    elif as_json:
        _put((json.dumps(_json(currency, window, by, totals, balances), indent=2) + "\n").encode(), out)
    else:
        _put(_table(f"{loaded.name}: cost", currency, window, by, totals, balances).encode(), out)


def _read(config: Config, window: Window, at: float) -> tuple[list[Row], tuple[Balance, ...]]:
    home = Home.open(config.state)
    money = open_budgets(config, home)
    ledger = open_ledger(config, home, home.signing_key())
    try:
        told = told_by(entry.record for entry in ledger.entries())
        found = money.reservations(window.start_s, window.end_s or at)
        return rows_of(found, told, account=config.name, currency=config.prices.currency), money.balances(at)
    finally:
        ledger.close()
        money.close()


def _csv(rows: list[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in COLUMNS])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def parquet(rows: list[Row]) -> bytes:
    """Return the rows as Parquet: amounts as exact decimals, times as timestamps in UTC."""
    import pyarrow as pa  # noqa: PLC0415 - only this format needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    money = {*MONEY, "x_InsideCost"}
    kinds = {
        **{name: pa.decimal128(24, 6) for name in money},
        **{name: pa.decimal128(28, 9) for name in QUANTITIES},
        **{name: pa.timestamp("us", tz="UTC") for name in TIMES},
        "x_Spot": pa.bool_(),
    }
    schema = pa.schema(
        [pa.field(name, kinds.get(name, pa.string())) for name in COLUMNS], metadata={"focus_version": FOCUS_VERSION}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return bytes(sink.getvalue())


def _json(currency: str, window: Window, by: str, totals: list[Total], balances: tuple[Balance, ...]) -> Any:
    return {
        "focus": FOCUS_VERSION,
        "from": _day(window.start_s),
        "until": _day(window.end_s),
        "by": by,
        "totals": [one.to_json(currency) for one in totals],
        "limits": [
            {
                "name": one.limit.name,
                "unit": one.limit.unit.value,
                "limit": one.limit.amount,
                "reserved": one.reserved,
                "spent": one.spent,
                "left": one.left,
                "until": _day(one.window.end_s),
            }
            for one in balances
        ],
    }


def _table(
    title: str, currency: str, window: Window, by: str, totals: list[Total], balances: tuple[Balance, ...]
) -> str:
    lines = [f"{title} from {_day(window.start_s)} until {_day(window.end_s)}, in {currency}"]
    head = (by, "jobs", "GPU-hours", "billed", "effective", "of it idle", "egress", "inside")
    body = [
        (
            one.name,
            f"{one.jobs}",
            f"{one.gpu_seconds / HOUR_S:.2f}",
            *(shown(amount) for amount in (one.billed, one.effective, one.idle, one.egress)),
            "unknown" if one.inside is None else shown(one.inside),
        )
        for one in totals
    ]
    lines += _aligned([head, *body]) if body else ["nothing was settled in this period"]
    if balances:
        lines += ["", "limits now"]
        lines += _aligned([("name", "limit", "reserved", "spent", "left", "until"), *map(_limit, balances)])
    return "\n".join(lines) + "\n"


def _limit(one: Balance) -> tuple[str, ...]:
    def figure(amount: int) -> str:
        unit = one.limit.unit
        return (
            shown(amount)
            if unit is Unit.MICROS
            else f"{amount / HOUR_S:.1f} h"
            if unit is Unit.GPU_SECONDS
            else f"{amount} GPUs"
        )

    left = figure(one.left) + (" OVERDRAWN" if one.overdrawn else "")
    return (
        one.limit.name,
        figure(one.limit.amount),
        figure(one.reserved),
        figure(one.spent),
        left,
        _day(one.window.end_s),
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(c.ljust(w) if not p else c.rjust(w) for p, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def _day(seconds: int | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}" if seconds is not None else "-"


def _put(content: bytes, out: Path | None) -> None:
    if out is None:
        typer.echo(content.decode(), nl=False)
        return
    try:
        out.write_bytes(content)
    except OSError:
        raise InvalidInput(
            Reason.FILE_EXISTS, f"{out} cannot be written", "name a file in a folder you may write to"
        ) from None
    typer.echo(f"Wrote {out}")
