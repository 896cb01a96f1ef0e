"""The conformance driver: each command of its protocol once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import Answer, Request, Server, accept, as_json, problem

DRIVER = Path(__file__).resolve().parents[1] / "driver" / "driver.py"

Do = Callable[..., dict[str, Any]]


@pytest.fixture
def do() -> Iterator[Do]:
    with subprocess.Popen(
        [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def do(name: str, **members: Any) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"do": name} | members) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        yield do
        process.communicate()
        assert process.returncode == 0


def kind(answer: dict[str, Any]) -> str:
    return str(answer["error"]["kind"])


def test_mint(do: Do) -> None:
    answer = do("mint", conversation_id="c1", unix_micros=1767323045678901, random="274877906943")
    assert answer == {"id": "019b7ca9-8f2e-8385-82d3-933fffffffff"}


def test_sequence(do: Do) -> None:
    steps = [{"clock_micros": 1767323045678901, "conversation_id": "c1"}] * 2
    steps.append(steps[0] | {"timestamp_micros": 1767323045678000})
    answer = do("sequence", first="274877906943", steps=steps)
    assert answer == {
        "ids": [
            "019b7ca9-8f2e-8385-82d3-933fffffffff",
            "019b7ca9-8f2e-8386-82d3-930000000000",
            "019b7ca9-8f2e-8000-82d3-930000000001",
        ]
    }


def test_writes(do: Do, server: Server) -> None:
    assert do("open", options={"url": server.url, "batch_age_max": 600}) == {}
    event = {"id": "a", "conversation_id": "c1", "event_name": "event_a", "input_embeddings": [1]}
    assert do("track", event=event) == {"id": "a"}
    assert do("update", id="a", fields={"latency": None, "output": [1]}) == {}
    assert do("delete", id="a") == {}
    assert do("flush", timeout=10) == {}
    assert [item for request in server.requests for item in request.items] == [
        event | {"input_embeddings": "AACAPw=="},
        {"op": "update", "id": "a", "latency": None, "output": [1]},
        {"op": "delete", "id": "a"},
    ]
    assert do("close", timeout=10) == {}
    assert kind(do("delete", id="a")) == "closed"


def test_errors(do: Do, server: Server, tmp_path: Path) -> None:
    assert kind(do("flush")) == "other"
    options = {"url": server.url, "queue_writes_max": 1, "fail_when_full": True}
    do("open", options=options | {"spool_dir": str(tmp_path)})
    assert kind(do("open", options=options | {"spool_dir": str(tmp_path)})) == "in_use"
    refused = do("track", event={"event_name": "event_a"})["error"]
    assert (refused["kind"], refused["field"]) == ("invalid", "conversation_id")
    server.answers = [lambda _: problem(422, "invalid_value")]
    do("delete", id="a")
    do("flush", timeout=10)
    assert do("reported") == {
        "errors": [{"op": "delete", "id": "a", "status": 422, "code": "invalid_value", "field": ""}]
    }
    server.answers = [lambda _: problem(404, "unknown_event")]
    error = do("event", id="a", wait=0)["error"]
    assert error == {
        "kind": "api",
        "field": "",
        "status": 404,
        "code": "unknown_event",
        "detail": "it is so",
    }
    server.open.clear()
    do("delete", id="a")
    assert kind(do("delete", id="b")) == "queue_full"
    assert kind(do("flush", timeout=0.05)) == "timeout"
    assert kind(do("close", timeout=0.05)) == "timeout"
    assert kind(do("nonsense")) == "other"


def test_reads(do: Do, server: Server) -> None:
    def answer(request: Request) -> Answer:
        if request.method == "POST":
            return accept(request)
        if request.path.startswith("/conversations/"):
            more = "cursor" not in request.path
            page = {"events": [{"id": request.path}], "next_cursor": "x" if more else None}
            return as_json(200, page)
        if request.path.startswith("/conversations"):
            return as_json(200, {"conversations": [request.path], "next_cursor": None})
        return as_json(200, {"path": request.path, "prefer": request.headers.get("prefer")})

    server.default = answer
    do("open", options={"url": server.url})
    assert do("event", id="a", wait=2) == {"event": {"path": "/event/a", "prefer": "wait=2"}}
    assert do("conversation", id="c1", limit=1, embeddings=True, wait=0) == {
        "events": [
            {"id": "/conversations/c1/events?limit=1&embeddings=true"},
            {"id": "/conversations/c1/events?limit=1&cursor=x&embeddings=true"},
        ]
    }
    for name in ("errors", "latency", "conversations", "timeseries"):
        assert do(name, query={"since": "1h", "metadata": {"a": "b"}}, wait=1) == {
            "path": f"/analytics/{name}?since=1h&metadata.a=b",
            "prefer": "wait=1",
        }
    assert do("conversation", id="c1", query={"error": True, "order": "-timestamp"}) == {
        "events": [
            {"id": "/conversations/c1/events?error=true&order=-timestamp"},
            {"id": "/conversations/c1/events?error=true&order=-timestamp&cursor=x"},
        ]
    }
    listed = do("list_conversations", query={"conditions": [{"key": "n", "op": ">", "value": 5}]})
    assert listed == {"conversations": ["/conversations?metadata.n%3E5="]}
    refused = do("list_events", query={"conditions": [{"key": "n>", "op": "=", "value": 5}]})
    assert (kind(refused), refused["error"]["field"]) == ("invalid", "metadata.n>")
    assert do("latency", query={"q": [0.5], "group_by": ["event_name"], "wait": 0}) == {
        "path": "/analytics/latency?group_by=event_name&q=0.5",
        "prefer": None,
    }


def test_trace(do: Do, server: Server) -> None:
    do("open", options={"url": server.url})
    done = do("trace", conversation_id="c1", input="i", output={"o": 1}, sleep=0.01)
    failed = do("trace", conversation_id="c1", input="i", error="on purpose")
    do("flush")
    assert set(done) == {"id"}
    assert failed["raised"] == "on purpose"
    items = [item for request in server.requests for item in request.items]
    assert [item["id"] for item in items] == [done["id"], failed["id"]]
    assert items[0]["latency"] >= 10
    assert items[0]["output"] == {"o": 1}
    assert items[1]["error"] == "on purpose"
