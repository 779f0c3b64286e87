"""The flows table: what is wrong in it is refused, and what is made of it says the same everywhere."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fabric import flows
from fabric.errors import InvalidInput, Reason

ROOT = Path(__file__).parent.parent
ZONES = {"private": "10.99.0.1", "public": "10.99.0.2"}

GOOD = """
[ports.gcs]
port = "6379"
flags = ["port"]
[ports.workers]
port = "10002-10999"
flags = ["min-worker-port", "max-worker-port"]
[[flows]]
name = "in"
topologies = ["stretched"]
from = "public.worker"
to = "private.head"
ports = ["gcs"]
reason = "it registers"
"""
AGAIN = GOOD[GOOD.index("[[flows]]") :]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("public.worker", "pubic.worker", "did you mean 'public.worker'"),
        ("public.worker", "public.gateway", "unknown party"),
        ("private.head", "postgres", "did you mean 'postgresql'"),
        ('ports = ["gcs"]', 'ports = ["gsc"]', "did you mean 'gcs'"),
        ('ports = ["gcs"]', "ports = []", "ports"),
        ('"6379"', '"0"', "1 to 65535"),
        ('"6379"', '"70000"', "1 to 65535"),
        ('"10002-10999"', '"10999-10002"', "1 to 65535"),
        ('"10002-10999"', '"10002"', "2 flags"),
        ('"6379"', '"10500"', "overlap"),
        ('reason = "it registers"', 'reason = "  "', "gives no reason"),
        ('reason = "it registers"', "", "reason"),
        ('"stretched"', '"meshed"', "topologies"),
        ('name = "in"', 'name = "in\\" drop"', "lower-case"),
        (AGAIN, AGAIN + AGAIN, "same name twice"),
        (AGAIN, AGAIN + AGAIN.replace('"in"', '"again"'), "same way twice"),
    ],
)
def test_a_table_that_is_wrong_is_refused_and_says_what_is_right(old, new, says):
    assert old in GOOD
    with pytest.raises(InvalidInput, match=re.escape(says)) as refused:
        flows.read(GOOD.replace(old, new))
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_an_unknown_key_is_refused():
    with pytest.raises(InvalidInput) as refused:
        flows.read(GOOD.replace("reason =", "why ="))
    assert refused.value.reason is Reason.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("side", "addresses", "ports"),
    [
        ("pubic", ZONES, {}),
        ("edge", ZONES, {}),
        ("private", {**ZONES, "witnes": "10.0.0.3"}, {}),
        ("private", {**ZONES, "public": "10.0.0.2; }"}, {}),
        ("private", ZONES, {"bordr": 1234}),
        ("private", ZONES, {"border": 0}),
        ("private", ZONES, {"border": (9, 8)}),
    ],
)
def test_a_firewall_for_unknown_sides_addresses_or_ports_is_refused(side, addresses, ports):
    with pytest.raises(InvalidInput) as refused:
        flows.nftables(flows.load(), "federated", side, addresses, ports)
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_between_two_clusters_there_is_one_way_in_and_one_way_out():
    crossing = [
        (flow.name, str(flow.source), str(flow.target), [port.name for port in flow.ports])
        for flow in flows.in_topology(flows.load(), "federated")
        if flow.source.kind and flow.target.kind and flow.source.kind is not flow.target.kind
    ]
    assert crossing == [
        ("jobs-out", "private.ray", "public.head", ["jobs"]),
        ("border-in", "public.ray", "private.border", ["border"]),
    ]


def test_nothing_outside_reaches_the_jobs_api_or_a_service_of_the_private_zone():
    inward = [flow for flow in flows.load() if flow.source.kind and flow.source.kind.value != "private"]
    assert not [f.name for f in inward if any(p.name in ("jobs", "agent", "postgresql", "redis") for p in f.ports)
                and f.target.kind != f.source.kind]  # fmt: skip


def test_every_port_that_ray_would_choose_itself_is_pinned():
    chosen_by_ray = {
        "node-manager-port", "object-manager-port", "min-worker-port", "max-worker-port", "metrics-export-port",
        "runtime-env-agent-port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port",
    }  # fmt: skip
    assert set(flows.ray_start_params(flows.ports(), head=False)) == chosen_by_ray
    assert set(flows.ray_start_params(flows.ports(), head=True)) == {*chosen_by_ray, "port", "dashboard-port"}


def test_ray_start_knows_every_flag_that_pins_a_port():
    from ray.scripts.scripts import start

    known = {word.removeprefix("--") for option in start.params for word in option.opts}
    assert set(flows.ray_start_params(flows.ports(), head=True)) <= known


def rules(topology, side, **ports):
    text = flows.nftables(flows.load(), topology, side, ZONES, ports)
    chains = dict(re.findall(r"chain (\w+) \{\n(.*?)\n  \}", text, re.S))
    rule = re.compile(r'^ +ip saddr (\S+) ip daddr (\S+) tcp dport \{ (.*) \} counter accept comment "(.*)"$', re.M)
    return {name: rule.findall(body) for name, body in chains.items()}


def test_the_firewall_of_two_clusters_opens_two_ports():
    inside, outside = rules("federated", "private", border=7001), rules("federated", "public", border=7001)
    border, jobs = ("10.99.0.2", "10.99.0.1", "7001", "border-in"), ("10.99.0.1", "10.99.0.2", "8265", "jobs-out")
    assert inside == {"input": [border], "output": [jobs], "forward": []}
    assert outside == {"input": [jobs], "output": [border], "forward": []}


def test_the_firewall_of_one_cluster_opens_rays_ports_both_ways():
    inside = rules("stretched", "private")
    assert [row[3] for row in inside["input"]] == ["gcs-in", "ray-in"]
    assert [row[3] for row in inside["output"]] == ["ray-out"]
    assert "10002-10999" in inside["input"][1][2]


def test_every_rule_of_the_firewall_counts_and_every_chain_drops_by_default():
    text = flows.nftables(flows.load(), "federated", "private", {**ZONES, "dns": "10.99.0.3"}, {})
    lines = [line.strip() for line in text.splitlines()]
    assert sum("policy drop;" in line for line in lines) == 3
    acting = [line for line in lines if re.search(r"\b(accept|drop)\b", line) and "policy" not in line]
    assert all("counter" in line and 'comment "' in line for line in acting)
    assert sum('comment "private-dns"' in line for line in acting) == 2  # udp and tcp


@pytest.mark.parametrize("topology", ["federated", "stretched"])
@pytest.mark.parametrize("addresses", [ZONES, {"private": "fd00::1", "public": "fd00::2"}])
def test_nft_takes_the_firewall(topology, addresses):
    if not shutil.which("nft") or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("no nft, or no network namespaces here")
    for side in addresses:
        text = flows.nftables(flows.load(), topology, side, addresses, {})
        done = subprocess.run(["unshare", "--net", "nft", "-f", "-"], input=text, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_the_table_in_the_readme_is_the_table():
    text = (ROOT / "clusters" / "README.md").read_text()
    assert text.split("<!-- flows -->\n")[1].split("<!-- end of flows -->")[0] == flows.markdown(flows.load())
