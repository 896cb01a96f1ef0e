"""The client."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, TypeVar, cast, overload

from sluice import _encode, _reads, _streams
from sluice._core import Core
from sluice._json import RawJSON
from sluice._options import CLOSE_TIMEOUT, DEFAULT_URL, OnError, Options
from sluice._trace import Span, finished, report
from sluice.errors import FlushTimeoutError, SluiceError
from sluice.types import (
    UNSET,
    ConversationPage,
    ConversationRows,
    Embedding,
    ErrorCount,
    Event,
    LatencyRows,
    Moment,
    TimeSeriesRows,
    Timestamp,
    Unset,
)

T = TypeVar("T")


class Client:
    """Sends events to Sluice from a thread of its own, and reads them.

    Writes are checked, encoded and queued by the call, which never waits for the network; all
    methods can be called from any thread. Close the client when it is no longer needed, or use it
    in a `with` statement; one that is left open flushes for at most 10 seconds when the interpreter
    exits. After `os.fork`, the child's client starts with an empty queue and without the spool,
    which stays with the parent.

    Requests go through the proxy that HTTPS_PROXY or HTTP_PROXY names, but for NO_PROXY and this
    machine itself; the variables are read by the constructor.

    Args:
        url: Where the server is, with the path before `/events` if it has one.
        api_key: Sent with each request. Default none.
        batch_writes_max: A batch is sent when it has so many writes, at most 50,000,
        batch_bytes_max: so many bytes, at most 16 MiB,
        batch_age_max: or when its oldest write is so many seconds old.
        queue_writes_max: How many writes may be unanswered,
        queue_bytes_max: and of how many bytes as encoded; more find the queue full.
        fail_when_full: Whether a write that finds the queue full fails with QueueFullError at once.
            By default it blocks until there is room,
        block_timeout: or until so many seconds are over, and fails then. Default for ever.
        retry_for: For how many seconds from its first try on a write is tried again. After them it
            is given up, and goes to `on_error`. Default for ever.
        wait_applied: Has the server answer each batch only once it is applied, or after so many
            seconds, 1 to 30, rounded up to whole ones. `on_error` is then also told of writes that
            had no effect: by the code `id_taken` (the create of an id of your own that is taken),
            `event_deleted` or `unknown_event`. It slows sending down, as one batch is sent at a
            time. By default a batch is answered when it is in the log.
        request_timeout: How many seconds one request may take.
        gzip: Whether to compress bodies of 1 KiB and more.
        ca_file: A PEM file of certificate authorities that are trusted beside the system's.
        spool_dir: A directory in which each write is kept until it is answered, so that it survives
            the process. Of one client at a time. Default none.
        strict: Whether a write is refused, with ValidationError, whose input, output, error or
            metadata is not JSON, or is too large. By default it is encoded by what is nearest:
            dates as RFC 3339, bytes as base64, sets as arrays, dataclasses, Pydantic models and
            NumPy arrays by their contents, the rest as text; and what is too large is cut and says
            so. Traced calls always do that.
        trace_event_name: The event name of traces.
        on_error: Called with a `WriteError` for each write that was refused or given up, in the
            thread that sends: it should be quick, and cannot flush or close. A write that it makes
            fails with QueueFullError where the queue is full. By default, a warning is logged,
            without contents.

    Raises:
        ValidationError: An option is not valid; the error names it.
        SpoolInUseError: Another client has the spool's directory open.
        SpoolError: The spool's directory cannot be used.
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

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except FlushTimeoutError as e:
            if exc is None:
                raise
            # What the body raised matters more than what was lost with it.
            self._core.log_left(e)

    def track_event(
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
        """Queues a new event and returns its id.

        Args:
            conversation_id: 1 to 256 bytes of UTF-8.
            event_name: 1 to 128 bytes, one of those that the server is configured with.
            id: 1 to 128 characters of printable ASCII of your own; the first create of an id wins.
                Default a new one, which carries the timestamp and sorts by it.
            timestamp: When it happened, from the year 2000 to a day ahead, to the microsecond: a
                datetime with a time zone, RFC 3339 text, or Unix milliseconds. Default now; with an
                id of your own, when the server gets it.
            conversation_metadata: What JSON can express, at most 16 KiB of it.
            error: What went wrong. None and an empty text are no error.
            latency: Milliseconds, finite and not negative.
            input: A text, or anything else that JSON can express, such as a list of messages.
            output: The same.
            input_embeddings: 1 to 4,096 finite numbers of float32's range, as which they are kept.
            output_embeddings: The same.

        Raises:
            ValidationError: A field is not valid, or the write larger than 1 MiB as encoded.
            QueueFullError: See `fail_when_full` and `block_timeout`.
            ClosedError: The client is closed.
            SpoolError: The write could not be put in the spool.
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
        self._core.put(write)
        return write.id

    def update_event(
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
        """Queues an update of an event's fields: those given change, None clears one.

        The fields and exceptions are those of `track_event`. At least one must be given, and an
        event's name cannot be cleared.
        """
        self._core.put(
            _encode.update(
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
        )

    def patch_event(
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
        """Queues a patch of an event: `update_event`, but for the metadata.

        `conversation_metadata` is a merge patch (RFC 7396) of what the event has: the keys that it
        names are set, those that are None in it are taken away, dicts are merged, and everything
        else stays. So writers of different keys do not overwrite one another.
        """
        self._core.put(
            _encode.update(
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
        )

    def delete_event(self, id: str) -> None:
        """Queues the delete of an event, which is final. The exceptions are `track_event`'s."""
        self._core.put(_encode.delete(id))

    def flush(self, timeout: float | None = None) -> None:
        """Sends what is queued, and returns when all of it was answered for good.

        Args:
            timeout: Seconds. Default for ever.

        Raises:
            FlushTimeoutError: The time is over. What is left stays queued.
            ClosedError: The client is closed.
        """
        self._core.flush(timeout)

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Flushes and ends the client; what is called after it fails with ClosedError.

        Closing it again does nothing.

        Args:
            timeout: Seconds to flush in; None for ever.

        Raises:
            FlushTimeoutError: Writes are left; it says how many. With a spool they are sent by the
                next client that opens its directory, and else lost. The client is closed anyway.
        """
        self._core.close(timeout)

    def event(self, id: str, *, raw: bool = False, wait: float | None = None) -> Event:
        """Reads an event, with its embeddings.

        Like all reads, it is one request, tried again after network errors and the statuses 408,
        425, 429 and 5xx, for at most 30 seconds in all.

        Args:
            id: The event's.
            raw: Whether the event brings its contents as JSON too, as `RawJSON` in `raw`: with
                every digit of its numbers, to be written back as they are.
            wait: To read what this client has written: flushes in so many seconds (1 to 30), and
                has the server wait for as many until it is applied. Default neither.

        Raises:
            ApiError: With the code `unknown_event` for one that is not there or was deleted, and
                `not_yet_applied` where the wait was too short.
            NetworkError: The server could not be asked.
            FlushTimeoutError: The flush took longer than `wait`.
            ValidationError: The id or the wait is not valid.
            ClosedError: The client is closed.
        """
        return cast(Event, self._read(_reads.event(id, raw=raw), wait))

    def conversation(
        self,
        conversation_id: str,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
    ) -> ConversationPage:
        """Reads a page of a conversation's events, in order of time; see `event` for the rest.

        Args:
            conversation_id: Of the conversation. One without events has an empty page.
            limit: The most events of the page, 1 to 1,000. Default 100.
            cursor: The `next_cursor` of the page before. Default the first page.
            embeddings: Whether the events bring their embeddings.
            raw: As of `event`.
            wait: As of `event`.
        """
        read = _reads.conversation(
            conversation_id, limit=limit, cursor=cursor, embeddings=embeddings, raw=raw
        )
        return cast(ConversationPage, self._read(read, wait))

    def conversation_events(
        self,
        conversation_id: str,
        *,
        limit: int | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
    ) -> Iterator[Event]:
        """Iterates over all events of a conversation, page by page.

        `limit` is that of a page, and the first one waits; the rest is as of `conversation`.
        """
        cursor = None
        while True:
            page = self.conversation(
                conversation_id,
                limit=limit,
                cursor=cursor,
                embeddings=embeddings,
                raw=raw,
                wait=wait,
            )
            yield from page["events"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    def errors(
        self,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        conversation_id: str | None = None,
        event_name: str | None = None,
        metadata: Mapping[str, str | float | bool] | None = None,
        wait: float | None = None,
    ) -> ErrorCount:
        """Counts events and errors; see `event` for the exceptions.

        Args:
            since: The earliest timestamp: a datetime with a time zone, RFC 3339 text, Unix
                milliseconds, or a time before now such as `7d`, `24h`, `30m` or `90s`. Default 7d.
            until: The timestamp before which events count. Default now.
            conversation_id: Only events of that conversation,
            event_name: of that name,
            metadata: and whose conversation_metadata has these members, at most 16.
            wait: As of `event`.
        """
        read = _reads.analytics(
            "errors",
            since=since,
            until=until,
            conversation_id=conversation_id,
            event_name=event_name,
            metadata=metadata,
        )
        return cast(ErrorCount, self._read(read, wait))

    def latency(
        self,
        *,
        q: Sequence[float] | None = None,
        group_by: Sequence[Literal["conversation", "event_name"]] | None = None,
        limit: int | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        conversation_id: str | None = None,
        event_name: str | None = None,
        metadata: Mapping[str, str | float | bool] | None = None,
        wait: float | None = None,
    ) -> LatencyRows:
        """Reads latency quantiles by group, the highest first; see `errors` for the rest.

        Args:
            q: The quantiles wanted, above 0 and below 1, at most 16. Default 0.95.
            group_by: Default both, `conversation` and `event_name`.
            limit: The most rows, 1 to 10,000. Default 100.
            since: As of `errors`, like all that follow.
            until: The same.
            conversation_id: The same.
            event_name: The same.
            metadata: The same.
            wait: As of `event`.
        """
        read = _reads.analytics(
            "latency",
            q=q,
            group_by=group_by,
            limit=limit,
            since=since,
            until=until,
            conversation_id=conversation_id,
            event_name=event_name,
            metadata=metadata,
        )
        return cast(LatencyRows, self._read(read, wait))

    def conversations(
        self,
        *,
        order_by: Literal["error_rate", "errors", "events"] | None = None,
        min_events: int | None = None,
        limit: int | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        conversation_id: str | None = None,
        event_name: str | None = None,
        metadata: Mapping[str, str | float | bool] | None = None,
        wait: float | None = None,
    ) -> ConversationRows:
        """Reads conversations ranked, the highest first; see `errors` for the rest.

        Args:
            order_by: What they are ranked by. Default `error_rate`.
            min_events: Leaves out conversations with fewer events. Default 1.
            limit: The most rows, 1 to 10,000. Default 100.
            since: As of `errors`, like all that follow.
            until: The same.
            conversation_id: The same.
            event_name: The same.
            metadata: The same.
            wait: As of `event`.
        """
        read = _reads.analytics(
            "conversations",
            order_by=order_by,
            min_events=min_events,
            limit=limit,
            since=since,
            until=until,
            conversation_id=conversation_id,
            event_name=event_name,
            metadata=metadata,
        )
        return cast(ConversationRows, self._read(read, wait))

    def time_series(
        self,
        *,
        interval: str | None = None,
        q: Sequence[float] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        conversation_id: str | None = None,
        event_name: str | None = None,
        metadata: Mapping[str, str | float | bool] | None = None,
        wait: float | None = None,
    ) -> TimeSeriesRows:
        """Reads events, errors and latency quantiles per interval; see `errors` for the rest.

        Args:
            interval: The length of one, such as `5m`. Default `1h`; at most 10,000 in all.
            q: The quantiles wanted, above 0 and below 1, at most 16. Default 0.95.
            since: As of `errors`, like all that follow.
            until: The same.
            conversation_id: The same.
            event_name: The same.
            metadata: The same.
            wait: As of `event`.
        """
        read = _reads.analytics(
            "timeseries",
            interval=interval,
            q=q,
            since=since,
            until=until,
            conversation_id=conversation_id,
            event_name=event_name,
            metadata=metadata,
        )
        return cast(TimeSeriesRows, self._read(read, wait))

    @overload
    def trace(
        self,
        conversation_id: str,
        fn: Callable[[Span], T],
        *,
        event_name: str | None = None,
        id: str | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        input: object = None,
    ) -> T: ...

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
    ) -> contextlib.AbstractContextManager[Span]: ...

    def trace(
        self,
        conversation_id: str,
        fn: Callable[[Span], T] | None = None,
        *,
        event_name: str | None = None,
        id: str | None = None,
        conversation_metadata: Mapping[str, object] | RawJSON | None = None,
        input: object = None,
    ) -> T | contextlib.AbstractContextManager[Span]:
        """Calls `fn` with a span and tracks one event for it; returns what it returned.

        The event's timestamp is the time of the start, its latency how long the call took, its
        error the text of the exception that it raised, which goes on to the caller unchanged, and
        its output, unless set on the span, what it returned (as text where that is not JSON).
        A stream that `fn` returns (a generator, an asynchronous one, an iterator) is passed
        through. Its event ends with it: the output is its parts (texts and bytes joined, others as
        an array), the latency the time to the last, and `time_to_first_token_ms` in the metadata
        the time to the first. One that is closed early, or dropped, is tracked as far as it came.
        Who reads the stream never waits for room in the queue: without room, the event goes to
        `on_error`.

        Without `fn`, it is a context manager that gives the span, on which the output is to be set:

            with client.trace("support-42", input=question) as span:
                span.output = answer(question)

        Tracing does not make a call fail: an event that cannot be queued goes to `on_error`. It
        does wait for room in the queue as `track_event` does.

        Args:
            conversation_id: As of `track_event`, like `id`, `conversation_metadata` and `input`.
            fn: What to call. For a coroutine function there is `AsyncClient`.
            event_name: Default the client's `trace_event_name`.
            id: Default a new one; the span has it.
            conversation_metadata: May be set on the span as well,
            input: like this.
        """
        if inspect.iscoroutinefunction(fn):
            raise TypeError("fn is a coroutine function; trace it with an AsyncClient")
        name = self._core.options.trace_event_name if event_name is None else event_name
        span = Span(conversation_id, name, id, conversation_metadata, input)
        if fn is None:
            return self._traced(span)
        try:
            result = fn(span)
        except BaseException as e:
            self._track(span, e)
            raise
        if _streams.is_stream(result):
            return cast(T, _streams.passed_through(self._core, span, result))
        span._returned = result
        self._track(span, None)
        return result

    @contextlib.contextmanager
    def _traced(self, span: Span) -> Iterator[Span]:
        raised: BaseException | None = None
        try:
            yield span
        except BaseException as e:
            raised = e
            raise
        finally:
            self._track(span, raised)

    def _track(self, span: Span, raised: BaseException | None) -> None:
        write = finished(self._core, span, raised)
        if write is not None:
            try:
                # What is about to end the thread or program is not to wait for the network.
                self._core.put(write, block=raised is None or isinstance(raised, Exception))
            except SluiceError as e:
                report(self._core, span, e)

    def _read(self, read: _reads.Read, wait: float | None) -> object:
        seconds = None if wait is None else _reads.check_wait(wait)
        if wait is not None:
            self._core.flush(wait)
        return self._core.read(read, seconds)
