from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server import Answer, Request, Server, accept, as_json
from sluice import (
    AsyncClient,
    ClosedError,
    FlushTimeoutError,
    QueueFullError,
    Span,
    ValidationError,
    WriteError,
)

EVENT: dict[str, Any] = {"conversation_id": "c1", "event_name": "event_a"}


@contextlib.asynccontextmanager
async def opened(server: Server, **options: Any) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(server.url, **options)
    try:
        yield client
    finally:
        with contextlib.suppress(FlushTimeoutError):
            await client.close(timeout=0)


async def until(condition: Any) -> None:
    """Waits in the loop. It would time out if a call blocked the loop."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_writes(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.url, batch_age_max=600) as client:
            id = await client.track_event(**EVENT, id="a", latency=1.5)
            assert id == "a"
            await client.update_event(id, error=None)
            await client.patch_event(id, conversation_metadata={"score": 0.5, "old": None})
            await client.flush()
            await client.delete_event(id)

    asyncio.run(main())
    items = [item for request in server.requests for item in request.items]
    assert items == [
        {"id": "a", "conversation_id": "c1", "event_name": "event_a", "latency": 1.5},
        {"op": "update", "id": "a", "error": None},
        {"op": "patch", "id": "a", "conversation_metadata": {"score": 0.5, "old": None}},
        {"op": "delete", "id": "a"},
    ]


def test_many_tasks_wait_for_room(server: Server) -> None:
    server.open.clear()

    async def main() -> None:
        async with opened(server, queue_writes_max=3, batch_age_max=0) as client:
            tasks = [asyncio.create_task(client.track_event(**EVENT, id=f"{n}")) for n in range(50)]
            await until(lambda: sum(task.done() for task in tasks) == 3)
            server.open.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
            await client.flush()

    asyncio.run(main())
    sent = [id for batch in server.ids for id in batch]
    assert sorted(sent, key=int) == [f"{n}" for n in range(50)]


def test_a_full_queue(server: Server) -> None:
    server.open.clear()

    async def main() -> None:
        async with opened(server, queue_writes_max=1, block_timeout=0.05) as client:
            await client.track_event(**EVENT)
            with pytest.raises(QueueFullError):
                await client.track_event(**EVENT)
        async with opened(server, queue_writes_max=1, fail_when_full=True) as client:
            await client.track_event(**EVENT)
            with pytest.raises(QueueFullError):
                await client.track_event(**EVENT)

    asyncio.run(main())


def test_a_wait_for_room_that_is_cancelled(server: Server) -> None:
    server.open.clear()

    async def main() -> None:
        async with opened(server, queue_writes_max=1) as client:
            await client.track_event(**EVENT, id="a")
            task = asyncio.create_task(client.track_event(**EVENT, id="b"))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not client._core.queue._wakers
            server.open.set()
            await client.flush()

    asyncio.run(main())
    assert server.ids == [["a"]]


def test_flush_and_close_out_of_time(server: Server) -> None:
    server.open.clear()

    async def main() -> None:
        client = AsyncClient(server.url)
        await client.track_event(**EVENT)
        with pytest.raises(FlushTimeoutError) as flushed:
            await client.flush(timeout=0.05)
        assert flushed.value.left == 1
        with pytest.raises(FlushTimeoutError) as closed:
            await client.close(timeout=0.05)
        assert closed.value.left == 1
        await client.close()
        for call in (client.track_event(**EVENT), client.flush(), client.event("a")):
            with pytest.raises(ClosedError):
                await call

    asyncio.run(main())


def test_a_flush_does_not_block_the_loop(server: Server) -> None:
    server.open.clear()

    async def main() -> None:
        async with opened(server) as client:
            await client.track_event(**EVENT)
            flush = asyncio.create_task(client.flush())
            await until(lambda: server.requests)
            assert not flush.done()
            server.open.set()
            await asyncio.wait_for(flush, 30)

    asyncio.run(main())


def test_an_invalid_event(server: Server) -> None:
    async def main() -> None:
        async with opened(server) as client:
            with pytest.raises(ValidationError):
                await client.track_event(conversation_id="", event_name="event_a")

    asyncio.run(main())
    assert not server.requests


def test_reads(server: Server) -> None:
    pages = {None: (["a", "b"], "x"), "x": (["c"], None)}

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            return accept(request)
        if request.path.startswith("/conversations/"):
            events, following = pages["x" if "cursor=x" in request.path else None]
            return as_json(200, {"events": [{"id": id} for id in events], "next_cursor": following})
        return as_json(200, {"path": request.path, "prefer": request.headers.get("prefer")})

    server.default = answer

    async def main() -> None:
        async with opened(server, batch_age_max=600) as client:
            await client.track_event(**EVENT)
            event: Any = await client.event("a", wait=2)
            assert event == {"path": "/event/a?after=1.0.0", "prefer": "wait=2"}
            assert (await client.conversation("c1"))["next_cursor"] == "x"
            ids = [event["id"] async for event in client.conversation_events("c1", limit=2)]
            assert ids == ["a", "b", "c"]
            answers: list[Any] = [
                await client.errors(since="1h"),
                await client.latency(q=[0.5]),
                await client.conversations(limit=2),
                await client.time_series(interval="5m"),
            ]
            assert [answer["path"] for answer in answers] == [
                "/analytics/errors?since=1h",
                "/analytics/latency?q=0.5",
                "/analytics/conversations?limit=2",
                "/analytics/timeseries?interval=5m",
            ]
            with pytest.raises(ValidationError):
                await client.errors(wait=0)

    asyncio.run(main())


def test_reads_do_not_block_the_loop(server: Server) -> None:
    server.default = lambda _: as_json(200, {})
    server.open.clear()

    async def main() -> None:
        async with opened(server) as client:
            reads = [asyncio.create_task(client.event("a")) for _ in range(3)]
            await until(lambda: len(server.requests) == 3)
            server.open.set()
            await asyncio.wait_for(asyncio.gather(*reads), 30)

    asyncio.run(main())


def test_trace(server: Server) -> None:
    async def answer(span: Span) -> str:
        span.input = "question"
        await asyncio.sleep(0.02)
        return "answer"

    async def fail(span: Span) -> None:
        raise ValueError("on purpose")

    async def main() -> None:
        async with AsyncClient(server.url, batch_age_max=600) as client:
            assert await client.trace("c1", answer) == "answer"
            with pytest.raises(ValueError, match="on purpose"):
                await client.trace("c1", fail, event_name="event_b")
            async with client.trace("c1", input="x") as span:
                span.output = "y"

    asyncio.run(main())
    (request,) = server.requests
    first, second, third = request.items
    assert (first["input"], first["output"], first["event_name"]) == (
        "question",
        "answer",
        "event_a",
    )
    assert first["latency"] >= 20
    assert (second["error"], second["event_name"]) == ("on purpose", "event_b")
    assert (third["input"], third["output"]) == ("x", "y")


def test_a_traced_call_that_is_cancelled(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.trace("c1", lambda span: asyncio.sleep(60)))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert server.requests[0].items[0]["error"] == "CancelledError"


def test_a_traced_call_that_cannot_be_queued(server: Server) -> None:
    server.open.clear()
    reported: list[WriteError] = []

    async def main() -> None:
        async with opened(
            server, queue_writes_max=1, block_timeout=0, on_error=reported.append
        ) as client:
            await client.track_event(**EVENT)
            async with client.trace("c1"):
                pass

    asyncio.run(main())
    assert [error.code for error in reported] == ["queue_full"]


def test_with_does_not_hide_an_exception(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as client:
            await client.track_event(**EVENT)
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert len(server.requests) == 1


def test_spool(server: Server, nowhere: str, spool_dir: Path) -> None:
    async def main() -> None:
        client = AsyncClient(nowhere, spool_dir=spool_dir)
        await client.track_event(**EVENT, id="a")
        with pytest.raises(FlushTimeoutError):
            await client.close(timeout=0)
        async with AsyncClient(server.url, spool_dir=spool_dir) as client:
            await client.flush()

    asyncio.run(main())
    assert server.ids == [["a"]]


def test_a_closed_loop(server: Server) -> None:
    """A waker of a closed loop must not end the sender's thread."""
    server.open.clear()
    client = AsyncClient(server.url, queue_writes_max=1)

    async def main() -> None:
        await client.track_event(**EVENT, id="a")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.track_event(**EVENT, id="b"), 0.02)

    asyncio.run(main())
    server.open.set()

    async def again() -> None:
        await client.track_event(**EVENT, id="c")
        await client.close()

    asyncio.run(again())
    assert server.ids == [["a"], ["c"]]


def test_the_async_client_has_the_methods_of_the_client() -> None:
    from inspect import signature

    from sluice import Client

    public = [name for name in vars(Client) if not name.startswith("_")]
    assert public == [name for name in vars(AsyncClient) if not name.startswith("_")]
    for name in public:
        theirs, ours = (signature(getattr(cls, name)).parameters for cls in (Client, AsyncClient))
        if name != "trace":
            assert [str(p) for p in theirs.values()] == [str(p) for p in ours.values()]
