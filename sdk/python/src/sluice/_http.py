"""HTTP: one request at a time on each of a few connections that are kept, and what answers mean."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import random
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from sluice._version import __version__
from sluice.errors import ApiError, NetworkError

PAUSE_MIN = 0.1
PAUSE_MAX = 10.0
RETRY_AFTER_MAX = 60.0

_IDLE_MAX = 4
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request; `retry_after` is in seconds, 0 without."""

    status: int
    body: bytes
    reason: str = ""
    retry_after: float = 0.0

    def error(self) -> ApiError:
        """The answer as an error, from the problem that its body is, if it is one."""
        try:
            problem = json.loads(self.body)
        except (ValueError, RecursionError):
            problem = None
        if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
            return ApiError(self.status, detail=self.reason)
        return problem_error(self.status, problem)


def problem_error(status: int, problem: dict[str, object]) -> ApiError:
    """The error that the members of a problem, or of an item's error, describe."""
    texts = (problem.get(name) for name in ("code", "detail", "field"))
    return ApiError(status, *(text if isinstance(text, str) else "" for text in texts))


def is_retryable(error: ApiError | NetworkError) -> bool:
    """Whether trying again may help."""
    return isinstance(error, NetworkError) or error.status == 429 or error.status >= 500


def pause_after(tries: int, retry_after: float) -> float:
    """How many seconds to wait after so many failed tries."""
    pause = min(PAUSE_MIN * (1 << min(tries - 1, 10)), PAUSE_MAX)
    return max(pause * random.uniform(0.5, 1), min(retry_after, RETRY_AFTER_MAX))


class Transport:
    """Requests to one server, from any thread."""

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port
        self._tls = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self._headers = {"User-Agent": f"sluice-python/{__version__}"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._closed = False

    def request(
        self,
        method: str,
        target: str,
        *,
        timeout: float,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Sends the request and reads the answer, in `timeout` seconds. Raises NetworkError."""
        deadline = time.monotonic() + timeout
        headers = self._headers | (headers or {})
        while True:
            connection, kept = self._acquire()
            healthy = False
            try:
                connection.timeout = max(deadline - time.monotonic(), 0.001)
                response, healthy = _exchange(
                    connection, method, self._path + target, body, headers, deadline
                )
                return response
            except ConnectionError as e:
                # The server may have closed a connection that was idle just before it was used
                # again. That says nothing about the server; a new connection does.
                if not kept:
                    raise NetworkError(_text(e)) from e
            except (OSError, http.client.HTTPException) as e:
                raise NetworkError(_text(e)) from e
            finally:
                self._release(connection, healthy)

    def close(self) -> None:
        """Closes the connections; requests that are out fail."""
        with self._lock:
            self._closed = True
            for connection in (*self._idle, *self._busy):
                sock: socket.socket | None = connection.sock
                if sock is not None:
                    # A close alone would leave another thread's read waiting.
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _acquire(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._closed:
                raise NetworkError("the client is closed")
            kept = bool(self._idle)
            if kept:
                connection = self._idle.pop()
            elif self._tls:
                connection = http.client.HTTPSConnection(self._host, self._port)
            else:
                connection = http.client.HTTPConnection(self._host, self._port)
            self._busy.add(connection)
            return connection, kept

    def _release(self, connection: http.client.HTTPConnection, healthy: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if healthy and not self._closed and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | None,
    headers: dict[str, str],
    deadline: float,
) -> tuple[Response, bool]:
    """The answer, and whether the connection can be used again."""
    if connection.sock is None:
        connection.connect()
    sock = connection.sock
    # The timeout of a socket is that of each call; the deadline is that of the whole.
    sock.settimeout(_left(deadline))
    connection.request(method, target, body=body, headers=headers)
    sock.settimeout(_left(deadline))
    answer = connection.getresponse()
    chunks = []
    while not answer.isclosed():
        sock.settimeout(_left(deadline))
        chunks.append(answer.read(_CHUNK_BYTES))
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    response = Response(
        answer.status,
        b"".join(chunks),
        answer.reason,
        _seconds(answer.headers.get("Retry-After", "")),
    )
    return response, not answer.will_close


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the request took too long")
    return left


def _seconds(retry_after: str) -> float:
    """The value of Retry-After, seconds or a date, in seconds from now."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:10]), 10**9))
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


def _text(e: Exception) -> str:
    return str(e) or type(e).__name__
