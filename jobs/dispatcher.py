"""Start the dispatcher of a fabric and leave it running: `python -m jobs.dispatcher`; `fabric up` does that."""

from __future__ import annotations

import sys

import fabric
from fabric.errors import FabricError


def main() -> int:
    """Start it, unless it is there, and return the exit status."""
    try:
        with fabric.connect() as connected:
            # Ray reads its environment when it is imported, which `connect` has set.
            from fabric.dispatching import ensure  # noqa: PLC0415

            ensure(connected.session)
    except FabricError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
