"""The command line. Every error is a sentence, a hint and a code; every listing has `--json`; exit status by kind.

Commands that need no cluster import neither Ray nor torch nor Presidio.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.border_commands import border_app
from fabric.clusters_commands import clusters_app
from fabric.config import Config, Environment, find_config, load_config
from fabric.cost_commands import cost
from fabric.doctor_commands import doctor
from fabric.errors import ClusterUnavailable, FabricError, Reason
from fabric.evidence_commands import evidence_app, verify, witness_app
from fabric.gpu_commands import gpus
from fabric.job_store import open_queue
from fabric.local_cluster import BORDER, LocalCluster, client_env, running, status, stop
from fabric.people import write_people
from fabric.policy_commands import approve_command, plan, policy_app
from fabric.queue_commands import cancel_command, queue_command, start_dispatcher, submit_command, top_command
from fabric.recipe_commands import recipe_app
from fabric.simulate_commands import simulate
from fabric.starter import PEOPLE, write_starter
from fabric.stores import Home
from fabric.xray_commands import show_xray
from fabric.zones import Topology

app = typer.Typer(
    name="fabric",
    help="A hybrid GPU compute fabric for regulated data, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(recipe_app)
app.add_typer(evidence_app, name="evidence")
app.add_typer(witness_app, name="witness")
app.add_typer(border_app, name="border")
app.command("verify")(verify)
app.add_typer(policy_app, name="policy")
app.add_typer(clusters_app, name="clusters")
app.command("plan")(plan)
app.command("approve")(approve_command)
app.command("xray")(show_xray)
app.command("doctor")(doctor)
app.command("cost")(cost)
app.command("gpus")(gpus)
app.command("submit")(submit_command)
app.command("queue")(queue_command)
app.command("top")(top_command)
app.command("cancel")(cancel_command)
app.command("simulate")(simulate)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

STARTER_PEOPLE = 5_000
INTERRUPTED_STATUS = 130


def main() -> None:
    """Run the command line; turn every error of ours into its text and exit status."""
    try:
        status = app(standalone_mode=False)
    except FabricError as error:
        _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED_STATUS
    except Exception as error:  # noqa: BLE001 - the last net: a message of any class may carry data
        status = _unexpected(error)
    # typer returns the status of an interruption instead of raising it.
    if status == INTERRUPTED_STATUS:
        _fail(FabricError(Reason.INTERRUPTED, "interrupted", "what was recorded stays"), INTERRUPTED_STATUS)
    raise SystemExit(status if isinstance(status, int) else 0)


def _unexpected(error: Exception) -> int:
    if hasattr(error, "show"):  # typer's usage errors say what they are
        error.show()
        return 2
    name = type(error).__name__
    _fail(FabricError(Reason.INTERNAL, f"{name} inside the fabric", "this is a defect: please report it"))
    return 1


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write the files.")] = Path("."),
    rows: Annotated[int, typer.Option(help="How many made-up people.", min=100, max=1_000_000)] = STARTER_PEOPLE,
    topology: Annotated[
        Topology, typer.Option(help="One cluster over all zones, or one per zone with a border between.")
    ] = Topology.STRETCHED,
) -> None:
    """Write a first fabric.toml with made-up records, a recipe, a training and a sweep."""
    names = write_starter(folder, topology=topology)
    write_people(folder / PEOPLE, rows=rows, seed=7)
    typer.echo(f"Wrote {', '.join([*names, PEOPLE])} in {folder}. Next: cd {folder} && fabric up")


@app.command()
def up(config: ConfigOption = None) -> None:
    """Start the zones on this machine, for notebooks and jobs to join: one Ray cluster, or one each (the topology)."""
    from fabric.local_fabric import start_local  # noqa: PLC0415 - only this command starts anything

    loaded, environment = _config(config)
    cluster = start_local(loaded, environment, progress=lambda line: typer.echo(f"  {line}", err=True))
    if loaded.dispatches:
        typer.echo("  starting the dispatcher", err=True)
        store = open_queue(loaded, Home.open(loaded.state))
        start_dispatcher(loaded, environment, store, anew=True)
    _print_joining(cluster, loaded)


@app.command()
def down(config: ConfigOption = None) -> None:
    """Stop the local cluster; evidence, keys and models stay."""
    loaded, _ = _config(config)
    typer.echo("Stopped." if stop(loaded.state) else "No fabric was up.")


@app.command("status")
def show_status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the zones, their nodes, and what has crossed."""
    loaded, _ = _config(config)
    cluster = running(loaded.state)
    nodes = status(cluster) if cluster else []
    crossed = _crossings(loaded)
    if as_json:
        _print_json(
            {
                "up": cluster is not None,
                "gcs_address": cluster.gcs_address if cluster else None,
                "dashboard_url": cluster.dashboard_url if cluster else None,
                "topology": loaded.topology.value,
                "border": {"address": cluster.border_address} if cluster and cluster.federated else None,
                "nodes": [
                    {"zone": n.zone, "alive": n.alive, "processes": n.processes, "rss_bytes": n.rss_bytes}
                    for n in nodes
                ],
                "crossings": crossed,
            }
        )
        return
    typer.echo(f"{loaded.name}: {'up' if cluster else 'down'} ({loaded.path})")
    for node in nodes:
        zone = loaded.zones.get(node.zone)
        kind = zone.kind.value if zone else "service" if node.zone == BORDER else "?"
        state = "alive" if node.alive else "DEAD"
        typer.echo(
            f"  {node.zone:<12} {kind:<8} {state:<6} {node.processes:>3} processes  {node.rss_bytes >> 20:>6} MiB"
        )
    if cluster:
        typer.echo(f"  dashboard and jobs: {cluster.dashboard_url}")
    typer.echo(f"{len(crossed)} crossings recorded")
    for row in crossed:
        typer.echo(
            f"  {row['at'][:19]}  {row['crossing'][:12]} -> {row['to_zone']}  {row['rows']:,} rows  "
            f"{row['bytes']:,} bytes  {','.join(row['columns'])}"
        )


@app.command()
def env(config: ConfigOption = None) -> None:
    """Print the shell settings that `ray job submit` needs: eval "$(fabric env)"."""
    loaded, environment = _config(config)
    for name, value in sorted(client_env(_running(loaded), environment.variables).items()):
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def demo(
    rows: Annotated[int, typer.Option(help="How many made-up people.", min=1_000, max=1_000_000)] = STARTER_PEOPLE,
) -> None:
    """Run the main job on this machine, both zones played by it, in under two minutes, offline."""
    from fabric.demo import run_demo  # noqa: PLC0415 - starts Ray

    run_demo(rows=rows, environment=Environment.read())


def _config(path: Path | None) -> tuple[Config, Environment]:
    environment = Environment.read()
    return load_config(find_config(environment, path, Path.cwd())), environment


def _running(config: Config) -> LocalCluster:
    cluster = running(config.state)
    if cluster is None:
        raise ClusterUnavailable(Reason.FABRIC_DOWN, f"no fabric is up for {config.path}", "`fabric up` starts one")
    return cluster


def _evidence(config: Config) -> Any:
    from fabric.evidence import Evidence  # noqa: PLC0415
    from fabric.recording import open_ledger  # noqa: PLC0415

    home = Home.open(config.state)
    key = home.signing_key()
    ledger = open_ledger(config, home, key)
    try:
        return Evidence.of(ledger, key.public)
    finally:
        ledger.close()


def _crossings(config: Config) -> list[dict[str, Any]]:
    if not (config.state / "evidence").is_dir():
        return []
    found = _evidence(config)
    keep = ("crossing", "job", "to_zone", "purpose", "rows", "bytes", "columns")
    return [
        {"at": entry.record["at"], **{name: entry.record["body"][name] for name in keep}}
        for entry in found.entries
        if entry.record["action"] == "crossing" and entry.record["phase"] == "intent"
    ]


def _print_joining(cluster: LocalCluster, config: Config) -> None:
    typer.echo(f"{config.name} is up: {', '.join(node for node in config.zones)}")
    typer.echo(f"  dashboard and jobs  {cluster.dashboard_url}")
    typer.echo("  notebook            import fabric; session = fabric.connect()")
    typer.echo('  ray job submit      eval "$(fabric env)"')
    typer.echo("  stop                fabric down")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def _fail(error: FabricError, exit_status: int | None = None) -> None:
    if "--json" in sys.argv:
        typer.echo(json.dumps(error.to_json(), indent=2))
    typer.echo(f"Error: {error}", err=True)
    raise SystemExit(error.exit_status if exit_status is None else exit_status)
