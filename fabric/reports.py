"""Reports: what rank 0 of a training reports with a checkpoint, and who is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fabric.learning import Epoch

Progress = Callable[[Epoch], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What rank 0 reported with a checkpoint, as the controller wrote it down.

    Attributes:
        folder: of the checkpoint.
        files: the digest of each of its files.
    """

    epoch: Epoch
    folder: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, line: str) -> Report:
        """Read a line of the journal."""
        raw = json.loads(line)
        epoch = Epoch(epoch=int(raw["epoch"]), training=raw["training"], validation=raw["validation"])
        return cls(epoch=epoch, folder=str(raw["folder"]), files=dict(raw["files"]))
