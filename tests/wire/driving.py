"""A driver in the private zone that tries ways: `python driving.py LIST PLANTED_VALUE...`; a line for each.

LIST is "attacks", the attack list, or "all", with those of `wire.ways` before it. In the end it prints "held" and
lives on until its standard input ends, so that what its workers hold can be searched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks.ways import LIVE

import fabric
from fabric.errors import FabricError
from fabric.specs import SweepSpec, TrainingSpec
from wire.ways import WAYS


class ClusterLab:
    """What a way is tried against, over a real cluster.

    Attributes:
        records: the raw table; its last row is a planted one, also at hand as `planted`.
        matrix: the sealed matrix made from it.
        small: a training that takes seconds.
        kept: for what a way wants to live on.
    """

    def __init__(self, session: Any, records: pa.Table) -> None:
        self.session = session
        self.records = records
        self.planted: dict[str, Any] = records.slice(records.num_rows - 1).to_pylist()[0]
        self.made = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
        self.matrix = self.made.sealed
        self.small = TrainingSpec(epochs=1)
        self.kept: object = None

    def burst(
        self, function: Callable[..., Any], parameters: Mapping[str, Any] | None = None, justification: str = "test"
    ) -> Any:
        """Run a function over the matrix in the public zone."""
        return self.session.burst(function, self.made, justification=justification, **(parameters or {}))

    def train(self, spec: TrainingSpec | SweepSpec, network: Callable[[int, int], Any] | None = None) -> Any:
        """Train on the matrix in the public zone."""
        start = self.session.sweep if isinstance(spec, SweepSpec) else self.session.train
        return start(self.made, spec, justification="test", network=network)


def main() -> None:
    records = csv.read_csv("people.csv")
    with fabric.connect() as session:
        lab = ClusterLab(session, records)
        for way in LIVE if sys.argv[1] == "attacks" else (*WAYS, *LIVE):
            name = getattr(way, "id", None) or way.__name__
            try:
                way(lab)
                outcome = "ran"
            except FabricError as error:
                outcome = error.reason.value
            except BaseException as error:
                outcome = type(error).__name__
            print(f"\nway: {json.dumps([name, outcome])}", flush=True)  # a way may print too
        print("held", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
