"""Two network namespaces with one link between them, made with iproute2 and gone in the end.

Their names hold the process that made them; `joined` first removes those of processes that are dead, with what still
runs in them, so that a run that crashed leaves nothing to the next one. No route leads out: what one zone sends, the
other gets, over the link.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "fabric-wire"
_FOLDER = Path("/run/netns")
_ALONE = """
mount -t tmpfs -o mode=1777,size=50% tmpfs /dev/shm
for own in "$HOME" {writable}; do mount --bind "$own" "$own"; done
for other in {hidden}; do mount --bind /dev/null "$other"; done
mount -t tmpfs tmpfs "$(dirname "$FABRIC_AWAIT_FILE")/session_latest/"
while read -r _ place _; do
    case " /dev/shm $HOME {writable} " in *" $place "*) continue;; esac
    case "$place" in /proc*|/sys*|/dev/pts) ;; *) mount -o remount,bind,ro "$place";; esac
done < /proc/self/mounts
exec "$@"
"""
_APART = """
mount -t tmpfs -o mode=1777,size=50% tmpfs /dev/shm
mount --bind "$HOME" "$HOME"
for other in {hidden} "${{HOME%-*}}-0"; do mount -t tmpfs tmpfs "$other"; done
while read -r _ place _; do
    case " /dev/shm $HOME " in *" $place "*) continue;; esac
    case "$place" in /proc*|/sys*|/dev/pts) ;; *) mount -o remount,bind,ro "$place";; esac
done < /proc/self/mounts
exec "$@"
"""
_NEEDED = ("ip", "nsenter", "unshare", "mount")


def missing() -> str:
    """Say why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [name for name in _NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian packages iproute2, util-linux, mount)"
    probe = ["unshare", "--net", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    done = subprocess.run(probe, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"network and mount namespaces cannot be made here: {done.stderr.strip()}"


def missing_firewall() -> str:
    """Say why a firewall cannot be made here; empty if it can."""
    absent = [name for name in ("nft", "ss") if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian packages nftables, iproute2)"
    done = subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"nftables does not work here: {done.stderr.strip()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One end of the link."""

    name: str
    interface: str
    address: str

    @property
    def enter(self) -> tuple[str, ...]:
        """Return the words that run a command in this namespace, put before it."""
        return ("nsenter", f"--net={_FOLDER / self.name}")

    def enter_alone(self, *, writable: Path, hidden: Path) -> tuple[str, ...]:
        """Return the same for a node that shares this machine's disk with another zone's, as little as it can.

        It has a /dev/shm of its own, writes in `$HOME` and `writable` only, and sees neither what is in `hidden` nor
        the head's session, whose Unix sockets would be a way past the link.
        """
        script = _ALONE.format(writable=shlex.quote(str(writable)), hidden=shlex.quote(str(hidden)))
        return (*self.enter, "unshare", "--mount", "sh", "-ec", script, "sh")

    def enter_apart(self, *, hidden: Path) -> tuple[str, ...]:
        """Return the same for the head of a cluster of its own, which has no business in any folder but its own.

        It writes in `$HOME` and its own /dev/shm only, and sees neither what is in the folder `hidden` nor what is in
        the private head's.
        """
        script = _APART.format(hidden=shlex.quote(str(hidden)))
        return (*self.enter, "unshare", "--mount", "sh", "-ec", script, "sh")

    def run(self, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a command here; its failure is an error."""
        return subprocess.run([*self.enter, *command], check=True, capture_output=True, text=True, **options)  # type: ignore[call-overload]

    def firewall(self, rules: str) -> None:
        """Load nftables rules; they go with the namespace."""
        self.run("nft", "-f", "-", input=rules)

    def counters(self) -> str:
        """Return the rules with their counters, as `nft` prints them."""
        return self.run("nft", "list", "ruleset").stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two namespaces and the link between them."""

    private: Namespace
    public: Namespace

    def cut(self) -> None:
        """Take the carrier away: what either side sends is lost, and nobody is told."""
        self.public.run("ip", "link", "set", self.public.interface, "down")

    @contextmanager
    def cut_for(self, seconds: float) -> Iterator[None]:
        """Cut the link while the block runs, for `seconds` at least, and heal it."""
        self.cut()
        try:
            since = time.monotonic()
            yield
            time.sleep(max(0.0, since + seconds - time.monotonic()))
        finally:
            self.heal()

    def heal(self) -> None:
        """Give the carrier back."""
        self.public.run("ip", "link", "set", self.public.interface, "up")


@contextmanager
def joined() -> Iterator[Pair]:
    """Make the namespaces and their link; remove them, and end what runs in them, whatever happens."""
    _remove_leftovers()
    mark = f"{_PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
    names = [f"{mark}-{side}" for side in ("private", "public")]
    private, public = (
        Namespace(name=name, interface="link0", address=f"10.203.17.{number}") for number, name in enumerate(names, 1)
    )
    try:
        for end in (private, public):
            _ip("netns", "add", end.name)
            end.run("ip", "link", "set", "lo", "up")
        private.run("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", public.name)
        for end in (private, public):
            end.run("ip", "address", "add", f"{end.address}/30", "dev", end.interface)
            end.run("ip", "link", "set", end.interface, "up")
        yield Pair(private=private, public=public)
    finally:
        for name in names:
            _remove(name)


def _remove_leftovers() -> None:
    for path in _FOLDER.glob(f"{_PREFIX}-*") if _FOLDER.is_dir() else ():
        owner = path.name.removeprefix(f"{_PREFIX}-").split("-")[0]
        if not Path(f"/proc/{owner}").exists():
            _remove(path.name)


def _remove(name: str) -> None:
    if not (_FOLDER / name).exists():
        return
    for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
