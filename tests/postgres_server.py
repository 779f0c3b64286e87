"""A real PostgreSQL of one's own in a temporary folder, as PostgreSQL wants it: not run by root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from free_ports import free_port

ROLE = "fabric"


def missing() -> str:
    """Say why no server can be started here, or nothing."""
    if shutil.which("initdb") is None and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return "there is no initdb: install Debian's postgresql package"
    try:
        import psycopg  # noqa: F401
        import sqlalchemy  # noqa: F401
    except ImportError:
        return "sqlalchemy or psycopg is not installed"
    return ""


@dataclass(frozen=True)
class Server:
    """A server that runs: where it listens, and how to reach it as its owner and as the application."""

    folder: Path
    port: int
    user: dict[str, object]
    bin: Path

    @property
    def owner_url(self) -> str:
        return f"postgresql://owner@127.0.0.1:{self.port}/postgres"

    @property
    def url(self) -> str:
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/postgres"

    def sql(self, text: str) -> str:
        """Run SQL as the database's owner."""
        command = [self.bin / "psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", self.owner_url]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

    def crash(self) -> None:
        """Stop the server at once, as a power cut would its processes, and start it again."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.02)
        self._control("start")

    def _control(self, *what: str) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        command = [self.bin / "pg_ctl", "-D", self.folder / "data", "-w", "-o", options, "-l", self.folder / "log"]
        subprocess.run([*command, *what], cwd="/", check=True, stdout=subprocess.DEVNULL, **self.user)  # type: ignore[call-overload]


@contextmanager
def postgres() -> Iterator[Server]:
    """Start a server, make the role that the application uses, and stop it at the end."""
    found = shutil.which("initdb")
    initdb = Path(found).resolve() if found else max(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    folder = Path(tempfile.mkdtemp(prefix="fabric-postgres-", dir="/tmp"))
    user: dict[str, object] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    server = Server(folder, free_port(), user, initdb.parent)
    try:
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", "owner", "-A", "trust", "--locale=C", "-E", "UTF8"],
            cwd="/", check=True, stdout=subprocess.DEVNULL, **user,  # type: ignore[call-overload]
        )  # fmt: skip
        server._control("start")
        server.sql(f"CREATE ROLE {ROLE} LOGIN")
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server._control("stop", "-m", "immediate")
        shutil.rmtree(folder, ignore_errors=True)
