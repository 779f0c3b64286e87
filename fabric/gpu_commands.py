"""`fabric gpus`: what is free, what it costs, where policy lets work with these labels, and why not elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.catalogue import PriceBook, Prices, parse_gpus
from fabric.config import Config, Environment, check_zones, find_config, load_config
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.labels import Labels, most_restrictive
from fabric.local_cluster import running
from fabric.money import shown
from fabric.recording import now
from fabric.vacancies import Vacancy, free_gpus, unreached, vacancies

if TYPE_CHECKING:
    from fabric.policy import Decision

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Nobody in particular asks, so that looking makes no folder and no key.
NOBODY = "p-0"


def gpus(
    asked: Annotated[str, typer.Argument(metavar="[MODEL[:COUNT]]", help="Such as H200:8; by default all.")] = "",
    records: Annotated[str, typer.Option(help="Work on these records of fabric.toml.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="A label of the work, NAME=VALUE.")] = None,
    purpose: Annotated[str, typer.Option(help="By default the records' own.")] = "",
    justification: Annotated[str, typer.Option(help="Why the work leaves the private zone.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show for every zone which GPUs are free, what they cost, and whether work with these labels may go there."""
    loaded = load_config(find_config(Environment.read(), config, Path.cwd()))
    model, count = parse_gpus(asked) if asked else ("", 0)
    labels = _labels(loaded, records, label or [])
    prices = PriceBook(loaded.prices).at(now().timestamp())
    found = vacancies(
        loaded.zones.values(),
        _decisions(loaded, labels, purpose or labels.purpose, justification),
        prices,
        _free(loaded),
        model=model,
        count=count,
    )
    elsewhere = unreached(loaded.zones.values(), prices, model) if model else ()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "asked": {"gpu_model": model, "count": count},
                    "currency": loaded.prices.currency,
                    "prices": _state(prices),
                    "zones": [one.to_json() for one in found],
                    "elsewhere": [
                        {"instance_type": one.instance_type, "region": one.region, "price": shown(one.hour)}
                        for one in elsewhere
                    ],
                },
                indent=2,
            )
        )
        return
    typer.echo(_table(found, loaded.prices.currency), nl=False)
    for one in elsewhere:
        typer.echo(f"  no zone rents {one.instance_type} in {one.region}: {shown(one.hour)} for a GPU and hour")
    state = _state(prices)
    if state["code"]:
        typer.echo(f"Prices: {state['code']}: {state['why']}")


def _labels(config: Config, records: str, given: list[str]) -> Labels:
    """Return the labels to ask policy about: those of the records, made stricter by what is given."""
    raw: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput(Reason.LABEL_INVALID, "a label is given without a value", "write NAME=VALUE")
        raw[name] = value
    own = Labels.parse(raw)
    check_zones(own, config.zones)
    if not records:
        return own
    base = config.source(records).labels
    return most_restrictive(base, Labels.from_json({**base.to_json(), **raw})) if raw else base


def _decisions(config: Config, labels: Labels, purpose: str, justification: str) -> dict[str, Decision]:
    from fabric.policy_files import load_policy  # noqa: PLC0415 - only this asks policy
    from fabric.requests import RunRequest  # noqa: PLC0415

    settings = config.policy
    policy = load_policy(settings.files, settings.signature, settings.signers, now=now())
    requests = [
        RunRequest(
            person=NOBODY,
            zone=zone,
            labels=labels,
            purpose=purpose,
            justification=justification,
            reads_records=False,
        )
        for zone in config.zones.values()
    ]
    return {one.zone.name: one for one in policy.decide_all(requests)}


def _free(config: Config) -> dict[str, int]:
    cluster = running(config.state)
    if cluster is None:
        return {}
    from fabric.observing import observe  # noqa: PLC0415 - only a fabric that is up is looked at

    try:
        return free_gpus(observe(cluster, list(config.zones.values()), ray_version=""))
    except FabricError:
        return {}


def _state(prices: Prices) -> dict[str, str]:
    try:
        prices.require()
    except InvalidInput as error:
        return {"code": error.reason.value, "why": error.message}
    problem = prices.problem
    why = f"an older file is in use: {problem.message}" if problem else ""
    return {"code": problem.reason.value if problem else "", "why": why}


def _table(found: tuple[Vacancy, ...], currency: str) -> str:
    head = ("zone", "GPUs", "free", f"{currency}/hour", "spot", "egress/GB", "takes it")
    rows: list[tuple[str, ...]] = [head]
    for one in found:
        zone, prices = one.zone, one.prices
        money = [
            "unknown" if prices.hour is None else shown(prices.hour),
            "-" if prices.spot is None else shown(prices.spot),
            "unknown" if prices.egress is None else shown(prices.egress),
        ]
        free = "unknown" if one.free is None else f"{one.free}"
        gpus = f"{zone.gpus} {zone.gpu_model}".strip()
        rows.append((f"{zone.name} ({zone.kind.value})", gpus, free, *money, "no" if one.objections else "yes"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    out = [lines[0]]
    for line, one in zip(lines[1:], found, strict=True):
        out.append(line)
        out += [f"    {o.code}: {o.why}" + (f" ({o.way_out})" if o.way_out else "") for o in one.objections]
    return "\n".join(out) + "\n"
