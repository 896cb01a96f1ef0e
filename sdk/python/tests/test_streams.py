"""Streams of traced calls: the shared cases, and Python's kinds of streams."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import inspect
import io
import itertools
import json
import os
import types
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from conftest import MakeClient, eventually, track
from server import Server
from sluice import AsyncClient, Client, Span, WriteError

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "streams.json"
CASES = json.loads(VECTORS.read_text(encoding="utf-8"))["streams"]

Vector = dict[str, Any]


class BrokenError(Exception):
    pass


def parts_of(case: Vector) -> Iterator[Any]:
    for part in case["parts"] * case.get("repeat", 1):
        yield base64.b64decode(part) if case.get("bytes") else part
    if "fails" in case:
        raise BrokenError(case["fails"])


async def async_parts_of(case: Vector) -> AsyncGenerator[Any, None]:
    for part in parts_of(case):
        yield part


class ModelStream:
    """A stream like those of model libraries: an iterator and a context manager."""

    def __init__(self, parts: Iterator[Any]) -> None:
        self.parts = parts
        self.response = "the response"
        self.closed = False

    def __iter__(self) -> ModelStream:
        return self

    def __next__(self) -> Any:
        return next(self.parts)

    def __enter__(self) -> ModelStream:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


class AsyncModelStream:
    def __init__(self, parts: AsyncGenerator[Any, None]) -> None:
        self.parts = parts
        self.closed = False

    def __aiter__(self) -> AsyncModelStream:
        return self

    async def __anext__(self) -> Any:
        return await self.parts.__anext__()

    async def __aenter__(self) -> AsyncModelStream:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.close()

    async def close(self) -> None:
        await self.parts.aclose()
        self.closed = True


class AsyncIterable:
    def __init__(self, parts: AsyncGenerator[Any, None]) -> None:
        self.parts = parts

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        return self.parts


def only_item(server: Server) -> dict[str, Any]:
    (item,) = [item for request in server.requests for item in request.items]
    return dict(item)


def check(case: Vector, server: Server, passed: list[Any], raised: BaseException | None) -> None:
    """Whether the caller's parts and the tracked event are those of the case."""
    expected = [
        base64.b64decode(part) if case.get("bytes") else part
        for part in case["parts"] * case.get("repeat", 1)
    ]
    assert passed == expected[: case.get("take")]
    assert (raised is not None) == ("fails" in case)
    item = only_item(server)
    assert item.get("error") == case.get("error")
    metadata = item.get("conversation_metadata", {})
    first = metadata.pop("time_to_first_token_ms", None)
    assert metadata == case.get("metadata", {})
    if not passed:
        assert first is None
        assert "output" not in item
        return
    assert 0 <= first <= item["latency"]
    output = item["output"]
    if "output" in case:
        assert output == case["output"]
    if "output_begins" in case:
        assert output.startswith(case["output_begins"])
        assert output.endswith(case["output_ends"])
    if "output_last" in case:
        assert output[0] == case["output_first"]
        assert output[-1] == case["output_last"]


def cases() -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CASES]


SYNC_KINDS: dict[str, Callable[[Iterator[Any]], Any]] = {
    "generator": lambda parts: parts,
    "iterator": lambda parts: itertools.chain(parts),
    "stream": ModelStream,
}


@pytest.mark.parametrize("kind", SYNC_KINDS)
@pytest.mark.parametrize("case", cases())
def test_streams(case: Vector, kind: str, client: Client, server: Server) -> None:
    stream = client.trace(
        "c1",
        lambda span: SYNC_KINDS[kind](parts_of(case)),
        conversation_metadata=case.get("metadata"),
    )
    passed: list[Any] = []
    raised = None
    try:
        passed.extend(itertools.islice(stream, case.get("take")))
    except BrokenError as e:
        raised = e
    if hasattr(stream, "close"):
        stream.close()
    del stream
    client.flush()
    check(case, server, passed, raised)


ASYNC_KINDS: dict[str, Callable[[AsyncGenerator[Any, None]], Any]] = {
    "generator": lambda parts: parts,
    "stream": AsyncModelStream,
    "iterable": AsyncIterable,
}


@pytest.mark.parametrize("kind", ASYNC_KINDS)
@pytest.mark.parametrize("case", cases())
def test_async_streams(case: Vector, kind: str, server: Server) -> None:
    passed: list[Any] = []

    async def main() -> BaseException | None:
        async with AsyncClient(server.url) as client:

            async def call(span: Span) -> Any:
                return ASYNC_KINDS[kind](async_parts_of(case))

            stream = await client.trace("c1", call, conversation_metadata=case.get("metadata"))
            raised = None
            take = case.get("take")
            iterator = stream.__aiter__()
            try:
                while take is None or len(passed) < take:
                    passed.append(await iterator.__anext__())
            except StopAsyncIteration:
                pass
            except BrokenError as e:
                raised = e
            for closable in (iterator, stream):
                for name in ("aclose", "close"):
                    if hasattr(closable, name):
                        await getattr(closable, name)()
            del iterator, stream
            return raised

    check(case, server, passed, asyncio.run(main()))


def test_a_generator_stays_one(client: Client, server: Server) -> None:
    log: list[Any] = []

    def talk(span: Span) -> Generator[str, str | None, int]:
        log.append((yield "one"))
        try:
            yield "two"
        except BrokenError as e:
            log.append(e)
        try:
            yield "three"
        finally:
            log.append("closed")
        return 7

    error = BrokenError()
    talking = client.trace("c1", talk)
    assert isinstance(talking, types.GeneratorType)
    assert next(talking) == "one"
    assert talking.send("hello") == "two"
    assert talking.throw(error) == "three"
    with pytest.raises(StopIteration) as end:
        next(talking)
    assert end.value.value == 7
    assert log == ["hello", error, "closed"]
    client.flush()
    assert only_item(server)["output"] == "onetwothree"


def test_yield_from(client: Client, server: Server) -> None:
    def inner(span: Span) -> Generator[int, None, str]:
        yield 1
        return "returned"

    def outer() -> Generator[int, None, None]:
        assert (yield from client.trace("c1", inner)) == "returned"

    assert list(outer()) == [1]
    client.flush()
    assert only_item(server)["output"] == [1]


def test_a_close_closes_the_source_whether_it_began_or_not(client: Client) -> None:
    for parts in (0, 1):
        closed: list[int] = []

        class Source(ModelStream):
            def close(self, closed: list[int] = closed) -> None:
                closed.append(1)

        stream = client.trace("c1", lambda span: Source(iter("abc")))
        for _ in range(parts):
            next(stream)
        stream.close()
        assert closed == [1]

    def generator(span: Span) -> Iterator[int]:
        begun = counting()
        next(begun)
        return begun

    ended: list[str] = []

    def counting() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            ended.append("closed")

    counted = client.trace("c1", generator)
    assert isinstance(counted, types.GeneratorType)
    counted.close()
    assert ended == ["closed"]


def test_a_stream_object_stays_what_it_is(client: Client, server: Server) -> None:
    source = ModelStream(iter("ab"))
    stream = client.trace("c1", lambda span: source)
    assert isinstance(stream, ModelStream)
    assert stream.response == "the response"
    stream.response = "another"
    assert source.response == "another"
    with stream as entered:
        assert list(entered) == ["a", "b"]
    assert source.closed
    client.flush()
    assert only_item(server)["output"] == "ab"


def test_an_async_generator_stays_one(server: Server) -> None:
    log: list[Any] = []

    async def talk(span: Span) -> AsyncGenerator[str, str | None]:
        log.append((yield "one"))
        with contextlib.suppress(BrokenError):
            yield "two"
        yield "three"

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            talking = await client.trace("c1", talk)
            assert inspect.isasyncgen(talking)
            assert await anext(talking) == "one"
            assert await talking.asend("hello") == "two"  # type: ignore[arg-type]
            assert await talking.athrow(BrokenError()) == "three"
            await talking.aclose()

    asyncio.run(main())
    assert log == ["hello"]
    assert only_item(server)["output"] == "onetwothree"


def test_an_async_stream_that_is_left_in_the_middle(server: Server) -> None:
    closed: list[int] = []

    async def count(span: Span) -> AsyncGenerator[int, None]:
        try:
            for n in itertools.count():
                yield n
        finally:
            closed.append(1)

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            async for n in await client.trace("c1", count):
                if n == 2:
                    break
            for _ in range(10):
                await asyncio.sleep(0)
            assert closed == [1]

    asyncio.run(main())
    assert only_item(server)["output"] == [0, 1, 2]


def test_a_task_that_is_cancelled(server: Server) -> None:
    async def wait(span: Span) -> AsyncGenerator[str, None]:
        yield "a"
        await asyncio.sleep(3600)

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            stream = await client.trace("c1", wait)
            assert await anext(stream) == "a"
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    item = only_item(server)
    assert (item["output"], item["error"]) == ("a", "CancelledError")


def test_an_async_stream_of_the_other_client(client: Client, server: Server) -> None:
    async def main() -> None:
        stream = client.trace("c1", lambda span: async_parts_of({"parts": ["a", "b"]}))
        assert [part async for part in stream] == ["a", "b"]

    asyncio.run(main())
    client.flush()
    assert only_item(server)["output"] == "ab"


def test_a_stream_that_is_dropped(client: Client, server: Server) -> None:
    for part in client.trace("c1", lambda span: iter("abc")):
        assert part == "a"
        break
    client.flush()
    assert only_item(server)["output"] == "a"


def test_a_stream_that_is_open_when_the_client_is_closed(client: Client, server: Server) -> None:
    stream = client.trace("c1", lambda span: iter("abc"))
    next(stream)
    client.close()
    assert list(stream) == ["b", "c"]
    assert only_item(server)["output"] == "a"


def test_fields_set_on_the_span_during_the_stream(client: Client, server: Server) -> None:
    def call(span: Span) -> Iterator[str]:
        yield "a"
        span.output = {"usage": 1}
        span.error = "cut short"
        yield "b"

    assert list(client.trace("c1", call)) == ["a", "b"]
    client.flush()
    item = only_item(server)
    assert (item["output"], item["error"]) == ({"usage": 1}, "cut short")


def test_parts_are_tracked_as_they_were(client: Client, server: Server) -> None:
    def call(span: Span) -> Iterator[dict[str, int]]:
        part = {"n": 1}
        yield part
        part["n"] = 2
        yield part

    list(client.trace("c1", call))
    client.flush()
    assert only_item(server)["output"] == [{"n": 1}, {"n": 2}]


def test_parts_that_are_not_json(client: Client, server: Server) -> None:
    class Bad:
        def __str__(self) -> str:
            raise BrokenError

    parts = [object, Bad(), {1, 2}, "\ud83d"]
    assert list(client.trace("c1", lambda span: iter(parts))) == parts
    client.flush()
    assert only_item(server)["output"] == ["<class 'object'>", "<Bad>", [1, 2], "\ufffd"]


def test_a_pair_of_surrogates_divided_between_parts(client: Client, server: Server) -> None:
    list(client.trace("c1", lambda span: iter(["\ud83d", "\ude00"])))
    client.flush()
    assert only_item(server)["output"] == "\U0001f600"


def test_a_file(client: Client, server: Server) -> None:
    file = client.trace("c1", lambda span: io.StringIO("one\ntwo\n"))
    assert isinstance(file, io.IOBase)
    assert list(file) == ["one\n", "two\n"]
    client.flush()
    assert only_item(server)["output"] == "one\ntwo\n"


@pytest.mark.parametrize(
    "value", [[1], (1,), {"a": 1}, "text", b"text", {1}, range(2), MagicMock()]
)
def test_values_that_are_not_streams(value: Any, client: Client, server: Server) -> None:
    assert client.trace("c1", lambda span: value) is value
    client.flush()
    assert "conversation_metadata" not in only_item(server)


def test_the_latency_is_that_of_the_last_part(client: Client, server: Server) -> None:
    stream = client.trace("c1", lambda span: iter("ab"))
    assert next(stream) == "a"
    last = client._core.streams.copy().pop()
    first = last._last  # type: ignore[attr-defined]
    stream.__class__  # noqa: B018 # whatever the caller does meanwhile
    span = last._span  # type: ignore[attr-defined]
    last.end()
    client.flush()
    assert only_item(server)["latency"] == round((first - span._started) * 1000, 3)


def test_a_stream_never_waits_for_room(
    make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=1)
    stream = client.trace("c1", lambda span: iter("ab"))
    track(client)
    assert list(stream) == ["a", "b"]
    assert [error.code for error in reported] == ["queue_full"]


def test_a_closed_client(client: Client, reported: list[WriteError]) -> None:
    client.close()
    assert list(client.trace("c1", lambda span: iter("ab"))) == ["a", "b"]
    assert [error.code for error in reported] == ["closed"]


def test_a_stream_that_is_collected_while_its_thread_has_the_queue(
    client: Client, server: Server
) -> None:
    cycle: list[Any] = [client.trace("c1", lambda span: iter("ab"))]
    next(cycle[0])
    cycle.append(cycle)
    with client._core.queue._lock:
        del cycle
        gc.collect()
    eventually(lambda: bool(server.requests))
    assert only_item(server)["output"] == "a"


def test_a_flush_includes_writes_that_wait_for_the_lock(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice._queue._thread.start_new_thread", lambda *args: None)
    stream = client.trace("c1", lambda span: iter("ab"))
    with client._core.queue._lock:
        assert list(stream) == ["a", "b"]
    client.flush()
    assert only_item(server)["output"] == "ab"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_an_open_stream_stays_with_the_parent_of_a_fork(client: Client, server: Server) -> None:
    stream = client.trace("c1", lambda span: iter("ab"))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            list(stream)
            client.close(timeout=30)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    list(stream)
    client.flush()
    assert only_item(server)["output"] == "ab"
