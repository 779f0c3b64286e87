"""A hostile zone, with papers and tokens of its own, against the border's port: refused, recorded, and it stays up."""

import json
import pickle
import socket
import ssl
import struct
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pyarrow as pa
import pyarrow.flight
import pytest
from border_lab import PRIVATE, lab
from joserfc import jwt
from joserfc.jwk import OKPKey

from fabric import flight_messages as flight
from fabric.certificates import Authority
from fabric.config import BorderTerms
from fabric.crossing import admit
from fabric.errors import FabricError, Reason
from fabric.recording import now
from fabric.statements import SigningKey
from fabric.stores import Home

CEILING = 400 * 1024 * 1024
"""Bytes that the service may have in memory, whatever comes; it starts with about 110 MiB."""

VERBS = ["Handshake", "ListFlights", "GetFlightInfo", "PollFlightInfo", "GetSchema", "DoPut", "DoExchange",
         "ListActions", "Nothing", "doget", ""]  # fmt: skip


class Canary:
    """Leaves a file if anybody unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def border(tmp_path_factory):
    terms = BorderTerms(stall_seconds=20, connections=64, return_mib=64, fetches=4)
    with lab(tmp_path_factory.mktemp("hostile"), spawned=True, terms=terms) as made:
        made.pid, made.peak = made.serving.pid, 0
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(made, done))
        watcher.start()
        yield made
        done.set()
        watcher.join()


def _watch(made, done):
    process = made.serving
    while not done.wait(0.01):
        made.peak = max(made.peak, process.memory_info().rss)


@pytest.fixture
def ticket(border):
    return border.export()


@pytest.fixture(autouse=True)
def _stays_up(border):
    """After each way in, an honest client is served by the very same process, in bounded memory."""
    yield
    honest = border.export()
    admitted = admit(honest.collect([0, 1, 2]), zone="public", trusted=border.ledger.keys, now=datetime.now(UTC))
    assert admitted.table.num_rows == 40
    assert border.serving.pid == border.pid
    assert 0 < border.peak < CEILING


def channel(border, ticket, **papers):
    shown = replace(ticket.papers, **papers)
    pair = (shown.key.encode(), shown.certificate.encode()) if shown.certificate else (None, None)
    return grpc.secure_channel(
        f"127.0.0.1:{border.port}",
        grpc.ssl_channel_credentials(shown.authority.encode(), *pair),
        options=[("grpc.ssl_target_name_override", flight.SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)],
    )


def call(border, ticket, verb, message, *, token=None, papers=None, path=flight.SERVICE, metadata=(), packed=None):
    """Send one message as it is, and return the status and words of the answer."""
    with channel(border, ticket, **(papers or {})) as line:
        bearer = [("authorization", f"Bearer {ticket.fetch if token is None else token}")]
        try:
            answer = line.stream_stream(path + verb)(
                iter([message]), metadata=[*bearer, *metadata], timeout=600, compression=packed
            )
            return "OK", b"".join(answer)
        except grpc.RpcError as error:
            return error.code().name, error.details()


def refusal(border, ticket, verb, message, **options):
    """Return the reason for which one message was refused."""
    status, words = call(border, ticket, verb, message, **options)
    assert status != "OK"
    return words.partition(":")[0] if words.partition(":")[0] in Reason.__members__ else status


def get(words):
    content = words if isinstance(words, bytes) else json.dumps(words).encode()
    return flight.result(content)  # a Ticket has the shape of a Result


def act(kind, words, piece=b""):
    body = words if isinstance(words, bytes) else flight.action_body(words, piece)
    return flight.result(kind.encode()) + flight._key(2) + flight._varint(len(body)) + body


def _put(client, table, called):
    writer, _ = client.do_put(pa.flight.FlightDescriptor.for_path("../x"), table.schema, called)
    for _ in range(50):
        writer.write_table(table)
    writer.close()


def recorded(border, what, code):
    return any(body["what"] == what and body["code"] == code for body in border.refusals())


@pytest.mark.parametrize("verb", VERBS)
def test_every_other_verb_of_flight_and_every_unknown_one_is_refused(border, ticket, verb):
    for token in (ticket.fetch, ticket.give):
        assert refusal(border, ticket, verb, b"\n\x04file", token=token) == "BORDER_REFUSED"
    assert recorded(
        border, f"border:{verb if verb[:1].isupper() and verb != 'Nothing' else 'unknown'}", "BORDER_REFUSED"
    )


def test_another_service_on_the_same_port_is_refused(border, ticket):
    for path in ("/grpc.reflection.v1.ServerReflection/", "/grpc.health.v1.Health/", "//", "/../"):
        assert refusal(border, ticket, "DoGet", b"x", path=path) == "BORDER_REFUSED"


def test_another_crossing_of_the_same_zone_is_not_served(border, ticket):
    other = border.export()
    words = {"crossing": other.crossing, "item": "chunk-000000", "offset": 0}
    assert refusal(border, ticket, "DoGet", get(words)) == "TOKEN_MISUSED"
    said = {"crossing": other.crossing, "name": "state.json", "size": 1, "digest": "sha256:" + "0" * 64}
    assert refusal(border, ticket, "DoAction", act("landed", said), token=ticket.give) == "TOKEN_MISUSED"
    assert recorded(border, "border:DoGet", "TOKEN_MISUSED")


def test_a_token_works_in_its_own_direction_only(border, ticket):
    words = {"crossing": ticket.crossing, "item": "listing", "offset": 0}
    assert refusal(border, ticket, "DoGet", get(words), token=ticket.give) == "TOKEN_MISUSED"
    said = {"crossing": ticket.crossing, "name": "state.json", "size": 1, "digest": "sha256:" + "0" * 64}
    assert refusal(border, ticket, "DoAction", act("landed", said)) == "TOKEN_MISUSED"


def test_a_token_replayed_after_its_crossing_was_closed_opens_nothing(border, ticket):
    ticket.collect([0])
    border.carrier().close(ticket.crossing)
    words = {"crossing": ticket.crossing, "item": "listing", "offset": 0}
    for message, token in (
        (get(words), ticket.fetch),
        (act("renew", {}), ticket.fetch),
        (act("renew", {}), ticket.give),
    ):
        verb = "DoGet" if message == get(words) else "DoAction"
        assert refusal(border, ticket, verb, message, token=token) == "CROSSING_CLOSED"
    assert recorded(border, "border:DoGet", "CROSSING_CLOSED")


def test_tokens_that_nobody_here_signed_or_whose_time_is_over_are_refused(border, ticket):
    start = int(now().timestamp())
    claims = {
        "iss": "lab", "aud": "lab/border", "sub": "job-1", "jti": "1", "iat": start, "nbf": start, "exp": start + 600,
        "crossing": ticket.crossing, "direction": "fetch", "zone": "public", "grant": "sha256:" + "0" * 64,
    }  # fmt: skip

    def made(key, **changed):
        signing = OKPKey.import_key(key.private)
        return jwt.encode({"alg": "Ed25519", "typ": "JWT"}, {**claims, **changed}, signing, algorithms=["Ed25519"])

    ours = border.home.token_key()
    listing = get({"crossing": ticket.crossing, "item": "listing", "offset": 0})
    for token, reason in (
        ("", "TOKEN_INVALID"),
        ("x" * 4_000, "TOKEN_INVALID"),
        (made(SigningKey.generate()), "TOKEN_INVALID"),
        (made(border.key), "TOKEN_INVALID"),  # the key of the ledger is not the key of tokens
        (made(ours, exp=start + 10**6), "TOKEN_INVALID"),
        (made(ours, iat=start - 900, nbf=start - 900, exp=start - 1), "TOKEN_EXPIRED"),
        (made(ours), "CROSSING_CLOSED"),  # another grant than the one recorded
    ):
        assert refusal(border, ticket, "DoGet", listing, token=token) == reason


def test_without_a_certificate_of_the_border_there_is_no_connection(border, ticket, tmp_path):
    strangers = Authority.open(Home.open(tmp_path), now=now()).for_zone("public", now=now(), lasts=timedelta(hours=1))
    listing = get({"crossing": ticket.crossing, "item": "listing", "offset": 0})
    for papers in (
        {"certificate": "", "key": ""},
        {"certificate": strangers.certificate.decode(), "key": strangers.key.decode()},
    ):
        assert refusal(border, ticket, "DoGet", listing, papers=papers) == "UNAVAILABLE"
    late = border.authority.for_zone("public", now=now() - timedelta(hours=2), lasts=timedelta(hours=1))
    papers = {"certificate": late.certificate.decode(), "key": late.key.decode()}
    assert refusal(border, ticket, "DoGet", listing, papers=papers) == "UNAVAILABLE"
    with grpc.insecure_channel(f"127.0.0.1:{border.port}") as line:
        with pytest.raises(grpc.RpcError) as caught:
            list(line.stream_stream(flight.SERVICE + "DoGet")(iter([listing]), timeout=600))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    deadline = time.monotonic() + 600
    while not recorded(border, "border:handshake", "BORDER_REFUSED") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert recorded(border, "border:handshake", "BORDER_REFUSED")


def test_the_papers_of_another_zone_or_of_the_service_itself_do_not_fit_the_token(border, ticket):
    listing = get({"crossing": ticket.crossing, "item": "listing", "offset": 0})
    other = border.authority.for_zone("elsewhere", now=now(), lasts=timedelta(hours=1))
    papers = {"certificate": other.certificate.decode(), "key": other.key.decode()}
    assert refusal(border, ticket, "DoGet", listing, papers=papers) == "TOKEN_MISUSED"
    server = border.authority.for_server(["zone:public"], now=now(), lasts=timedelta(hours=1))
    papers = {"certificate": server.certificate.decode(), "key": server.key.decode()}
    assert refusal(border, ticket, "DoGet", listing, papers=papers) in ("UNAVAILABLE", "TOKEN_INVALID")
    inside = border.export(zone=PRIVATE)
    assert refusal(border, ticket, "DoGet", listing, token=inside.fetch) == "TOKEN_MISUSED"


@pytest.mark.parametrize(
    "words",
    [
        b"", b"x", b"[]", b"null", b"{}", b"[" * 100_000, b'{"a":' * 60_000, b"\xff\xfe", b'{"offset":1e400}',
        {"crossing": "../../evidence", "item": "listing", "offset": 0},
        {"crossing": "A", "item": "/etc/passwd", "offset": 0},
        {"crossing": "A", "item": "../offer.json", "offset": 0},
        {"crossing": "A", "item": "offer.json", "offset": 0},
        {"crossing": "A", "item": "chunk-000000/../../x", "offset": 0},
        {"crossing": "A", "item": "chunk-999999", "offset": 0},
        {"crossing": "A", "item": "chunk-000000", "offset": -1},
        {"crossing": "A", "item": "chunk-000000", "offset": 2**60},
        {"crossing": "A", "item": "chunk-000000", "offset": 10**40},
        {"crossing": "A", "item": "chunk-000000", "offset": True},
        {"crossing": "A", "item": "chunk-000000", "offset": "0"},
        {"crossing": "A", "item": ["chunk-000000"], "offset": 0},
        {"crossing": "A", "item": "chunk-000000", "offset": 0, "more": 1},
        {"crossing": "A", "item": "x" * 200_000, "offset": 0},
        b'{"crossing":"A","item":"listing","item":"chunk-000000","offset":0}',
    ],
)  # fmt: skip
def test_a_ticket_with_a_path_an_odd_id_or_a_shape_of_its_own_is_refused(border, ticket, words):
    if isinstance(words, dict) and words["crossing"] == "A":
        words = {**words, "crossing": ticket.crossing}
    assert refusal(border, ticket, "DoGet", get(words)) in ("BORDER_REFUSED", "TOKEN_MISUSED")


@pytest.mark.parametrize(
    "message",
    [b"\xff" * 100, b"\x08\x01", b"\n\xff\xff\xff\xff\x0f", b"\n\x01a\n\x01b", struct.pack("<Q", 2**63) * 9, b"\n\x80"],
)
def test_a_message_that_is_none_is_refused_in_both_verbs(border, ticket, message):
    assert refusal(border, ticket, "DoGet", message) == "BORDER_REFUSED"
    assert refusal(border, ticket, "DoAction", message, token=ticket.give) == "BORDER_REFUSED"


def test_an_unknown_action_and_one_whose_words_lie_about_their_length_are_refused(border, ticket):
    for message in (
        act("drop", {"crossing": ticket.crossing}),
        act("put" * 20, {}),
        act("put", struct.pack(">I", 2**31) + b"{}"),
        act("put", b"\0\0"),
        act("renew", {"zone": "private"}),
        act("commit", {"crossing": ticket.crossing, "slot": -1, "files": {}}),
        act("commit", {"crossing": ticket.crossing, "slot": 0, "files": {"model.safetensors": "x"}}),
    ):
        assert refusal(border, ticket, "DoAction", message, token=ticket.give) in ("BORDER_REFUSED", "RESULT_REFUSED")


@pytest.mark.parametrize(
    ("name", "size", "stated"),
    [
        ("../model.safetensors", 1, "0" * 64),
        ("/tmp/x", 1, "0" * 64),
        ("model.safetensors\0", 1, "0" * 64),
        ("model.pkl", 1, "0" * 64),
        ("delivery.json", 1, "0" * 64),
        ("chunk-0000000", 1, "0" * 64),
        ("chunk-00000\u0661", 1, "0" * 64),
        ("state.json", 17 * 1024 * 1024, "0" * 64),
        ("state.json", -1, "0" * 64),
        ("state.json", 10**15, "0" * 64),
        ("state.json", 1, "../../x"),
        ("state.json", 1, "0" * 63),
        ("model.safetensors", 65 * 1024 * 1024, "0" * 64),  # more than may lie here of one crossing
    ],
)
def test_a_returned_file_with_a_name_size_or_digest_of_its_own_is_refused(border, ticket, name, size, stated):
    said = {"crossing": ticket.crossing, "name": name, "size": size, "digest": f"sha256:{stated}", "offset": 0}
    assert refusal(border, ticket, "DoAction", act("put", said, b"x"), token=ticket.give) == "RESULT_REFUSED"
    assert border.inbox.deliveries(ticket.crossing) == {}


def test_more_than_declared_another_content_and_half_a_delivery_do_not_land(border, ticket):
    said = {"crossing": ticket.crossing, "name": "state.json", "size": 2, "digest": "sha256:" + "0" * 64, "offset": 0}
    files = {"state.json": ["sha256:" + "0" * 64, 2]}
    commit = act("commit", {"crossing": ticket.crossing, "slot": 0, "files": files})
    assert refusal(border, ticket, "DoAction", act("put", said, b"xyz"), token=ticket.give) == "RESULT_REFUSED"
    assert call(border, ticket, "DoAction", act("put", said, b"x"), token=ticket.give)[0] == "OK"
    assert refusal(border, ticket, "DoAction", commit, token=ticket.give) == "RESULT_REFUSED"
    assert call(border, ticket, "DoAction", act("put", {**said, "offset": 1}, b"y"), token=ticket.give)[0] == "OK"
    assert refusal(border, ticket, "DoAction", commit, token=ticket.give) == "DIGEST_MISMATCH"
    assert border.inbox.deliveries(ticket.crossing) == {}


def test_deliveries_of_nothing_and_one_content_under_many_names_do_not_fill_the_disk(border, ticket):
    nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for slot in range(64):
        words = {"crossing": ticket.crossing, "slot": slot, "files": {"state.json": [nothing, 0]}}
        assert call(border, ticket, "DoAction", act("commit", words), token=ticket.give)[0] == "OK"
    words = {"crossing": ticket.crossing, "slot": 64, "files": {"state.json": [nothing, 0]}}
    assert refusal(border, ticket, "DoAction", act("commit", words), token=ticket.give) == "RESULT_REFUSED"
    other, sent = border.export(), bytes(1 << 20)
    with pytest.raises(FabricError) as caught:
        other.deliver(0, {f"chunk-{n:06d}": sent for n in range(100)})
    assert caught.value.reason is Reason.RESULT_REFUSED
    other.deliver(0, {f"chunk-{n:06d}": sent for n in range(3)})
    assert border.inbox.size_bytes(other.crossing) < 4 << 20


def test_a_delivery_is_never_replaced_by_another_one(border, ticket):
    ticket.deliver(0, {"state.json": b"{}"})
    ticket.deliver(0, {"state.json": b"{}"})
    with pytest.raises(FabricError) as caught:
        ticket.deliver(0, {"state.json": b"[]"})
    assert caught.value.reason is Reason.RESULT_REFUSED
    (folder,) = border.inbox.deliveries(ticket.crossing).values()
    assert (folder / "state.json").read_bytes() == b"{}"


def test_a_returned_pickle_is_bytes_on_a_disk_and_is_never_run(border, ticket, tmp_path):
    canary = tmp_path / "ran"
    ticket.deliver(0, {"model.safetensors": pickle.dumps(Canary(canary)), "state.json": b"{" * 100_000})
    (folder,) = border.inbox.deliveries(ticket.crossing).values()
    assert (folder / "state.json").stat().st_mode & 0o777 == 0o600
    assert not canary.exists()


def test_a_message_of_half_a_gibibyte_is_not_received_with_a_token_or_without(border, ticket):
    said = {
        "crossing": ticket.crossing,
        "name": "model.safetensors",
        "size": 1,
        "digest": "sha256:" + "0" * 64,
        "offset": 0,
    }
    huge = act("put", said, bytes(512 << 20))
    assert refusal(border, ticket, "DoAction", huge, token="none") == "TOKEN_INVALID"
    assert refusal(border, ticket, "DoAction", huge, token=ticket.give) in ("RESOURCE_EXHAUSTED", "BORDER_REFUSED")
    assert refusal(border, ticket, "DoGet", huge) in ("RESOURCE_EXHAUSTED", "BORDER_REFUSED")


def test_a_packed_message_is_not_unpacked(border, ticket):
    message = act("put", {}, bytes(128 << 20))
    assert (
        refusal(border, ticket, "DoAction", message, token=ticket.give, packed=grpc.Compression.Gzip) == "UNIMPLEMENTED"
    )


def test_metadata_without_end_is_refused(border, ticket):
    status, _ = call(border, ticket, "DoGet", get({}), metadata=[("x", "y" * 1_000_000)])
    assert status != "OK"
    assert refusal(border, ticket, "DoGet", get({}), metadata=[("authorization", "Bearer x")]) == "TOKEN_INVALID"


def test_arrow_bombs_of_every_kind_are_refused_before_any_of_it_is_read(border, ticket):
    """Compressed bodies, dictionaries, deep nesting: a Flight writer sends them, and no byte of them is parsed."""
    zeros = pa.table({"a": pa.array([bytes(1 << 20)] * 64)})
    deep = pa.array([[1]])
    for _ in range(60):
        deep = (
            pa.array([[each] for each in deep.to_pylist()])
            if deep.type.num_fields < 1
            else pa.ListArray.from_arrays([0, 1], deep)
        )
    words = pa.table({"a": pa.array(["x" * 1_000_000]).dictionary_encode()})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for table in (zeros, pa.table({"a": deep}), words):
        with pa.flight.FlightClient(
            f"grpc+tls://127.0.0.1:{border.port}", tls_root_certs=ticket.papers.authority.encode(),
            cert_chain=ticket.papers.certificate.encode(), private_key=ticket.papers.key.encode(),
            override_hostname=flight.SERVER_NAME,
        ) as client:  # fmt: skip
            headers = [(b"authorization", f"Bearer {ticket.give}".encode())]
            called = pa.flight.FlightCallOptions(headers=headers, write_options=options, timeout=600)
            with pytest.raises((pa.ArrowException, OSError)):
                _put(client, table, called)
    assert recorded(border, "border:DoPut", "BORDER_REFUSED")


def test_a_crossing_is_not_fetched_without_end(border, ticket):
    for _ in range(4):
        ticket.collect([0, 1, 2])
    with pytest.raises(FabricError) as caught:
        ticket.collect([0, 1, 2])
    assert caught.value.reason is Reason.BORDER_REFUSED


def test_clients_that_connect_and_say_nothing_hold_nothing_for_long(border, ticket):
    lines = []
    for _ in range(2_000):
        try:
            lines.append(socket.create_connection(("127.0.0.1", border.port), 2))
        except OSError:
            break
    assert border.serving.num_fds() < 64 + 100
    ticket.collect([0])
    for line in lines:
        line.close()


def test_clients_that_speak_tls_and_then_nothing_hold_nothing_for_long(border, ticket, tmp_path):
    context = ssl.create_default_context(cadata=ticket.papers.authority)
    context.check_hostname = False
    (tmp_path / "papers.pem").write_text(ticket.papers.certificate + ticket.papers.key)
    context.load_cert_chain(tmp_path / "papers.pem")
    context.set_alpn_protocols(["h2"])
    lines = []
    for _ in range(100):
        try:
            lines.append(context.wrap_socket(socket.create_connection(("127.0.0.1", border.port), 2)))
        except OSError:
            break
    ticket.collect([0])
    for line in lines:
        line.close()


def test_calls_that_never_say_what_they_want_are_ended(border, ticket):
    done = threading.Event()

    def silent():
        done.wait(600)
        yield from ()

    lines = [channel(border, ticket) for _ in range(30)]
    metadata = [("authorization", f"Bearer {ticket.fetch}")]
    calls = [line.stream_stream(flight.SERVICE + "DoGet")(silent(), metadata=metadata) for line in lines]
    border.export().collect([0])
    for call in calls:
        with pytest.raises(grpc.RpcError):
            list(call)
    done.set()
    for line in lines:
        line.close()


def test_a_call_that_waits_until_its_crossing_is_closed_leaves_and_gets_nothing(border, ticket):
    nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    said = {"crossing": ticket.crossing, "name": "state.json", "size": 1, "digest": "sha256:" + "0" * 64, "offset": 0}
    calls = [
        ("DoAction", ticket.give, act("put", said, b"x")),
        (
            "DoAction",
            ticket.give,
            act("commit", {"crossing": ticket.crossing, "slot": 0, "files": {"content": [nothing, 0]}}),
        ),
        ("DoAction", ticket.fetch, act("renew", {})),
        ("DoGet", ticket.fetch, get({"crossing": ticket.crossing, "item": "listing", "offset": 0})),
    ]
    closed, codes = threading.Event(), []

    def late(message):
        closed.wait(600)
        yield message

    with channel(border, ticket) as line:
        under_way = [
            line.stream_stream(flight.SERVICE + verb)(
                late(message), metadata=[("authorization", f"Bearer {token}")], timeout=600
            )
            for verb, token, message in calls
        ]
        time.sleep(1)  # they are past the check of their tokens, and have said nothing yet
        border.carrier().close(ticket.crossing)
        border.inbox.discard(ticket.crossing)
        closed.set()
        for one in under_way:
            with pytest.raises(grpc.RpcError) as caught:
                list(one)
            codes.append(caught.value.details().partition(":")[0])
    assert codes == ["CROSSING_CLOSED"] * 4
    assert not (border.inbox.folder / ticket.crossing).exists()


def test_many_refusals_are_few_records_and_none_is_uncounted(border, ticket):
    before = len(border.refusals())
    with channel(border, ticket) as line:
        for _ in range(500):
            with pytest.raises(grpc.RpcError):
                list(line.stream_stream(flight.SERVICE + "GetSchema")(iter([b"x"]), timeout=600))
    assert len(border.refusals()) - before <= 6
    words = json.dumps(border.refusals()) + (border.folder / "service.log").read_text()
    assert "passwd" not in words
    assert "Traceback" not in words
