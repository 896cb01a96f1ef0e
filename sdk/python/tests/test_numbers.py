"""Numbers keep every digit when contents are read and written back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeClient
from server import Answer, Request, Server, accept
from sluice import AsyncClient, Client, RawJSON, ValidationError

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "numbers.json"
CASES = [
    pytest.param(case, id=case["name"])
    for case in json.loads(VECTORS.read_text(encoding="utf-8"))["numbers"]
]


def serve(server: Server, content: str) -> None:
    """Makes the server answer with an event with this input and metadata."""
    event = (
        '{"id":"a", "conversation_id":"c1","event_name":"event_a","error":null,"latency":1.5,'
        f'"conversation_metadata": {{"v": {content}}},"input":{content} , "output":null}}'
    )
    page = f'{{"next_cursor":null,"events":[ {event}, {event}]}}'

    def answer(request: Request) -> Answer:
        if request.method != "GET":
            return accept(request)
        return Answer(200, (event if "/event/" in request.path else page).encode())

    server.default = answer


def sent(client: Client, server: Server) -> str:
    client.flush()
    return server.requests[-1].body.decode()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_numbers(
    case: dict[str, Any], strict: bool, make_client: MakeClient, server: Server
) -> None:
    content = case["json"]
    serve(server, content)
    client = make_client(strict=strict)
    event = client.event("a", raw=True)
    raw = event["raw"]
    assert raw["output"] is None
    client.update_event(
        "a",
        input=raw["input"],
        output={"was": raw["input"]},
        conversation_metadata=raw["conversation_metadata"],
    )
    body = sent(client, server)
    assert f'"input":{content}' in body
    assert f'"output":{{"was":{content}}}' in body
    assert f'"conversation_metadata":{{"v": {content}}}' in body
    if case["integers"]:
        client.update_event("a", input=event["input"])
        assert f'"input":{content}' in sent(client, server)


def test_an_integer_of_any_length_is_read(client: Client, server: Server) -> None:
    serve(server, '{"n":-1' + "0" * 20_000 + "}")
    event = client.event("a")
    assert "raw" not in event
    assert event["input"] == {"n": -(10**20_000)}


def test_a_page(client: Client, server: Server) -> None:
    serve(server, '[1.50,"a,]}"]')
    events = list(client.conversation_events("c1", raw=True))
    assert [event["raw"]["input"] for event in events] == [RawJSON('[1.50,"a,]}"]')] * 2

    async def main() -> None:
        async with AsyncClient(server.url) as other:
            event = await other.event("a", raw=True)
            assert event["raw"]["input"] == RawJSON('[1.50,"a,]}"]')
            pages = [event async for event in other.conversation_events("c1", raw=True)]
            assert len(pages) == 2

    asyncio.run(main())


DEEP = "[" * 40 + "]" * 40


def test_raw_json_of_your_own(client: Client, server: Server) -> None:
    def track(output: object, **more: Any) -> str:
        client.track_event(conversation_id="c1", event_name="event_a", output=output, **more)
        return sent(client, server)

    body = track([RawJSON(' {"a":\n1.0}\r\n')], conversation_metadata=RawJSON('{"n":1.50}'))
    assert '"output":[{"a": 1.0}]' in body
    assert '"conversation_metadata":{"n":1.50}' in body
    assert '"output":"{\\"a\\":"' in track(RawJSON('{"a":'))
    assert "[" * 35 not in track(RawJSON(DEEP))
    assert '"output":["\ufffd"]' in track(RawJSON('["\\ud83d"]'))


@pytest.mark.parametrize("content", ['{"a":', DEEP, '["\\ud83d"]', ""])
def test_raw_json_in_a_strict_client(content: str, make_client: MakeClient) -> None:
    client = make_client(strict=True)
    with pytest.raises(ValidationError):
        client.update_event("a", output=RawJSON(content))


def test_cut_metadata_keeps_the_digits_of_the_rest(client: Client, server: Server) -> None:
    client.update_event(
        "a",
        input={"n": RawJSON("1.50e400"), "long": "x" * 2_000_000},
        conversation_metadata={"n": RawJSON("2.50"), "long": "x" * 20_000},
    )
    body = sent(client, server)
    assert '"n":1.50e400' in body
    assert '"n":2.50' in body
    assert body.count("sluice_truncated") == 2


def test_a_stream_adds_to_metadata_as_it_is(client: Client, server: Server) -> None:
    metadata: Any = RawJSON('{"n":1.50}')
    list(client.trace("c1", lambda span: iter("a"), conversation_metadata=metadata))
    assert ',"n":1.50}' in sent(client, server)
