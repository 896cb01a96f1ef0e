"""A server for the tests: real HTTP on a real socket, with the answers of the test."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

DEADLINE = 30.0


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)
    connection: int = 0

    @property
    def items(self) -> list[dict[str, Any]]:
        body = self.body
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        try:
            return [json.loads(line) for line in body.splitlines()]
        except ValueError:  # an integer that is too long for Python
            return [json.loads(line, parse_int=str) for line in body.splitlines()]

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]


@dataclass
class Answer:
    status: int = 202
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    # Sends no answer at all, and closes the connection.
    hang_up: bool = False
    # Closes the connection after the answer, without a Connection: close.
    close: bool = False


Answerer = Callable[[Request], Answer]


def accept(request: Request) -> Answer:
    """Accepts all writes, as Sluice does."""
    results = [{"id": id, "receipt": f"1.0.{n}"} for n, id in enumerate(request.ids)]
    return as_json(202, {"results": results})


def as_json(status: int, value: Any, **headers: str) -> Answer:
    return Answer(
        status, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers
    )


def problem(status: int, code: str, **headers: str) -> Answer:
    members = {
        "type": f"urn:sluice:problem:{code}",
        "status": status,
        "code": code,
        "detail": "it is so",
    }
    return as_json(status, members, **{"Content-Type": "application/problem+json"} | headers)


class Server:
    """Answers with the next of `answers`, and with `default` after them."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answerer] = []
        self.default: Answerer = accept
        # While it is cleared, the server reads requests and does not answer.
        self.open = threading.Event()
        self.open.set()
        self._changed = threading.Condition()
        self._http = _HTTPServer(("127.0.0.1", port), self)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.open.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request: Request) -> Answer:
        with self._changed:
            self.requests.append(request)
            answerer = self.answers.pop(0) if self.answers else self.default
            self._changed.notify_all()
        if not self.open.wait(DEADLINE):
            raise AssertionError("the test did not open the server")
        return answerer(request)

    def wait_for(self, count: int) -> list[Request]:
        """Waits until the server has received this number of requests."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, DEADLINE):
                raise AssertionError(f"{len(self.requests)} requests came, and not {count}")
            return list(self.requests)

    def wait_for_writes(self, count: int) -> list[str]:
        """Waits for this number of writes, in any batches, and returns their ids."""

        def ids() -> list[str]:
            return [id for request in self.requests for id in request.ids]

        with self._changed:
            if not self._changed.wait_for(lambda: len(ids()) >= count, DEADLINE):
                raise AssertionError(f"{len(ids())} writes came, and not {count}")
            return ids()

    @property
    def ids(self) -> list[list[str]]:
        return [request.ids for request in self.requests]


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], server: Server) -> None:
        super().__init__(address, _Handler)
        self.server = server

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client closed the connection


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HTTPServer

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            return  # the client was killed
        request = Request(
            self.command,
            self.path,
            {name.lower(): value for name, value in self.headers.items()},
            body,
            connection=self.client_address[1],
        )
        answer = self.server.server.answer(request)
        if answer.hang_up:
            self.close_connection = True
            return
        if "Date" in answer.headers:
            self.send_response_only(answer.status)
        else:
            self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        if answer.close:
            self.close_connection = True

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass
