"""CPU seconds of the commands that need no cluster, beside a bare interpreter and `ray --version`, in one run.

    python benchmarks/commands.py

Each command runs five times after a warm-up; the median of user plus system time of the process is printed, and its
ratio to the bare interpreter's.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent
ROUNDS = 5


def cpu_s(command: list[str], folder: str) -> float:
    """Return the median CPU seconds of a command over `ROUNDS` runs."""
    taken = []
    for _ in range(ROUNDS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken[1:])


def main() -> None:
    """Measure and print a table."""
    fabric = str(BIN / "fabric")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([fabric, "init", "--rows", "100"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([fabric, "evidence", "--save", "bundle.json"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "ray --version": [str(BIN / "ray"), "--version"],
            "fabric --help": [fabric, "--help"],
            "fabric status": [fabric, "status"],
            "fabric status --json": [fabric, "status", "--json"],
            "fabric evidence": [fabric, "evidence"],
            "fabric verify": [fabric, "verify", "bundle.json"],
        }
        measured = {name: cpu_s(command, folder) for name, command in commands.items()}
    bare = measured["python -c pass"]
    for name, seconds in measured.items():
        print(f"{name:<22} {seconds:6.3f} CPU s  {seconds / bare:5.1f} x a bare interpreter")


if __name__ == "__main__":
    main()
