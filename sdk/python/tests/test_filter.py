"""The filter of reads, and the lists of events and conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from server import Answer, Request, Server, as_json
from sluice import AsyncClient, Client, Filter, RawJSON, Step, ValidationError

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "filters.json"
CASES = [
    pytest.param(case, id=case["name"])
    for case in json.loads(VECTORS.read_text(encoding="utf-8"))["conditions"]
]


def query(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(request.path).query, keep_blank_values=True)


@pytest.mark.parametrize("case", CASES)
def test_conditions(case: dict[str, Any], client: Client, server: Server) -> None:
    server.default = lambda _: as_json(200, {"events": [], "next_cursor": None})
    key, op = case["key"], case["op"]
    condition: Any = (key, op, case["value"]) if "value" in case else (key, op)
    filters: list[Filter] = [{"conditions": [condition]}]
    if op == "=":
        filters.append({"metadata": {key: case["value"]}})
    for filter in filters:
        server.requests.clear()
        if case.get("refused"):
            with pytest.raises(ValidationError) as caught:
                client.list_events(**filter)
            assert caught.value.field == (f"metadata.{key}" if key else "metadata")
            assert not server.requests
        else:
            client.list_events(**filter)
            assert query(server.requests[0]) == [tuple(case["parameter"])]


@pytest.mark.parametrize("case", CASES)
def test_conditions_of_a_search(case: dict[str, Any], client: Client, server: Server) -> None:
    server.default = lambda _: as_json(200, {"results": [], "next_cursor": None})
    key, op = case["key"], case["op"]
    condition: Any = (key, op, case["value"]) if "value" in case else (key, op)
    if "member" in case:
        client.search(text="a", conditions=[condition])
        name, value = case["member"]
        assert json.loads(server.requests[0].body) == {"text": "a", "filter": {name: value}}
    else:
        with pytest.raises(ValidationError) as caught:
            client.search(text="a", conditions=[condition])
        assert caught.value.field == (f"metadata.{key}" if key else "metadata")
        assert not server.requests


READS: list[Callable[..., Any]] = [
    lambda c, f: c.errors(**f),
    lambda c, f: c.latency(**f),
    lambda c, f: c.conversations(**f),
    lambda c, f: c.time_series(**f),
    lambda c, f: c.list_events(**f),
    lambda c, f: list(c.all_events(**f)),
    lambda c, f: c.list_conversations(**f),
    lambda c, f: list(c.all_conversations(**f)),
    lambda c, f: c.conversation("c1", **f),
    lambda c, f: list(c.conversation_events("c1", **f)),
    lambda c, f: c.search(text="a", **f),
    lambda c, f: list(c.search_all(text="a", **f)),
    lambda c, f: list(c.export_events(**f)),
    lambda c, f: c.insights(["events"], **f),
    lambda c, f: c.funnel(["a", "b"], **f),
    lambda c, f: c.retention("a", **f),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("filter", "field"),
    [
        ({"conditions": [("plan", "~", "a")]}, "metadata.plan"),
        ({"conditions": [("plan", ">")]}, "metadata.plan"),
        ({"conditions": [("plan", "=", None)]}, "metadata.plan"),
        ({"latency_min": float("nan")}, "latency_min"),
        ({"latency_max": -1}, "latency_max"),
        ({"event_names": "event_a"}, "event_names"),
        ({"since": datetime(2026, 1, 2)}, "since"),
    ],
)
def test_refused_filters(
    read: Callable[..., Any], filter: dict[str, Any], field: str, client: Client, server: Server
) -> None:
    with pytest.raises(ValidationError) as caught:
        read(client, filter)
    assert caught.value.field == field
    assert not server.requests


def test_refused_steps(client: Client, server: Server) -> None:
    step: Step = {"event_name": "a", "conditions": [("plan>", "=", "b")]}
    for read in (
        lambda: client.funnel(["a", step]),
        lambda: client.retention(step),
        lambda: client.retention("a", returned=step),
    ):
        with pytest.raises(ValidationError) as caught:
            read()
        assert caught.value.field == "metadata.plan>"
    for field, read in (
        ("measures", lambda: client.insights("events")),
        ("group_by", lambda: client.insights(["events"], group_by="event_name")),
        ("steps", lambda: client.funnel("event_a")),
    ):
        with pytest.raises(ValidationError) as caught:
            read()
        assert caught.value.field == field
    assert not server.requests


def test_a_misspelt_member(client: Client) -> None:
    misspelt: Any = {"event_nam": "event_a"}
    with pytest.raises(TypeError, match="event_nam"):
        client.errors(**misspelt)


FILTER: Filter = {
    "since": "1h",
    "until": datetime(2026, 1, 2, tzinfo=timezone.utc),
    "event_name": "event_a",
    "event_names": ["event_b", "event_c"],
    "error": False,
    "latency_min": 0,
    "latency_max": 2.5,
    "metadata": {"plan": "pro", "n": 1},
    "conditions": [
        ("plan", "!=", "a"),
        ("plan", "!=", "b"),
        ("tokens", ">", 9007199254740993),
        ("ok", "=", True),
        ("trial", "missing"),
    ],
}
SENT = [
    ("since", "1h"),
    ("until", "2026-01-02T00:00:00Z"),
    ("event_name", "event_a"),
    ("event_name", "event_b"),
    ("event_name", "event_c"),
    ("error", "false"),
    ("latency_min", "0"),
    ("latency_max", "2.5"),
    ("metadata.plan", "pro"),
    ("metadata.n", "1"),
    ("metadata.plan!=", "a"),
    ("metadata.plan!=", "b"),
    ("metadata.tokens>9007199254740993", ""),
    ("metadata.ok", "true"),
    ("metadata.trial.exists", "false"),
]


@pytest.mark.parametrize(
    ("read", "path", "more"),
    [
        (lambda c: c.errors(**FILTER), "/analytics/errors", []),
        (lambda c: c.latency(**FILTER), "/analytics/latency", []),
        (lambda c: c.conversations(**FILTER), "/analytics/conversations", []),
        (lambda c: c.time_series(**FILTER), "/analytics/timeseries", []),
        (
            lambda c: c.list_events(
                **FILTER, order="timestamp", limit=2, cursor="k", embeddings=True
            ),
            "/events",
            [("order", "timestamp"), ("limit", "2"), ("cursor", "k"), ("embeddings", "true")],
        ),
        (
            lambda c: c.list_conversations(**FILTER, limit=2, cursor="k"),
            "/conversations",
            [("limit", "2"), ("cursor", "k")],
        ),
        (
            lambda c: c.conversation("c1", **FILTER, order="-timestamp"),
            "/conversations/c1/events",
            [("order", "-timestamp")],
        ),
    ],
)
def test_all_members_are_sent(
    read: Callable[[Client], Any],
    path: str,
    more: list[tuple[str, str]],
    client: Client,
    server: Server,
) -> None:
    server.default = lambda _: as_json(200, {})
    read(client)
    (request,) = server.requests
    assert urlsplit(request.path).path == path
    assert query(request) == SENT + more


SUMMARY = {
    "conversation_id": "c1",
    "first": "2026-01-02T03:04:05Z",
    "last": "2026-01-02T03:04:06Z",
    "events": 4,
    "errors": 1,
    "error_rate": 0.25,
    "event_names": ["event_a", "event_b"],
    "first_input": "hi",
    "last_output": None,
}


def two_pages(request: Request) -> Answer:
    name = "events" if request.path.startswith("/events") else "conversations"
    item = {"id": "a", "input": {"n": 1}} if name == "events" else SUMMARY
    more = "cursor=p2" not in request.path
    return as_json(200, {name: [item, item], "next_cursor": "p2" if more else None})


ASKED = [
    ("/events?error=true&limit=2&cursor=k", "wait=3"),
    ("/events?error=true&limit=2&cursor=p2", None),
    ("/conversations?error=true&limit=2", "wait=3"),
    ("/conversations?error=true&limit=2&cursor=p2", None),
]


def test_lists(client: Client, server: Server) -> None:
    server.default = two_pages
    events = list(client.all_events(error=True, cursor="k", limit=2, raw=True, wait=3))
    assert [event["id"] for event in events] == ["a"] * 4
    assert [event["raw"]["input"] for event in events] == [RawJSON('{"n": 1}')] * 4
    assert list(client.all_conversations(error=True, limit=2, wait=3)) == [SUMMARY] * 4
    assert [(r.path, r.headers.get("prefer")) for r in server.requests] == ASKED
    assert client.list_conversations()["next_cursor"] == "p2"
    assert client.list_events()["next_cursor"] == "p2"


def test_lists_with_asyncio(server: Server) -> None:
    server.default = two_pages

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            events = client.all_events(error=True, cursor="k", limit=2, wait=3)
            assert [event["id"] async for event in events] == ["a"] * 4
            listed = client.all_conversations(error=True, limit=2, wait=3)
            assert [conversation async for conversation in listed] == [SUMMARY] * 4
            assert [(r.path, r.headers.get("prefer")) for r in server.requests] == ASKED
            assert (await client.list_conversations())["next_cursor"] == "p2"
            assert (await client.list_events())["next_cursor"] == "p2"
            await client.conversation("c1", order="-timestamp", error=True)
            assert server.requests[-1].path == (
                "/conversations/c1/events?error=true&order=-timestamp"
            )
            with pytest.raises(ValidationError):
                await client.errors(conditions=[("plan>", "=", "a")])

    asyncio.run(main())
