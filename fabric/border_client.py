"""The other side of the border: how a job in another zone fetches its crossing, and returns results.

It has what its job was given, and nothing else: the authority's certificate, a key and certificate of its zone, an
address, tokens. It knows no ledger, no policy and no home folder. Whatever it fetched counts only after
`crossing.admit`. A link that breaks, and a service that is started again, cost time: every byte string goes on where it
stopped, for as long as something moves within the client's patience. A refusal is final.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight

from fabric.artifacts import chunk_name, digest
from fabric.crossing import BESIDE, CAPSULE, GRANT, LISTING, PARAMETERS, STATEMENT, Parcel
from fabric.errors import ClusterUnavailable, FabricError, InvalidInput, Reason, Refused, StatementInvalid
from fabric.flight_messages import PIECE_BYTES, SERVER_NAME, action_body

MAX_ITEM_BYTES = 8 * 1024**3
_MAX_LISTING_BYTES = 64 * 1024 * 1024
_CALL_S = 120.0  # of one call; what came until then is kept
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 3.0
_CODE = re.compile(r"\b([A-Z]+(?:_[A-Z]+)+): ([^.\n]{0,200})")
_PAPERS = ("address", "zone", "authority", "certificate", "key")
_OPTIONS = [
    # A link that is cut without a word is noticed within 20 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # Each stream has a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
]

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """What a zone is given to reach the border: all of it, and all in PEM but the address.

    Attributes:
        address: host and port.
        authority: the certificate to know the border by.
    """

    address: str
    zone: str
    authority: str
    certificate: str
    key: str = field(repr=False)

    def to_json(self) -> dict[str, str]:
        """Return the papers as plain JSON."""
        return {name: getattr(self, name) for name in _PAPERS}

    @classmethod
    def from_json(cls, told: Mapping[str, str]) -> Papers:
        """Read papers.

        Raises:
            InvalidInput: `UNKNOWN_KEY`, `CONFIG_INVALID`.
        """
        if set(told) != set(_PAPERS):
            raise InvalidInput(Reason.UNKNOWN_KEY, "the papers of the border are not whole", ", ".join(_PAPERS))
        if not all(isinstance(text, str) for text in told.values()):
            raise InvalidInput(Reason.CONFIG_INVALID, "the papers of the border hold what is no text")
        return cls(**told)


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderTicket:
    """What a job in another zone is given of one crossing. Small and picklable; good for as long as its tokens.

    Attributes:
        fetch: token to fetch the crossing.
        give: token to return results of it.
    """

    crossing: str
    chunk_count: int
    papers: Papers
    fetch: str = field(repr=False)
    give: str = field(repr=False)

    def collect(self, chunks: Sequence[int]) -> Parcel:
        """Fetch the named chunks with everything that goes with them.

        Raises:
            Refused: the border said no.
            ClusterUnavailable: `BORDER_UNREACHABLE`.
        """
        with BorderClient(self.papers, self.fetch, self.crossing) as client:
            return client.parcel(chunks)

    def deliver(self, slot: int, files: Mapping[str, bytes | Path]) -> None:
        """Return files of the border's list as delivery number `slot`.

        Raises:
            FabricError: as `BorderClient.deliver`.
        """
        with BorderClient(self.papers, self.give, self.crossing) as client:
            client.deliver(slot, files)

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Keep the ticket good for as long as the block runs: its tokens are renewed at half their life."""
        with (
            BorderClient(self.papers, self.fetch, self.crossing) as fetching,
            BorderClient(self.papers, self.give, self.crossing) as giving,
        ):
            yield Held(self, fetching, giving)

    def to_json(self) -> dict[str, Any]:
        """Return the ticket as plain JSON."""
        return {
            "crossing": self.crossing, "chunk_count": self.chunk_count, "papers": self.papers.to_json(),
            "fetch": self.fetch, "give": self.give,
        }  # fmt: skip

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> BorderTicket:
        """Read a ticket.

        Raises:
            InvalidInput: `UNKNOWN_KEY`, `CONFIG_INVALID`.
        """
        if set(told) != {"crossing", "chunk_count", "papers", "fetch", "give"}:
            raise InvalidInput(Reason.UNKNOWN_KEY, "the ticket is not whole", "give it as `to_json` wrote it")
        return cls(**{**told, "papers": Papers.from_json(told["papers"])})


@dataclass(frozen=True, slots=True)
class Held:
    """A ticket that is kept good."""

    first: BorderTicket
    fetching: BorderClient
    giving: BorderClient

    @property
    def ticket(self) -> BorderTicket:
        """Return the ticket as it is good now, to hand to a worker."""
        return replace(self.first, papers=self.fetching.papers, fetch=self.fetching.token, give=self.giving.token)

    def collect(self, chunks: Sequence[int]) -> Parcel:
        """Fetch the named chunks with everything that goes with them, as a ticket does."""
        return self.fetching.parcel(chunks)

    def deliver(self, slot: int, files: Mapping[str, bytes | Path]) -> None:
        """Return files of the border's list as delivery number `slot`."""
        self.giving.deliver(slot, files)


class BorderClient:
    """Calls to the border with one token. Safe to share between threads; `with` keeps the token good while it lasts."""

    def __init__(
        self, papers: Papers, token: str, crossing: str, *, streams: int = 4, patience_s: float = 180.0
    ) -> None:
        """Take the papers; nothing is called yet.

        Args:
            streams: how many byte strings are fetched, or files returned, at once.
            patience_s: how long nothing may move before the border counts as out of reach.
        """
        self._papers, self._token, self._crossing = papers, token, crossing
        self._streams, self._patience_s = streams, patience_s
        self._renew_at_s = time.monotonic() + _life_s(token) / 2
        self._renewing = threading.Lock()
        self._closing = threading.Event()
        self._idle: list[pa.flight.FlightClient] = []

    def __enter__(self) -> BorderClient:
        self._closing.clear()
        threading.Thread(target=self._keep, name="border-token", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def token(self) -> str:
        """Return the newest token."""
        return self._token

    @property
    def papers(self) -> Papers:
        """Return the newest papers."""
        return self._papers

    def close(self) -> None:
        """Let the connections go."""
        self._closing.set()
        while self._idle:
            with suppress(Exception):
                self._idle.pop().close()

    def listing(self) -> dict[str, tuple[str, int]]:
        """Return digest and size of each byte string of the crossing, by name."""
        content = self._fetched(LISTING, None)
        try:
            told = {str(name): (str(stated), int(size)) for name, (stated, size) in json.loads(content).items()}
        except (ValueError, TypeError, AttributeError):
            raise StatementInvalid(
                Reason.DIGEST_MISMATCH, "the border's list is not one", "run the job again"
            ) from None
        if any(not 0 <= size <= MAX_ITEM_BYTES for _, size in told.values()):
            raise StatementInvalid(Reason.DIGEST_MISMATCH, "the border lists what is too large", "run the job again")
        return told

    def parcel(self, chunks: Sequence[int] | None = None) -> Parcel:
        """Fetch some chunks, or all, with everything that goes with them; nothing of it is believed yet.

        Raises:
            Refused: the border said no: `TOKEN_INVALID`, `TOKEN_EXPIRED`, `CROSSING_CLOSED` and so on.
            StatementInvalid: `DIGEST_MISMATCH`: what came is not what the border listed.
            ClusterUnavailable: `BORDER_UNREACHABLE`.
        """
        listed = self.listing()
        beside = [name for name in listed if name.startswith(BESIDE)]
        wanted = range(sum(name.startswith("chunk-") for name in listed)) if chunks is None else chunks
        papers = [name for name in (GRANT, STATEMENT, PARAMETERS, CAPSULE) if name in listed or name != CAPSULE]
        names = [*papers, *beside, *(chunk_name(index) for index in wanted)]
        missing = [name for name in names if name not in listed]
        if missing:
            raise InvalidInput(Reason.BORDER_REFUSED, f"the crossing has no {missing[0]}", "ask for chunks that it has")
        with ThreadPoolExecutor(max(1, self._streams), thread_name_prefix="border-fetch") as pool:
            found = dict(zip(names, pool.map(lambda name: self._fetched(name, listed[name]), names), strict=True))
        return Parcel(
            grant=found[GRANT],
            statement=found[STATEMENT],
            chunks={index: found[chunk_name(index)] for index in wanted},
            capsule=found.get(CAPSULE, b""),
            parameters=found[PARAMETERS],
            checkpoint={name.removeprefix(BESIDE): found[name] for name in beside},
        )

    def deliver(self, slot: int, files: Mapping[str, bytes | Path]) -> None:
        """Return files as one delivery, which the private zone sees whole or not at all.

        Args:
            slot: its number; the same one again, with the same files, is the same delivery.
            files: content, or where it lies, by names of the border's list.

        Raises:
            InvalidInput: `RESULT_REFUSED`: a name, a size, or too much.
            FabricError: as `parcel`.
        """
        declared = {name: _declared(content) for name, content in files.items()}
        with ThreadPoolExecutor(max(1, self._streams), thread_name_prefix="border-return") as pool:
            list(pool.map(lambda name: self._given(name, declared[name], files[name]), files))
        listed = {name: [stated, size] for name, (stated, size) in declared.items()}
        self._act("commit", {"crossing": self._crossing, "slot": slot, "files": listed})

    def renew(self) -> None:
        """Take a token that goes on from this one, and a certificate where it is time."""
        with self._renewing:
            told = self._act("renew", {})
            self._token = str(told["token"])
            if "certificate" in told:
                self._papers = replace(self._papers, certificate=str(told["certificate"]))
            self._renew_at_s = time.monotonic() + _life_s(self._token) / 2

    def _fetched(self, name: str, listed: tuple[str, int] | None) -> bytes:
        pieces: list[Any] = []
        hashed = hashlib.sha256()
        most = listed[1] if listed else _MAX_LISTING_BYTES

        def pull(client: pa.flight.FlightClient) -> bytes:
            have = sum(len(piece) for piece in pieces)
            words = {"crossing": self._crossing, "item": name, "offset": have}
            for piece in _pieces(client.do_get(pa.flight.Ticket(json.dumps(words).encode()), self._called())):
                have += len(piece)
                if have > most:
                    raise StatementInvalid(Reason.DIGEST_MISMATCH, f"more came of {name} than is listed")
                pieces.append(piece)
                hashed.update(piece)  # while the next one is under way
            if listed and have < most:
                raise ConnectionError  # ended early: go on from here
            return b"".join(pieces)

        content = self._again(pull, lambda: len(pieces))
        if listed and f"sha256:{hashed.hexdigest()}" != listed[0]:
            raise StatementInvalid(Reason.DIGEST_MISMATCH, f"{name} is not what the border listed", "run the job again")
        return content

    def _given(self, name: str, declared: tuple[str, int], content: bytes | Path) -> None:
        stated, size = declared
        said = {"crossing": self._crossing, "name": name, "size": size, "digest": stated}
        offset = int(self._act("landed", said)["offset"])
        with _reading(content) as read:
            while offset < size:
                offset = int(self._act("put", {**said, "offset": offset}, read(offset))["offset"])

    def _act(self, kind: str, said: Mapping[str, Any], piece: bytes = b"") -> dict[str, Any]:
        def call(client: pa.flight.FlightClient) -> dict[str, Any]:
            action = pa.flight.Action(kind, action_body(said, piece))
            answers = [answer.body.to_pybytes() for answer in client.do_action(action, self._called())]
            return dict(json.loads(answers[0])) if answers else {}

        return self._again(call, lambda: 0)

    def _called(self) -> Any:
        return pa.flight.FlightCallOptions(
            timeout=_CALL_S, headers=[(b"authorization", f"Bearer {self._token}".encode())]
        )

    def _again(self, call: Callable[[Any], Found], moved: Callable[[], int]) -> Found:
        """Call until it succeeds, is refused, or nothing has moved for as long as the patience lasts."""
        pause, last, since = _FIRST_PAUSE_S, moved(), time.monotonic()
        while True:
            client = None
            try:
                client = self._line()
                found = call(client)
            except FabricError:
                raise
            except (pa.ArrowException, ConnectionError, OSError) as error:
                failed = type(error).__name__
                refused = _refusal(str(error))
                if client is not None:
                    with suppress(Exception):
                        client.close()
            else:
                self._idle.append(client)
                return found
            if refused is not None:
                raise refused
            if moved() != last:
                pause, last, since = _FIRST_PAUSE_S, moved(), time.monotonic()
            if time.monotonic() - since + pause > self._patience_s:
                raise ClusterUnavailable(
                    Reason.BORDER_UNREACHABLE,
                    f"the border at {self._papers.address} did not answer for {self._patience_s:.0f} s ({failed})",
                    "start the service (`fabric border serve`), open its port, or give the job papers of its own again",
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _line(self) -> pa.flight.FlightClient:
        try:
            return self._idle.pop()
        except IndexError:  # none, or another thread took the last one
            return self._connect()

    def _connect(self) -> pa.flight.FlightClient:
        return pa.flight.FlightClient(
            f"grpc+tls://{self._papers.address}",
            tls_root_certs=self._papers.authority.encode(),
            cert_chain=self._papers.certificate.encode(),
            private_key=self._papers.key.encode(),
            override_hostname=SERVER_NAME,
            generic_options=_OPTIONS,
        )

    def _keep(self) -> None:
        """Renew the token at half of its life, until the client is closed."""
        while not self._closing.wait(max(1.0, self._renew_at_s - time.monotonic())):
            try:
                self.renew()
            except ClusterUnavailable:
                continue  # the link may come back before the token ends
            except FabricError:
                return  # the next call says why


def _pieces(reader: Any) -> Iterator[Any]:
    if reader.schema != pa.schema([pa.field("bytes", pa.uint8(), nullable=False)]):
        raise StatementInvalid(Reason.MATRIX_MALFORMED, "the border sent another schema than bytes")
    for chunk in reader:
        column = chunk.data.column(0)
        yield column.buffers()[1].slice(column.offset, len(column))


def _refusal(text: str) -> FabricError | None:
    """Return the refusal that an answer of the border tells of; None if it was no refusal, or only that it is busy."""
    for code, message in _CODE.findall(text):
        if code in (Reason.BORDER_BUSY, Reason.INTERNAL) or code not in Reason.__members__:
            continue
        if code == Reason.RESULT_REFUSED:
            return InvalidInput(code, message, "return what the border's list allows")
        kind = StatementInvalid if code == Reason.DIGEST_MISMATCH else Refused
        return kind(code, message, "a job that is started again crosses anew, with tokens of its own")
    return None


def _declared(content: bytes | Path) -> tuple[str, int]:
    if isinstance(content, bytes):
        return digest(content), len(content)
    with content.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", content.stat().st_size


@contextmanager
def _reading(content: bytes | Path) -> Iterator[Callable[[int], bytes]]:
    if isinstance(content, bytes):
        yield lambda offset: content[offset : offset + PIECE_BYTES]
        return
    with content.open("rb") as file:

        def read(offset: int) -> bytes:
            file.seek(offset)
            return file.read(PIECE_BYTES)

        yield read


def _life_s(token: str) -> float:
    """Return how long a token is still good for, by its own words; the border decides."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return max(0.0, min(float(claims["exp"]) - time.time(), float(claims["exp"]) - float(claims["iat"])))
    except (ValueError, IndexError, KeyError, TypeError):
        return 0.0
