"""Shared: a planted set of records, and a fabric that is up."""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from hypothesis import HealthCheck, settings

from fabric.people import COLUMNS, write_people
from fabric.starter import write_starter

BIN = Path(sys.executable).parent

# How long a case or its drawing takes says how busy the machine is, and fails no test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts clusters first: with two workers, the long files then do not come last."""
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)


# Values that cannot be mistaken for anything else, in one row of the records.
PLANTED = {
    "name": "Zyxwanda Quorvexplanted",
    "email": "zyxwanda.quorvex@planted.example",
    "national_id": "987-65-4399",
    "phone": "202-555-0177",
    "birth_date": "1951-07-23",
    "region": "north",
    "condition": "renal",
    "plan": "basic",
    "visits": "7",
    "income": "7654321",
    "notes": "ZQX planted note about Zyxwanda 77",
    "cost": "8765.430917",  # cents alone stand in many a figure of a busy process
}
ROWS = 1500
CROSSED_INCOME = 7655000
"""What the recipe makes of the planted income; this one does cross."""


def needles() -> dict[str, bytes]:
    """Return every planted value that must not cross, in the ways in which it could lie about."""
    found = {}
    for column in ("name", "email", "national_id", "phone", "birth_date", "notes", "income", "cost"):
        if column != "income":
            found[f"{column} utf-8"] = PLANTED[column].encode()
        found[f"{column} utf-16"] = PLANTED[column].encode("utf-16-le")
    found["cost float64"] = struct.pack("<d", float(PLANTED["cost"]))
    # Alone in eight bytes it lies about by chance (`wire.needles`); as raw columns hold it, another one is before it.
    for name, code in (("int64", "q"), ("float64", "d")):
        found[f"incomes {name}"] = struct.pack(f"<{code}{code}", _income_before(), int(PLANTED["income"]))
    # And seven digits stand in some longer number: as text has it, it is a number of its own.
    for before, after in (",,", ":,", ":}", " ,", " }", "  "):
        found[f"income utf-8 {before}{after}"] = f"{before}{PLANTED['income']}{after}".encode()
    return found


@cache
def _income_before() -> int:
    """Return the income of the last of those made up, which stands in the row before the planted one."""
    with TemporaryDirectory() as folder:
        write_people(Path(folder) / "people.csv", rows=ROWS, seed=3)
        *_, last = csv.DictReader((Path(folder) / "people.csv").open(encoding="utf-8"))
    return int(last["income"])


def write_planted(path: Path, *, rows: int = ROWS) -> None:
    """Write made-up people and the planted one among them."""
    write_people(path, rows=rows, seed=3)
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([PLANTED[column] for column in COLUMNS])


@dataclass(frozen=True)
class Living:
    """A fabric that is up, in a folder made by `fabric init`."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in the folder."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def submit(self, module: str, file: str, *, metadata: dict[str, str] | None = None, **options) -> str:
        """Run a job through `ray job submit` and return its output, whatever its end."""
        return self.run(
            "ray", "job", "submit", "--entrypoint-resources", '{"zone_private": 0.001}',
            "--metadata-json", json.dumps(metadata or {"purpose": "cost-forecast"}),
            "--", sys.executable, "-m", module, file,
            check=False, **options,
        ).stdout  # fmt: skip

    def evidence(self) -> list[dict]:
        """Return the records of the ledger."""
        return json.loads(self.run("fabric", "evidence", "--json").stdout)


@pytest.fixture(scope="session")
def living(tmp_path_factory) -> Living:
    """Return a fabric that is up for the whole test run, on planted records."""
    folder = tmp_path_factory.mktemp("living")
    write_starter(folder)
    write_planted(folder / "people.csv")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)  # this tree, whichever one is installed
    up = Living(folder, env)
    up.run("fabric", "up")
    try:
        settings = up.run("fabric", "env").stdout.splitlines()
        for line in settings:
            name, _, value = line.removeprefix("export ").partition("=")
            env[name] = value.strip("'")
        yield up
    finally:
        up.run("fabric", "down")


def processes_of(zone: str, folder: Path) -> list[psutil.Process]:
    """Return the processes of one zone of the fabric whose state lies in `folder`."""
    marker = json.loads((folder / ".fabric" / "cluster.json").read_text())["id"]
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if env.get("FABRIC_CLUSTER_ID") == marker and env.get("FABRIC_ZONE") == zone:
            found.append(process)
    return found


def contents_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each plain file below a folder with its content; what others remove meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            try:
                content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            except FileNotFoundError:
                continue
            if content is not None:
                yield path, content


def title(process: psutil.Process) -> str:
    """Return a process's command line; that of one which has ended meanwhile is empty."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
