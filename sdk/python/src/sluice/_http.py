"""HTTP requests on a few kept connections."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import http.client
import itertools
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

from sluice import _clock, _proxies, _retry
from sluice._version import __version__
from sluice.errors import ApiError, NetworkError, ValidationError

REDIRECTS_MAX = 3

_PORTS = {"http": 80, "https": 443}
_IDLE_MAX = 4
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to a request. `retry_after` is in seconds; 0 if there is none."""

    status: int
    body: bytes
    reason: str = ""
    retry_after: float = 0.0
    media_type: str = ""
    # The target of a redirect that was not followed.
    location: str | None = None
    # The server's time in Unix seconds; None if the answer does not have it.
    date: float | None = None
    # The body, if it was asked for as a stream and the status is 200. `body` is empty then.
    stream: Stream | None = None

    def error(self) -> ApiError:
        """Returns the answer as an error, with the members of its problem document if any."""
        if self.location is not None:
            return ApiError(
                self.status, detail=f"a redirect to {_shown(self.location)} is not followed"
            )
        problem = self._problem()
        if not isinstance(problem.get("code"), str):
            return ApiError(self.status, detail=self.reason)
        return _retry.problem_error(self.status, problem)

    def is_final(self) -> bool:
        """Whether the answer to a request with one write refuses that write for good.

        Sluice does so by a final code in a problem document. A proxy does so only by 413.
        """
        if self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return True
        return self._problem().get("code") in _retry.FINAL_CODES and self.is_problem()

    def is_problem(self) -> bool:
        """Whether the answer is a problem document of Sluice, not of a proxy."""
        problem = self._problem()
        return (
            self.status >= HTTPStatus.BAD_REQUEST
            and self.media_type == "application/problem+json"
            and problem.get("type") == f"urn:sluice:problem:{problem.get('code')}"
        )

    def _problem(self) -> dict[str, object]:
        try:
            problem = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return problem if isinstance(problem, dict) else {}


class Stream:
    """The body of an answer that is read while it comes. Close it, unless it was read to its end.

    `idle` is how long nothing may come, in seconds. `end` is called once, with whether the
    connection can be used again.
    """

    def __init__(
        self,
        answer: http.client.HTTPResponse,
        sock: socket.socket,
        idle: float,
    ) -> None:
        self._answer = answer
        self._sock = sock
        self._idle = idle
        self._ends: list[Callable[[bool], None]] = []

    def on_end(self, end: Callable[[bool], None]) -> None:
        """Has `end` called when the stream ends."""
        self._ends.append(end)

    def read(self) -> bytes:
        """Returns the next piece, of up to 64 KiB; empty at the end. Raises NetworkError."""
        try:
            # The timeout counts only while this waits for the server.
            self._sock.settimeout(self._idle)
            piece = self._answer.read1(_CHUNK_BYTES)
            if not piece and self._answer.length:
                raise http.client.IncompleteRead(b"", self._answer.length)
        except TimeoutError as e:
            self._finish(False)
            raise NetworkError(f"nothing came for {self._idle} seconds") from e
        except (OSError, ValueError, http.client.HTTPException) as e:
            self._finish(False)
            raise NetworkError(_text(e)) from e
        if not piece:
            self._finish(not self._answer.will_close)
        return piece

    def close(self) -> None:
        """Ends the request, if it has not ended. Another thread that reads ends at once."""
        if self._ends:
            # Without a shutdown, the other thread would keep waiting, and this one for it.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._finish(False)

    def _finish(self, healthy: bool) -> None:
        ends, self._ends = self._ends, []
        if ends:
            self._answer.close()  # which leaves the connection open
        for end in ends:
            end(healthy)


def may_follow(status: int, origin: str, target: str) -> bool:
    """Whether a redirect may be followed.

    It must keep the method and the body (307 or 308), and lead to the same scheme, host and port. A
    redirect of a host from http to https, both at their default ports, may be followed too.
    """
    try:
        old, new = urlsplit(origin), urlsplit(target)
        ports = [url.port or _PORTS.get(url.scheme) for url in (old, new)]
    except ValueError:
        return False
    if status not in (307, 308) or old.hostname != new.hostname or new.username is not None:
        return False
    if (old.scheme, new.scheme) == ("http", "https"):
        return ports == [80, 443]
    return old.scheme == new.scheme and ports[0] == ports[1]


def _shown(location: str) -> str:
    """Returns the location for logs, without its query and login, which may be secret."""
    try:
        url = urlsplit(location)
        return (
            f"{url.scheme}://{url.hostname}{'' if url.port is None else f':{url.port}'}{url.path}"
        )
    except ValueError:
        return "what is no URL"


class Transport:
    """Sends requests to one server, from any thread."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        parts = urlsplit(url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.hostname or ""
        self._port = parts.port
        self._ca_file = ca_file
        self._environment = environment
        self._context = _context(ca_file) if parts.scheme == "https" else None
        self._proxy = _proxies.Proxy.of(url, environment)
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
        idle: float | None = None,
    ) -> Response:
        """Sends the request and reads the answer, in `timeout` seconds. Raises NetworkError.

        It follows redirects 307 and 308 to the same server. With `idle`, an answer of status 200 is
        a stream, which must begin in `timeout` seconds; nothing may come for `idle` seconds then.
        """
        deadline = time.monotonic() + timeout
        headers = self._headers | (headers or {})
        path = self._path + target
        url = self._origin + path
        for hops in itertools.count():
            response = self._request(method, url, path, body, headers, deadline, idle)
            if response.location is None:
                return response
            place = urljoin(url, response.location)
            if hops == REDIRECTS_MAX or not may_follow(response.status, url, place):
                return replace(response, location=place)
            url = place
            parts = urlsplit(url)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        raise AssertionError  # the loop has no end

    def _request(
        self,
        method: str,
        url: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        deadline: float,
        idle: float | None,
    ) -> Response:
        if self._context is not None or not url.startswith("https:"):
            return self._try(method, path, body, headers, deadline, idle)
        # A redirect of the host to https holds for this request only.
        parts = urlsplit(url)
        secure = Transport(
            f"{parts.scheme}://{parts.netloc}",
            None,
            ca_file=self._ca_file,
            environment=self._environment,
        )
        stream = None
        try:
            response = secure._try(method, path, body, headers, deadline, idle)
            stream = response.stream
            if stream is not None:
                stream.on_end(lambda _: secure.close())
            return response
        finally:
            if stream is None:
                secure.close()

    def _try(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        deadline: float,
        idle: float | None,
    ) -> Response:
        if self._proxy is not None and self._context is None:
            path = self._origin + path
            headers = headers | self._proxy.headers
        while True:
            connection, kept = self._acquire()
            healthy = False
            stream = None
            try:
                connection.timeout = max(deadline - time.monotonic(), 0.001)
                if connection.sock is None:
                    try:
                        connection.connect()
                    except OSError as e:
                        raise _retry.NotSentError(_text(e)) from e
                response, healthy = _exchange(
                    connection, method, path, body, headers, deadline, idle
                )
                stream = response.stream
                if stream is not None:
                    stream.on_end(functools.partial(self._release, connection))
                return response
            except ConnectionError as e:
                # The server may have closed an idle connection just before this request. So the
                # request is sent once more, on a new connection.
                if not kept:
                    raise NetworkError(_text(e)) from e
            except (OSError, http.client.HTTPException) as e:
                raise NetworkError(_text(e)) from e
            finally:
                if stream is None:
                    self._release(connection, healthy)

    def close(self) -> None:
        """Closes the connections. Requests under way fail."""
        with self._lock:
            self._closed = True
            for connection in (*self._idle, *self._busy):
                sock: socket.socket | None = connection.sock
                if sock is not None:
                    # Without a shutdown, a read in another thread would keep waiting.
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
            connection = self._idle.pop() if kept else self._connection()
            self._busy.add(connection)
            return connection, kept

    def _connection(self) -> http.client.HTTPConnection:
        proxy = self._proxy
        host, port = (self._host, self._port) if proxy is None else (proxy.host, proxy.port)
        if self._context is None:
            return http.client.HTTPConnection(host, port)
        connection = http.client.HTTPSConnection(host, port, context=self._context)
        if proxy is not None:
            connection.set_tunnel(self._host, self._port or 443, headers=proxy.headers)
        return connection

    def _release(self, connection: http.client.HTTPConnection, healthy: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if healthy and not self._closed and len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()


def _context(ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as e:
            raise ValidationError("ca_file", f"cannot be used: {_text(e)}") from e
    return context


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | None,
    headers: dict[str, str],
    deadline: float,
    idle: float | None,
) -> tuple[Response, bool]:
    """Returns the answer, and whether the connection can be used again unless it is a stream."""
    sock = connection.sock
    # The timeout of a socket applies to each call; the deadline applies to the whole exchange.
    sock.settimeout(_left(deadline))
    broken: ConnectionError | None = None
    try:
        connection.request(method, target, body=body, headers=headers)
    except ConnectionError as e:
        broken = e
    sock.settimeout(_left(deadline))
    try:
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException):
        if broken is not None:
            raise broken from None
        raise
    chunks = []
    stream = None
    if idle is not None and answer.status == HTTPStatus.OK:
        stream = Stream(answer, sock, idle)
    else:
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
        answer.headers.get_content_type(),
        answer.headers.get("Location") if 300 <= answer.status < 400 else None,
        _clock.server_time(answer.headers),
        stream,
    )
    return response, not answer.will_close and broken is None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the request took too long")
    return left


def _seconds(retry_after: str) -> float:
    """Parses a Retry-After header, which has seconds or a date, to seconds from now."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:10]), 10**9))
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


def _text(e: Exception) -> str:
    return str(e) or type(e).__name__
