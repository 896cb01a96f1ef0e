from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from conftest import MakeClient, track
from server import Server
from sluice import Client, Span, WriteError


def only_item(server: Server) -> dict[str, Any]:
    (request,) = server.requests
    (item,) = request.items
    return item


def test_a_call_that_returns(client: Client, server: Server) -> None:
    seen: list[Span] = []

    def answer(span: Span) -> list[str]:
        seen.append(span)
        span.input = {"question": 1}
        span.input_embeddings = [1.0]
        span.output_embeddings = (2.0,)
        span.conversation_metadata = {"plan": "pro"}
        time.sleep(0.02)
        return ["hello"]

    before = time.time()
    assert client.trace("c1", answer) == ["hello"]
    client.flush()
    item = only_item(server)
    assert item.pop("id") == seen[0].id
    assert item.pop("latency") >= 20
    assert item == {
        "conversation_id": "c1",
        "event_name": "event_a",
        "conversation_metadata": {"plan": "pro"},
        "input": {"question": 1},
        "output": ["hello"],
        "input_embeddings": "AACAPw==",
        "output_embeddings": "AAAAQA==",
    }
    # The id contains the time of the start.
    millis = int(seen[0].id.replace("-", "")[:12], 16)
    assert before * 1000 - 1 <= millis <= (time.time() - 0.02) * 1000 + 1


def test_a_call_that_raises(client: Client, server: Server) -> None:
    error = KeyError("k")

    def fail(span: Span) -> None:
        span.input = "x"
        raise error

    with pytest.raises(KeyError) as caught:
        client.trace("c1", fail)
    assert caught.value is error
    client.flush()
    item = only_item(server)
    assert item["error"] == "'k'"
    assert item["input"] == "x"
    assert "output" not in item


def test_an_exception_without_a_text(client: Client, server: Server) -> None:
    with pytest.raises(KeyboardInterrupt), client.trace("c1"):
        raise KeyboardInterrupt
    client.flush()
    assert only_item(server)["error"] == "KeyboardInterrupt"


def test_fields_set_on_the_span_win(client: Client, server: Server) -> None:
    def answer(span: Span) -> str:
        span.output = None
        span.error = "it was slow"
        return "returned"

    assert client.trace("c1", answer, event_name="event_b", id="a", input=1) == "returned"
    client.flush()
    item = only_item(server)
    assert "output" not in item
    assert item["error"] == "it was slow"
    assert item["event_name"] == "event_b"
    assert item["id"] == "a"
    assert item["input"] == 1
    assert item["timestamp"].startswith("20")


def test_as_a_context_manager(make_client: MakeClient, server: Server) -> None:
    client = make_client(trace_event_name="event_c")
    with client.trace("c1", conversation_metadata={"a": 1}) as span:
        span.output = 0
    client.flush()
    item = only_item(server)
    assert item["event_name"] == "event_c"
    assert item["output"] == 0
    assert item["conversation_metadata"] == {"a": 1}
    assert item["latency"] >= 0


@dataclasses.dataclass
class Completion:
    text: str


def test_a_result_that_is_not_json(client: Client, server: Server) -> None:
    result = Completion("hello")
    assert client.trace("c1", lambda span: result) is result
    client.flush()
    assert only_item(server)["output"] == {"text": "hello"}


def test_a_call_without_a_return_value(client: Client, server: Server) -> None:
    client.trace("c1", lambda span: None)
    client.flush()
    assert "output" not in only_item(server)


def test_an_invalid_event(client: Client, server: Server, reported: list[WriteError]) -> None:
    assert client.trace("", lambda span: "x") == "x"
    assert client.trace("\ud83d", lambda span: "x") == "x"
    assert client.trace(7, lambda span: "x") == "x"  # type: ignore[call-overload]
    client.flush()
    assert not server.requests
    assert [(error.code, error.field) for error in reported] == [
        ("invalid", "conversation_id"),
        ("invalid", "conversation_id"),
        ("invalid", "conversation_id"),
    ]
    assert all(error.id and error.op == "create" for error in reported)


class BadError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("on purpose")


def test_an_exception_without_a_working_text(
    client: Client, server: Server, reported: list[WriteError]
) -> None:
    error = BadError()

    def fail(span: Span) -> None:
        raise error

    with pytest.raises(BadError) as caught:
        client.trace("c1", fail)
    assert caught.value is error
    bad = client.trace("c1", lambda span: [error], conversation_metadata={error: error})  # type: ignore[dict-item]
    assert bad == [error]
    client.flush()
    items = [item for request in server.requests for item in request.items]
    assert items[0]["error"] == "<BadError>"
    assert items[1]["output"] == ["<BadError>"]
    assert items[1]["conversation_metadata"] == {"<BadError>": "<BadError>"}
    assert not reported


def test_the_input_is_encoded_when_it_is_set(client: Client, server: Server) -> None:
    messages = [{"role": "user", "content": "hello"}]
    plan = {"plan": "pro"}

    def answer(span: Span) -> str:
        messages.append({"role": "assistant", "content": "hi"})
        messages[0]["content"] = "changed"
        plan.clear()
        assert span.input is messages
        return "hi"

    client.trace("c1", answer, input=messages, conversation_metadata=plan)
    client.flush()
    item = only_item(server)
    assert item["input"] == [{"role": "user", "content": "hello"}]
    assert item["conversation_metadata"] == {"plan": "pro"}


def test_a_traced_call_that_is_too_large(
    client: Client, server: Server, reported: list[WriteError]
) -> None:
    client.trace(
        "c1", lambda span: "x" * 2_000_000, input={"image": "y" * 1_500_000, "n": 1}, id="a"
    )
    client.flush()
    item = only_item(server)
    assert item["output"].endswith("… [sluice_truncated: 2000000 bytes]")
    assert item["input"]["image"].endswith("… [sluice_truncated: 1500000 bytes]")
    assert item["input"]["n"] == 1
    assert not reported


def test_invalid_embeddings_are_left_out(client: Client, server: Server) -> None:
    with client.trace("c1") as span:
        span.input_embeddings = [float("nan")]
        span.output = "x"
    client.flush()
    item = only_item(server)
    assert item["output"] == "x"
    assert "input_embeddings" not in item


def test_a_full_queue_and_a_closed_client(
    make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=1, fail_when_full=True)
    track(client)
    assert client.trace("c1", lambda span: "x") == "x"
    server.open.set()
    client.close()
    assert client.trace("c1", lambda span: "x") == "x"
    assert [error.code for error in reported] == ["queue_full", "closed"]


def test_an_exception_that_ends_the_program_does_not_wait(
    make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=1)
    track(client)
    with pytest.raises(SystemExit), client.trace("c1"):
        raise SystemExit
    assert [error.code for error in reported] == ["queue_full"]


def test_a_coroutine_function(client: Client) -> None:
    async def answer(span: Span) -> None:
        pass

    with pytest.raises(TypeError):
        client.trace("c1", answer)  # type: ignore[unused-coroutine]


def test_nested(client: Client, server: Server) -> None:
    def inner(span: Span) -> str:
        return "inner"

    client.trace("c1", lambda span: client.trace("c1", inner) + " outer")
    client.flush()
    items = [item for request in server.requests for item in request.items]
    assert [item["output"] for item in items] == ["inner", "inner outer"]
    assert items[1]["id"] < items[0]["id"]
