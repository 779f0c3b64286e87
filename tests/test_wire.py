"""Two zones in two network namespaces: what crosses their link, and what the public side holds.

First the harness shows that it can fail: with the border off it finds the planted values in every form. Then the main
job, a sweep, the ways of attack, and a link that breaks: not one hit.
"""

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("hyperscan", reason="the search needs hyperscan (extra `test`)")
from attacks.ways import LIVE
from wire.capture import flows, messages
from wire.lab import living
from wire.namespaces import joined, missing
from wire.planted import KINDS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing() or "namespaces can be made here"),
]

HERE = Path(__file__).parent / "wire"
FORMS = {
    *("csv", "utf-16", "base64", "hex", "gzip", "json", "pickle", "rows", "arrow None", "arrow lz4", "arrow zstd"),
    *("parquet none", "parquet snappy", "parquet gzip", "parquet zstd"),
}
OUTCOMES = {
    "closure_over_the_records": "CAPSULE_CAPTURES_DATA",
    "default_argument": "CAPSULE_IDENTIFIER",
    "class_attribute": "CAPSULE_CAPTURES_DATA",
    "parameter": "PARAMETERS_REFUSED",
    "network_with_a_raw_layer": "CAPSULE_CAPTURES_DATA",
    "justification": "ran",
    "task_and_actor_names_inside": "ran",
    "exception_inside": "RayTaskError(ValueError)",
    "print_and_log_inside": "ran",
    "objects_put_inside": "ran",
    "plain_tasks": "ran",
    "metric_labels": "ran",
    "environment_and_thread_names": "ran",
    "exception_of_the_work_outside": "REMOTE_FAILED",
    "result_too_odd_to_return": "RESULT_REFUSED",
}
"""What each way ends in. Those that run use the private zone as they may; what they touch must stay there."""

HOLDING = """
import fabric
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    def add(table, rounds):
        total = 0
        for _ in range(rounds):
            total += table.column("income").to_numpy().sum() % 7
        return int(total)
    print("total", session.burst(add, matrix, justification="test", rounds=400_000))
"""

BURST = """
import fabric
from fabric.errors import FabricError
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    print("crossing", flush=True)
    try:
        print("rows", session.burst(lambda table: table.num_rows, matrix, justification="test"))
    except FabricError as error:
        print("refused", error.reason)
"""


def submitted(module: str, file: str) -> list[str]:
    return [
        *("ray", "job", "submit", "--entrypoint-resources", '{"zone_private": 0.001}'),
        *("--metadata-json", '{"purpose": "cost-forecast"}', "--", sys.executable, "-m", module, file),
    ]


def test_namespaces_are_gone_afterwards_and_a_cut_link_carries_nothing():
    with joined() as pair:
        assert "refused" in _error(pair, patience_s=60)
        pair.cut()
        assert "timed out" in _error(pair, patience_s=1)
        pair.heal()
        assert "refused" in _error(pair, patience_s=60)
        names = {pair.private.name, pair.public.name}
        assert names <= {path.name for path in Path("/run/netns").iterdir()}
    assert names.isdisjoint(path.name for path in Path("/run/netns").iterdir())


def _error(pair, *, patience_s: float) -> str:
    """Return how it ends when the private side calls the public one, where nobody listens."""
    probe = f"import socket; socket.create_connection(('{pair.public.address}', 9), {patience_s})"
    command = [*pair.private.enter, sys.executable, "-c", probe]
    return subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]


def test_with_the_border_off_every_form_is_found_on_the_wire_and_outside(tmp_path):
    with living(tmp_path) as lab:
        driver = lab.popen("python", str(HERE / "unguarded.py"))
        lines = iter(driver.stdout)
        assert any(line == "held\n" for line in lines)
        planted = _planted_in_every_folder(lab)
        outside = lab.search_public()
        _, told = driver.communicate(timeout=600)
        assert "UnsafeBorderWarning: UnsafeBorder: the border is OFF" in told
        (recorded,) = [entry for entry in lab.evidence() if entry["action"] == "unsafe-border"]
        assert len(recorded["body"]["subjects"]) == len(FORMS)
        on_the_wire = lab.search_wire()
        found = {}
        for stream in lab.shipped:
            for message in messages(stream.content):
                for form in re.findall(rb"form: ([^;]+);", message):
                    found.setdefault(form.decode(), set()).update(lab.search.content(message, "").columns())
    assert found == {form: set(KINDS) for form in FORMS}
    places = {hit.place.removeprefix("attribute of ").partition(" > ")[0] for hit in outside.hits}
    assert planted - places == set()
    assert any(place.startswith("memory of ") for place in places)
    assert on_the_wire.columns() == outside.columns() == set(KINDS)
    assert {"utf-8", "utf-16-le", "int64 le", "float64 le", "pickle long"} & {hit.encoding for hit in outside.hits}


def _planted_in_every_folder(lab) -> set[str]:
    """Leave values where a node might: logs, spilled objects, its home, the outbox, shared memory, an attribute."""
    value = lab.planted.rows[0]["notes"]
    temp, outbox, shared = lab.public_folders()
    session = (temp / "r" / "session_latest").resolve()
    contents = {
        session / "logs" / "worker-0.out": value.encode(),
        session / "ray_spilled_objects_0" / "object": gzip.compress(value.encode("utf-16")),
        temp / ".cache" / "kept": base64.b64encode(value.encode()),
        outbox / "result": zlib.compress(value.encode().hex().encode()),
        shared / "segment": value.encode("utf-16-le"),
        outbox / "innocent": b"",
    }
    for path, content in contents.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    os.setxattr(outbox / "innocent", "user.kept", value.encode())
    return {str(path) for path in contents}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with living(tmp_path_factory.mktemp("wire")) as made:
        yield made


def test_the_public_side_can_write_nowhere_but_where_the_search_looks(lab):
    node = lab.public_node
    places = [words.split()[1] for words in Path(f"/proc/{node['pid']}/mounts").read_text().splitlines()]
    writable = [
        *(place for place in places if not place.startswith(("/proc", "/sys", "/dev/pts"))),
        *(str(folder) for folder in (lab.folder, HERE, Path.home(), Path(sys.prefix), Path("/tmp"), Path("/var/tmp"))),
    ]
    told = _told_inside(node, "sh", "-c", _TRY_TO_WRITE, "sh", *writable)
    assert set(told) == {node["temp"], str(lab.outbox), "/dev/shm"}


def test_the_public_side_reaches_neither_the_records_nor_a_socket_of_ray_at_the_head(lab):
    head = next(node for node in lab.state["nodes"] if node["zone"] == "private")
    find = "find", f"{head['temp']}/r/", "-type", "s"  # Ray's folder; a listener of multiprocessing lies beside it
    assert subprocess.run(find, capture_output=True, text=True, check=True).stdout
    assert _told_inside(lab.public_node, *find) == []
    assert _told_inside(lab.public_node, "cat", str(lab.folder / "people.csv")) == []


def _told_inside(node, *command: str) -> list[str]:
    inside = ["nsenter", f"--mount=/proc/{node['pid']}/ns/mnt", *command]
    return subprocess.run(inside, capture_output=True, text=True, check=True).stdout.split()


_TRY_TO_WRITE = """
for place in "$@"; do (: > "$place/tried") 2>/dev/null && rm "$place/tried" && echo "$place"; done; true
"""


def test_the_main_job_comes_back_though_the_link_is_cut_in_the_middle_of_its_training(lab):
    text = (lab.folder / "train.toml").read_text()
    text = text.replace("epochs = 20", "epochs = 120").replace("checkpoint_every = 5", "checkpoint_every = 20")
    (lab.folder / "train.toml").write_text(text)
    job, seen, held = lab.popen(*submitted("jobs.train", f"{lab.folder}/train.toml")), [], None
    for line in job.stdout:
        seen.append(line)
        if line.startswith("epoch 40:"):
            with lab.pair.cut_for(8):
                held = lab.search_public()
    assert job.wait(timeout=600) == 0, "".join(seen)[-3000:]
    epochs = [int(number) for number in re.findall(r"^epoch (\d+):", "".join(seen), re.M)]
    assert epochs[-1] == 120
    assert epochs == sorted(set(epochs))
    assert "held back, inside: r2" in "".join(seen)
    assert len(list((lab.folder / ".fabric" / "models").iterdir())) == 1
    # Searched while the workers outside hold the matrix, the network and its optimiser.
    assert held.hits == set()


def test_a_sweep_runs_over_the_link(lab):
    job = lab.popen(*submitted("jobs.sweep", f"{lab.folder}/sweep.toml"))
    held = lab.search_public(lab.at_work())
    out, told = job.communicate(timeout=600)
    assert "held back, inside: r2" in out, told[-2000:]
    assert held.hits == set()


def test_a_burst_runs_over_the_link(lab):
    driver = lab.popen("python", "-c", HOLDING)
    held = lab.search_public(lab.at_work())
    out, told = driver.communicate(timeout=600)
    assert re.fullmatch(r"total \d+\n", out), told[-2000:]
    assert held.hits == set()


def test_no_way_ends_but_as_it_should(lab):
    words = "python", str(HERE / "driving.py"), "all", *lab.planted.rows[-1].values()
    driver, told, held = lab.popen(*words, errors=subprocess.STDOUT), [], None
    for line in driver.stdout:
        told.append(line)
        if line == "held\n":
            held = lab.search_public()
            driver.stdin.close()
    assert driver.wait(timeout=600) == 0, "".join(told)[-3000:]
    outcomes = dict(json.loads(found) for found in re.findall(r"^way: (.*)$", "".join(told), re.M))
    assert {name: outcomes.get(name) for name in OUTCOMES} == OUTCOMES
    ends = {way.id: _either(reason.value for reason in way.by) or {"ran"} for way in LIVE}
    assert {name: outcomes.get(name) for name, wanted in ends.items() if outcomes.get(name) not in wanted} == {}
    assert held.hits == set()


def _either(reasons) -> set[str]:
    """Take a value that looks like an identifier for data, and the other way: what was drawn may be either."""
    kinds = {"CAPSULE_CAPTURES_DATA", "CAPSULE_IDENTIFIER"}
    named = {*reasons}
    return named | kinds if kinds & named else named


def test_a_link_that_is_cut_while_a_burst_crosses_and_healed_ends_in_its_result_or_a_clean_refusal(lab):
    driver = lab.popen("python", "-c", BURST)
    assert any(line == "crossing\n" for line in driver.stdout)
    with lab.pair.cut_for(8):
        pass
    out, told = driver.communicate(timeout=600)
    assert re.fullmatch(r"rows 1\d\d\d\n|refused [A-Z_]+\n", out), told[-2000:]


def test_a_job_that_carries_records_in_its_working_directory_and_variables_is_refused_before_any_node_has_them(lab):
    carried = json.dumps({"env_vars": {"WHO": lab.planted.rows[0]["name"]}, "working_dir": str(lab.folder)})
    words = submitted("jobs.train", f"{lab.folder}/train.toml")
    done = lab.run(*words[:3], "--runtime-env-json", carried, *words[3:], check=False)
    assert done.returncode != 0
    assert "Code: WORKING_DIR_CARRIES_DATA" in done.stdout


def test_nothing_planted_lies_anywhere_on_the_public_side_after_all_that(lab):
    crossings = [entry for entry in lab.evidence() if entry["action"] == "crossing" and entry["phase"] == "intent"]
    assert len(crossings) >= 5
    found = lab.search_public()
    assert found.hits == set()
    assert found.unread == []
    assert found.searched_bytes > 100 << 20, "the processes outside were not read"
    print(f"{found.searched_bytes:,} bytes in {found.places:,} places")


def test_nothing_planted_crossed_the_link_in_all_that(lab):
    found = lab.search_wire()
    assert found.hits == set()
    assert sum(stream.gaps for stream in lab.shipped) == 0
    assert sum(len(messages(stream.content)) for stream in lab.shipped) > 100
    ends = {lab.pair.private.address, lab.pair.public.address}
    tcp = [flow for flow in flows(lab.shipped) if flow.protocol == "tcp"]
    assert {flow.client for flow in tcp} == {flow.server for flow in tcp} == ends
    print(
        "",
        *flows(lab.shipped),
        lab.capture.stop(),
        f"{found.searched_bytes:,} bytes in {found.places:,} places",
        sep="\n",
    )
