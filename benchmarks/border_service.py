"""The border service beside bare Arrow Flight and Ray's own object transfer, all under mutual TLS, in one run.

    python benchmarks/border_service.py            # a gibibyte, three rounds, about three minutes
    python benchmarks/border_service.py --mib 64 --rounds 1 --json

Each moves the same chunks from one process of this machine to another, over loopback, by one stream and by two:

- border: `BorderClient.parcel` from `fabric border serve`, with tokens, list and the digest of every chunk;
- bare Flight: `do_get` of the same bytes from a pyarrow server that asks for nothing but a client certificate;
- Ray: tasks on a second raylet under `RAY_USE_TLS=1` that get the chunks from the first one's object store.

What counts is the time until the receiver holds all the bytes. It starts a Ray cluster of its own, and stops only that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fabric.border import Border, Errand
from fabric.border_carrier import BorderCarrier
from fabric.border_client import BorderClient, BorderTicket
from fabric.border_process import READY
from fabric.certificates import Authority
from fabric.config import load_config
from fabric.crossing import Cargo
from fabric.flight_messages import PIECE_BYTES, SERVER_NAME
from fabric.labels import Labels
from fabric.ledger import Ledger
from fabric.policy import Policy
from fabric.recording import new_id, now
from fabric.stores import Home
from fabric.testing import sealed_matrix

ROOT = Path(__file__).parent.parent
MIB = 1024 * 1024
COLUMNS = 8
STREAMS = (1, 2)
CONFIG = """
[fabric]
name = "bench"

[border]
fetches = 1000

[zones.private]
kind = "private"
jurisdiction = "EU"
cpus = 2

[zones.public]
kind = "public"
jurisdiction = "EU"
"""


@dataclass(frozen=True)
class Place:
    """A fabric in a folder, with one crossing laid ready."""

    folder: Path
    ticket: BorderTicket
    authority: Authority
    chunks: tuple[bytes, ...]


@contextmanager
def serving(command: list[str], ready: str) -> Iterator[str]:
    """Run a server of our own and yield the last word of its ready line; it ends with the block."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line.startswith(ready):
            raise SystemExit(f"the server did not start: {line}")
        yield line.rpartition(" ")[2]
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def border(folder: Path, chunks: int, chunk_mib: int) -> Iterator[Place]:
    """Yield a fabric whose border service serves one crossing of so many chunks."""
    (folder / "fabric.toml").write_text(CONFIG)
    config = load_config(folder / "fabric.toml")
    home = Home.open(config.state)
    key = home.signing_key()
    ledger = Ledger.open(home.evidence, key=key, origin="bench/ledger", clock=now, new_id=new_id)
    rows = chunk_mib * MIB // (8 * COLUMNS) - 64
    values = np.random.default_rng(0).random((COLUMNS, rows * chunks))
    columns = {f"c{index}": values[index] for index in range(COLUMNS)}
    matrix = sealed_matrix(columns, key=key, now=now(), chunk_rows=rows)
    gate = Border(
        home_zone=config.private, policy=Policy.default(), ledger=ledger, key=key, trusted=ledger.keys,
        grant_lasts=timedelta(hours=1), clock=now, new_id=new_id,
    )  # fmt: skip
    labels = Labels(
        allowed_execution_zone=frozenset({"private", "public"}), burst_eligible=True, purpose="test",
        residency=frozenset({"EU"}), export_control="none",
    )  # fmt: skip
    errand = Errand(
        zone=config.zones["public"], labels=labels, purpose="test", justification="a benchmark",
        justification_key="hmac-sha256:" + "0" * 32, job="job-bench", person="p-" + "1" * 16,
    )  # fmt: skip
    command = [str(Path(sys.executable).parent / "fabric"), "border", "serve", "--config", str(config.path)]
    with serving(command, READY) as address:
        carrier = BorderCarrier.of(config, home, ledger, address=address)
        ticket = gate.export(Cargo(matrix=matrix), errand, carrier).ticket
        assert isinstance(ticket, BorderTicket)
        yield Place(folder, ticket, carrier.authority, tuple(matrix.chunks))
    ledger.close()


def by_border(place: Place, streams: int) -> int:
    """Fetch the crossing and return how many bytes came."""
    ticket = place.ticket
    client = BorderClient(ticket.papers, ticket.fetch, ticket.crossing, streams=streams)
    try:
        return sum(map(len, client.parcel().chunks.values()))
    finally:
        client.close()


def by_flight(place: Place, address: str, streams: int) -> int:
    """Fetch the same bytes from a bare Flight server."""
    papers = place.ticket.papers

    def pull(share: list[int]) -> int:
        with pa.flight.FlightClient(
            f"grpc+tls://{address}", tls_root_certs=papers.authority.encode(), override_hostname=SERVER_NAME,
            cert_chain=papers.certificate.encode(), private_key=papers.key.encode(),
            generic_options=[("grpc.use_local_subchannel_pool", 1)],
        ) as client:  # fmt: skip
            return sum(
                sum(chunk.data.num_rows for chunk in client.do_get(pa.flight.Ticket(str(index).encode())))
                for index in share
            )

    shares = [list(range(start, len(place.chunks), streams)) for start in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(pull, shares))


def serve_flight(folder: Path) -> None:
    """Serve the chunks in a folder by pyarrow's Flight, to whoever has a client certificate."""

    class Bare(pa.flight.FlightServerBase):
        def do_get(self, context: Any, ticket: Any) -> Any:
            content = pa.py_buffer((folder / f"{int(ticket.ticket)}").read_bytes())
            column = pa.Array.from_buffers(pa.uint8(), content.size, [None, content])
            table = pa.table({"bytes": column})
            return pa.flight.RecordBatchStream(
                pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=PIECE_BYTES))
            )

    read = {name: (folder / name).read_bytes() for name in ("authority", "certificate", "key")}
    server = Bare(
        "grpc+tls://127.0.0.1:0", tls_certificates=[(read["certificate"], read["key"])], verify_client=True,
        root_certificates=read["authority"],
    )  # fmt: skip
    sys.stdout.write(f"flight ready 127.0.0.1:{server.port}\n")
    sys.stdout.flush()
    server.serve()


@contextmanager
def bare_flight(place: Place) -> Iterator[str]:
    """Yield the address of a bare Flight server of the same chunks."""
    folder = place.folder / "bare"
    folder.mkdir()
    pair = place.authority.for_server(["127.0.0.1"], now=now(), lasts=timedelta(hours=1))
    for name, content in (
        ("authority", place.authority.certificate), ("certificate", pair.certificate), ("key", pair.key),
        *((str(index), chunk) for index, chunk in enumerate(place.chunks)),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
    with serving([sys.executable, str(Path(__file__)), "--serve-flight", str(folder)], "flight ready") as address:
        yield address


def by_ray(folder: Path, chunks: int, chunk_mib: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that Ray's own transfer takes, measured in a process whose environment turns TLS on."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    write_node_pair(folder)
    env |= {
        "PYTHONPATH": str(ROOT), "RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": str(folder / "node.crt"),
        "RAY_TLS_SERVER_CERT": str(folder / "node.crt"), "RAY_TLS_SERVER_KEY": str(folder / "node.key"),
        "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or the driver looks for the loopback cluster on another address
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fb-ray-") as temp:
        done = subprocess.run(
            [sys.executable, str(Path(__file__)), "--ray", str(chunks), str(chunk_mib), str(rounds)],
            env={**env, "RAY_TMPDIR": temp}, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"Ray under TLS failed:\n{done.stderr[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_node_pair(folder: Path) -> None:
    """Write the one certificate of Ray's nodes, which each of them shows as server and as client."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(minutes=5))
        .not_valid_after(now() + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "node.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "node.key").write_bytes(key.private_bytes(*plain))


def measure_ray(chunks: int, chunk_mib: int, rounds: int) -> dict[str, list[float]]:
    """Start two raylets, put chunks into the first one's store, and get them on the second, by one task and by two."""
    import ray
    from ray.cluster_utils import Cluster

    store = 2 * chunks * chunk_mib * MIB + 256 * MIB
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "resources": {"here": 9}, "object_store_memory": store, "include_dashboard": False,
            "node_ip_address": "127.0.0.1",
        },
    )  # fmt: skip
    cluster.add_node(num_cpus=4, resources={"there": 9}, object_store_memory=store, node_ip_address="127.0.0.1")
    ray.init(address=cluster.address, log_to_driver=False)
    try:

        @ray.remote(num_cpus=1, resources={"there": 1})
        def pull(refs: list[Any]) -> tuple[int, float]:
            began = time.perf_counter()
            return sum(len(chunk) for chunk in ray.get(refs)), time.perf_counter() - began

        found: dict[str, list[float]] = {str(streams): [] for streams in STREAMS}
        content = np.random.default_rng(0).bytes(chunk_mib * MIB)
        ray.get([pull.remote([]) for _ in range(2)])  # the workers are there
        for _ in range(rounds):
            for streams in STREAMS:
                refs = [ray.put(np.frombuffer(content, dtype=np.uint8)) for _ in range(chunks)]
                began = time.perf_counter()
                ray.get([pull.remote(refs[start::streams]) for start in range(streams)])
                found[str(streams)].append(time.perf_counter() - began)
                del refs
                time.sleep(0.5)
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


def timed(work: Callable[[], int], expected: int) -> float:
    """Return the seconds that `work` takes to receive `expected` bytes."""
    began = time.perf_counter()
    came = work()
    seconds = time.perf_counter() - began
    assert came == expected, (came, expected)
    return seconds


def measure(mib: int, chunk_mib: int, rounds: int, *, ray: bool) -> dict[str, Any]:
    """Measure all of them in turns, so that what else the machine does falls on each alike."""
    chunks = max(2, mib // chunk_mib)
    seconds: dict[str, dict[str, list[float]]] = {"border": {}, "bare Flight": {}}
    with tempfile.TemporaryDirectory(prefix="fb-border-") as temp:
        folder = Path(temp)
        with border(folder, chunks, chunk_mib) as place, bare_flight(place) as address:
            size = sum(map(len, place.chunks))
            for _ in range(rounds):
                for streams in STREAMS:
                    for name, work in (
                        ("border", lambda n=streams: by_border(place, n)),
                        ("bare Flight", lambda n=streams: by_flight(place, address, n)),
                    ):
                        seconds[name].setdefault(str(streams), []).append(timed(work, size))
        if ray:
            seconds["Ray, TLS"] = by_ray(folder, chunks, chunk_mib, rounds)
    speeds = {
        name: {streams: round(size / MIB / statistics.median(each)) for streams, each in found.items()}
        for name, found in seconds.items()
    }
    ratios = {
        f"border to {name}": {s: round(speeds["border"][s] / speeds[name][s], 2) for s in speeds["border"]}
        for name in speeds
        if name != "border"
    }
    return {"mib": size // MIB, "chunk_mib": chunk_mib, "rounds": rounds, "mib_per_s": speeds, "ratio": ratios}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--chunk-mib", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-flight", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ray", nargs=3, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_flight:
        serve_flight(given.serve_flight)
    elif given.ray:
        print(json.dumps(measure_ray(*given.ray)))
    else:
        found = measure(given.mib, given.chunk_mib, given.rounds, ray=not given.no_ray)
        if given.json:
            print(json.dumps(found, indent=2))
            return
        print(f"{found['mib']} MiB in chunks of {found['chunk_mib']} MiB, median of {found['rounds']}, MiB/s")
        print(f"{'':24}{'one stream':>12}{'two streams':>12}")
        for name, speeds in found["mib_per_s"].items():
            print(f"{name:24}{speeds['1']:>12,}{speeds['2']:>12,}")
        for name, ratios in found["ratio"].items():
            print(f"{name:24}{ratios['1']:>12}{ratios['2']:>12}")


if __name__ == "__main__":
    main()
