from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from conftest import MakeClient, track
from server import Answer, Request, Server, accept, as_json, problem
from sluice import (
    ApiError,
    Client,
    ClosedError,
    FlushTimeoutError,
    NetworkError,
    ValidationError,
)


def query(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(request.path).query, strict_parsing=True)


def pauses_of_reads(client: Client) -> list[float]:
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    client._core.read_sleep = pause  # type: ignore[assignment]
    return pauses


EVENT = {
    "id": "a",
    "conversation_id": "c1",
    "conversation_metadata": None,
    "event_name": "event_a",
    "timestamp": "2026-01-02T03:04:05Z",
    "error": None,
    "latency": 1.5,
    "input": ["x"],
    "output": None,
    "input_embeddings": [0.5],
    "output_embeddings": None,
}


def test_event(make_client: MakeClient, server: Server) -> None:
    server.answers = [lambda _: as_json(200, EVENT)]
    client = make_client(api_key="k1")
    assert client.event("a") == EVENT
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", "/event/a")
    assert request.headers["authorization"] == "Bearer k1"
    assert "prefer" not in request.headers


@pytest.mark.parametrize(
    ("id", "path"),
    [
        ("a b/", "?id=a%20b%2F"),
        (".", "?id=."),
        ("..", "?id=.."),
        ("...", "/..."),
        ("a?b#c%", "/a%3Fb%23c%25"),
        ("{}", "/%7B%7D"),
        ("~", "/~"),
    ],
)
def test_where_ids_go(id: str, path: str, client: Client, server: Server) -> None:
    server.default = lambda _: as_json(200, EVENT)
    client.event(id)
    assert server.requests[0].path == f"/event{path}"


def test_an_unknown_event(client: Client, server: Server) -> None:
    server.answers = [lambda _: problem(404, "unknown_event")]
    with pytest.raises(ApiError) as caught:
        client.event("a")
    error = caught.value
    assert (error.status, error.code, error.detail, error.field) == (
        404,
        "unknown_event",
        "it is so",
        "",
    )
    assert str(error) == "404 unknown_event: it is so"


@pytest.mark.parametrize("id", ["", "ü", "x" * 129])
def test_a_wrong_id(id: str, client: Client, server: Server) -> None:
    with pytest.raises(ValidationError) as caught:
        client.event(id)
    assert caught.value.field == "id"
    assert not server.requests


def test_conversation(client: Client, server: Server) -> None:
    page = {"events": [EVENT], "next_cursor": "x"}
    server.default = lambda _: as_json(200, page)
    assert client.conversation("c1 漢") == page
    client.conversation("..", limit=5, cursor="x", embeddings=True)
    assert server.requests[0].path == "/conversations/c1%20%E6%BC%A2/events"
    assert server.requests[1].path == (
        "/conversation/events?id=..&limit=5&cursor=x&embeddings=true"
    )
    with pytest.raises(ValidationError):
        client.conversation("")


def test_conversation_events(client: Client, server: Server) -> None:
    pages: list[dict[str, Any]] = [
        {"events": [{"id": "a"}, {"id": "b"}], "next_cursor": "x"},
        {"events": [], "next_cursor": "y"},
        {"events": [{"id": "c"}], "next_cursor": None},
    ]
    server.answers = [lambda _, page=page: as_json(200, page) for page in pages]  # type: ignore[misc]
    events = client.conversation_events("c1", limit=2, embeddings=True, wait=3)
    assert not server.requests
    assert [event["id"] for event in events] == ["a", "b", "c"]
    assert [dict(query(request)).get("cursor") for request in server.requests] == [None, "x", "y"]
    assert all(dict(query(request))["limit"] == "2" for request in server.requests)
    # The writes are applied when the first page is answered.
    assert [request.headers.get("prefer") for request in server.requests] == ["wait=3", None, None]


NOON = datetime(2026, 1, 2, 12, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("read", "path", "params"),
    [
        (lambda c: c.errors(), "errors", []),
        (
            lambda c: c.errors(
                since=NOON,
                until=1767355200000,
                conversation_id="c 1",
                event_name="event_a",
                metadata={"plan": "pro", "n": 1, "x.y": 1.5, "ok": True},
            ),
            "errors",
            [
                ("since", "2026-01-02T10:00:00Z"),
                ("until", "1767355200000"),
                ("conversation_id", "c 1"),
                ("event_name", "event_a"),
                ("metadata.plan", "pro"),
                ("metadata.n", "1"),
                ("metadata.x.y", "1.5"),
                ("metadata.ok", "true"),
            ],
        ),
        (
            lambda c: c.latency(q=[0.5, 0.999], group_by=["conversation", "event_name"], limit=3),
            "latency",
            [
                ("group_by", "conversation,event_name"),
                ("limit", "3"),
                ("q", "0.5"),
                ("q", "0.999"),
            ],
        ),
        (
            lambda c: c.conversations(order_by="errors", min_events=2, limit=3, since="7d"),
            "conversations",
            [("since", "7d"), ("order_by", "errors"), ("min_events", "2"), ("limit", "3")],
        ),
        (
            lambda c: c.time_series(interval="5m", q=[0.5]),
            "timeseries",
            [("interval", "5m"), ("q", "0.5")],
        ),
    ],
)
def test_analytics(
    read: Callable[[Client], Any],
    path: str,
    params: list[tuple[str, str]],
    client: Client,
    server: Server,
) -> None:
    server.default = lambda _: as_json(200, {"rows": []})
    assert read(client) == {"rows": []}
    (request,) = server.requests
    assert urlsplit(request.path).path == f"/analytics/{path}"
    assert not params or sorted(query(request)) == sorted(params)


def test_a_moment_without_a_time_zone(client: Client) -> None:
    with pytest.raises(ValidationError) as caught:
        client.errors(since=datetime(2026, 1, 2))
    assert caught.value.field == "since"


def test_read_your_writes(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)

    def receipts(*texts: str) -> Callable[[Request], Answer]:
        return lambda request: as_json(
            202,
            {
                "results": [
                    {"id": id, "receipt": text} for id, text in zip(request.ids, texts, strict=True)
                ]
            },
        )

    server.answers = [
        receipts("1.0.7", "1.1.3", "1.0.6"),
        receipts("1.1.4", "2.2.0", "1.10.1"),
        receipts("2.0.2"),
        lambda _: as_json(200, EVENT),
    ]
    for count in (3, 3, 1):
        for _ in range(count):
            track(client)
        if count == 3:
            client.flush()
    client.event("a", wait=2.5)
    request = server.requests[-1]
    assert request.headers["prefer"] == "wait=3"
    assert sorted(query(request)) == [
        ("after", "1.1.4"),
        ("after", "1.10.1"),
        ("after", "2.0.2"),
        ("after", "2.2.0"),
    ]


@pytest.mark.parametrize("wait", [0, 0.5, 31, -1, float("nan")])
def test_a_wrong_wait(wait: float, client: Client) -> None:
    with pytest.raises(ValidationError) as caught:
        client.errors(wait=wait)
    assert caught.value.field == "wait"


def test_a_flush_that_takes_longer_than_the_wait(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client()
    track(client)
    with pytest.raises(FlushTimeoutError):
        client.event("a", wait=1)


@pytest.mark.parametrize(
    "failure",
    [
        problem(503, "overloaded"),
        problem(500, "internal"),
        Answer(429),
        Answer(hang_up=True),
        Answer(200, b"<html>"),
        Answer(200, b"{}", {"Content-Length": "100"}, close=True),
    ],
    ids=lambda answer: f"{answer.status} {answer.body!r}"[:30],
)
def test_failures_that_are_retried(failure: Answer, client: Client, server: Server) -> None:
    server.answers = [lambda _: failure, lambda _: failure, lambda _: as_json(200, EVENT)]
    pauses = pauses_of_reads(client)
    assert client.event("a") == EVENT
    assert len(server.requests) == 3
    assert 0.05 <= pauses[0] <= 0.1
    assert 0.1 <= pauses[1] <= 0.2


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_failures_that_are_not_retried(status: int, client: Client, server: Server) -> None:
    server.default = lambda _: Answer(status, b"<html>")
    with pytest.raises(ApiError) as caught:
        client.errors()
    assert (caught.value.status, caught.value.code) == (status, "")
    assert len(server.requests) == 1


def test_a_wait_that_timed_out_is_not_repeated(client: Client, server: Server) -> None:
    server.default = lambda _: problem(503, "not_yet_applied", **{"Retry-After": "1"})
    with pytest.raises(ApiError) as caught:
        client.event("a", wait=1)
    assert caught.value.code == "not_yet_applied"
    assert len(server.requests) == 1


def test_a_read_is_retried_for_30_s(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.default = lambda _: problem(503, "unavailable", **{"Retry-After": "12"})
    pauses = pauses_of_reads(client)
    monkeypatch.setattr("sluice._reads.time", FakeTime(lambda: sum(pauses)))
    with pytest.raises(ApiError) as caught:
        client.event("a")
    assert caught.value.code == "unavailable"
    assert pauses == [12, 12]
    assert len(server.requests) == 3


class FakeTime:
    def __init__(self, passed: Callable[[], float]) -> None:
        self.monotonic = passed


def test_no_server(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as gone:
        url = gone.url
    client = make_client(url=url)
    monkeypatch.setattr("sluice._reads.RETRY_FOR", 0.2)
    with pytest.raises(NetworkError):
        client.event("a")


def test_a_close_ends_a_read(make_client: MakeClient, server: Server) -> None:
    client = make_client()

    def closing(request: Request) -> Answer:
        client.close()
        return problem(503, "unavailable", **{"Retry-After": "20"})

    server.answers = [closing]
    with pytest.raises(ClosedError):
        client.event("a")


def test_reads_of_many_threads(client: Client, server: Server) -> None:
    def answer(request: Request) -> Answer:
        return accept(request) if request.method == "POST" else as_json(200, {"path": request.path})

    server.default = answer
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = pool.map(lambda n: dict(client.event(f"{n}"))["path"], range(100))
        assert list(paths) == [f"/event/{n}" for n in range(100)]
    assert len(client._core._transport._idle) <= 4
