"""A local cluster: what it refuses, what it keeps from the public zone, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import title
from free_ports import free_port
from hypothesis import given
from hypothesis import strategies as st

from fabric import local_cluster
from fabric._ray_node import MARK, PASSED_ON, node_settings, private_environment, public_environment
from fabric.errors import ClusterUnavailable, InvalidInput, Reason
from fabric.local_cluster import LocalCluster, Node, Ports, client_env, running, status, stop
from fabric.zones import Zone, ZoneKind

SECRET = "planted-c0ffee-secret"
PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="DE", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="US", slots=4)
ZONES = [PUBLIC, PRIVATE]


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """The state folder of a cluster that is stopped even when its test fails."""
    yield tmp_path
    stop(tmp_path)


def nothing(_: str) -> None:
    pass


def start(
    state_dir: Path,
    *,
    zones: list[Zone] = ZONES,
    ports: Ports | None = None,
    progress: Callable[[str], None] = nothing,
    private_env: dict[str, str] | None = None,
    public_env: dict[str, dict[str, str]] | None = None,
    tied_to_pid: int | None = None,
    shell: dict[str, str] | None = None,
) -> LocalCluster:
    secrets = {"AWS_SECRET_ACCESS_KEY": SECRET, "RAY_AUTH_TOKEN": "of-another-cluster"}
    return local_cluster.start(
        zones,
        state_dir=state_dir,
        private_env={"FABRIC_TEST": "seen-by-private"} if private_env is None else private_env,
        public_env=public_env or {},
        ports=ports or Ports(),
        base_env={**os.environ, **secrets, **(shell or {})},
        progress=progress,
        tied_to_pid=tied_to_pid,
    )


def traces(cluster: LocalCluster) -> set[int]:
    """Return the processes of a cluster, found by its folders as well as by its mark."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join([*process.cmdline(), process.cwd()])
            if process.environ().get(MARK) == cluster.id or any(str(node.temp) in words for node in cluster.nodes):
                found.add(process.pid)
    return found


def below(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def read_of_each(node: Node, read: Callable[[psutil.Process], object]) -> list:
    """Read something of each process of a node; a worker whose driver is gone may end meanwhile."""
    found = []
    for process in below(node.pid):
        with contextlib.suppress(psutil.Error, OSError):
            found.append(read(process))
    assert len(found) > 3
    return found


def lasting(cluster: LocalCluster) -> set[int]:
    """Return the processes that live as long as a cluster: all but workers, which come and go."""
    found = set()
    for process in (process for node in cluster.nodes for process in below(node.pid)):
        words = title(process)
        if words and not words.startswith("ray::") and "_worker.py" not in words:
            found.add(process.pid)
    return found


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def is_gone(cluster: LocalCluster) -> bool:
    files = [cluster.token_path, cluster.state_dir / "cluster.json", *(node.temp for node in cluster.nodes)]
    return not traces(cluster) and not any(path.exists() for path in files)


def on(cluster: LocalCluster, program: str, *words: str) -> str:
    """Run a Python program as a driver of the cluster and return what it printed."""
    command = [sys.executable, *(words or ("-c", program))]
    environment = {**os.environ, **client_env(cluster)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def a_record(state_dir: Path) -> LocalCluster:
    nodes = (
        Node(zone="private", temp=Path("/tmp/fz-00112233-0")),
        Node(zone="public", temp=Path("/tmp/fz-00112233-1")),
    )
    return LocalCluster(id="0011223344556677", state_dir=state_dir, started_at="2026-01-01T00:00:00+00:00", nodes=nodes)


# Refusals that start nothing.


@pytest.mark.parametrize("ports", [{"gcs": 80}, {"dashboard": 70000}, {"gcs": 9000, "dashboard": 9000}, {"gcs": -1}])
def test_a_port_out_of_range_or_given_twice_is_refused(ports: dict[str, int]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Ports(**ports)
    assert refusal.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize(
    "zones", [[], [PUBLIC], [PRIVATE, dataclasses.replace(PRIVATE, name="second")], [PRIVATE, PUBLIC, PUBLIC]]
)
def test_zones_without_exactly_one_private_or_with_one_twice_are_refused(tmp_path: Path, zones: list[Zone]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        start(tmp_path / "state", zones=zones)
    assert refusal.value.reason is Reason.CONFIG_INVALID
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("name", ["publik", "private"])
def test_an_environment_for_no_public_zone_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        start(tmp_path / "state", public_env={name: {"A": "b"}})
    assert refusal.value.reason is Reason.UNKNOWN_ZONE
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("which", "purpose"), [("gcs", "GCS"), ("dashboard", "dashboard")])
def test_a_taken_port_is_refused_by_name_and_leaves_no_trace(tmp_path: Path, which: str, purpose: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterUnavailable) as refusal:
            start(tmp_path, ports=Ports(**{which: port}))
    assert refusal.value.reason is Reason.PORT_TAKEN
    assert str(port) in refusal.value.message
    assert purpose in refusal.value.message
    assert "free" in refusal.value.hint
    assert running(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {"cluster.lock"}


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{}", '{"nodes": []}', '{"nodes": [1]}', "{"])
def test_a_state_file_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    for act in (running, stop, start):
        with pytest.raises(ClusterUnavailable) as refusal:
            act(tmp_path)
        assert refusal.value.reason is Reason.CLUSTER_FAILED
    assert (tmp_path / "cluster.json").read_text() == text


def test_a_state_file_that_names_another_folder_is_refused_and_the_folder_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    state = a_record(tmp_path).to_json()
    state["nodes"][0]["temp"] = str(precious)
    (tmp_path / "cluster.json").write_text(json.dumps(state))
    with pytest.raises(ClusterUnavailable):
        stop(tmp_path)
    assert precious.exists()


def test_where_nothing_was_started_nothing_runs_and_nothing_stops(tmp_path: Path) -> None:
    assert running(tmp_path / "nowhere") is None
    assert stop(tmp_path / "nowhere") is False
    assert stop(tmp_path) is False


# Pure parts.


def test_a_cluster_survives_its_state_file(tmp_path: Path) -> None:
    cluster = a_record(tmp_path)
    assert LocalCluster.from_json(json.loads(json.dumps(cluster.to_json()))) == cluster


@given(
    st.dictionaries(
        st.sampled_from([*PASSED_ON, "AWS_SECRET_ACCESS_KEY", "HOME", "RAY_AUTH_TOKEN"]) | st.text(), st.uuids()
    )
)
def test_a_public_node_gets_no_variable_of_the_users_but_where_programs_are_found(base: dict[str, object]) -> None:
    shell = {name: str(value) for name, value in base.items()}
    settings = node_settings("mark", Path("/state/token"))
    public = public_environment(shell, {"FABRIC_ZONE": "public"}, settings, Path("/tmp/b"), Path("/tmp/a"))
    allowed = {shell[name] for name in PASSED_ON if name in shell}
    assert set(public.values()) & set(shell.values()) <= allowed
    assert public["FABRIC_ZONE"] == "public"
    assert public["HOME"] == public["TMPDIR"] == "/tmp/b"


def test_a_private_node_keeps_the_users_variables_but_none_that_points_ray_elsewhere() -> None:
    shell = {"AWS_SECRET_ACCESS_KEY": SECRET, "RAY_ADDRESS": "x", "RAY_AUTH_TOKEN": "x", "RAY_AUTH_MODE": "disabled"}
    settings = node_settings("mark", Path("/state/token"))
    private = private_environment(shell, {"RAY_AUTH_MODE": "disabled"}, settings, Path("/tmp/a"))
    assert private["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert private["RAY_AUTH_MODE"] == "token"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & private.keys()


def test_a_client_behind_a_proxy_reaches_the_cluster_without_it(tmp_path: Path) -> None:
    cluster = a_record(tmp_path)
    behind = client_env(cluster, {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "intern"})
    assert behind["no_proxy"] == behind["NO_PROXY"] == "intern,127.0.0.1"
    assert "no_proxy" not in client_env(cluster, {"PATH": "/bin"})


# One cluster, looked at from all sides.


@pytest.fixture(scope="module")
def proxy() -> Iterator[socket.socket]:
    """The proxy of the user's shell, which takes whatever means to leave the machine by HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, proxy: socket.socket) -> Iterator[LocalCluster]:
    state_dir = tmp_path_factory.mktemp("state")
    url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    shell = {"http_proxy": url, "https_proxy": url, "HTTP_PROXY": url, "HTTPS_PROXY": url}
    yield start(state_dir, public_env={"public": {"FABRIC_TEST": "seen-by-public"}}, shell=shell)
    stop(state_dir)


LOOK_AROUND = """
import json, os, ray
from ray.util.placement_group import placement_group, placement_group_table
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
zones = {node["NodeID"]: node["Labels"]["zone"] for node in ray.nodes()}

@ray.remote
def look():
    return zones[ray.get_runtime_context().get_node_id()], dict(os.environ), os.getcwd()

memory_only = [placement_group([{"memory": 1024 * 1024}], strategy="SPREAD") for _ in range(8)]
ray.get([group.ready() for group in memory_only])
public = look.options(num_cpus=0, resources={"zone_public": 1})
print(json.dumps({
    "zones": sorted(zones.values()),
    "resources": {node["Labels"]["zone"]: node["Resources"] for node in ray.nodes()},
    "driver": ray.get_runtime_context().get_node_labels()["zone"],
    "plain": [zone for zone, _, _ in ray.get([look.remote() for _ in range(20)])],
    "memory_only": [zones[placement_group_table(group)["bundles_to_node_id"][0]] for group in memory_only],
    "private": ray.get(look.remote()),
    "public": ray.get(public.remote()),
}))
"""


@pytest.fixture(scope="module")
def seen(cluster: LocalCluster) -> dict:
    return json.loads(on(cluster, LOOK_AROUND))


@pytest.mark.cluster
def test_work_that_names_no_zone_lands_in_the_private_one(seen: dict) -> None:
    assert seen["zones"] == ["private", "public"]
    assert seen["driver"] == "private"
    assert set(seen["plain"]) == {"private"}
    assert set(seen["memory_only"]) == {"private"}


@pytest.mark.cluster
def test_the_public_node_offers_its_slots_and_no_cpu(seen: dict) -> None:
    assert "CPU" not in seen["resources"]["public"]
    assert seen["resources"]["public"]["memory"] == 1
    assert seen["resources"]["public"]["zone_public"] == PUBLIC.slots
    assert seen["resources"]["private"]["CPU"] == PRIVATE.cpus
    assert seen["resources"]["private"]["zone_private"] >= 1000


@pytest.mark.cluster
def test_a_public_task_lands_outside_and_sees_no_secret_of_the_user(cluster: LocalCluster, seen: dict) -> None:
    zone, environment, folder = seen["public"]
    assert zone == "public"
    assert environment["FABRIC_TEST"] == "seen-by-public"
    assert SECRET not in environment.values()
    assert environment["HOME"] == folder == str(cluster.public_temps["public"])
    assert seen["private"][1]["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert seen["private"][1]["FABRIC_TEST"] == "seen-by-private"


@pytest.mark.cluster
def test_no_public_process_holds_the_secret_and_all_bear_the_mark(cluster: LocalCluster, seen: dict) -> None:
    private, public = (
        # One that is about to end has no environment any more.
        [held for held in read_of_each(node, lambda p: Path(f"/proc/{p.pid}/environ").read_bytes()) if held]
        for node in cluster.nodes
    )
    assert all(f"{MARK}={cluster.id}".encode() in held for held in [*private, *public])
    assert all(SECRET.encode() in held for held in private)
    assert not any(SECRET.encode() in held or b"seen-by-private" in held for held in public)


def test_what_a_node_starts_leaves_no_core_dump_whatever_the_shell_allows() -> None:
    program = (
        "import resource, subprocess, sys\n"
        "from fabric._ray_node import without_core_dumps\n"
        "most = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (most, most))\n"
        "without_core_dumps()\n"
        "subprocess.run(['sh', '-c', 'ulimit -c'])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "0"


@pytest.mark.cluster
def test_no_process_of_a_node_leaves_a_core_dump(cluster: LocalCluster, seen: dict) -> None:
    limits = {
        limit for node in cluster.nodes for limit in read_of_each(node, lambda p: p.rlimit(psutil.RLIMIT_CORE)[0])
    }
    assert limits == {0}


@pytest.mark.cluster
def test_each_node_keeps_its_files_in_a_folder_that_only_its_user_may_enter(cluster: LocalCluster, seen: dict) -> None:
    for node in cluster.nodes:
        assert stat.S_IMODE(node.temp.stat().st_mode) == 0o700
        assert list(node.temp.glob("r/session_latest/sockets/plasma_store"))
        assert list(node.temp.glob("r/session_latest/logs/raylet.out"))
        assert list(node.temp.glob("r/session_latest/logs/worker-*"))
        others = [str(other.temp) for other in cluster.nodes if other != node]
        for process in below(node.pid):
            opened = [file.path for file in process.open_files()]
            assert not [path for path in opened if path.startswith(tuple(others))]
    assert stat.S_IMODE(cluster.token_path.stat().st_mode) == 0o600
    assert stat.S_IMODE((cluster.state_dir / "cluster.json").stat().st_mode) == 0o600


@pytest.mark.cluster
def test_every_port_listens_on_the_loopback_interface_only(cluster: LocalCluster) -> None:
    listening = [
        connection.laddr.ip
        for node in cluster.nodes
        for process in below(node.pid)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.cluster
def test_no_ray_client_server_runs(cluster: LocalCluster) -> None:
    commands = [" ".join(process.cmdline()) for node in cluster.nodes for process in below(node.pid)]
    assert any("gcs_server" in command for command in commands)
    assert not any("ray.util.client" in command for command in commands)


@pytest.mark.cluster
def test_no_node_is_in_the_session_of_the_terminal_that_started_it(cluster: LocalCluster) -> None:
    assert all(os.getsid(node.pid) == node.pid for node in cluster.nodes)


@pytest.mark.cluster
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}])
def test_the_dashboard_refuses_who_has_not_the_token(cluster: LocalCluster, header: dict[str, str]) -> None:
    request = urllib.request.Request(f"{cluster.dashboard_url}/api/jobs/", headers=header)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
    assert refusal.value.code in {401, 403}


@pytest.mark.cluster
def test_a_submitted_job_runs_on_the_head_with_the_private_environment_and_its_metadata(cluster: LocalCluster) -> None:
    driver = (
        "import json, os, ray; ray.init(); "
        "print(json.dumps(['told', ray.get_runtime_context().get_node_labels()['zone'], os.environ['FABRIC_TEST'], "
        "json.loads(os.environ['RAY_JOB_CONFIG_JSON_ENV_VAR'])['metadata']['fabric_run']]))"
    )
    submit = ["-m", "ray.scripts.scripts", "job", "submit", "--metadata-json", '{"fabric_run": "run-7"}', "--"]
    printed = on(cluster, "", *submit, sys.executable, "-c", driver)
    assert '["told", "private", "seen-by-private", "run-7"]' in printed


@pytest.mark.cluster
def test_a_second_start_is_refused_and_the_first_lives_on(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterUnavailable) as refusal:
        start(cluster.state_dir)
    assert refusal.value.reason is Reason.FABRIC_ALREADY_UP
    assert running(cluster.state_dir) == cluster
    assert [(node.zone, node.alive) for node in status(cluster)] == [("private", True), ("public", True)]
    assert all(node.processes > 3 and node.rss_bytes > 2**26 for node in status(cluster))


@pytest.mark.cluster
def test_ray_asks_nothing_outside_the_machine(cluster: LocalCluster, proxy: socket.socket) -> None:
    [dashboard] = [p for p in below(cluster.nodes[0].pid) if any(w.endswith("dashboard.py") for w in title(p).split())]
    assert dashboard.environ()["HTTP_PROXY"].endswith(str(proxy.getsockname()[1]))
    proxy.setblocking(False)
    with pytest.raises(BlockingIOError):
        proxy.accept()


LEAVE_ORPHANS = """
import ray, subprocess
ray.init(namespace="n", log_to_driver=False)

@ray.remote(num_cpus=0, resources={"zone_public": 1})
class Actor:
    def leave(self):
        adrift = subprocess.Popen(["sleep", "600"], start_new_session=True)
        return adrift.pid, subprocess.Popen(["sleep", "600"], env={}).pid

actor = Actor.options(lifetime="detached", name="a").remote()
print(*ray.get(actor.leave.remote()))
"""


@pytest.mark.cluster
def test_stopping_one_cluster_ends_all_of_it_and_leaves_another_and_every_stranger_alone(
    cluster: LocalCluster, state_dir: Path
) -> None:
    ports = Ports(gcs=free_port(), dashboard=free_port())
    before = lasting(cluster)
    assert len(before) > 3
    second = start(state_dir, ports=ports)
    stranger = subprocess.Popen(["sleep", "600"], env={MARK: second.id + "0", "PATH": os.defpath})
    try:
        assert second.gcs_address == f"127.0.0.1:{ports.gcs}"
        assert second.dashboard_url == f"http://127.0.0.1:{ports.dashboard}"
        left = [int(pid) for pid in on(second, LEAVE_ORPHANS).split()]
        assert all(lives(pid) for pid in left)
        assert stop(state_dir) is True
        assert is_gone(second)
        assert not any(lives(pid) for pid in left)
        assert not list(Path("/dev/shm").glob("plasma*"))
        assert stranger.poll() is None
        assert before <= lasting(cluster)
        assert on(cluster, "import os, ray; ray.init(log_to_driver=False); print(len(ray.nodes()))").strip() == "2"
    finally:
        stranger.kill()
        stranger.wait()


# Ends that nobody planned.


@pytest.mark.cluster
def test_an_interrupted_start_leaves_nothing_and_a_rival_start_meanwhile_is_refused(state_dir: Path) -> None:
    planned: list[LocalCluster] = []
    rivals: list[Reason] = []

    def interrupt(line: str) -> None:
        if line == "starting zone public":
            planned.append(LocalCluster.from_json(json.loads((state_dir / "cluster.json").read_text())))
            assert traces(planned[0])
            assert running(state_dir) is None
            assert traces(planned[0])
            with pytest.raises(ClusterUnavailable) as refusal:
                start(state_dir)
            rivals.append(refusal.value.reason)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(state_dir, progress=interrupt)
    assert rivals == [Reason.FABRIC_ALREADY_UP]
    assert is_gone(planned[0])


@pytest.mark.cluster
def test_a_start_that_fails_keeps_its_logs_and_nothing_else(state_dir: Path) -> None:
    greedy = dataclasses.replace(PRIVATE, gpus=2)
    with pytest.raises(ClusterUnavailable) as refusal:
        start(state_dir, zones=[greedy, PUBLIC], private_env={"CUDA_VISIBLE_DEVICES": ""})
    assert refusal.value.reason is Reason.CLUSTER_FAILED
    logs = state_dir / "failed-start" / "private"
    assert str(logs) in refusal.value.hint
    assert "CUDA_VISIBLE_DEVICES" in (logs / "ray-start.log").read_text()
    assert {path.name for path in state_dir.iterdir()} == {"cluster.lock", "failed-start"}


@pytest.mark.cluster
def test_a_cluster_tied_to_a_process_goes_when_that_is_killed(state_dir: Path) -> None:
    owner = subprocess.Popen(["sleep", "600"])
    cluster = start(state_dir, tied_to_pid=owner.pid)
    assert running(state_dir) == cluster
    owner.kill()
    while not is_gone(cluster):  # The owner stays a zombie meanwhile: nobody has waited for it.
        time.sleep(0.1)
    owner.wait()


@pytest.mark.cluster
def test_a_start_whose_process_is_killed_halfway_is_cleaned_up_by_the_next_look(state_dir: Path) -> None:
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_local_cluster\n"
        "die = lambda line: line == 'starting zone public' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "test_local_cluster.start(Path(sys.argv[1]), progress=die)"
    )
    starter = subprocess.run([sys.executable, "-c", program, state_dir, Path(__file__).parent], check=False)
    assert starter.returncode == -signal.SIGKILL
    planned = LocalCluster.from_json(json.loads((state_dir / "cluster.json").read_text()))
    assert traces(planned)
    assert running(state_dir) is None
    assert is_gone(planned)


@pytest.mark.cluster
def test_a_cluster_whose_processes_were_all_killed_is_known_as_dead(state_dir: Path) -> None:
    cluster = start(state_dir)
    while pids := [pid for pid in traces(cluster) if lives(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert [node.alive for node in status(cluster)] == [False, False]
    assert running(state_dir) is None
    assert is_gone(cluster)
