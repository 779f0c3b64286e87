"""A hybrid GPU compute fabric for regulated data, on Ray: code and sanitized matrices move out, records never do.

`connect` is the way in from a notebook or a program. Importing this package imports neither Ray nor torch nor Presidio.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabric.sdk import Fabric

__all__ = ["connect"]


def connect(config: str | Path | None = None) -> Fabric:
    """Join the fabric that `fabric up` started, or the Ray cluster that this job runs in.

    Args:
        config: path of `fabric.toml`; by default `$FABRIC_CONFIG`, or the nearest at or above the working directory.

    Returns:
        A `Fabric`; use it in a `with` block, or call `close`.

    Raises:
        InvalidInput: `fabric.toml` or the job's labels are wrong.
        ClusterUnavailable: `FABRIC_DOWN`, or `DRIVER_OUTSIDE` if this process does not run in the private zone.
        FabricError: `EVIDENCE_UNWRITABLE`.
    """
    # Ray fixes its authentication when it is imported, so the environment is set first and Ray comes second.
    from fabric.joining import prepare  # noqa: PLC0415 - the front door imports what it opens

    joined = prepare(Path(config) if config else None)
    from fabric.sdk import Fabric  # noqa: PLC0415

    return Fabric.join(joined)
