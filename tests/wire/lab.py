"""The lab: a fabric over two namespaces, on planted records, with a capture on the link that nothing crosses unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import SystemRandom

import psutil

from fabric.flows import load, nftables, ports
from fabric.starter import write_starter
from fabric.zones import Topology
from wire.capture import Capture, Stream, messages, streams
from wire.namespaces import Pair, joined
from wire.planted import KINDS, Planted
from wire.search import Found, Search

ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent


@dataclass
class Lab:
    """A fabric that is up: the private zone with head and drivers in one namespace, the public node in the other.

    Attributes:
        folder: of fabric.toml and the records; private.
    """

    pair: Pair
    folder: Path
    planted: Planted
    search: Search
    capture: Capture
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in the private zone."""
        done = subprocess.run(
            self.command(*command), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def popen(self, *command: str, errors: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command of this environment in the private zone."""
        return subprocess.Popen(
            self.command(*command),
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def command(self, *command: str) -> list[str]:
        """Return the words that run a program of this Python's environment in the private zone."""
        return [*self.pair.private.enter, str(_BIN / command[0]), *command[1:]]

    def evidence(self) -> list[dict]:
        """Return the records of the ledger."""
        return json.loads(self.run("fabric", "evidence", "--json").stdout)

    @property
    def state(self) -> dict:
        """Return what the fabric's state file says of the cluster."""
        return json.loads((self.folder / ".fabric" / "cluster.json").read_text())

    @property
    def outbox(self) -> Path:
        """Return the folder of the private side that the public node may write."""
        return self.folder / ".fabric" / "outbox" / "public"

    @property
    def public_node(self) -> dict:
        """Return what the state file says of the public node."""
        return next(node for node in self.state["nodes"] if node["zone"] == "public")

    def public_processes(self) -> list[psutil.Process]:
        """Return every process in the public namespace, whatever it says of itself."""
        name = self.pair.public.name
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
        found = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
                found.append(psutil.Process(int(pid)))
        return found

    def at_work(self, timeout_s: float = 300, word: str = "") -> psutil.Process:
        """Return a worker of the public node that is at work, as soon as there is one."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for process in self.public_processes():
                with suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::") and not title.startswith("ray::IDLE") and word in title:
                        return process
            time.sleep(0.1)
        raise AssertionError("no worker was at work in the public zone")

    def public_folders(self) -> list[Path]:
        """Return where the public side can write: its folder, its outbox, its /dev/shm.

        The folder has sessions, logs, spilled objects, sockets, temporary files and its home. What lies in the kernel
        alone is not among them: pipes, sockets, shared memory that no process has attached.
        """
        node = self.public_node
        own = [Path(node["temp"]), Path(f"/proc/{node['pid']}/root/dev/shm")]
        return own if self.state["federated"] else [*own, self.outbox]

    def search_public(self, first: psutil.Process | None = None) -> Found:
        """Search everything that the public side holds: its processes, `first` before the others, and its folders."""
        found = Found()
        for process in [*filter(None, [first]), *self.public_processes()]:
            of_process = self.search.process(process.pid)
            # A process may end while it is looked at; that is no place that was left out.
            if not _lives(process):
                of_process.unread.clear()
            found += of_process
        for folder in self.public_folders():
            found += self.search.folder(folder)
        return found

    @cached_property
    def shipped(self) -> list[Stream]:
        """Return what crossed the link, by streams; the capture ends when this is first asked for."""
        counted = self.capture.stop()
        assert counted["packets"] > 0, "the capture saw nothing"
        assert counted["dropped"] == 0, "the capture has holes: nothing can be said of what it missed"
        return streams(self.capture.path)

    def search_wire(self) -> Found:
        """Search what crossed the link, frame by frame, by stream, and by message of gRPC."""
        found = self.search.file(self.capture.path, "a frame")
        for stream in self.shipped:
            found += self.search.content(stream.content, str(stream))
            for number, message in enumerate(messages(stream.content)):
                found += self.search.content(message, f"{stream}, message {number}")
        return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


@contextmanager
def living(folder: Path, *, rows: int = 1500, topology: Topology = Topology.STRETCHED) -> Iterator[Lab]:
    """Yield a lab in `folder`; in the end nothing of it is left but the folder and the capture.

    Where every zone is a cluster of its own, only the table's flows are open between the two.
    """
    planted = Planted.draw(SystemRandom())
    search = Search.for_columns({name: planted.column(name) for name in KINDS}, KINDS)
    home = folder / "private"
    write_starter(home, topology=topology)
    planted.write(home / "people.csv", rows=rows)
    recipe = home / "people.recipe.toml"
    recipe.write_text(planted.recipe(recipe.read_text()))
    with joined() as pair:
        lab = Lab(
            pair, home, planted, search, Capture(pair.private.enter, pair.private.interface, folder / "link.pcap")
        )
        lab.env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))}
        lab.env |= {"PATH": f"{_BIN}{os.pathsep}{lab.env['PATH']}", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        if topology is Topology.FEDERATED:
            _wall(pair, home)
            launcher = pair.public.enter_apart(hidden=home)
        else:
            launcher = pair.public.enter_alone(writable=lab.outbox, hidden=home / "people.csv")
        places = {"private": (pair.private.address, ()), "public": (pair.public.address, launcher)}
        for made in (home / ".fabric", lab.outbox.parent, lab.outbox):
            made.mkdir(mode=0o700)
        starter = str(Path(__file__).with_name("starting.py"))
        lab.run("python", starter, str(home / "fabric.toml"), str(os.getpid()), json.dumps(places))
        try:
            for line in lab.run("fabric", "env").stdout.splitlines():
                name, _, value = line.removeprefix("export ").partition("=")
                lab.env[name] = value.strip("'")
            yield lab
        finally:
            lab.capture.stop()
            lab.run("fabric", "down", check=False)


def _wall(pair: Pair, home: Path) -> None:
    """Open the table's flows between the two, on the table's ports, and drop and count the rest."""
    addresses = {"private": pair.private.address, "public": pair.public.address}
    for side, namespace in (("private", pair.private), ("public", pair.public)):
        # The kernel's own chatter when a link comes up is not counted as anybody's.
        namespace.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        namespace.firewall(nftables(load(), Topology.FEDERATED, side, addresses, {}))
    with (home / "fabric.toml").open("a") as file:
        file.write(
            f'\n[border]\nhost = "{pair.private.address}"\nport = {ports()["border"].low}\nlost_seconds = 50\n'
            f"\n[local]\noutside_jobs_port = {ports()['jobs'].low}\n"
        )
