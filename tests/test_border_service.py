"""The border service: exactly what a crossing names, to exactly whom it names; and results back, unread."""

import hashlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psutil
import pyarrow
import pyarrow.flight
import pytest
from border_lab import BIN, FABRIC, Lab, lab
from hypothesis import given
from hypothesis import strategies as st

from fabric.border_client import BorderClient, BorderTicket, Papers
from fabric.border_process import standing
from fabric.border_refusals import Meter
from fabric.certificates import expires_at
from fabric.config import BorderTerms, load_config
from fabric.crossing import Cargo, admit
from fabric.errors import FabricError, Reason
from fabric.inbox import MAX_FILES
from fabric.matrix import SealedMatrix
from fabric.recording import now
from fabric.specs import MAX_TRIALS
from fabric.staging import Staging
from fabric.stores import Home
from fabric.tokens import read_token

MIB = 1024 * 1024


@pytest.fixture
def made(tmp_path):
    with lab(tmp_path) as one:
        yield one


@pytest.fixture
def spawned(tmp_path):
    with lab(tmp_path, spawned=True) as one:
        yield one


class Link:
    """A line to the service that can be cut, after so many bytes of the service's, or of the client's, or at once."""

    def __init__(self, port):
        self.port, self.after, self.then = port, None, lambda: None
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.passed, self.refuses, self.lines, self.counts_service = 0, False, [], True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        lines, self.lines = self.lines, []
        for line in lines:
            ended(line)

    def _accept(self):
        while True:
            try:
                near, _ = self.listening.accept()
                far = socket.create_connection(("127.0.0.1", self.port), 2)
            except OSError:
                if self.listening.fileno() < 0:
                    return
                near.close()
                continue
            if self.refuses:
                near.close()
                far.close()
                continue
            self.lines += [near, far]
            threading.Thread(target=self._pass, args=(near, far, not self.counts_service), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, self.counts_service), daemon=True).start()

    def _pass(self, source, target, counted):
        try:
            while content := source.recv(65_536):
                target.sendall(content)
                self.passed += len(content) if counted else 0
                if self.after is not None and self.passed >= self.after:
                    self.after = None
                    self.cut()
                    self.then()
        except OSError:
            pass
        for each in (source, target):
            ended(each)


def ended(line):
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()


@contextmanager
def linked(made, ticket):
    link = Link(made.port)
    try:
        yield link, replace(ticket, papers=replace(ticket.papers, address=link.address))
    finally:
        link.listening.close()
        link.cut()


def big(made):
    """Return a matrix of 32 MiB in four chunks."""
    return made.matrix(rows=4 * 524_288, chunk_rows=524_288)


def admitted(made, parcel):
    return admit(parcel, zone="public", trusted=made.ledger.keys, now=datetime.now(UTC))


def reason(caught):
    return caught.value.reason


def test_a_crossing_that_was_closed_is_not_served(made):
    ticket = made.export()
    made.carrier().close(ticket.crossing)
    with pytest.raises(FabricError) as caught:
        ticket.collect([0])
    assert reason(caught) is Reason.CROSSING_CLOSED


def test_a_crossing_whose_grant_has_ended_is_closed_and_its_files_go(tmp_path):
    made = Lab(tmp_path)
    ticket = made.export()
    assert made.staging.expire(now=now()) == []
    assert made.staging.expire(now=now() + timedelta(hours=2)) == [ticket.crossing]
    assert list(made.staging.folder.iterdir()) == []


def test_closing_a_crossing_ends_what_is_under_way(made):
    ticket = made.export(Cargo(matrix=big(made)))
    with linked(made, ticket) as (link, through):
        link.after, link.then = 2 * MIB, lambda: made.carrier().close(ticket.crossing)
        with pytest.raises(FabricError) as caught:
            through.collect([0, 1, 2, 3])
    assert reason(caught) is Reason.CROSSING_CLOSED


def test_an_offer_whose_receipt_was_changed_on_the_disk_is_not_served(made):
    ticket = made.export()
    path = made.staging.folder / ticket.crossing / "offer.json"
    told = json.loads(path.read_text())
    path.unlink()  # another file, as an editor would write it
    path.write_text(json.dumps({**told, "record": told["record"].replace('"public"', '"privat"')}))
    with pytest.raises(FabricError) as caught:
        ticket.collect([0])
    assert reason(caught) is Reason.EVIDENCE_INVALID


def test_a_file_changed_on_the_way_is_noticed_by_the_client(made):
    ticket = made.export()
    item = made.staging.find(ticket.crossing, now=now()).items["chunk-000001"]
    path = made.staging.folder / ticket.crossing / item.digest[7:]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert ticket.collect([0]).chunks
    with pytest.raises(FabricError) as caught:
        ticket.collect([0, 1])
    assert reason(caught) is Reason.DIGEST_MISMATCH


def test_a_service_that_is_not_there_is_given_up_after_the_clients_patience(made):
    ticket = made.export()
    made.stop()
    with pytest.raises(FabricError) as caught:
        BorderClient(ticket.papers, ticket.fetch, ticket.crossing, patience_s=1.0).parcel([0])
    assert reason(caught) is Reason.BORDER_UNREACHABLE


def test_a_crossing_is_fetched_and_admitted_with_all_that_goes_with_it(made):
    matrix = made.matrix()
    ticket = made.export(Cargo(matrix=matrix, parameters=b'{"depth":3}', checkpoint=made.checkpoint(matrix)))
    found = admitted(made, ticket.collect([0, 1, 2]))
    assert found.table.num_rows == 40
    assert found.parameters == b'{"depth":3}'
    assert set(found.checkpoint) == {"model.safetensors", "state.json"}


def test_a_ticket_travels_as_a_pickle_and_as_json_and_shows_no_secret(made):
    ticket = made.export()
    for copy in (pickle.loads(pickle.dumps(ticket)), BorderTicket.from_json(json.loads(json.dumps(ticket.to_json())))):
        assert copy == ticket
    assert not any(secret in repr(ticket) for secret in (ticket.fetch, ticket.give, ticket.papers.key))
    for told in ({}, {**ticket.papers.to_json(), "more": ""}):
        with pytest.raises(FabricError):
            Papers.from_json(told)


def test_many_workers_pull_their_own_chunks_at_once(made):
    matrix = made.matrix(rows=160_000, chunk_rows=10_000)
    ticket = made.export(Cargo(matrix=matrix))
    with ThreadPoolExecutor(8) as pool:
        parcels = list(pool.map(lambda rank: ticket.collect(range(rank, 16, 8)), range(8)))
    assert sum(admitted(made, parcel).table.num_rows for parcel in parcels) == 160_000
    assert {index: chunk for parcel in parcels for index, chunk in parcel.chunks.items()} == dict(
        enumerate(matrix.chunks)
    )


def test_chunks_in_files_are_laid_ready_without_a_copy(made):
    folder = made.folder / "sealed"
    folder.mkdir()
    matrix = made.matrix()
    for index, chunk in enumerate(matrix.chunks):
        (folder / f"chunk-{index:06d}").write_bytes(chunk)
    (folder / "statement.json").write_bytes(matrix.signed.envelope)
    ticket = made.export(Cargo(matrix=SealedMatrix.load(folder, trusted=made.ledger.keys)))
    assert {path.stat().st_nlink for path in folder.glob("chunk-*")} == {2}
    assert admitted(made, ticket.collect([0, 1, 2])).table.num_rows == 40


def test_what_is_returned_lies_in_the_inbox_as_it_was_sent(made, tmp_path):
    ticket = made.export()
    sent = hashlib.sha256(b"x").digest() * 100_000
    (tmp_path / "model").write_bytes(sent)
    ticket.deliver(3, {"model.safetensors": tmp_path / "model", "state.json": b"{}", "history.json": b""})
    ((slot, folder),) = made.inbox.deliveries(ticket.crossing).items()
    assert (slot, (folder / "model.safetensors").read_bytes()) == (3, sent)
    assert {path.stat().st_nlink for path in folder.iterdir()} == {1}  # as `read_bounded` asks
    assert made.inbox.declared(folder)["state.json"].size == 2
    made.inbox.discard(ticket.crossing, 3)
    assert made.inbox.deliveries(ticket.crossing) == {}


def test_a_delivery_of_as_many_files_as_may_be_comes_back(made):
    ticket = made.export()
    sent = {f"chunk-{index:06d}": b"%d" % index for index in range(MAX_FILES)}
    ticket.deliver(0, sent)
    (folder,) = made.inbox.deliveries(ticket.crossing).values()
    assert {name: (folder / name).read_bytes() for name in sent} == sent


def test_the_largest_sweep_is_fetched_by_each_of_its_trials_and_again_by_those_that_failed_once(tmp_path):
    (tmp_path / "fabric.toml").write_text(FABRIC)
    assert load_config(tmp_path / "fabric.toml").border == BorderTerms()
    assert BorderTerms().fetches >= 2 * MAX_TRIALS


class TakenFirst(list):
    """Idle connections, the last of which another thread takes between a look and a grasp."""

    def __bool__(self):
        return True


def test_a_connection_that_another_thread_took_first_is_made_anew(made):
    ticket = made.export()
    client = BorderClient(ticket.papers, ticket.fetch, ticket.crossing, streams=1)
    client._idle = TakenFirst()
    assert admitted(made, client.parcel([0, 1, 2])).table.num_rows == 40


def test_a_link_that_breaks_again_and_again_costs_no_byte_twice(made):
    ticket = made.export(Cargo(matrix=big(made)))
    with linked(made, ticket) as (link, through):

        def again():
            link.after = link.passed + 5 * MIB

        link.after, link.then = 5 * MIB, again
        parcel = through.collect([0, 1, 2, 3])
        passed = link.passed
    assert admitted(made, parcel).table.num_rows == 4 * 524_288
    # What was under way in buffers when the line was cut comes again; what had arrived does not.
    assert passed < 2 * 32 * MIB


def test_killed_in_the_middle_of_a_fetch_the_service_comes_back_and_the_client_goes_on(spawned):
    ticket = spawned.export(Cargo(matrix=big(spawned)))
    killed = spawned.serving
    with linked(spawned, ticket) as (link, through):
        link.after, link.then = 8 * MIB, killed.kill
        parcel = through.collect([0, 1, 2, 3])
    assert spawned.serving.pid != killed.pid
    assert admitted(spawned, parcel).table.num_rows == 4 * 524_288


def test_killed_in_the_middle_of_a_return_the_service_goes_on_where_the_file_stood(spawned):
    ticket, sent = spawned.export(), os.urandom(24 * MIB)
    killed = spawned.serving
    with linked(spawned, ticket) as (link, through):
        link.counts_service, link.after, link.then = False, 8 * MIB, killed.kill
        through.deliver(0, {"model.safetensors": sent})
    (folder,) = spawned.inbox.deliveries(ticket.crossing).values()
    assert (folder / "model.safetensors").read_bytes() == sent
    assert spawned.serving.pid != killed.pid


def test_tokens_are_renewed_while_the_crossing_is_open_and_no_longer(tmp_path):
    shift = [timedelta()]
    with lab(tmp_path, time=lambda: now() + shift[0]) as made:
        ticket = made.export()
        client = BorderClient(ticket.papers, ticket.fetch, ticket.crossing)
        shift[0] = timedelta(minutes=12)
        client.renew()
        shift[0] = timedelta(minutes=20)
        assert client.parcel([0]).chunks
        with pytest.raises(FabricError) as caught:
            ticket.collect([0])
        assert reason(caught) is Reason.TOKEN_EXPIRED
        # The grant of an hour is the end of every renewal.
        for minutes in (25, 35, 45, 55, 59):
            shift[0] = timedelta(minutes=minutes)
            client.renew()
        key = made.home.token_key().public
        end = read_token(ticket.fetch, fabric="lab", key=key, now=now())
        late = read_token(client.token, fabric="lab", key=key, now=now() + shift[0])
        assert late.expires_at - end.expires_at < timedelta(minutes=46)
        shift[0] = timedelta(minutes=61)
        with pytest.raises(FabricError) as caught:
            client.renew()
        assert reason(caught) in (Reason.TOKEN_EXPIRED, Reason.CROSSING_CLOSED)


def test_a_certificate_that_is_half_over_is_renewed_for_the_same_key_with_the_token(made):
    ticket = made.export()
    pair = made.authority.for_zone("public", now=now(), lasts=timedelta(hours=11))
    papers = replace(ticket.papers, certificate=pair.certificate.decode(), key=pair.key.decode())
    client = BorderClient(papers, ticket.fetch, ticket.crossing)
    client.renew()
    assert client.papers.key == papers.key
    assert expires_at(client.papers.certificate.encode()) > now() + timedelta(hours=23)
    assert client.parcel([0]).chunks
    fresh = BorderClient(ticket.papers, ticket.fetch, ticket.crossing)
    fresh.renew()
    assert fresh.papers == ticket.papers


def test_a_ticket_that_is_held_hands_out_tokens_that_are_good_now(tmp_path):
    with lab(tmp_path, terms=BorderTerms(token_minutes=1)) as made, made.export().held() as held:
        first = held.ticket
        held.fetching.renew()
        held.giving.renew()
        assert (held.ticket.fetch, held.ticket.give) != (first.fetch, first.give)
        assert held.ticket.collect([0]).chunks
        held.deliver(0, {"progress.json": b"{}"})
        assert list(made.inbox.deliveries(first.crossing)) == [0]


def test_a_client_that_reads_nothing_is_ended_and_can_fetch_again(tmp_path):
    with lab(tmp_path, terms=BorderTerms(stall_seconds=5)) as made:
        # Far more than what lies in buffers on the way.
        ticket = made.export(Cargo(matrix=made.matrix(rows=3_000_000, chunk_rows=3_000_000)))
        client = BorderClient(ticket.papers, ticket.fetch, ticket.crossing)
        words = json.dumps({"crossing": ticket.crossing, "item": "chunk-000000", "offset": 0}).encode()
        line = client._connect()
        reader = line.do_get(pyarrow.flight.Ticket(words), client._called())
        reader.read_chunk()
        (service,) = made.services
        while service._calls:
            time.sleep(0.1)
        with pytest.raises(pyarrow.ArrowException):
            list(reader)
        assert ticket.collect([0]).chunks


def test_a_refusal_stands_even_when_the_ledger_cannot_be_written(made):
    ticket = made.export()
    made.ledger.close()
    with pytest.raises(FabricError) as caught:
        replace(ticket, fetch=ticket.give).collect([0])
    assert reason(caught) is Reason.TOKEN_MISUSED


def test_a_second_service_on_the_same_port_does_not_start(spawned):
    other = spawned.config.read_text().replace("port = 0", f"port = {spawned.port}")
    (spawned.folder / "other.toml").write_text(other)
    done = subprocess.run(
        [BIN / "fabric", "border", "serve", "--config", spawned.folder / "other.toml"],
        capture_output=True, text=True, timeout=1800, env=spawned.env,
    )  # fmt: skip
    assert done.returncode == 1
    assert "PORT_TAKEN" in done.stderr
    assert standing(spawned.home).alive


def test_the_service_says_where_it_is_and_ends_when_it_is_told(spawned):
    ticket = spawned.export()
    told = subprocess.run(
        [BIN / "fabric", "border", "status", "--json", "--config", spawned.config],
        capture_output=True, text=True, timeout=1800, env=spawned.env, check=True,
    )  # fmt: skip
    found = json.loads(told.stdout)
    assert (found["up"], found["address"]) == (True, f"127.0.0.1:{spawned.port}")
    assert [(row["crossing"], row["zone"]) for row in found["crossings"]] == [(ticket.crossing, "public")]
    (process,) = spawned.processes
    process.terminate()
    assert process.wait(1800) == 0
    assert not standing(spawned.home).alive


def test_the_service_does_not_outlive_who_started_it(spawned):
    serving, (process,) = spawned.serving, spawned.processes
    process.send_signal(signal.SIGKILL)
    process.wait(1800)
    psutil.wait_procs([serving], timeout=1800)
    assert not serving.is_running() or serving.status() == psutil.STATUS_ZOMBIE


def test_keys_and_papers_lie_in_the_home_folder_for_its_owner_alone(made):
    made.export()
    for path in made.home.border.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_offers_are_found_again_by_another_process_and_proven_again(made):
    ticket = made.export()
    again = Staging.of(made.home, made.ledger.keys)
    assert again.find(ticket.crossing, now=now()).recorded.crossing == ticket.crossing
    with pytest.raises(FabricError):
        Staging.of(made.home, []).find(ticket.crossing, now=now())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 400)), max_size=300))
def test_no_refusal_is_uncounted_and_few_are_records(steps):
    meter, clock, told, left_out = Meter(), 0.0, 0, 0
    for name, passes in steps:
        clock += passes
        omitted = meter.admit((name, "", ""), clock)
        told, left_out = told + (omitted >= 0), left_out + max(0, omitted)
        for _, count in meter.due(clock):
            left_out += count
    left_out += sum(count for _, count in meter.due(clock, all_of_them=True))
    assert told + left_out == len(steps)


def test_a_million_refusals_in_an_hour_are_a_handful_of_records():
    meter = Meter()
    told = sum(meter.admit(("public", "border:DoGet", "TOKEN_INVALID"), n * 0.0036) >= 0 for n in range(1_000_000))
    assert told < 12


def test_a_signal_to_end_is_heard_whichever_thread_the_kernel_gives_it_to():
    program = """
import os, signal, threading, time
from fabric.border_process import _signalled

heard = []
told, _ = _signalled(lambda: heard.append(True))

def other():
    time.sleep(0.3)  # the main thread is in its system call by now
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=other, daemon=True).start()
os.read(told, 16)
print(bool(heard))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=1800)
    assert done.stdout == "True\n", done.stderr


def test_ctrl_c_ends_the_service_and_what_keeps_it_running(tmp_path):
    (tmp_path / "fabric.toml").write_text(FABRIC)
    command = [str(BIN / "fabric"), "border", "serve"]
    serving = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert serving.stdout.readline().startswith("border ready")
        served_by = standing(Home.open(tmp_path / ".fabric"))
        os.killpg(serving.pid, signal.SIGINT)
        assert serving.wait(timeout=1800) == 0
        assert not served_by.alive
    finally:
        serving.kill()
        serving.stdout.close()
