"""What another zone's cluster says counts as one bounded word, and what its jobs return as bounded files."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import fabric.outside_jobs as outside_jobs
from fabric.artifacts import digest
from fabric.deliveries import Answer, Deliveries, only_answer, read_outcomes, read_report
from fabric.errors import ClusterUnavailable, InvalidInput, Reason, RemoteFailure
from fabric.inbox import FORGOTTEN_S, Declared, Inbox
from fabric.learning import CHECKPOINT_FILES
from fabric.outside_jobs import JobState, OutsideJobs, job_id
from fabric.results import decode
from fabric.specs import SearchSpace, SweepSpec, TrainingSpec, sweep_form
from fabric.stores import Home

CROSSING = "c" * 32
CHECKPOINT = dict.fromkeys(CHECKPOINT_FILES, b"x")


@contextmanager
def served(answer):
    """Serve a jobs API whose every answer is `answer(handler)`, and yield it and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def _asked(self):
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, dict(self.headers), content))
            answer(self)

        do_GET = do_POST = _asked  # noqa: N815 - what the server calls

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield OutsideJobs(zone="public", url=f"http://127.0.0.1:{server.server_port}", token="of-that-cluster"), asked
    finally:
        server.shutdown()
        server.server_close()


def says(content, status=200, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"status": 1}', b'{"status": "RUNNING", "status": "FAILED"}', b"[" * 200_000, b"NaN",
     b'{"status": "MOCKERY"}', b"x" * (outside_jobs.MOST_BYTES + 2)],
)  # fmt: skip
def test_an_answer_that_is_no_plain_word_is_no_state(content):
    with served(says(content)) as (jobs, _):
        assert state_or_failure(jobs) in (JobState.UNKNOWN, Reason.REMOTE_FAILED)


def state_or_failure(jobs):
    try:
        return jobs.state(job_id(CROSSING))
    except RemoteFailure as error:
        return error.reason


@contextmanager
def answered(start, piece=b"", most=0):
    """Serve one raw answer that begins with `start` and goes on with `piece`s; yield the API and how much went."""
    went = [0]

    def talk(server):
        line, _ = server.accept()
        with line, suppress(OSError):
            line.recv(65_536)
            line.sendall(start)
            while went[0] < most:
                line.sendall(piece)
                went[0] += len(piece)

    with socket.create_server(("127.0.0.1", 0)) as server:
        talker = threading.Thread(target=talk, args=(server,), daemon=True)
        talker.start()
        yield OutsideJobs(zone="public", url=f"http://127.0.0.1:{server.getsockname()[1]}", token="of-it"), went
        talker.join()


@pytest.mark.parametrize("size", [b"-5", b"-1", b"-100000", b"zz", b"ffffffffffffffff"])
def test_a_chunk_of_a_size_that_is_none_is_a_failure(size):
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nabc"
    with answered(start) as (jobs, _), pytest.raises(RemoteFailure):
        jobs.state(job_id(CROSSING))


@pytest.mark.parametrize("size", [b"-1", b"fffffffffff"])
def test_an_answer_in_chunks_is_read_no_further_than_may_be(size):
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\n"
    with answered(start, bytes(65_536), 256 << 20) as (jobs, went), pytest.raises(RemoteFailure):
        jobs.state(job_id(CROSSING))
    assert went[0] < 64 << 20  # what lies in the system's buffers on the way is not ours to bound


def test_an_honest_answer_in_chunks_is_read():
    start = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{"status": "\r\n9\r\nRUNNING"}\r\n0\r\n\r\n'
    with answered(start) as (jobs, _):
        assert jobs.state(job_id(CROSSING)) is JobState.RUNNING


def test_a_redirection_is_not_followed_and_the_token_goes_nowhere_else():
    with (
        served(says(b'{"status": "SUCCEEDED"}')) as (elsewhere, asked_elsewhere),
        served(says(b"", 302, Location=elsewhere.url)) as (jobs, _),
        pytest.raises(RemoteFailure),
    ):
        jobs.state(job_id(CROSSING))
    assert asked_elsewhere == []


def test_an_answer_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr(outside_jobs, "CALL_S", 0.5)

    def drips(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while True:
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    with served(drips) as (jobs, _), pytest.raises(RemoteFailure):
        jobs.state(job_id(CROSSING))


def test_nobody_there_is_a_failure_that_names_the_zone_and_not_the_token():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    jobs = OutsideJobs(zone="public", url=f"http://127.0.0.1:{port}", token="of-that-cluster")
    with pytest.raises(RemoteFailure, match="'public'") as caught:
        jobs.state(job_id(CROSSING))
    assert "of-that-cluster" not in f"{caught.value} {jobs!r}"


def test_a_job_that_was_started_before_is_not_an_error():
    def answer(handler):
        says(b"taken", 500)(handler) if handler.command == "POST" else says(b'{"status": "RUNNING"}')(handler)

    with served(answer) as (jobs, asked):
        jobs.submit(job_id(CROSSING), {"FABRIC_ORDER": "{}"})
    told = json.loads(asked[0][3])
    assert told["submission_id"] == f"fabric-{CROSSING}"
    assert "working_dir" not in told["runtime_env"]
    assert asked[0][2]["Authorization"] == "Bearer of-that-cluster"


def test_a_job_that_the_cluster_refuses_is_an_error():
    with served(says(b"no", 403)) as (jobs, _), pytest.raises(ClusterUnavailable, match="refused the job"):
        jobs.submit(job_id(CROSSING), {})


# Deliveries.


@pytest.fixture
def inbox(tmp_path):
    return Inbox.of(Home.open(tmp_path / "home"), most=1 << 30)


def returned(inbox, slot, files):
    """Return files as the border service lands them."""
    declared = {name: Declared(name=name, size=len(each), digest=digest(each)) for name, each in files.items()}
    for name, content in files.items():
        if content:
            inbox.put(CROSSING, declared[name], 0, memoryview(content))
    inbox.commit(CROSSING, slot, declared, lambda path: digest(path.read_bytes()))


def taken(inbox, tmp_path):
    return list(Deliveries(inbox, CROSSING, tmp_path / "outbox").take())


def report(**changes):
    told = {"epoch": 2, "training": 0.5, "validation": 0.5, "files": dict.fromkeys(CHECKPOINT_FILES, "sha256:0")}
    return json.dumps({**told, **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [report(epoch=1), report(epoch=5), report(epoch=True), report(epoch="2"), report(files={}),
     report(training="x"), report(training="nan"), report(training=True),
     report(files=dict.fromkeys(CHECKPOINT_FILES, "x" * 1000)), b"[]", b"", b'{"epoch": 2, "epoch": 3}',
     report().replace(b"0.5", b"NaN", 1), report().replace(b"0.5", b"1e999", 1)],
)  # fmt: skip
def test_a_report_that_is_none_is_refused(inbox, tmp_path, content):
    returned(inbox, 0, {**CHECKPOINT, "progress.json": content})
    (delivery,) = taken(inbox, tmp_path)
    with pytest.raises(InvalidInput) as caught:
        read_report(delivery, TrainingSpec(epochs=4), after=1)
    assert caught.value.reason is Reason.RESULT_REFUSED


def test_a_report_is_read_and_names_the_folder_in_the_outbox(inbox, tmp_path):
    returned(inbox, 0, {**CHECKPOINT, "progress.json": report()})
    (delivery,) = taken(inbox, tmp_path)
    found = read_report(delivery, TrainingSpec(epochs=4), after=1)
    assert (found.epoch.epoch, found.folder) == (2, str(tmp_path / "outbox" / "000000"))
    assert inbox.deliveries(CROSSING) == {}


@pytest.mark.parametrize(
    "told",
    [{"ended": 3}, {"ended": -1}, {"ended": True}, {}, [],
     {"ended": 2, "validation": [0.1], "best": 0}, {"ended": 2, "validation": "ab", "best": 0},
     {"ended": 2, "validation": [[], {}], "best": 0}, {"ended": 2, "validation": ["nan", 1], "best": 0}],
)  # fmt: skip
@pytest.mark.parametrize("last", [True, False])
def test_the_outcome_of_a_sweep_that_is_none_is_refused(inbox, tmp_path, told, last):
    if not last and isinstance(told, dict) and "validation" in told:
        pytest.skip("only the last says how each trial did")
    answer = {"answer.json": b'{"kind": "done"}'} if last else {}
    returned(inbox, 0, {"progress.json": json.dumps(told).encode(), **answer})
    (delivery,) = taken(inbox, tmp_path)
    with pytest.raises(InvalidInput):
        read_outcomes(delivery, trials=2)


@pytest.mark.parametrize("content", [b'{"kind": "pickle"}', b"{}", b"[]", b'{"kind": {"a": 1}}', b""])
def test_an_answer_of_another_kind_is_refused(inbox, tmp_path, content):
    returned(inbox, 0, {"answer.json": content, "content": b"1"})
    with pytest.raises(InvalidInput):
        taken(inbox, tmp_path)


def test_what_comes_of_a_burst_beside_its_answer_is_refused(inbox, tmp_path):
    returned(inbox, 0, {"progress.json": b"{}", "model.safetensors": b"x" * 1000})
    (delivery,) = taken(inbox, tmp_path)
    with pytest.raises(InvalidInput):
        only_answer(delivery)


def test_an_answer_is_decoded_as_that_of_a_stretched_cluster_is(inbox, tmp_path):
    returned(inbox, 0, {"answer.json": b'{"kind": "json"}', "content": b'{"rows": 7}'})
    (delivery,) = taken(inbox, tmp_path)
    assert isinstance(delivery, Answer)
    assert decode(delivery.parts()) == {"rows": 7}


def test_an_answer_without_content_is_refused(inbox, tmp_path):
    returned(inbox, 0, {"answer.json": b'{"kind": "json"}'})
    (delivery,) = taken(inbox, tmp_path)
    with pytest.raises(InvalidInput):
        delivery.parts()


def test_deliveries_are_taken_in_order_and_none_before_its_turn(inbox, tmp_path):
    returned(inbox, 1, {"progress.json": b"1"})
    deliveries = Deliveries(inbox, CROSSING, tmp_path / "outbox")
    assert list(deliveries.take()) == []
    returned(inbox, 0, {"progress.json": b"0"})
    assert [each.read("progress.json") for each in deliveries.take()] == [b"0", b"1"]
    assert list(deliveries.take()) == []


def test_a_delivery_that_was_taken_before_its_sender_heard_of_it_is_not_refused_when_it_is_sent_again(inbox, tmp_path):
    files = {"progress.json": b"0", "model.safetensors": b"weights"}
    declared = {name: Declared(name=name, size=len(each), digest=digest(each)) for name, each in files.items()}
    returned(inbox, 0, files)
    deliveries = Deliveries(inbox, CROSSING, tmp_path / "outbox")
    assert len(list(deliveries.take())) == 1
    # The answer to the commit was lost with the link, so the sender says it again.
    inbox.commit(CROSSING, 0, declared, lambda path: digest(path.read_bytes()))
    assert list(deliveries.take()) == []
    assert inbox.deliveries(CROSSING) == {}
    returned(inbox, 1, {"progress.json": b"1"})
    assert [each.read("progress.json") for each in deliveries.take()] == [b"1"]


def test_another_delivery_under_a_number_that_was_taken_is_refused(inbox, tmp_path):
    for slot in range(2):
        returned(inbox, slot, {"progress.json": b"%d" % slot})
    assert len(taken(inbox, tmp_path)) == 2
    for slot in range(2):
        with pytest.raises(InvalidInput) as caught:
            returned(inbox, slot, {"progress.json": b"other"})
        assert caught.value.reason is Reason.RESULT_REFUSED
    assert inbox.deliveries(CROSSING) == {}


KILLED = """
import os, shutil, sys
from pathlib import Path
from fabric.artifacts import digest
from fabric.inbox import FORGOTTEN_S, Declared, Inbox

inbox, left = Inbox(Path(sys.argv[1]), 1 << 30), int(sys.argv[2])

def dies(does):
    def does_or_dies(*given, **named):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return does(*given, **named)
    return does_or_dies

files = {"model.safetensors": b"weights", "chunk-000000": b"twice", "chunk-000001": b"twice", "state.json": b""}
declared = {name: Declared(name=name, size=len(each), digest=digest(each)) for name, each in files.items()}
for name, content in files.items():
    if content and not inbox.landed(sys.argv[3], declared[name]):
        inbox.put(sys.argv[3], declared[name], 0, memoryview(content))
Path.rename, Path.write_bytes, Path.mkdir = dies(Path.rename), dies(Path.write_bytes), dies(Path.mkdir)
shutil.copyfile = dies(shutil.copyfile)
inbox.commit(sys.argv[3], 0, declared, lambda path: digest(path.read_bytes()))
"""


def test_a_delivery_that_a_kill_cut_into_at_any_step_is_whole_once_its_sender_commits_it_again(inbox, tmp_path):
    files = {"model.safetensors": b"weights", "chunk-000000": b"twice", "chunk-000001": b"twice", "state.json": b""}
    declared = {name: Declared(name=name, size=len(each), digest=digest(each)) for name, each in files.items()}
    cut = 0
    while True:
        words = [sys.executable, "-c", KILLED, str(inbox.folder), str(cut), CROSSING]
        status = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode
        inbox.commit(CROSSING, 0, declared, lambda path: digest(path.read_bytes()))
        (folder,) = inbox.deliveries(CROSSING).values()
        assert {name: (folder / name).read_bytes() for name in files} == files
        inbox.discard(CROSSING)
        if status == 0:
            break
        assert status == 9
        cut += 1
    assert cut > 5


def test_what_nobody_took_of_a_crossing_that_is_over_goes_in_time(inbox):
    returned(inbox, 0, {"progress.json": b"0"})
    inbox.put(CROSSING, Declared(name="state.json", size=2, digest=digest(b"{}")), 0, memoryview(b"{"))
    moment = time.time()
    inbox.clear(lambda crossing: True, now_s=moment + 10**6)
    assert inbox.size_bytes(CROSSING) > 2
    inbox.clear(lambda crossing: False, now_s=moment)
    assert list(inbox.deliveries(CROSSING)) == [0]  # whoever waits for it may be about to take it
    inbox.clear(lambda crossing: False, now_s=moment + FORGOTTEN_S + 60)
    assert list(inbox.folder.iterdir()) == []


def test_what_is_taken_while_the_inbox_is_measured_is_no_error(inbox, tmp_path):
    done = threading.Event()

    def take():
        deliveries = Deliveries(inbox, CROSSING, tmp_path / "outbox")
        while not done.is_set():
            for each in deliveries.take():
                shutil.rmtree(each.folder)

    taker = threading.Thread(target=take)
    taker.start()
    try:
        for slot in range(400):
            returned(inbox, slot, {"progress.json": b"%d" % slot, "chunk-000000": b"x"})
            for _ in range(20):
                assert inbox.size_bytes(CROSSING) >= 0
    finally:
        done.set()
        taker.join()


def test_a_sweep_that_holds_more_than_its_spec_does_not_cross():
    class Mine(SearchSpace):
        note: str = "zyxwanda.quorvex@planted.example"

    with pytest.raises(InvalidInput):
        sweep_form(SweepSpec.model_construct(training=TrainingSpec(), search=Mine(), concurrent=1))
    spec = SweepSpec(search=SearchSpace(learning_rate=[0.1, 0.2]))
    assert SweepSpec.model_validate(sweep_form(spec)) == spec
