"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import sys
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from sluice import _encode, _export, _http, _reads, _streams
from sluice._core import Core
from sluice._json import RawJSON
from sluice._options import CLOSE_TIMEOUT, DEFAULT_URL, OnError, Options
from sluice._queue import Queue, Write
from sluice._trace import Span, finished, report
from sluice.errors import FlushTimeoutError, NetworkError, QueueFullError, SluiceError
from sluice.types import (
    UNSET,
    ConversationFilter,
    ConversationList,
    ConversationPage,
    ConversationRows,
    ConversationSummary,
    Embedding,
    ErrorCount,
    Event,
    EventPage,
    Filter,
    FunnelRows,
    InsightsRows,
    LatencyRows,
    RetentionRows,
    SearchField,
    SearchPage,
    SearchResult,
    SQLRows,
    Step,
    SupportsWrite,
    TimeOrder,
    TimeSeriesRows,
    Timestamp,
    Unset,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

_READS_MAX = 8


class AsyncClient:
    """`Client` for asyncio: the same options, methods and exceptions, as coroutines.

    It also sends from a background thread. Waits (for room in the queue, for a flush, for an
    answer) do not block the event loop. Reads run in threads of the client, at most 8 at a time. A
    read that is cancelled goes on in its thread, and its answer is dropped. The methods may be
    called from several loops. The constructor opens the spool and reads it, which blocks.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        batch_writes_max: int = 500,
        batch_bytes_max: int = 1 << 20,
        batch_age_max: float = 0.1,
        queue_writes_max: int = 10_000,
        queue_bytes_max: int = 64 << 20,
        fail_when_full: bool = False,
        block_timeout: float | None = None,
        retry_for: float | None = None,
        wait_applied: float | None = None,
        request_timeout: float = 30.0,
        gzip: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        spool_dir: str | os.PathLike[str] | None = None,
        strict: bool = False,
        trace_event_name: str = "event_a",
        on_error: OnError | None = None,
    ) -> None:
        self._core = Core(
            Options(
                url=url,
                api_key=api_key,
                batch_writes_max=batch_writes_max,
                batch_bytes_max=batch_bytes_max,
                batch_age_max=batch_age_max,
                queue_writes_max=queue_writes_max,
                queue_bytes_max=queue_bytes_max,
                fail_when_full=fail_when_full,
                block_timeout=block_timeout,
                retry_for=retry_for,
                wait_applied=wait_applied,
                request_timeout=request_timeout,
                gzip=gzip,
                ca_file=ca_file,
                spool_dir=spool_dir,
                strict=strict,
                trace_event_name=trace_event_name,
                on_error=on_error,
            )
        )
        self._start_threads()
        self._core.forked = self._start_threads

    def _start_threads(self) -> None:
        # The client has its own threads: reads may take long, and others need the loop's threads.
        # After a fork, it starts new ones, because the threads before the fork are the parent's.
        self._threads = ThreadPoolExecutor(_READS_MAX, thread_name_prefix="sluice-read")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except FlushTimeoutError as e:
            if exc is None:
                raise
            self._core.log_left(e)

    async def track_event(
        self,
        *,
        conversation_id: str,
        event_name: str,
        id: str | None = None,
        timestamp: Timestamp | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        error: str | None = None,
        latency: float | None = None,
        input: object = None,
        output: object = None,
        input_embeddings: Embedding | None = None,
        output_embeddings: Embedding | None = None,
    ) -> str:
        """Queues the create of an event and returns its id; see `Client.track_event`.

        It only ever waits for room in the queue.
        """
        write = _encode.create(
            id=id,
            conversation_id=conversation_id,
            event_name=event_name,
            timestamp=timestamp,
            conversation_metadata=conversation_metadata,
            error=error,
            latency=latency,
            input=input,
            output=output,
            input_embeddings=input_embeddings,
            output_embeddings=output_embeddings,
            strict=self._core.options.strict,
        )
        await self._put(write)
        return write.id

    async def update_event(
        self,
        id: str,
        *,
        event_name: str | Unset = UNSET,
        conversation_metadata: Mapping[str, object] | RawJSON | Unset | None = UNSET,
        error: str | Unset | None = UNSET,
        latency: float | Unset | None = UNSET,
        input: object = UNSET,
        output: object = UNSET,
        input_embeddings: Embedding | Unset | None = UNSET,
        output_embeddings: Embedding | Unset | None = UNSET,
    ) -> None:
        """Queues an update of an event's fields; see `Client.update_event`."""
        write = _encode.update(
            id,
            event_name=event_name,
            conversation_metadata=conversation_metadata,
            error=error,
            latency=latency,
            input=input,
            output=output,
            input_embeddings=input_embeddings,
            output_embeddings=output_embeddings,
            strict=self._core.options.strict,
        )
        await self._put(write)

    async def patch_event(
        self,
        id: str,
        *,
        event_name: str | Unset = UNSET,
        conversation_metadata: Mapping[str, object] | RawJSON | Unset | None = UNSET,
        error: str | Unset | None = UNSET,
        latency: float | Unset | None = UNSET,
        input: object = UNSET,
        output: object = UNSET,
        input_embeddings: Embedding | Unset | None = UNSET,
        output_embeddings: Embedding | Unset | None = UNSET,
    ) -> None:
        """Queues a patch of an event; see `Client.patch_event`."""
        write = _encode.update(
            id,
            event_name=event_name,
            conversation_metadata=conversation_metadata,
            error=error,
            latency=latency,
            input=input,
            output=output,
            input_embeddings=input_embeddings,
            output_embeddings=output_embeddings,
            strict=self._core.options.strict,
            op="patch",
        )
        await self._put(write)

    async def delete_event(self, id: str) -> None:
        """Queues the delete of an event; see `Client.delete_event`."""
        await self._put(_encode.delete(id))

    async def flush(self, timeout: float | None = None) -> None:
        """Sends the queued writes and waits until they are answered; see `Client.flush`."""
        seq = self._core.queue.flush_begin()
        await self._flushed(seq, timeout)
        self._core.flush_end(seq)

    async def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Flushes the queue and closes the client; see `Client.close`."""
        if self._core.closed:
            return
        self._core.end_streams()
        seq = self._core.queue.flush_begin(closing=True)
        await self._flushed(seq, timeout)
        self._threads.shutdown(wait=False)
        try:
            # shut waits a moment for the sender's thread, so it runs in another thread.
            await asyncio.to_thread(self._core.shut, seq)
        except RuntimeError:
            if self._core.closed:
                raise
            self._core.shut(seq)  # the interpreter exits, and cannot start a thread

    async def event(self, id: str, *, raw: bool = False, wait: float | None = None) -> Event:
        """Reads an event; see `Client.event`."""
        return cast(Event, await self._read(_reads.event(id, raw=raw), wait))

    async def conversation(
        self,
        conversation_id: str,
        *,
        order: TimeOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[ConversationFilter],
    ) -> ConversationPage:
        """Reads a page of a conversation's events; see `Client.conversation`."""
        read = _reads.conversation(
            conversation_id,
            filter,
            order=order,
            limit=limit,
            cursor=cursor,
            embeddings=embeddings,
            raw=raw,
        )
        return cast(ConversationPage, await self._read(read, wait))

    async def conversation_events(
        self,
        conversation_id: str,
        *,
        order: TimeOrder | None = None,
        limit: int | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[ConversationFilter],
    ) -> AsyncIterator[Event]:
        """Iterates over all events of a conversation; see `Client.conversation_events`."""
        cursor = None
        while True:
            page = await self.conversation(
                conversation_id,
                order=order,
                limit=limit,
                cursor=cursor,
                embeddings=embeddings,
                raw=raw,
                wait=wait,
                **filter,
            )
            for event in page["events"]:
                yield event
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    async def list_events(
        self,
        *,
        order: TimeOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> EventPage:
        """Reads a page of the events of all conversations; see `Client.list_events`."""
        read = _reads.events(
            filter, order=order, limit=limit, cursor=cursor, embeddings=embeddings, raw=raw
        )
        return cast(EventPage, await self._read(read, wait))

    async def all_events(
        self,
        *,
        order: TimeOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> AsyncIterator[Event]:
        """Iterates over all events that match the filter; see `Client.all_events`."""
        while True:
            page = await self.list_events(
                order=order,
                limit=limit,
                cursor=cursor,
                embeddings=embeddings,
                raw=raw,
                wait=wait,
                **filter,
            )
            for event in page["events"]:
                yield event
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    async def list_conversations(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> ConversationList:
        """Reads a page of conversations; see `Client.list_conversations`."""
        read = _reads.conversations(filter, limit=limit, cursor=cursor)
        return cast(ConversationList, await self._read(read, wait))

    async def all_conversations(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> AsyncIterator[ConversationSummary]:
        """Iterates over all conversations; see `Client.all_conversations`."""
        while True:
            page = await self.list_conversations(limit=limit, cursor=cursor, wait=wait, **filter)
            for conversation in page["conversations"]:
                yield conversation
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    async def errors(
        self,
        *,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> ErrorCount:
        """Counts events and errors; see `Client.errors`."""
        read = _reads.analytics(
            "errors",
            filter,
        )
        return cast(ErrorCount, await self._read(read, wait))

    async def latency(
        self,
        *,
        q: Sequence[float] | None = None,
        group_by: Sequence[Literal["conversation", "event_name"]] | None = None,
        limit: int | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> LatencyRows:
        """Reads latency quantiles for each group; see `Client.latency`."""
        read = _reads.analytics(
            "latency",
            filter,
            q=q,
            group_by=group_by,
            limit=limit,
        )
        return cast(LatencyRows, await self._read(read, wait))

    async def conversations(
        self,
        *,
        order_by: Literal["error_rate", "errors", "events"] | None = None,
        min_events: int | None = None,
        limit: int | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> ConversationRows:
        """Ranks conversations; see `Client.conversations`."""
        read = _reads.analytics(
            "conversations",
            filter,
            order_by=order_by,
            min_events=min_events,
            limit=limit,
        )
        return cast(ConversationRows, await self._read(read, wait))

    async def time_series(
        self,
        *,
        interval: str | None = None,
        q: Sequence[float] | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> TimeSeriesRows:
        """Reads events, errors and latency quantiles per interval; see `Client.time_series`."""
        read = _reads.analytics(
            "timeseries",
            filter,
            interval=interval,
            q=q,
        )
        return cast(TimeSeriesRows, await self._read(read, wait))

    async def search(
        self,
        *,
        text: str | None = None,
        vector: Embedding | None = None,
        like: str | None = None,
        field: SearchField | None = None,
        exact: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> SearchPage:
        """Finds events by a text, by similarity, or by both; see `Client.search`."""
        read = _reads.search(
            filter,
            text=text,
            vector=vector,
            like=like,
            field=field,
            exact=exact,
            limit=limit,
            cursor=cursor,
            raw=raw,
        )
        return cast(SearchPage, await self._read(read, wait))

    async def search_all(
        self,
        *,
        text: str | None = None,
        vector: Embedding | None = None,
        like: str | None = None,
        field: SearchField | None = None,
        exact: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> AsyncIterator[SearchResult]:
        """Iterates over all results of a search; see `Client.search_all`."""
        while True:
            page = await self.search(
                text=text,
                vector=vector,
                like=like,
                field=field,
                exact=exact,
                limit=limit,
                cursor=cursor,
                raw=raw,
                wait=wait,
                **filter,
            )
            for result in page["results"]:
                yield result
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    async def export_events(
        self,
        *,
        embeddings: bool = False,
        cursor: str | None = None,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> AsyncIterator[Event]:
        """Iterates over all events that match the filter; see `Client.export_events`."""
        export = _export.Export(filter, embeddings=embeddings, cursor=cursor, raw=raw)
        while True:
            stream = cast(_http.Stream, await self._read(export.read(), wait))
            wait = None
            try:
                while piece := await self._in_thread(stream.read):
                    for event in export.feed(piece):
                        yield event
                export.end()
                return
            except NetworkError as e:
                self._core.check_open()
                pause = export.broken(e)
            finally:
                stream.close()
            await asyncio.sleep(pause)

    async def insights(
        self,
        measures: Sequence[str],
        *,
        group_by: Sequence[str] | None = None,
        interval: str | None = None,
        tz: str | None = None,
        order_by: str | None = None,
        order: Literal["asc", "desc"] | None = None,
        limit: int | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> InsightsRows:
        """Computes measures of events; see `Client.insights`."""
        read = _reads.insights(
            filter,
            measures=measures,
            group_by=group_by,
            interval=interval,
            tz=tz,
            order_by=order_by,
            order=order,
            limit=limit,
        )
        return cast(InsightsRows, await self._read(read, wait))

    async def funnel(
        self,
        steps: Sequence[str | Step],
        *,
        window: str | None = None,
        per: str | None = None,
        group_by: str | None = None,
        limit: int | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> FunnelRows:
        """Counts how many do a series of steps; see `Client.funnel`."""
        read = _reads.funnel(
            filter, steps=steps, window=window, per=per, group_by=group_by, limit=limit
        )
        return cast(FunnelRows, await self._read(read, wait))

    async def retention(
        self,
        did: str | Step,
        *,
        returned: str | Step | None = None,
        interval: str | None = None,
        tz: str | None = None,
        per: str | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> RetentionRows:
        """Counts how many return; see `Client.retention`."""
        read = _reads.retention(
            filter, did=did, returned=returned, interval=interval, tz=tz, per=per
        )
        return cast(RetentionRows, await self._read(read, wait))

    async def sql(self, query: str, *, wait: float | None = None) -> SQLRows:
        """Runs a query in SQL; see `Client.sql`."""
        return cast(SQLRows, await self._read(_reads.sql(query), wait))

    async def write_sql(
        self,
        query: str,
        file: SupportsWrite,
        *,
        format: Literal["csv", "parquet"] = "csv",
        wait: float | None = None,
    ) -> None:
        """Runs a query in SQL and writes the answer to a file; see `Client.write_sql`.

        The file is written in a thread of the client. If the call is cancelled, no more is written
        after the piece that is being written.
        """
        left = threading.Event()
        try:
            await self._run(
                functools.partial(
                    self._core.copy, _reads.sql(query, format=format), file=file, left=left.is_set
                ),
                wait,
            )
        finally:
            left.set()

    @overload
    def trace(
        self,
        conversation_id: str,
        fn: Callable[[Span], Awaitable[T]],
        *,
        event_name: str | None = None,
        id: str | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        input: object = None,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def trace(
        self,
        conversation_id: str,
        fn: Callable[[Span], AsyncIterator[T]],
        *,
        event_name: str | None = None,
        id: str | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        input: object = None,
    ) -> Coroutine[Any, Any, AsyncIterator[T]]: ...

    @overload
    def trace(
        self,
        conversation_id: str,
        fn: None = None,
        *,
        event_name: str | None = None,
        id: str | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        input: object = None,
    ) -> contextlib.AbstractAsyncContextManager[Span]: ...

    def trace(
        self,
        conversation_id: str,
        fn: Callable[[Span], Awaitable[T] | AsyncIterator[T]] | None = None,
        *,
        event_name: str | None = None,
        id: str | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        input: object = None,
    ) -> Coroutine[Any, Any, T | AsyncIterator[T]] | contextlib.AbstractAsyncContextManager[Span]:
        """Awaits `fn` with a span and tracks one event for the call; see `Client.trace`.

        A stream that `fn` returns is passed through. `fn` may be an asynchronous generator
        function. Without `fn`, `trace` returns an asynchronous context manager. A call that is
        cancelled is tracked like a call that raised.
        """
        name = self._core.options.trace_event_name if event_name is None else event_name
        span = Span(conversation_id, name, id, conversation_metadata, input)
        return self._traced(span) if fn is None else self._call(span, fn)

    async def _call(self, span: Span, fn: Callable[[Span], Any]) -> Any:
        try:
            result = fn(span)
            if not hasattr(result, "__aiter__") or inspect.isawaitable(result):
                result = await result
        except BaseException as e:
            await self._track(span, e)
            raise
        if _streams.is_stream(result):
            return _streams.passed_through(self._core, span, result)
        span._returned = result
        await self._track(span, None)
        return result

    @contextlib.asynccontextmanager
    async def _traced(self, span: Span) -> AsyncIterator[Span]:
        raised: BaseException | None = None
        try:
            yield span
        except BaseException as e:
            raised = e
            raise
        finally:
            await self._track(span, raised)

    async def _track(self, span: Span, raised: BaseException | None) -> None:
        write = finished(self._core, span, raised)
        if write is not None:
            try:
                if raised is None or isinstance(raised, Exception):
                    await self._put(write)
                else:
                    # A cancelled task must not wait for the network.
                    self._core.put(write, block=False)
            except SluiceError as e:
                report(self._core, span, e)

    async def _put(self, write: Write) -> None:
        options = self._core.options
        self._core.start_sender()
        if options.fail_when_full or self._core.sender.is_missing():
            self._core.put(write)
            return
        queue = self._core.queue
        if not await _until(queue, lambda wake: queue.try_put(write, wake), options.block_timeout):
            raise QueueFullError("the queue is full")

    async def _flushed(self, seq: int, timeout: float | None) -> None:
        if self._core.sender.is_missing():
            self._core.wait(seq, timeout)  # nothing to send, or no other thread to send it
            return
        queue = self._core.queue
        await _until(queue, lambda wake: queue.flush_poll(seq, wake), timeout)

    async def _read(self, read: _reads.Read, wait: float | None) -> object:
        return await self._run(functools.partial(self._core.read, read), wait)

    async def _run(self, ask: Callable[[int | None], T], wait: float | None) -> T:
        """Flushes for the wait, and calls `ask` in a thread with the wait in whole seconds."""
        seconds = None if wait is None else _reads.check_wait(wait)
        if wait is not None:
            await self.flush(wait)
        self._core.check_open()
        return await self._in_thread(functools.partial(ask, seconds))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._threads, call)
        except RuntimeError:  # the interpreter exits, and cannot start a thread
            self._core.check_open()
            return call()
        return await future


async def _until(
    queue: Queue, attempt: Callable[[Callable[[], None]], bool], timeout: float | None
) -> bool:
    """Calls `attempt` each time the queue changes, until it returns true or the time is over."""
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        changed = asyncio.Event()

        def wake(changed: asyncio.Event = changed) -> None:
            # The sender calls this. The loop may be closed already.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        if attempt(wake):
            return True
        left = None if deadline is None else deadline - time.monotonic()
        try:
            await asyncio.wait_for(changed.wait(), left)
        except asyncio.TimeoutError:  # differs from the builtin TimeoutError before Python 3.11
            return False
        finally:
            queue.forget(wake)
