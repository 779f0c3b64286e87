"""Two Ray clusters in two network namespaces, and between them nothing but the table's flows and the border service.

The firewall drops what the table does not list, and counts every rule. The main job, a sweep and a burst run over
it; whoever holds the public machine tries what a stretched cluster allows; link, border and public cluster fail.
"""

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("hyperscan", reason="the search needs hyperscan (extra `test`)")
from test_wire import BURST, HOLDING, submitted
from wire.lab import living
from wire.namespaces import joined, missing, missing_firewall

from fabric.zones import Topology

_ABSENT = missing() or missing_firewall()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(_ABSENT), reason=_ABSENT or "namespaces can be made here")]

HOSTILE = Path(__file__).parent / "wire" / "hostile.py"
OPENED_BY_OURS = {"jobs-out": "private", "border-in": "public"}
"""The flows between the two, each with the side that opens it."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with living(tmp_path_factory.mktemp("two"), topology=Topology.FEDERATED) as made:
        yield made


def counted(namespace) -> dict[tuple[str, str], int]:
    """Return how many packets each rule has seen, by chain and comment."""
    found: dict[tuple[str, str], int] = {}
    chain = ""
    for line in namespace.counters().splitlines():
        if named := re.match(r"\s*chain (\w+) \{", line):
            chain = named[1]
        if rule := re.search(r'counter packets (\d+) .*comment "([^"]+)"', line):
            found[chain, rule[2]] = int(rule[1])
    return found


def opened(lab) -> set[str]:
    """Return the flows that packets have opened a connection by."""
    found = set()
    for namespace in (lab.pair.private, lab.pair.public):
        rest = ("loopback", "established", "invalid", "dropped", "neighbours")
        found |= {comment for (_, comment), packets in counted(namespace).items() if packets and comment not in rest}
    return found


def dropped(lab) -> dict[str, int]:
    return {
        f"{namespace.name.rpartition('-')[2]} {chain}": packets
        for namespace in (lab.pair.private, lab.pair.public)
        for (chain, comment), packets in counted(namespace).items()
        if comment == "dropped" and packets
    }


def border_process(lab) -> psutil.Process:
    """Return the process that serves, which another one starts again."""
    told = json.loads((lab.folder / ".fabric" / "border" / "service.json").read_text())
    return psutil.Process(told["pid"])


def lengthened(lab, epochs: int, **changes: object) -> str:
    text = (lab.folder / "train.toml").read_text()
    text = text.replace("epochs = 20", f"epochs = {epochs}").replace("checkpoint_every = 5", "checkpoint_every = 20")
    for name, value in changes.items():
        text = text.replace("[training]\n", f"[training]\n{name} = {value}\n")
    path = lab.folder / f"long-{epochs}.toml"
    path.write_text(text)
    return str(path)


def test_the_main_job_comes_back_though_the_border_is_killed_and_the_link_is_cut_for_30_s_meanwhile(lab):
    job, seen = lab.popen(*submitted("jobs.train", lengthened(lab, 240))), []
    for line in job.stdout:
        seen.append(line)
        if line.startswith("epoch 40:"):
            border_process(lab).kill()
        if line.startswith("epoch 80:"):
            with lab.pair.cut_for(30):
                pass
    assert job.wait(timeout=600) == 0, "".join(seen)[-3000:]
    epochs = [int(number) for number in re.findall(r"^epoch (\d+):", "".join(seen), re.M)]
    assert epochs[-1] == 240
    assert epochs == sorted(set(epochs))
    assert "held back, inside: r2" in "".join(seen)


def test_a_sweep_runs_over_the_border(lab):
    job = lab.popen(*submitted("jobs.sweep", f"{lab.folder}/sweep.toml"))
    out, told = job.communicate(timeout=600)
    assert "held back, inside: r2" in out, told[-2000:]


def test_a_burst_runs_over_the_border_and_what_the_public_side_holds_meanwhile_is_nothing_planted(lab):
    driver = lab.popen("python", "-c", HOLDING)
    worker = lab.at_work(word="fabric.burst")
    offers = lab.search.folder(lab.folder / ".fabric" / "border" / "offers")
    held = lab.search_public(worker)
    out, told = driver.communicate(timeout=600)
    assert re.fullmatch(r"total \d+\n", out), told[-2000:]
    assert held.hits == set()
    # What lies ready is, byte for byte, what crosses inside TLS.
    assert offers.searched_bytes > 10_000
    assert offers.hits == set()


def test_our_own_software_opened_the_listed_flows_and_no_other_and_nothing_of_it_was_dropped(lab):
    assert opened(lab) == set(OPENED_BY_OURS)
    for flow, side in OPENED_BY_OURS.items():
        namespaces = {"private": lab.pair.private, "public": lab.pair.public}
        assert counted(namespaces[side])["output", flow] > 0
        assert counted(namespaces[{"private": "public", "public": "private"}[side]])["input", flow] > 0
    assert dropped(lab) == {}


def test_whoever_holds_the_public_machine_with_all_its_credentials_reaches_nothing_inside(lab):
    state = lab.state
    ports = {
        "gcs": int(state["gcs_address"].rpartition(":")[2]),
        "jobs": int(state["dashboard_url"].rpartition(":")[2]),
        **{f"port {port}": port for port in _listening(lab)},
    }
    node = lab.public_node
    inside = ["nsenter", f"--net=/proc/{node['pid']}/ns/net", f"--mount=/proc/{node['pid']}/ns/mnt", "env", "-i"]
    settings = [f"{name}={value}" for name, value in psutil.Process(node["pid"]).environ().items()]
    words = [state["nodes"][0]["address"], str(lab.folder), str(lab.folder / "people.csv"), json.dumps(ports)]
    done = subprocess.run(
        [*inside, *settings, sys.executable, str(HOSTILE), *words], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tries = json.loads(done.stdout.splitlines()[-1])
    assert len(tries) > 18
    assert {name: ended for name, ended in tries.items() if "REACHED" in ended} == {}
    assert dropped(lab)["public output"] > 10
    # The border is up, and wrote down what was tried at it.
    refusals = [
        r["body"] for r in lab.evidence() if r["action"] == "refusal" and r["body"]["what"].startswith("border:")
    ]
    assert "TOKEN_INVALID" in {body["code"] for body in refusals}
    assert {body["zone"] for body in refusals} == {"public"}
    assert lab.run("python", "-c", BURST).stdout.splitlines()[-1].startswith("rows ")


def _listening(lab) -> list[int]:
    """Return every port that something listens at in the private zone, but the border's."""
    out = lab.pair.private.run("ss", "-Hltn").stdout
    ports = {int(line.split()[3].rpartition(":")[2]) for line in out.splitlines()}
    return sorted(ports - {int(lab.state["border_address"].rpartition(":")[2])})


def test_a_link_that_is_cut_for_good_while_a_burst_crosses_ends_in_a_clean_failure(lab):
    driver = lab.popen("python", "-c", BURST)
    assert any(line == "crossing\n" for line in driver.stdout)
    with lab.pair.cut_for(1):
        out, told = driver.communicate(timeout=600)
    assert out == "refused REMOTE_FAILED\n", told[-2000:]


def test_a_public_cluster_that_is_killed_while_it_trains_costs_nothing_that_had_come_back(lab):
    job, seen, killed = lab.popen(*submitted("jobs.train", lengthened(lab, 3000, max_failures=1))), [], False
    for line in job.stdout:
        seen.append(line)
        if line.startswith("epoch 40:"):
            for process in lab.public_processes():
                with suppress(psutil.Error):  # one that has lost its raylet ends by itself
                    process.send_signal(signal.SIGKILL)
            killed = True
    assert job.wait(timeout=600) != 0
    assert killed
    assert "Code: REMOTE_FAILED" in "".join(seen)
    records = lab.evidence()
    last = [r["body"] for r in records if r["action"] == "return" and r["body"].get("kind") == "checkpoint"]
    assert last, "the last checkpoint did not pass quarantine"


def test_after_all_that_the_evidence_is_whole_and_no_crossing_is_open(lab):
    lab.run("fabric", "evidence", "--save", "evidence.json")
    assert "Verified" in lab.run("fabric", "verify", "evidence.json").stdout
    assert json.loads(lab.run("fabric", "evidence", "reconcile", "--json").stdout) == []
    border = lab.folder / ".fabric" / "border"
    assert [path for name in ("offers", "inbox") for path in (border / name).iterdir()] == []
    records = lab.evidence()
    crossed = {r["body"]["crossing"] for r in records if r["action"] == "crossing" and r["phase"] == "intent"}
    closed = {r["body"]["crossing"] for r in records if r["action"] == "crossing" and r["phase"] == "observation"}
    assert len(crossed) >= 6
    assert closed == crossed


def test_nothing_planted_lies_outside_or_crossed_the_link_in_all_that(lab):
    outside, wire = lab.search_public(), lab.search_wire()
    assert outside.hits == set()
    assert wire.hits == set()
    assert sum(stream.gaps for stream in lab.shipped) == 0
    assert wire.searched_bytes > 100_000


def test_the_firewall_of_the_table_drops_what_it_does_not_list():
    from fabric.flows import load, nftables

    with joined() as pair:
        addresses = {"private": pair.private.address, "public": pair.public.address}
        for side, namespace in (("private", pair.private), ("public", pair.public)):
            namespace.firewall(nftables(load(), Topology.FEDERATED, side, addresses, {}))
        listed = {("private", 8265), ("public", 8815)}
        probe = "import socket; socket.create_connection(('{}', {}), {})"
        refused = {
            (side, port): subprocess.run(
                # What is listed answers, however late; of what is dropped nothing comes to wait for.
                [
                    *namespace.enter,
                    sys.executable,
                    "-c",
                    probe.format(other, port, 60 if (side, port) in listed else 1),
                ],
                capture_output=True,
                text=True,
            ).stderr.splitlines()[-1]
            for side, namespace, other in (
                ("private", pair.private, pair.public.address),
                ("public", pair.public, pair.private.address),
            )
            for port in (22, 6379, 8265, 8815)
        }
        ways = {place for place, told in refused.items() if "refused" in told}  # reached: nobody listens there
        assert ways == listed
        assert sum(counted(pair.public)["output", "dropped"] for _ in range(1)) > 0
