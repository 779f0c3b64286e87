"""`fabric clusters render | check`: manifests for Kubernetes from fabric.toml, and where what is there is not them.

Neither needs a cluster, a network or Ray. What decides is imported by the command that asks it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fabric.config import Config, Environment, find_config, load_config
from fabric.errors import InvalidInput, Reason, Refused, nearest

if TYPE_CHECKING:
    from fabric.drift import Drift

clusters_app = typer.Typer(
    name="clusters",
    help="Write the Kubernetes manifests of the zones, and find drift.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="fabric.toml, or the folder it is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ZoneOption = Annotated[str, typer.Option("--zone", help="Only this zone's overlay, or `stretched`.")]
_DRIFT_STATUS = Refused.exit_status
_SHARED = ("base", "base-private", "admission")


@clusters_app.command("render")
def render_command(
    out: Annotated[Path, typer.Option("--out", help="Where to write.")] = Path("clusters"),
    zone: ZoneOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the manifests: a kustomize base, an overlay per zone, the admission policies, job templates."""
    loaded = _config(config)
    files = _chosen(loaded, zone)
    try:
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError:
        raise InvalidInput(Reason.FILE_EXISTS, f"cannot write into {out}", "name a folder you may write to") from None
    closed = _closed(loaded)
    if as_json:
        typer.echo(json.dumps({"folder": str(out), "files": sorted(files), "closed_flows": closed}, indent=2))
        return
    typer.echo(f"Wrote {len(files)} files into {out}. Apply: kubectl apply -k {out}/admission, then an overlay.")
    if closed:
        typer.echo(f"Closed, because [clusters.addresses] names no other end: {', '.join(closed)}")


@clusters_app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(help="A rendered or built folder, or the export of a live cluster (YAML).")],
    zone: ZoneOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold manifests, or what a live cluster exports, against fabric.toml; exit status 3 if anything is different."""
    loaded = _config(config)
    files, there = _chosen(loaded, zone), _read(path)
    if any(name.endswith("kustomization.yaml") for name in there):
        expected, found, drifts = _of_folder(files, there, whole=not zone)
    else:
        expected, found, drifts = _of_export(files, there, path, whole=not zone)
    if as_json:
        shown = [drift.to_json() for drift in drifts]
        typer.echo(json.dumps({"declared": len(expected), "found": len(found), "drift": shown}, indent=2))
    else:
        typer.echo(f"Held {len(found)} objects against {len(expected)} that fabric.toml declares.")
        typer.echo("\n".join(map(str, drifts)) if drifts else "Nothing has drifted.")
    if drifts:
        raise typer.Exit(_DRIFT_STATUS)


def _config(path: Path | None) -> Config:
    return load_config(find_config(Environment.read(), path, Path.cwd()))


def _chosen(config: Config, zone: str) -> dict[str, str]:
    """Return the files of one zone with what all share, or all files."""
    from fabric.manifests import render  # noqa: PLC0415

    files = render(config)
    if not zone:
        return files
    overlays = {path.split("/")[1] for path in files if path.startswith("overlays/")}
    if zone not in overlays:
        raise InvalidInput(Reason.UNKNOWN_ZONE, f"unknown zone {zone!r}", nearest(zone, overlays))
    own = (*(f"{name}/" for name in _SHARED), f"overlays/{zone}/", f"components/kueue/{zone}/")
    return {path: text for path, text in files.items() if path.startswith(own)}


def _closed(config: Config) -> list[str]:
    from fabric.flows import load  # noqa: PLC0415
    from fabric.manifests import terms_of  # noqa: PLC0415
    from fabric.network_policies import closed_flows  # noqa: PLC0415
    from fabric.zones import Topology, ZoneKind  # noqa: PLC0415

    terms = terms_of(config)
    sides = [{ZoneKind.PRIVATE}, {ZoneKind.PUBLIC}]
    return sorted({name for side in sides for name in closed_flows(load(), Topology.FEDERATED, side, terms)})


_Held = tuple[list[Any], list[Any], tuple["Drift", ...]]
"""What is declared, what was found, and the differences."""


def _of_folder(files: Mapping[str, str], there: Mapping[str, str], *, whole: bool) -> _Held:
    """Hold a kustomize folder root by root, and its optional components file by file: no root includes them."""
    from fabric.drift import compare, compare_files, extra_folders  # noqa: PLC0415
    from fabric.kustomize import build, load  # noqa: PLC0415
    from fabric.manifests import roots  # noqa: PLC0415

    wanted = roots(files)
    expected = [each for root in wanted for each in build(files, root)]
    found = [each for root in wanted for each in build(there, root)]
    parts = [path for path in files if path.startswith("components/") and path in there]
    rendered, read = ({path: load(texts[path], path) for path in parts} for texts in (files, there))
    extra = set(roots(there)) - set(wanted) if whole else set()
    return (
        expected,
        found,
        (*compare(expected, found, live=False), *compare_files(rendered, read), *extra_folders(extra)),
    )


def _of_export(files: Mapping[str, str], there: Mapping[str, str], path: Path, *, whole: bool) -> _Held:
    """Hold built manifests or the export of a live cluster against the zones whose namespaces it is of."""
    from fabric.drift import compare  # noqa: PLC0415
    from fabric.kustomize import build, parse_documents  # noqa: PLC0415
    from fabric.manifests import roots  # noqa: PLC0415

    found = [each for name, text in there.items() for each in parse_documents(text, name)]
    namespaces = {str((each.get("metadata") or {}).get("namespace") or _name_of_namespace(each)) for each in found}
    expected = []
    for root in roots(files):
        built = build(files, root)
        names = {each["metadata"]["namespace"] for each in built if "namespace" in each["metadata"]}
        # A job is a template: what of it is applied is judged by admission. An overlay is what its namespace holds.
        if root == "admission" or (root.startswith("overlays/") and (names & namespaces or not whole)):
            expected += built
    if len(expected) == 0 or not any("namespace" in each["metadata"] for each in expected):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"{path} holds nothing of a namespace of this fabric",
            "export a zone's namespace, `kubectl get all,networkpolicies,rayclusters,... -n fabric-<zone> -o yaml`",
        )
    return expected, found, compare(expected, found)


def _name_of_namespace(document: Mapping[str, Any]) -> str:
    return str((document.get("metadata") or {}).get("name", "")) if document.get("kind") == "Namespace" else ""


def _read(path: Path) -> dict[str, str]:
    """Return the YAML files of a folder by their path in it, or the one file."""
    try:
        if path.is_file():
            return {path.name: path.read_text(encoding="utf-8")}
        found = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")])
        texts = {file.relative_to(path).as_posix(): file.read_text(encoding="utf-8") for file in found}
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(Reason.CONFIG_MISSING, f"{path} cannot be read as text", "check the path") from None
    if not texts:
        raise InvalidInput(
            Reason.CONFIG_MISSING, f"there are no manifests at {path}", "`fabric clusters render` writes"
        )
    return texts
