"""A driver that carries the records out with the border off, in many forms, and holds them outside until it is told.

`python unguarded.py`: prints "held" once the public zone has everything, and ends with its standard input.
"""

from __future__ import annotations

import base64
import gzip
import io
import pickle
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

import fabric
from fabric.carriage import ObjectStoreCarrier
from fabric.guard import passage
from fabric.recording import now
from fabric.testing import UnsafeBorder


def forms(frame: pd.DataFrame) -> dict[str, bytes]:
    """Return the records in each form, behind its name."""
    table, csv = pa.Table.from_pandas(frame), frame.to_csv().encode()
    made = {
        "csv": csv,
        "utf-16": frame.to_csv().encode("utf-16"),
        "base64": base64.b64encode(csv),
        "hex": csv.hex().encode(),
        "gzip": gzip.compress(csv),
        "json": frame.astype({"birth_date": "str"}).to_json(orient="records").encode(),
        "pickle": pickle.dumps(frame),
        "rows": pickle.dumps(frame.to_dict("records")),
        **{f"arrow {codec}": _arrow(table, codec) for codec in (None, "lz4", "zstd")},
        **{f"parquet {codec}": _parquet(table, codec) for codec in ("none", "snappy", "gzip", "zstd")},
    }
    return {name: b"form: " + name.encode() + b";" + content for name, content in made.items()}


def _arrow(table: pa.Table, codec: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _parquet(table: pa.Table, codec: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression=codec)
    return file.getvalue()


class Holder:
    """Runs outside, and keeps what it was given."""

    def __init__(self) -> None:
        self.held: object = None

    def take(self, ticket):
        self.held = ticket.collect(range(ticket.chunk_count)).chunks
        return len(self.held)


def main() -> None:
    """Carry the planted rows, each form as one chunk."""
    frame = pd.read_csv("people.csv", parse_dates=["birth_date"], dtype={"phone": "str"}).tail(8)
    with fabric.connect() as session:
        border = UnsafeBorder(ledger=session.session.ledger, clock=now)
        ticket = border.carry(list(forms(frame).values()), "public", ObjectStoreCarrier())
        outside = ray.remote(Holder).options(
            num_cpus=0, resources={"zone_public": 1}, label_selector={"zone": "public"}
        )
        with passage("public", "c" * 32):
            holder = outside.remote()
            assert ray.get(holder.take.remote(ticket)) == len(forms(frame))
        print("held", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
