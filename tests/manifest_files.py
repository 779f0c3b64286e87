"""Shared by the tests of manifests: fabrics to render, and what the renderings build."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from fabric.config import load_config
from fabric.kustomize import build
from fabric.manifests import render, roots
from fabric.starter import write_starter

GPUS = """
[fabric]
name = "gpus"
[zones.clinic]
kind = "private"
jurisdiction = "DE"
cpus = 32
gpus = 2
gpu_model = "A100"
[zones.cloud]
kind = "public"
jurisdiction = "DE"
slots = 8
gpus = 8
gpu_model = "H100"
[zones.ward]
kind = "edge"
jurisdiction = "DE"
[clusters]
image = "registry.example/fabric@sha256:A64"
border_image = "registry.example/border@sha256:B64"
""".replace("A64", "a" * 64).replace("B64", "b" * 64)


def starter_config(folder: Path):
    write_starter(folder)
    return load_config(folder / "fabric.toml")


def config_of(folder: Path, text: str):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fabric.toml").write_text(text)
    return load_config(folder / "fabric.toml")


_BUILT: dict[int, dict[str, list[dict]]] = {}


def built(files) -> dict[str, list[dict]]:
    """Return what the roots of a rendering build; a test that changes a document copies it first."""
    key = hash(tuple(files.items()))
    if key not in _BUILT:
        _BUILT[key] = {root: build(files, root) for root in roots(files)}
    return _BUILT[key]


@lru_cache(maxsize=1)
def starter_files() -> dict[str, str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return render(starter_config(Path(folder)))


@lru_cache(maxsize=1)
def gpu_files() -> dict[str, str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return render(config_of(Path(folder), GPUS))


def pods_of(document: dict):
    """Yield every pod template of an object, with a name."""
    spec = document.get("spec", {})
    if document["kind"] == "RayCluster":
        yield "head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield group["groupName"], group["template"]
    elif document["kind"] == "Deployment":
        yield document["metadata"]["name"], spec["template"]
