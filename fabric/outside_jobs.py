"""Jobs in the cluster of another zone: started, looked at and stopped through that cluster's jobs API.

Plain HTTP with that cluster's own token; this process's own token and Ray's client stay out of it. Of an answer nothing
counts but its status and one word of bounded JSON: no log is fetched, no message shown, no redirection followed.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from fabric.errors import ClusterUnavailable, InvalidInput, Reason, RemoteFailure
from fabric.results import read_json

ENTRYPOINT = 'exec "${FABRIC_PYTHON:-python3}" -m fabric.outside'
"""What a job outside runs: a program of the image, named alike in every zone."""
MOST_BYTES = 1024 * 1024
CALL_S = 10.0
_ID = re.compile(r"[a-z0-9-]{1,80}\Z")


class JobState(StrEnum):
    """What the jobs API says of a job; a word it does not know is `UNKNOWN`."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    ABSENT = "ABSENT"
    UNKNOWN = "UNKNOWN"

    @property
    def over(self) -> bool:
        """Say whether the job has ended, or is not there."""
        return self in (JobState.STOPPED, JobState.SUCCEEDED, JobState.FAILED, JobState.ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideJobs:
    """The jobs API of one zone's cluster.

    Attributes:
        url: http or https, host and port.
        token: that cluster's own.
    """

    zone: str
    url: str
    token: str = field(repr=False)

    def submit(self, job: str, variables: Mapping[str, str]) -> None:
        """Start the program outside as job `job`, which Ray refuses to start twice.

        Raises:
            RemoteFailure: `REMOTE_FAILED`: it does not answer, or cannot now; trying again is safe.
            ClusterUnavailable: `CLUSTER_FAILED`: it will not, for whoever has this token.
        """
        body = {
            "entrypoint": ENTRYPOINT,
            "submission_id": job,
            "runtime_env": {"env_vars": dict(variables)},
            "metadata": {},
        }
        status, _ = self._call("POST", "/api/jobs/", body)
        if 400 <= status < 500:
            raise ClusterUnavailable(
                Reason.CLUSTER_FAILED,
                f"the cluster of zone {self.zone!r} refused the job with status {status}",
                "look at its token and its address: [outside] in fabric.toml, or `fabric down` and `fabric up`",
            )
        # Ray answers a second submission with 500, as it does what it could not do: the job itself decides.
        if status != 200 and self.state(job) in (JobState.ABSENT, JobState.UNKNOWN):
            raise self._failed(f"refused the job with status {status}")

    def state(self, job: str) -> JobState:
        """Return how a job stands.

        Raises:
            RemoteFailure: `REMOTE_FAILED`: the cluster does not answer, or with what is no answer.
        """
        status, told = self._call("GET", f"/api/jobs/{job}")
        if status == 404:
            return JobState.ABSENT
        if status != 200:
            raise self._failed(f"answered with status {status}")
        word = told.get("status") if isinstance(told, dict) else None
        return JobState(word) if word in [state.value for state in JobState] else JobState.UNKNOWN

    def stop(self, job: str) -> None:
        """Ask for a job to be stopped; it may be over already.

        Raises:
            RemoteFailure: `REMOTE_FAILED`.
        """
        self._call("POST", f"/api/jobs/{job}/stop")

    def _call(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        with self._connected() as connection:
            try:
                connection.request(
                    verb,
                    path,
                    body=None if body is None else json.dumps(body),
                    headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
                )
                response = connection.getresponse()
                content = _read(response)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise self._failed(f"does not answer ({type(error).__name__})") from None
        if len(content) > MOST_BYTES:
            raise self._failed(f"answered with more than {MOST_BYTES} bytes")
        if response.status != 200:
            return response.status, None
        try:
            return 200, read_json(content or b"null")
        except InvalidInput:
            raise self._failed("answered with what is no plain JSON") from None

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """Yield a connection that is cut off after `CALL_S`, however slowly the other side goes on talking."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=CALL_S)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(f"does not answer ({type(error).__name__})") from None
        timer = threading.Timer(CALL_S, _cut, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            yield connection
        finally:
            timer.cancel()
            connection.close()

    def _failed(self, what: str) -> RemoteFailure:
        return RemoteFailure(
            Reason.REMOTE_FAILED, f"the cluster of zone {self.zone!r} {what}", "look at that cluster, then run it again"
        )


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the body, or a byte more of it than may be; `read` would believe a chunk of a negative size."""
    content = bytearray()
    while len(content) <= MOST_BYTES and (piece := response.read1(MOST_BYTES + 1 - len(content))):
        content += piece
    return bytes(content)


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def job_id(crossing: str) -> str:
    """Return the id of the job of a crossing: the same however often it is asked for, so that none starts twice."""
    job = f"fabric-{crossing}"
    assert _ID.match(job)  # noqa: S101 - we make the ids of crossings
    return job
