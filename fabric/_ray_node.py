"""One node of a local Ray cluster: its environment, its `ray start` command, and what is bent inside that command.

A public node gets a minimal environment, no CPU, and its own home and temporary folder. Every node listens on the
loopback interface only, unless it was given an address in a network of its own. This module never imports Ray; its hook
runs where Ray is imported already.
"""

from __future__ import annotations

import json
import os
import re
import resource
import site
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fabric.zones import Zone, ZoneKind

MARK = "FABRIC_CLUSTER_ID"
OBJECT_STORE_BYTES = 1024**3  # of each node; Ray would take a third of the memory, and spills what does not fit
LOOPBACK = "127.0.0.1"
PRIVATE_AMOUNT = 1000  # Work in the private zone takes a pinch (0.001) of it, so it never runs out.
_HOOK, _AWAIT = "RAY_START_HOOK", "FABRIC_AWAIT_FILE"
GUARD, GIVEN = "FABRIC_GUARD", "FABRIC_GIVEN"
_AWAIT_MAX_S = 60.0
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")
_DASHBOARD = re.compile(r"RAY_API_SERVER_ADDRESS='(http://[^']+)'")
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


def client_settings(token_path: Path) -> dict[str, str]:
    """Return the variables by which any process, node or driver, agrees with a local cluster."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Only with this, on Linux too, does Ray leave 127.0.0.1 as it is.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def guard_settings(zone: str, home: str, outside: Sequence[str]) -> dict[str, str]:
    """Return the variables by which a process of `zone`, node or driver, stands behind the guard."""
    return {
        GUARD: json.dumps({"zone": zone, "home": home, "outside": list(outside)}),
        "RAY_RUNTIME_ENV_HOOK": "fabric.guard.on_init",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # It would take the hook's place under `uv run`.
    }


def node_settings(cluster_id: str, token_path: Path) -> dict[str, str]:
    """Return the variables of every node: those of a client, the cluster's mark, and what keeps the mark readable."""
    return {
        **client_settings(token_path),
        MARK: cluster_id,
        _HOOK: f"{__name__}.{on_loopback.__name__}",
        # With usage statistics off, Ray still reports, once, that they are off; to no address it cannot.
        "RAY_USAGE_STATS_REPORT_URL": "none:",
        "RAY_enable_metrics_collection": "0",
        "DASHBOARD_METRIC_PORT": "0",
        "PYTHONUSERBASE": site.getuserbase(),  # Where Python would look for it below a home folder that we change.
        "SPT_NOENV": "1",  # Else Ray's process titles overwrite the environment, and with it the mark.
    }


def private_environment(
    base: Mapping[str, str],
    extra: Mapping[str, str],
    settings: Mapping[str, str],
    temp: Path,
    address: str = LOOPBACK,
) -> dict[str, str]:
    """Return the user's whole environment, less the RAY_* that would point Ray elsewhere."""
    kept = {name: value for name, value in base.items() if not name.startswith("RAY_")}
    return {**kept, **past_the_proxy(base, address), "TMPDIR": str(temp), **extra, **settings}


def public_environment(
    base: Mapping[str, str], extra: Mapping[str, str], settings: Mapping[str, str], temp: Path, head: Path
) -> dict[str, str]:
    """Return a minimal environment: of the user's, only where programs are found. `head` is the head's folder."""
    kept = {name: base[name] for name in PASSED_ON if name in base}
    own = {"HOME": str(temp), "TMPDIR": str(temp)}
    return {**kept, **own, **extra, **settings, _AWAIT: str(registered_file(head))}


def outside_environment(
    base: Mapping[str, str], extra: Mapping[str, str], settings: Mapping[str, str], temp: Path
) -> dict[str, str]:
    """Return a minimal environment for the head of a cluster of its own: it names no path of the private side."""
    kept = {name: base[name] for name in PASSED_ON if name in base}
    return {**kept, "HOME": str(temp), "TMPDIR": str(temp), "FABRIC_PYTHON": sys.executable, **extra, **settings}


def past_the_proxy(base: Mapping[str, str], address: str) -> dict[str, str]:
    """Return what exempts the cluster's `address` from the user's proxy, where there is one."""
    if not any(name.lower() in _PROXIES for name in base):
        return {}
    exempt = ",".join(filter(None, [base.get("no_proxy", base.get("NO_PROXY", "")), address]))
    return {"no_proxy": exempt, "NO_PROXY": exempt}


def head_command(zone: Zone, temp: Path, address: str, *, gcs_port: int, dashboard_port: int) -> list[str]:
    """Return the `ray start` of a cluster's head, in the private zone or any other. Port 0: the kernel chooses."""
    ports = ["--port", str(gcs_port), "--dashboard-port", str(dashboard_port)]
    place = ["--head", "--no-monitor", "--include-dashboard", "true", "--dashboard-host", address, *ports]
    amount = PRIVATE_AMOUNT if zone.kind is ZoneKind.PRIVATE else zone.slots
    return [*_command(zone, temp, address, amount), *place]


def other_command(zone: Zone, temp: Path, address: str, *, gcs_address: str) -> list[str]:
    """Return the `ray start` of another zone's node.

    Its one byte of memory keeps out placement groups that ask for nothing but memory. Without a log monitor, what
    code prints there is not streamed into private drivers.
    """
    return [
        *_command(zone, temp, address, zone.slots),
        *["--address", gcs_address, "--memory", "1", "--include-log-monitor", "false"],
    ]


def _command(zone: Zone, temp: Path, address: str, amount: int) -> list[str]:
    free = ["min-worker", "max-worker", "object-manager", "node-manager", "runtime-env-agent", "metrics-export"]
    ports = [word for name in free for word in (f"--{name}-port", "0")]
    return [
        *[sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"],
        *["--temp-dir", str(ray_folder(temp)), "--node-ip-address", address, "--node-name", zone.name],
        *["--num-cpus", str(zone.cpus), "--num-gpus", str(zone.gpus), "--labels", f"zone={zone.name}"],
        *["--resources", json.dumps({zone.resource: amount}), *ports],
        *["--object-store-memory", str(OBJECT_STORE_BYTES)],
        *["--dashboard-agent-listen-port", "0", "--dashboard-agent-grpc-port", "0"],
    ]


def ray_folder(temp: Path) -> Path:
    """Return Ray's part of a node's folder. Ray opens its own to everybody (mode 0777), so it lies inside ours."""
    return temp / "r"


def registered_file(temp: Path) -> Path:
    """Return the file that `ray start` writes once the GCS lists the node; it holds the address of the GCS."""
    return ray_folder(temp) / "ray_current_cluster"


def guard_file(temp: Path) -> Path:
    """Return the file that a node's workers start with, where they start behind the guard."""
    return temp / "worker.py"


def output_file(temp: Path) -> Path:
    """Return the file that takes what `ray start` prints."""
    return temp / "ray-start.log"


def log_folder(temp: Path) -> Path:
    """Return the folder of the logs of Ray's processes."""
    return ray_folder(temp) / "session_latest" / "logs"


def gcs_port(temp: Path) -> str:
    """Return the port at which the head's GCS listens, or "" as long as it does not."""
    for file in ray_folder(temp).glob("session_latest/gcs_server_port_*"):
        return file.read_text().strip()
    return ""


def registered(temp: Path) -> str:
    """Return the GCS address that a node has registered with, or "" before that."""
    file = registered_file(temp)
    return file.read_text() if file.exists() else ""


def dashboard_url(temp: Path) -> str:
    """Return the URL that the head's `ray start` printed, or "" before that."""
    found = _DASHBOARD.search(output_file(temp).read_text(errors="replace"))
    return found.group(1) if found else ""


def is_free(port: int) -> bool:
    """Say whether nobody listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port of the loopback interface at which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def on_loopback(ray_params: Any, head: bool) -> None:
    """Bend `ray start` before it starts a node (`RAY_START_HOOK`), so that the node keeps to this machine.

    `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` keeps Ray on 127.0.0.1; otherwise it takes an address of the network and
    listens on every interface. But with it Ray refuses a second node, and without it Ray changes the head's address.
    The Ray Client port is not opened: nobody uses it.
    """
    without_core_dumps()
    del os.environ[_HOOK]  # What this node starts must not inherit the hook.
    ray_params.ray_client_server_port = None
    services: Any = sys.modules["ray._private.services"]
    home = Path(ray_params.temp_dir).parent
    if GUARD in os.environ:
        # A file, not the environment: a job's runtime environment could change that.
        ground = json.loads(os.environ[GUARD])
        guard_file(home).write_text(f"from fabric.guard import run_worker\n\nrun_worker({ground!r})\n")
        ray_params.worker_path = str(guard_file(home))
    if head:
        # Even with usage statistics off, the dashboard asks the clouds' metadata services where it runs, unless it
        # finds this file in its home folder.
        (home / "ray_bootstrap_config.yaml").write_text("{}")
        services.start_api_server = partial(_at_home, home, services.start_api_server)
    else:
        constants: Any = sys.modules["ray._private.ray_constants"]
        constants.ENABLE_RAY_CLUSTER = True
        services.resolve_ip_for_localhost = _unchanged
        # Ray looks for the head every 2 s; waiting here, with Ray imported, is quicker.
        _wait_for(Path(os.environ.pop(_AWAIT)), time.monotonic() + _AWAIT_MAX_S)


def without_core_dumps() -> None:
    """Let nothing that this process starts leave its memory on a disk when it crashes."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def _at_home(home: Path, start: Callable[..., Any], *args: Any, **named: Any) -> Any:
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    try:
        return start(*args, **named)
    finally:
        del os.environ["HOME"]
        if before is not None:
            os.environ["HOME"] = before


def _unchanged(host: str) -> str:
    return host


def _wait_for(path: Path, deadline: float) -> None:
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
