"""The starter: a first fabric.toml with a recipe, a training and a sweep, as `fabric init` writes them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fabric.config import FILE_NAME
from fabric.errors import InvalidInput, Reason
from fabric.zones import Topology

PEOPLE = "people.csv"


def write_starter(folder: Path, *, topology: Topology = Topology.STRETCHED) -> list[str]:
    """Write the starter's files into `folder` and return their names.

    Raises:
        InvalidInput: `FILE_EXISTS`: one of them, or the records, is there already; nothing was written.
    """
    files = {item.name: item.read_bytes() for item in (resources.files("fabric") / "starter_files").iterdir()}
    files[FILE_NAME] = files[FILE_NAME].replace(b'topology = "stretched"', f'topology = "{topology.value}"'.encode())
    taken = [name for name in (*files, PEOPLE) if (folder / name).exists()]
    if taken:
        raise InvalidInput(
            Reason.FILE_EXISTS, f"{folder} already holds {', '.join(sorted(taken))}", "name a new folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError:
        raise InvalidInput(
            Reason.FILE_EXISTS, f"cannot write into {folder}", "name a folder you may write to"
        ) from None
    return sorted(files)
