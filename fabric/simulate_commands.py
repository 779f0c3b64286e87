"""The command `fabric simulate`: a trace under the dispatcher's own decision, compared with the common rules.

Needs no cluster, moves nothing, and imports neither Ray nor torch nor Presidio.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fabric.errors import InvalidInput, Reason

if TYPE_CHECKING:
    from fabric.dispatch_rules import Rules
    from fabric.policy import Policy
    from fabric.simulation import World

ALL = "ours,fifo,burst-all,fixed-5min"


def simulate(
    trace: Annotated[str, typer.Argument(help="CSV or Parquet, Alibaba's task CSV, or synthetic:1000000.")],
    rule: Annotated[
        str, typer.Option("--rule", help="ours, fifo, burst-all, fixed-5min; +strict: no backfill.")
    ] = "ours",
    compare: Annotated[bool, typer.Option("--compare", help="Run all of these rules side by side.")] = False,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Run ours over what a missed deadline may cost.")
    ] = False,
    policy: Annotated[list[Path] | None, typer.Option("--policy", help="Cedar files beside the default set.")] = None,
    private_gpus: Annotated[int, typer.Option(help="By default 60 per cent of the peak demand.", min=0)] = 0,
    public_gpus: Annotated[int, typer.Option(help="By default ten times the private zone.", min=0)] = 0,
    catalogue: Annotated[
        Path | None, typer.Option(help="Prices in SkyPilot's columns. By default a made-up file.")
    ] = None,
    gpu_model: Annotated[str, typer.Option("--gpu-model", help="AcceleratorName in the catalogue.")] = "",
    jurisdiction: Annotated[str, typer.Option(help="Of both zones.")] = "EU",
    budget: Annotated[str, typer.Option(help="What may be spent outside in 30 days, such as 2500.00.")] = "",
    seed: Annotated[int, typer.Option(help="Of labels and deadlines that the trace lacks, and of synthetic jobs.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: .svg, .png or .html.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Take [dispatch] from this fabric.toml.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a trace: queue times, deadlines, cost, GPU-hours inside and outside, violations. Nothing is started."""
    from fabric.comparison import compare as run_all  # noqa: PLC0415
    from fabric.comparison import frontier as run_frontier  # noqa: PLC0415
    from fabric.comparison import summary, table  # noqa: PLC0415
    from fabric.traces import peak_gpus, read_trace  # noqa: PLC0415

    jobs = list(read_trace(trace, seed=seed))
    capacity = private_gpus or max(1, int(0.6 * peak_gpus(jobs)))
    world = _world(capacity, public_gpus or 10 * capacity, catalogue, gpu_model, jurisdiction, budget)
    rules, asked = _rules(config), _policy(policy or [])
    names = ALL.split(",") if compare else [rule]
    results = run_all(lambda: jobs, names, world, rules, asked)
    knob = run_frontier(lambda: jobs, world, rules, asked) if frontier else []
    rows = [*map(summary, results), *(row for _, row in knob)]
    if plot is not None:
        from fabric.simulation_plots import plot as draw  # noqa: PLC0415

        draw(results, knob, plot, capacity=capacity)
    if as_json:
        body = {
            "trace": Path(trace).name, "jobs": len(jobs), "seed": seed, "private_gpus": capacity,
            "policy": asked.digest, "rules": [row.to_json() for row in rows],
        }  # fmt: skip
        typer.echo(json.dumps(body, indent=2))
        return
    typer.echo(f"{len(jobs):,} jobs, {capacity:,} private GPUs, seed {seed}")
    typer.echo(table(rows))
    if any(row.violations for row in rows):
        raise typer.Exit(1)


def _world(private: int, public: int, catalogue: Path | None, model: str, jurisdiction: str, budget: str) -> World:
    from fabric.catalogue import parse_catalogue, read_catalogue  # noqa: PLC0415
    from fabric.fleet import Health, Pool  # noqa: PLC0415
    from fabric.labels import JURISDICTIONS  # noqa: PLC0415
    from fabric.money import micros  # noqa: PLC0415
    from fabric.simulation import World  # noqa: PLC0415
    from fabric.zones import Zone, ZoneKind  # noqa: PLC0415

    if jurisdiction not in JURISDICTIONS:
        raise InvalidInput(
            Reason.CONFIG_INVALID, "an unknown jurisdiction", "EU, EEA, or an ISO 3166-1 code such as DE"
        )
    try:
        offers = parse_catalogue(_MADE_UP, source="made up") if catalogue is None else read_catalogue(catalogue)
    except OSError:
        raise InvalidInput(Reason.CATALOGUE_INVALID, f"{catalogue} cannot be read", "name a CSV file") from None
    chosen = offers.of_model(model or offers.models[0])[0]
    limit = micros(budget) if budget else None
    if budget and limit is None:
        raise InvalidInput(Reason.CONFIG_INVALID, "the budget is no amount", "plain digits, such as 2500.00")
    zones = {
        "private": Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction=jurisdiction, cpus=2),
        "public": Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction=jurisdiction, region=chosen.region),
    }
    inside = Pool(
        zone="private", kind=ZoneKind.PRIVATE, gpu_model=chosen.gpu_model, gpus_total=private, price=0, egress=0,
        health=Health.HEALTHY,
    )  # fmt: skip
    outside = Pool(
        zone="public", kind=ZoneKind.PUBLIC, provider=chosen.provider or "public", region=chosen.region,
        gpu_model=chosen.gpu_model, gpus_total=public, price=chosen.hour, spot=chosen.spot_hour,
        egress=chosen.egress_gb, idle=chosen.idle_hour, health=Health.HEALTHY,
    )  # fmt: skip
    return World(zones=zones, pools=(inside, outside), budget_micros=limit)


def _rules(config: Path | None) -> Rules:
    from fabric.config import Environment, find_config, load_config  # noqa: PLC0415
    from fabric.dispatch_rules import Rules  # noqa: PLC0415

    rules = Rules() if config is None else load_config(find_config(Environment.read(), config, Path.cwd())).dispatch
    # The simulated world is always seen fresh.
    return replace(rules, stale_s=math.inf)


def _policy(files: list[Path]) -> Policy:
    from fabric.policy import Policy  # noqa: PLC0415
    from fabric.policy_files import read_policy, read_text  # noqa: PLC0415

    return read_policy(files, [read_text(path) for path in files]) if files else Policy.default()


_MADE_UP = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,Price,SpotPrice,Region,Provider,EgressPricePerGB
made-up-8,A100,8,96,29.36,11.74,made-up-1,public,0.09
"""
"""Eight A100 at 3.67 a GPU-hour, 0.09 a GB: what large providers asked on demand in 2024, rounded."""
