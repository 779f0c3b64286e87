"""Drivers: the processes inside that do the work of queued jobs, one a job; how they are started and watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Life(StrEnum):
    """What is known of a driver."""

    ALIVE = "alive"
    STOPPED = "stopped"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A driver to start.

    Attributes:
        submission: its id; one that is there already stays as it is.
        words: what its entry point is told: "prepare" or "run", and the job's id.
        labels: of the job, as Ray's job metadata.
    """

    submission: str
    words: tuple[str, ...]
    labels: Mapping[str, str]


class Launcher(Protocol):
    """Starts drivers inside, and says what became of them."""

    def start(self, drive: Drive) -> None:
        """Start a driver; one whose id was used before stays as it is.

        Raises:
            FabricError: it could not be started, or nobody can say.
        """

    def lives(self) -> Mapping[str, Life]:
        """Return every driver that is known, by its id; a driver that is not among them is gone.

        Raises:
            FabricError: they cannot be asked about.
        """

    def stop(self, submission: str) -> None:
        """Stop a driver; one that is gone stays gone."""
