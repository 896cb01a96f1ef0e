"""Search, insights, funnels, retention and SQL."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from conftest import MakeClient, track
from server import Answer, Request, Server, accept, as_json, problem
from sluice import (
    ApiError,
    AsyncClient,
    Client,
    ClosedError,
    NetworkError,
    RawJSON,
    ValidationError,
)

SDK = Path(__file__).resolve().parents[2]
READS = json.loads((SDK / "spec" / "vectors" / "reads.json").read_text(encoding="utf-8"))["reads"]

spec = importlib.util.spec_from_file_location("driver", SDK / "python" / "driver" / "driver.py")
assert spec is not None
assert spec.loader is not None
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)

EMPTY: dict[str, Any] = {
    "results": [],
    "next_cursor": None,
    "rows": [],
    "truncated": False,
    "columns": [],
}


TYPES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


def empty(request: Request) -> Answer:
    """An answer without anything in it."""
    if request.path.startswith("/export"):
        return Answer(200, b"", {"Content-Type": "application/x-ndjson"})
    format = dict(parse_qsl(urlsplit(request.path).query)).get("format", "")
    return as_json(200, EMPTY, **{"Content-Type": TYPES.get(format, "application/json")})


def expect(case: dict[str, Any], request: Request) -> None:
    """Compares a request with that of a vector."""
    target = urlsplit(request.path)
    assert (request.method, target.path) == (case["method"], case["path"])
    sent = parse_qsl(target.query, keep_blank_values=True)
    # By name; parameters of one name keep their order.
    assert sorted(sent, key=lambda parameter: parameter[0]) == list(map(tuple, case["parameters"]))
    if "body" in case:
        assert request.headers["content-type"] == "application/json"
        assert json.loads(request.body) == case["body"]
    else:
        assert request.body.decode() == case.get("text", "")


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in READS])
def test_requests(case: dict[str, Any], client: Client, server: Server) -> None:
    server.default = empty
    program = driver.Driver()
    program.opened = client
    command = {"do": case["call"], "query": case["query"]}
    if "refused" in case:
        with pytest.raises(ValidationError) as caught:
            program.do(command)
        assert caught.value.field == case["refused"]
        assert not server.requests
        return
    program.do(command)
    (request,) = server.requests
    expect(case, request)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["name"]) for case in READS if "refused" not in case]
)
def test_requests_with_asyncio(case: dict[str, Any], server: Server) -> None:
    server.default = empty
    arguments = driver.query(case)

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            if case["call"] == "search":
                assert [result async for result in client.search_all(**arguments)] == []
            elif case["call"] == "export_events":
                assert [event async for event in client.export_events(**arguments)] == []
            elif case["call"] == "write_sql":
                await client.write_sql(file=io.BytesIO(), **arguments)
            else:
                await getattr(client, case["call"])(**arguments)

    asyncio.run(main())
    (request,) = server.requests
    expect(case, request)


EVENT = '{"id":"a","conversation_id":"c","conversation_metadata":null,"input":[1.50],"output":null}'
RESULT = f'{{"event":{EVENT},"score":0.5,"highlights":[]}}'


def test_search(client: Client, server: Server) -> None:
    def answer(request: Request) -> Answer:
        cursor = "null" if b"p2" in request.body else '"p2"'
        return Answer(200, f'{{"results":[{RESULT}],"next_cursor":{cursor}}}'.encode())

    server.default = answer
    found = list(client.search_all(text="hi", limit=1, raw=True, wait=3))
    assert [result["score"] for result in found] == [0.5, 0.5]
    assert [result["event"]["raw"]["input"] for result in found] == [RawJSON("[1.50]")] * 2
    assert [(r.method, r.headers.get("prefer"), json.loads(r.body)) for r in server.requests] == [
        ("POST", "wait=3", {"text": "hi", "limit": 1}),
        ("POST", None, {"text": "hi", "limit": 1, "cursor": "p2"}),
    ]


@pytest.mark.parametrize(
    ("vector", "field"),
    [
        ([0.0] * 4097, "vector"),
        ("abc", "vector"),
        ([1, 1e39], "vector[1]"),
        ([float("nan")], "vector[0]"),
    ],
)
def test_refused_vectors(vector: Any, field: str, client: Client, server: Server) -> None:
    with pytest.raises(ValidationError) as caught:
        client.search(vector=vector)
    assert caught.value.field == field
    assert not server.requests


def test_integers_keep_their_digits(client: Client, server: Server) -> None:
    row = '{"events":3,"metadata.n":9007199254740993,"sum(metadata.n)":36893488147419103231}'
    large = 2**256 - 1
    server.answers = [
        lambda _: Answer(200, f'{{"rows":[{row}],"truncated":true}}'.encode()),
        lambda _: Answer(200, f'{{"columns":[],"rows":[[{large}, null]]}}'.encode()),
    ]
    assert client.insights(["events"]) == {"rows": [json.loads(row)], "truncated": True}
    assert client.sql("SELECT 1")["rows"] == [[large, None]]


def no_pauses(client: Client) -> None:
    def pause(_: float) -> bool:
        return False

    client._core.read_sleep = pause  # type: ignore[assignment]


def test_posts_are_retried_and_wait_for_writes(make_client: MakeClient, server: Server) -> None:
    client = make_client()
    no_pauses(client)
    reads = 0

    def answer(request: Request) -> Answer:
        nonlocal reads
        if request.path == "/events":
            return accept(request)
        reads += 1
        return problem(503, "overloaded") if reads % 2 else empty(request)

    server.default = answer
    track(client)
    client.search(text="a", wait=2)
    client.sql("SELECT 1", wait=2)
    client.write_sql("SELECT 1", io.BytesIO(), wait=2)
    sent = [
        (r.method, urlsplit(r.path).path, "after=1.0.0" in r.path, r.headers["prefer"], r.body)
        for r in server.requests[1:]
    ]
    assert sent == [
        *[("POST", "/search", True, "wait=2", b'{"text": "a"}')] * 2,
        *[("POST", "/sql", True, "wait=2", b"SELECT 1")] * 4,
    ]


def test_sql_is_not_set_up(client: Client, server: Server) -> None:
    server.default = lambda _: problem(501, "sql_not_set_up")
    reads: list[Callable[[], object]] = [
        lambda: client.sql("SELECT 1"),
        lambda: client.write_sql("SELECT 1", io.BytesIO()),
    ]
    for read in reads:
        with pytest.raises(ApiError) as caught:
            read()
        assert caught.value.code == "sql_not_set_up"
    assert len(server.requests) == 2


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server that writes its answers itself, one for each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection:
            request = b""
            while not request.endswith(b"SELECT 1" if b"POST" in request[:4] else b"\r\n\r\n"):
                request += connection.recv(1 << 16)
            with contextlib.suppress(OSError):  # the client left
                serve(connection, request)

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = HEAD % b"text/csv; header=present"
NDJSON = HEAD % b"application/x-ndjson"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Counter:
    """A file that counts what it gets."""

    def __init__(self) -> None:
        self.bytes = self.largest = 0

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self.largest = max(self.largest, len(data))


def test_a_stream_is_never_in_memory_as_a_whole(make_client: MakeClient) -> None:
    piece = chunk(b"x" * (1 << 20))

    def serve(connection: socket.socket, request: bytes) -> None:
        connection.sendall(CHUNKED)
        for _ in range(64):
            connection.sendall(piece)
        connection.sendall(chunk(b""))

    with raw_server(serve) as url:
        client = make_client(url=url)
        for _ in range(2):
            counter = Counter()
            tracemalloc.start()
            try:
                client.write_sql("SELECT 1", counter)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert counter.bytes == 64 << 20
            assert counter.largest <= 1 << 16
            assert peak < 4 << 20


def test_the_connection_of_a_stream_is_kept(client: Client, server: Server) -> None:
    server.default = lambda _: Answer(200, b"a,b\n", {"Content-Type": "text/csv"})
    for _ in range(3):
        file = io.BytesIO()
        client.write_sql("SELECT 1", file)
        assert file.getvalue() == b"a,b\n"
    assert len({request.connection for request in server.requests}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + chunk(b"begins"),
        CHUNKED + b"20\r\nbegins",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: 99\r\n\r\nbegins",
    ],
)
def test_a_stream_that_breaks_off(answer: bytes, make_client: MakeClient) -> None:
    requests = 0

    def serve(connection: socket.socket, _: bytes) -> None:
        nonlocal requests
        requests += 1
        connection.sendall(answer)

    with raw_server(serve) as url:
        file = io.BytesIO()
        with pytest.raises(NetworkError):
            make_client(url=url).write_sql("SELECT 1", file)
        assert file.getvalue() == b"begins"
        assert requests == 1


def test_a_stream_of_which_nothing_comes(make_client: MakeClient) -> None:
    def serve(connection: socket.socket, request: bytes) -> None:
        connection.sendall(CHUNKED)
        for _ in range(5):
            connection.sendall(chunk(b"x"))
            time.sleep(0.4)
        connection.recv(1)  # until the client leaves

    with raw_server(serve) as url:
        file = io.BytesIO()
        with pytest.raises(NetworkError, match="nothing came"):
            make_client(url=url, request_timeout=1.6).write_sql("SELECT 1", file)
        assert file.getvalue() == b"xxxxx"  # which took longer than the timeout together


def test_a_cancelled_stream_stops() -> None:
    left = threading.Event()

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(CHUNKED)
        try:
            while True:
                connection.sendall(chunk(b"x" * 1000))
        finally:
            left.set()

    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            counter = Counter()
            call = asyncio.create_task(client.write_sql("SELECT 1", counter))
            while not counter.bytes:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(left.wait, 30)

    with raw_server(serve) as url:
        asyncio.run(main(url))


def test_the_driver_writes_bytes(client: Client, server: Server) -> None:
    server.default = lambda _: Answer(200, b"PAR1\x00\xff", {"Content-Type": TYPES["parquet"]})
    program = driver.Driver()
    program.opened = client
    answer = program.do({"do": "write_sql", "query": {"query": "SELECT 1", "format": "parquet"}})
    assert base64.b64decode(answer["bytes"]) == b"PAR1\x00\xff"


def test_the_page_of_a_proxy(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice._reads.RETRY_FOR", 0.3)
    server.default = lambda _: Answer(200, b"<html>", {"Content-Type": "text/html"})
    file = io.BytesIO()
    with pytest.raises(NetworkError, match="is not text/csv"):
        client.write_sql("SELECT 1", file)
    with pytest.raises(NetworkError, match="is not application/x-ndjson"):
        list(client.export_events())
    assert len(server.requests) >= 4
    assert not file.getvalue()
    other: Any = "xml"
    with pytest.raises(ValidationError) as caught:
        client.write_sql("SELECT 1", file, format=other)
    assert caught.value.field == "format"


def line(id: str) -> bytes:
    return EVENT.replace('"a"', json.dumps(id, ensure_ascii=False)).encode() + b"\n"


def breaking(asked: list[str]) -> Callable[[socket.socket, bytes], None]:
    """Serves an export whose answers break off in all ways."""

    def serve(connection: socket.socket, request: bytes) -> None:
        asked.append(request.split(b" ", 2)[1].decode())
        if len(asked) == 1:
            connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            return
        lines = {
            2: line("\u00e9 1") + line("e2") + line("e3")[:20],
            3: line("e3") + b'{"id":"half"',
            4: b"",
            5: line("e4"),
        }[len(asked)]
        connection.sendall(NDJSON + (chunk(lines) if lines else b""))
        if len(asked) in (3, 5):
            connection.sendall(chunk(b""))

    return serve


EXPORTED = ["\u00e9 1", "e2", "e3", "e4"]
CURSORS = [
    f"/export?error=true&embeddings=true&cursor={id}" for id in ("e0", "e0", "e2", "e3", "e3")
]


def test_an_export_goes_on(make_client: MakeClient) -> None:
    asked: list[str] = []
    with raw_server(breaking(asked)) as url:
        client = make_client(url=url)
        no_pauses(client)
        events = list(client.export_events(error=True, embeddings=True, cursor="e0", raw=True))
    assert [event["id"] for event in events] == EXPORTED
    assert {event["raw"]["input"] for event in events} == {RawJSON("[1.50]")}
    assert asked == CURSORS


def test_an_export_goes_on_with_asyncio() -> None:
    asked: list[str] = []

    async def main(url: str) -> list[str]:
        async with AsyncClient(url) as client:
            events = client.export_events(error=True, embeddings=True, cursor="e0")
            return [event["id"] async for event in events]

    with raw_server(breaking(asked)) as url:
        assert asyncio.run(main(url)) == EXPORTED
    assert asked == CURSORS


def test_an_export_ends(make_client: MakeClient, server: Server) -> None:
    client = make_client()
    server.answers = [lambda _: problem(404, "unknown_event")]
    with pytest.raises(ApiError):
        list(client.export_events(cursor="x"))
    ndjson = {"Content-Type": "application/x-ndjson"}
    server.answers = [lambda _: Answer(200, b"x" * (17 << 20), ndjson)]
    with pytest.raises(NetworkError, match="longer than 16777216 bytes"):
        list(client.export_events())
    assert len(server.requests) == 2
    client.close()
    with pytest.raises(ClosedError):
        list(client.export_events())


def test_an_export_without_events_ends_in_half_a_minute(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ndjson = {"Content-Type": "application/x-ndjson"}
    server.answers = [lambda _: Answer(200, line("a") + b"no event\n", ndjson)]
    server.default = lambda _: Answer(200, b"no event\n", ndjson)
    now = time.monotonic()
    slept = 0.0

    def pause(seconds: float) -> bool:
        nonlocal slept
        slept += seconds
        return False

    client._core.read_sleep = pause  # type: ignore[assignment]
    monkeypatch.setattr("sluice._export.time.monotonic", lambda: now + slept)
    events = client.export_events()
    assert next(events)["id"] == "a"
    with pytest.raises(NetworkError):
        next(events)
    assert 15 < slept <= 30
    assert "cursor=a" in server.requests[-1].path


def test_an_export_is_left(make_client: MakeClient) -> None:
    left = threading.Semaphore(0)

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(NDJSON)
        try:
            while True:
                connection.sendall(chunk(line("a")))
        finally:
            left.release()

    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            events = client.export_events()
            async for event in events:
                assert event["id"] == "a"
                break
            await events.aclose()  # type: ignore[attr-defined]
            assert await asyncio.to_thread(left.acquire, timeout=30)

    with raw_server(serve) as url:
        events = make_client(url=url).export_events()
        assert next(events)["id"] == "a"
        events.close()  # type: ignore[attr-defined]
        assert left.acquire(timeout=30)
        asyncio.run(main(url))
