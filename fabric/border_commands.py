"""`fabric border`: serve the one port that other zones may call, and look at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fabric.config import Config, Environment, find_config, load_config
from fabric.stores import Home

border_app = typer.Typer(help="The border service: the one port that other zones may call.", no_args_is_help=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@border_app.command("serve")
def border_serve(config: ConfigOption = None) -> None:
    """Serve until Ctrl-C or SIGTERM; prints `border ready HOST:PORT` when clients may call."""
    from fabric.border_process import supervise  # noqa: PLC0415 - only this command imports a server

    raise typer.Exit(supervise(_config(config).path))


@border_app.command("status")
def border_status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show where the service listens, which crossings lie ready, and what was returned."""
    found = _status(_config(config))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"border service: {'up, ' + found['address'] if found['up'] else 'down'}")
    typer.echo(f"authority's certificate ends {found['authority_until'][:10]}")
    for row in found["crossings"]:
        typer.echo(
            f"  {row['crossing'][:12]} -> {row['zone']:<12} {row['bytes']:>12,} bytes ready, "
            f"{row['deliveries']} deliveries ({row['returned_bytes']:,} bytes), until {row['until'][:19]}"
        )
    if not found["crossings"]:
        typer.echo("  no crossing lies ready")


def _status(config: Config) -> dict[str, Any]:
    from fabric.border_process import standing  # noqa: PLC0415
    from fabric.certificates import Authority, expires_at  # noqa: PLC0415
    from fabric.inbox import Inbox  # noqa: PLC0415
    from fabric.recording import now, open_ledger  # noqa: PLC0415
    from fabric.staging import Staging  # noqa: PLC0415

    home, moment = Home.open(config.state), now()
    ledger = open_ledger(config, home, home.signing_key())
    try:
        staging, inbox = Staging.of(home, ledger.keys), Inbox.of(home, most=config.border.return_mib << 20)
    finally:
        ledger.close()
    offers = [offer for offer in (staging.find(one, now=moment) for one in staging.crossings()) if offer]
    service = standing(home)
    return {
        "up": service is not None and service.alive,
        "address": service.address if service else None,
        "pid": service.pid if service and service.alive else None,
        "authority_until": expires_at(Authority.open(home, now=moment).certificate).isoformat(),
        "crossings": [
            {
                "crossing": offer.recorded.crossing,
                "zone": offer.recorded.zone,
                "job": offer.recorded.job,
                "until": offer.recorded.expires_at.isoformat(),
                "bytes": offer.size_bytes,
                "deliveries": len(inbox.deliveries(offer.recorded.crossing)),
                "returned_bytes": inbox.size_bytes(offer.recorded.crossing),
            }
            for offer in offers
        ],
    }


def _config(path: Path | None) -> Config:
    return load_config(find_config(Environment.read(), path, Path.cwd()))
