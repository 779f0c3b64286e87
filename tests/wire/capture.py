"""A capture of a link, and the byte streams that it carried.

`python capture.py INTERFACE FILE` writes every frame to a pcap file until its standard input ends, and then how many
the kernel dropped: a capture with holes proves nothing. The rest reads such files: TCP streams put together by sequence
number, and out of HTTP/2 (gRPC) the content of its DATA frames, whose headers would else split values.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

_SOL_PACKET, _PACKET_STATISTICS, _ETH_P_ALL, _SO_RCVBUFFORCE = 263, 6, 0x0003, 33
_FRAME_BYTES = 256 * 1024
_BUFFER_BYTES = 256 * 1024 * 1024
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SYN, _FIN = 2, 1


class Capture:
    """A capture that runs in a process of its own, in the namespace whose command words are given."""

    def __init__(self, launcher: Sequence[str], interface: str, path: Path) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [*launcher, sys.executable, __file__, interface, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._counted: dict[str, int] | None = None
        assert self._process.stdout.readline() == "ready\n", "the capture did not start"

    def stop(self) -> dict[str, int]:
        """End the capture and return how many frames the kernel saw, and how many of these it dropped."""
        if self._counted is None:
            out, _ = self._process.communicate(timeout=600)
            self._counted = json.loads(out)
        return self._counted


@dataclass(slots=True)
class Stream:
    """One direction of one connection, or the datagrams of one flow.

    Attributes:
        opened: who sent the first SYN is the client; None where the capture saw none.
        gaps: bytes that the capture did not see.
    """

    protocol: str
    source: str
    source_port: int
    target: str
    target_port: int
    client: bool | None = None
    packets: int = 0
    wire_bytes: int = 0
    content: bytes = b""
    gaps: int = 0

    def __str__(self) -> str:
        return f"{self.protocol} {self.source}:{self.source_port} -> {self.target}:{self.target_port}"


@dataclass(slots=True)
class _Half:
    stream: Stream
    first: int | None = None
    reached: int = 0
    segments: list[tuple[int, bytes]] = field(default_factory=list)


def frames(path: Path) -> Iterator[bytes]:
    """Yield the frames of a pcap file."""
    with path.open("rb") as file:
        file.seek(24)
        while len(head := file.read(16)) == 16:
            yield file.read(struct.unpack_from("<8xI", head)[0])


def streams(path: Path) -> list[Stream]:
    """Return every stream of a capture, put together; what is neither TCP nor UDP is one stream for each protocol."""
    halves: dict[tuple[object, ...], _Half] = {}
    done: list[_Half] = []
    for frame in frames(path):
        key, flags, sequence, payload = _parsed(frame)
        half = halves.get(key)
        if flags & _SYN and half is not None and half.first != sequence:  # the ports are used again
            done.append(halves.pop(key))
            half = None
        if half is None:
            half = halves[key] = _Half(Stream(*key))
        half.stream.packets += 1
        half.stream.wire_bytes += len(frame)
        if key[0] != "tcp":
            half.segments.append((half.reached, payload))
            half.reached += len(payload)
            continue
        if flags & _SYN:
            half.first, half.stream.client = sequence, not flags & 0x10
        _keep(half, sequence + bool(flags & _SYN), payload)
    done += halves.values()
    for half in done:
        _join(half)
    return [half.stream for half in done]


def _keep(half: _Half, sequence: int, payload: bytes) -> None:
    if half.first is None:
        half.first = sequence - 1
    # Sequence numbers wrap at 2^32 (RFC 9293, 3.4): of all readings, the one nearest to what was reached.
    at = sequence - half.first - 1
    at += round((half.reached - at) / 2**32) * 2**32
    if payload:
        half.segments.append((at, payload))
        half.reached = max(half.reached, at + len(payload))


def _join(half: _Half) -> None:
    out, reached = bytearray(), 0
    for at, payload in sorted(half.segments, key=lambda segment: segment[0]):
        if at > reached:
            half.stream.gaps += at - reached
            out += bytes(at - reached)
            reached = at
        new = payload[reached - at :] if at <= reached else payload
        out += new
        reached += len(new)
    half.stream.content = bytes(out)


def _parsed(frame: bytes) -> tuple[tuple[str, str, int, str, int], int, int, bytes]:
    """Return a frame's flow, and of TCP its flags and sequence number, and the payload."""
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype == 0x0800 and len(frame) >= 34:
        start, protocol = 14 + (frame[14] & 15) * 4, frame[23]
        stop = 14 + int.from_bytes(frame[16:18], "big")
        source, target = frame[26:30], frame[30:34]
        if stop == 14:  # a segment that the kernel did not cut up yet may leave its length open
            stop = len(frame)
        if int.from_bytes(frame[20:22], "big") & 0x3FFF:  # a fragment
            protocol = 0
    elif ethertype == 0x86DD and len(frame) >= 54:
        start, protocol = 54, frame[20]
        stop = 54 + int.from_bytes(frame[18:20], "big")
        source, target = frame[22:38], frame[38:54]
        if stop == 54:
            stop = len(frame)
    else:
        return (f"ethertype {ethertype:04x}", "", 0, "", 0), 0, 0, frame
    addresses = str(ip_address(source)), str(ip_address(target))
    if protocol == 6 and len(frame) >= start + 20:
        ports = struct.unpack_from(">HH", frame, start)
        sequence = int.from_bytes(frame[start + 4 : start + 8], "big")
        data = start + (frame[start + 12] >> 4) * 4
        return ("tcp", addresses[0], ports[0], addresses[1], ports[1]), frame[start + 13], sequence, frame[data:stop]
    if protocol == 17 and len(frame) >= start + 8:
        ports = struct.unpack_from(">HH", frame, start)
        return ("udp", addresses[0], ports[0], addresses[1], ports[1]), 0, 0, frame[start + 8 : stop]
    return (f"ip {protocol}", addresses[0], 0, addresses[1], 0), 0, 0, frame[start:stop]


def messages(stream: bytes) -> list[bytes]:
    """Return the content of an HTTP/2 connection (RFC 9113, 4.1) by its streams; empty if it is none."""
    at = len(_PREFACE) if stream.startswith(_PREFACE) else 0
    if len(stream) < at + 9 or stream[at + 3] != 4 or stream[at + 5 : at + 9] != bytes(4):
        return []
    found: dict[int, bytearray] = {}
    while at + 9 <= len(stream):
        size, kind, flags = int.from_bytes(stream[at : at + 3], "big"), stream[at + 3], stream[at + 4]
        number = int.from_bytes(stream[at + 5 : at + 9], "big") & 0x7FFFFFFF
        content = stream[at + 9 : at + 9 + size]
        if kind == 0:
            pad = content[0] if flags & 8 and content else 0
            found.setdefault(number, bytearray()).extend(content[1 : len(content) - pad] if flags & 8 else content)
        at += 9 + size
    return [bytes(content) for content in found.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Who talked to whom: a client and a server's port, and the payload in each direction, in bytes."""

    protocol: str
    client: str
    server: str
    port: int
    connections: int
    sent_bytes: int
    received_bytes: int


def flows(captured: Sequence[Stream]) -> list[Flow]:
    """Sum a capture up by client, server and server's port, largest first."""
    sums: dict[tuple[str, str, str, int], list[int]] = {}
    answers = {(s.protocol, s.target, s.target_port, s.source, s.source_port) for s in captured if s.client is False}
    for stream in captured:
        ends = stream.protocol, stream.source, stream.source_port, stream.target, stream.target_port
        asks = stream.client if stream.client is not None else ends in answers or stream.protocol != "tcp"
        if asks:
            key, slot = (stream.protocol, stream.source, stream.target, stream.target_port), 1
        else:
            key, slot = (stream.protocol, stream.target, stream.source, stream.source_port), 2
        total = sums.setdefault(key, [0, 0, 0])
        total[0] += asks
        total[slot] += len(stream.content)
    found = [
        Flow(protocol=p, client=c, server=s, port=port, connections=n, sent_bytes=sent, received_bytes=received)
        for (p, c, s, port), (n, sent, received) in sums.items()
    ]
    return sorted(found, key=lambda flow: flow.sent_bytes + flow.received_bytes, reverse=True)


def _main(interface: str, path: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as link, open(path, "wb") as file:
        link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        link.bind((interface, _ETH_P_ALL))
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _FRAME_BYTES, 1))
        print("ready", flush=True)
        buffer = bytearray(_FRAME_BYTES)
        view, ended = memoryview(buffer), False
        while True:
            ready, _, _ = select.select([link] if ended else [link, sys.stdin], [], [], 0.2 if ended else None)
            if not ready:
                break  # nothing more is on its way
            if link in ready:
                size = link.recv_into(buffer)
                now = time.time_ns() // 1000
                file.write(struct.pack("<IIII", now // 10**6, now % 10**6, size, size))
                file.write(view[:size])
            if sys.stdin in ready:
                ended = True
        seen, dropped = struct.unpack("II", link.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        print(json.dumps({"packets": seen, "dropped": dropped}))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
