"""The border service: the one port of the private zone that another zone may call.

It speaks Arrow Flight over mutual TLS, and serves one thing: the byte strings of crossings that lie ready in the
staging, each to exactly the zone and job that it was recorded for; and it takes one thing: files of a closed list,
piece by piece, unread, into the inbox. Every call, in this order:

1. Who: a client certificate of ours says the zone. Without one there is no connection.
2. What for: a token says the crossing, the direction, the job. It is checked before the first message is received.
3. Whether: the crossing still lies ready, and has streams and bytes left.
4. Only then is a message received, of bounded size, and acted on.

Everything else is refused, and recorded. The transport is gRPC's own server, because that of pyarrow receives messages
of any size before anybody is asked: an action of 1 GB without a token took it 2.6 GiB (measured).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import grpc

from fabric import flight_messages as flight
from fabric.artifacts import canonical
from fabric.border_refusals import Recorder, Refusal
from fabric.certificates import Authority, KeyPair, expires_at, zone_named
from fabric.config import BorderTerms
from fabric.crossing import LISTING
from fabric.errors import FabricError, InvalidInput, Reason, Refused
from fabric.inbox import Declared, Inbox
from fabric.staging import Offer, Staging
from fabric.statements import SigningKey
from fabric.tokens import Direction, Pass, check_open, check_use, closed, mint, read_token

_LOG = logging.getLogger("fabric.border")
_SPARE_CALLS = 16  # beside streams: renewals, pieces, and what is refused at once
_HANDSHAKE_MS = 10_000
_STATUS = {
    Reason.TOKEN_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TOKEN_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.BORDER_BUSY: grpc.StatusCode.UNAVAILABLE,
}


@dataclass(slots=True)
class _Call:
    """One call under way.

    Attributes:
        shown: what its token says, once that is verified; `admitted` once it counts as a stream.
    """

    context: grpc.ServicerContext
    verb: str
    zone: str
    progressed_s: float
    shown: Pass | None = None
    admitted: bool = False


@dataclass(slots=True, kw_only=True)
class BorderService:
    """The service, wired; `start` binds it.

    Attributes:
        fabric: name of the fabric, as issuer and audience of its tokens.
        new_id: a random id, for each token.
    """

    fabric: str
    terms: BorderTerms
    key: SigningKey
    authority: Authority
    staging: Staging
    inbox: Inbox
    recorder: Recorder
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    _calls: dict[int, _Call] = field(default_factory=dict)
    _served: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _server: grpc.Server | None = None
    _pair: KeyPair | None = None

    def start(self, port: int) -> int:
        """Bind the port, serve, and return the port.

        Raises:
            FabricError: `PORT_TAKEN`.
        """
        calls = self.terms.streams + _SPARE_CALLS
        server = grpc.server(
            ThreadPoolExecutor(calls, thread_name_prefix="border"),
            options=_options(self.terms),
            maximum_concurrent_rpcs=calls,
            compression=grpc.Compression.NoCompression,
        )
        server.add_generic_rpc_handlers((_Handler(self),))
        credentials = grpc.dynamic_ssl_server_credentials(self._certificates(), self._renewed_certificates, True)
        try:
            bound = int(server.add_secure_port(f"{self.terms.host}:{port}", credentials))
        except RuntimeError:
            bound = 0
        if not bound:
            raise FabricError(
                Reason.PORT_TAKEN, f"port {port} of {self.terms.host} cannot be bound", "set border.port to a free one"
            )
        server.start()
        self._server = server
        threading.Thread(target=self._watch, name="border-watch", daemon=True).start()
        return bound

    def stop(self, grace_s: float) -> None:
        """Take no more calls, let those under way end within the grace, and record what was counted."""
        self._stopping.set()
        if self._server is not None:
            self._server.stop(grace_s).wait()
        self.recorder.flush(all_of_them=True)

    def answer(self, verb: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer one call, whatever it is."""
        call = _Call(context, verb if verb in _VERBS else "unknown", _zone(context), time.monotonic())
        if not context.add_callback(partial(self._ended, id(call))):
            return
        with self._lock:
            self._calls[id(call)] = call
        try:
            yield from self._answer(call, requests)
        except FabricError as error:
            self._refuse(call, error)
        except (grpc.RpcError, StopIteration):
            return  # the client is gone, or never said anything
        except Exception as error:  # noqa: BLE001 - nothing that a client sent may stop the service, or be told
            told = self.recorder.refused(
                Refusal(zone=call.zone, what=f"border:{call.verb}", code=Reason.INTERNAL.value)
            )
            if told:
                _LOG.error("failed", extra={"fabric": {"verb": call.verb, "error": type(error).__name__}})
            call.context.abort(grpc.StatusCode.INTERNAL, f"{Reason.INTERNAL.value}: {type(error).__name__}")

    def _answer(self, call: _Call, requests: Iterator[bytes]) -> Iterator[bytes]:
        # 1. Who.
        if not call.zone:
            raise Refused(Reason.TOKEN_INVALID, "the certificate is of no zone", "use the papers of the job")
        if call.verb not in ("DoGet", "DoAction"):
            raise Refused(Reason.BORDER_REFUSED, "the border does not take this verb", "DoGet and DoAction")
        # 2. What for.
        found = read_token(_bearer(call.context), fabric=self.fabric, key=self.key.public, now=self.clock())
        call.shown = found
        check_use(found, crossing=found.crossing, direction=found.direction, zone=call.zone)
        # 3. Whether.
        offer = self._offer(found)
        self._admit(call, found)
        # 4. The message.
        message = _first(requests)
        if not self.staging.is_open(offer, now=self.clock()):
            raise closed()  # while the call was silent
        if call.verb == "DoGet":
            yield from self._fetch(call, found, offer, message)
        else:
            yield flight.result(canonical(dict(self._act(call, found, offer, message))))

    def _offer(self, found: Pass) -> Offer:
        offer = self.staging.find(found.crossing, now=self.clock())
        check_open(found, offer.recorded if offer else None)
        assert offer is not None  # noqa: S101 - `check_open` refused it
        return offer

    def _admit(self, call: _Call, found: Pass) -> None:
        """Count the call in, or say that there are too many."""
        with self._lock:
            admitted = [one.shown for one in self._calls.values() if one.admitted and one.shown is not None]
            crossing = sum(one.crossing == found.crossing for one in admitted)
            # A quarter is left to other zones, so that none crowds out all of them.
            zone = sum(one.zone == found.zone for one in admitted)
            most = self.terms.streams
            if len(admitted) >= most or zone >= most - most // 4 or crossing >= self.terms.streams_per_crossing:
                raise Refused(Reason.BORDER_BUSY, "as many calls are under way as may be", "try again in a moment")
            call.admitted = True

    def _fetch(self, call: _Call, found: Pass, offer: Offer, message: bytes) -> Iterator[bytes]:
        try:
            asked = flight.read_ticket(message)
        except flight.MessageError:
            raise _unknown("the ticket is none of this border's") from None
        crossing, name, offset = _taken(asked, crossing=str, item=str, offset=int)
        check_use(found, crossing=crossing, direction=Direction.FETCH, zone=call.zone)
        listing = offer.listing()
        item = None if name == LISTING else offer.items.get(name)
        size = len(listing) if name == LISTING else item.size if item else -1
        if not 0 <= offset <= size:
            raise _unknown("the crossing has no such item, or none so long")
        yield flight.schema()
        if item is None:
            yield flight.batch(memoryview(listing)[offset:])
            return
        with _opened(offer.path(item)) as file:
            while offset < size:
                self._spend(offer, min(flight.PIECE_BYTES, size - offset))
                piece = os.pread(file, flight.PIECE_BYTES, offset)
                if not piece or not self.staging.is_open(offer, now=self.clock()):
                    raise Refused(Reason.CROSSING_CLOSED, "the crossing was closed", "start the job again")
                yield flight.batch(memoryview(piece))
                offset += len(piece)
                call.progressed_s = time.monotonic()

    def _act(self, call: _Call, found: Pass, offer: Offer, message: bytes) -> Mapping[str, Any]:
        try:
            kind, said, piece = flight.read_action(message)
        except flight.MessageError:
            raise _unknown("the action is none of this border's") from None
        if kind == "renew":
            _taken(said)
            return self._renew(call, found, offer)
        if kind not in ("landed", "put", "commit"):
            raise _unknown("the border does not know this action")
        if not isinstance(said.get("crossing"), str):
            raise _unknown("the action names no crossing")
        check_use(found, crossing=said["crossing"], direction=Direction.RETURN, zone=call.zone)
        if kind == "commit":
            return self._commit(call, said)
        if kind == "landed":
            crossing, name, size, stated = _taken(said, crossing=str, name=str, size=int, digest=str)
            return {"offset": self.inbox.landed(crossing, Declared(name=name, size=size, digest=stated))}
        crossing, name, size, stated, offset = _taken(said, crossing=str, name=str, size=int, digest=str, offset=int)
        if not 0 < len(piece) <= flight.PIECE_BYTES:
            raise _unknown("the piece is empty, or too large")
        return {"offset": self.inbox.put(crossing, Declared(name=name, size=size, digest=stated), offset, piece)}

    def _commit(self, call: _Call, said: Mapping[str, Any]) -> Mapping[str, Any]:
        crossing, slot, listed = _taken(said, crossing=str, slot=int, files=dict)
        files = {}
        for name, stated in listed.items():
            if not isinstance(stated, list) or len(stated) != 2:
                raise _unknown("a file of the delivery is declared without digest and size")
            files[name] = Declared(name=name, digest=stated[0], size=stated[1])

        def digest_of(path: Path) -> str:
            call.progressed_s = time.monotonic()
            with path.open("rb") as file:
                return f"sha256:{file_digest(file, 'sha256').hexdigest()}"

        self.inbox.commit(crossing, slot, files, digest_of)
        return {"slot": slot}

    def _renew(self, call: _Call, found: Pass, offer: Offer) -> Mapping[str, Any]:
        """Return a token that goes on from one that is still good, and a certificate where that one is half over."""
        now = self.clock()
        lasts, papers = timedelta(minutes=self.terms.token_minutes), timedelta(hours=self.terms.certificate_hours)
        token = mint(
            offer.recorded, found.direction, fabric=self.fabric, key=self.key, lasts=lasts, now=now,
            token_id=self.new_id(),
        )  # fmt: skip
        shown = call.context.auth_context().get("x509_pem_cert", [b""])[0]
        if expires_at(shown) - now > papers / 2:
            return {"token": token}
        return {"token": token, "certificate": self.authority.renewed(shown, now=now, lasts=papers).decode()}

    def _spend(self, offer: Offer, size: int) -> None:
        crossing, most = offer.recorded.crossing, self.terms.fetches * offer.size_bytes
        with self._lock:
            self._served[crossing] = self._served.get(crossing, 0) + size
            over = self._served[crossing] > most
        if over:
            raise Refused(
                Reason.BORDER_REFUSED,
                f"the crossing was fetched {self.terms.fetches} times over",
                "raise border.fetches, or start fewer workers",
            )

    def _refuse(self, call: _Call, error: FabricError) -> None:
        if error.reason is not Reason.BORDER_BUSY:
            job, crossing = (call.shown.job, call.shown.crossing) if call.shown else ("", "")
            refusal = Refusal(
                zone=call.zone, what=f"border:{call.verb}", code=error.reason.value, job=job, crossing=crossing
            )
            self.recorder.refused(refusal)
        status = _STATUS.get(error.reason, grpc.StatusCode.PERMISSION_DENIED)
        call.context.abort(status, f"{error.reason.value}: {error.message}")

    def _ended(self, call: int) -> None:
        with self._lock:
            self._calls.pop(call, None)

    def _watch(self) -> None:
        """Once a second: end calls that stand still; now and then, close what has ended and record what was counted."""
        ticks = 0
        while not self._stopping.wait(1.0):
            ticks += 1
            limit = time.monotonic() - self.terms.stall_seconds
            with self._lock:
                stalled = [call for call in self._calls.values() if call.progressed_s < limit]
            for call in stalled:
                call.context.cancel()
            if ticks % 10 == 0:
                self._tidy()

    def _tidy(self) -> None:
        try:
            self.staging.expire(now=self.clock())
            open_now = set(self.staging.crossings())
            with self._lock:
                self._served = {crossing: size for crossing, size in self._served.items() if crossing in open_now}
            self.inbox.clear(lambda crossing: crossing in open_now, now_s=time.time())
            self.recorder.flush()
        except (FabricError, OSError) as error:
            _LOG.error("not tidied", extra={"fabric": {"error": type(error).__name__}})

    def _certificates(self) -> Any:
        now = self.clock()
        self._pair = self.authority.for_server(
            [self.terms.host, *([self.terms.advertise] if self.terms.advertise else [])],
            now=now, lasts=timedelta(hours=2 * self.terms.certificate_hours),
        )  # fmt: skip
        pairs = [(self._pair.key, self._pair.certificate)]
        return grpc.ssl_server_certificate_configuration(pairs, root_certificates=self.authority.certificate)

    def _renewed_certificates(self) -> Any:
        """Return the server's next certificate once this one is half over; asked at every handshake."""
        left = expires_at(self._pair.certificate) - self.clock() if self._pair else timedelta()
        return self._certificates() if left < timedelta(hours=self.terms.certificate_hours) else None


_VERBS = frozenset(
    {"Handshake", "ListFlights", "GetFlightInfo", "PollFlightInfo", "GetSchema", "DoGet", "DoPut", "DoExchange",
     "DoAction", "ListActions"}
)  # fmt: skip


class _Handler(grpc.GenericRpcHandler):
    """Gives every method, known or not, to the service. Nothing is received before the service asks for it."""

    def __init__(self, service: BorderService) -> None:
        self._service = service

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return what answers a call."""
        method = handler_call_details.method
        verb = method.removeprefix(flight.SERVICE) if method.startswith(flight.SERVICE) else ""
        return grpc.stream_stream_rpc_method_handler(partial(self._service.answer, verb))


def _options(terms: BorderTerms) -> list[tuple[str, int]]:
    """Return the limits of the transport. Each is there because a peer could otherwise hold memory or a connection."""
    return [
        ("grpc.max_receive_message_length", flight.PIECE_BYTES + flight.MAX_WORDS_BYTES + 1024),
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        # Only messages as they are: one that is packed would be unpacked before its size is known.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_concurrent_streams", 16),
        ("grpc.max_allowed_incoming_connections", terms.connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", 30_000),
        # A peer that is gone without a word is noticed; a client may ask as often whether we are there.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # A second service on the same port would get half of the calls.
        ("grpc.so_reuseport", 0),
    ]


def _zone(context: grpc.ServicerContext) -> str:
    names = context.auth_context().get("x509_common_name", [])
    name = names[0].decode("ascii", "replace") if len(names) == 1 else ""
    return "" if name == flight.SERVER_NAME else zone_named(name)


def _bearer(context: grpc.ServicerContext) -> str:
    given = [value for name, value in context.invocation_metadata() if name == "authorization"]
    text = given[0] if len(given) == 1 and isinstance(given[0], str) else ""
    return text.removeprefix("Bearer ") if text.startswith("Bearer ") else ""


def _first(requests: Iterator[bytes]) -> bytes:
    message = next(requests, b"")
    if not message:
        raise _unknown("the call says nothing")
    return message


def _taken(said: Mapping[str, Any], **kinds: type) -> tuple[Any, ...]:
    """Return the values of exactly these words, each of its kind."""
    if set(said) != set(kinds) or any(type(said[name]) is not kind for name, kind in kinds.items()):
        raise _unknown("the words of the request are not those of this border")
    return tuple(said[name] for name in kinds)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        raise Refused(Reason.CROSSING_CLOSED, "the crossing was closed", "start the job again") from None
    try:
        yield file
    finally:
        with suppress(OSError):
            os.close(file)


def _unknown(message: str) -> InvalidInput:
    return InvalidInput(Reason.BORDER_REFUSED, message, "use `fabric.border_client`, of the same version")
