"""The client for threads. `sluice.aio` has the client for asyncio."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar, cast, overload

from sluice import _encode, _export, _http, _reads, _streams
from sluice._core import Core
from sluice._json import RawJSON
from sluice._options import CLOSE_TIMEOUT, DEFAULT_URL, OnError, Options
from sluice._trace import Span, finished, report
from sluice.errors import FlushTimeoutError, NetworkError, SluiceError
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


class Client:
    """Sends events to Sluice from a background thread, and reads them.

    A call checks a write, encodes it and queues it. It never waits for the network. All methods can
    be called from any thread. Close the client when it is no longer needed, or use it in a `with`
    statement. A client that is left open flushes for at most 10 seconds when the interpreter exits.
    After `os.fork`, the child's client has an empty queue and no spool; the spool stays with the
    parent.

    Requests go through the proxy that HTTPS_PROXY or HTTP_PROXY names. Requests to this machine and
    to the hosts in NO_PROXY do not. The constructor reads the variables.

    Args:
        url: The server's address. If it has a path, the path precedes the path of every request.
        api_key: Sent with every request. Default: none.
        batch_writes_max: The maximum number of writes in a batch, up to 50,000.
        batch_bytes_max: The maximum size of a batch in bytes, up to 16 MiB.
        batch_age_max: The maximum age of a batch's oldest write, in seconds. A batch is sent when
            it reaches one of these three, or on `flush`.
        queue_writes_max: The maximum number of unanswered writes.
        queue_bytes_max: The maximum size of the unanswered writes in bytes, as encoded.
        fail_when_full: Whether a write raises QueueFullError at once if the queue is full. By
            default it waits for room.
        block_timeout: How long a write waits for room, in seconds, before it raises QueueFullError.
            Default: no limit.
        retry_for: How long a write is retried, in seconds from its first attempt. It is then given
            up and goes to `on_error`. Default: no limit.
        wait_applied: Has the server answer each batch when it is applied, or after this number of
            seconds: 1 to 30, rounded up to whole seconds. `on_error` then also gets writes that had
            no effect, with the codes `id_taken` (an id of your own exists already), `event_deleted`
            and `unknown_event`. It slows sending down, because one batch is sent at a time. By
            default, the server answers a batch when it is in the log.
        request_timeout: The timeout of one request, in seconds.
        gzip: Whether to compress bodies of 1 KiB and more.
        ca_file: A PEM file of certificate authorities to trust in addition to the system's.
        spool_dir: A directory that keeps each write until it is answered, so that it survives the
            process. One client at a time can use it. Default: none.
        strict: Whether a write raises ValidationError if its input, output, error or metadata is
            not JSON or is too large. By default, a value that is not JSON is encoded as the nearest
            JSON value (dates as RFC 3339, bytes as base64, sets as arrays, dataclasses, Pydantic
            models and NumPy arrays by their contents, other values as text), and a value that is
            too large is cut and marked `sluice_truncated`. Traced calls are never strict.
        trace_event_name: The event name of traced calls.
        on_error: Called with a `WriteError` for each write that failed for good, in the sender's
            thread. It should be quick, and cannot flush or close. If it makes a write and the queue
            is full, that write raises QueueFullError. By default, a warning without contents of
            events is logged.

    Raises:
        ValidationError: An option is invalid; the error names it.
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
            # The exception of the body matters more than the writes that are left.
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
        """Queues the create of an event and returns the event's id.

        Args:
            conversation_id: The id of the event's conversation: 1 to 256 bytes of UTF-8.
            event_name: The kind of event, one of the names that the server allows: 1 to 128 bytes.
            id: An id of your own: 1 to 128 printable ASCII characters. The first create of an id
                wins. Default: a new id, which contains the timestamp and sorts by it.
            timestamp: When the event happened, from the year 2000 to 24 hours from now: a datetime
                with a time zone, RFC 3339 text, or Unix milliseconds. It is stored to the
                microsecond. Default: now; with an id of your own, when the server receives it.
            conversation_metadata: A JSON object of up to 16 KiB. Queries can filter by its members.
            error: The error message. None and an empty text mean success.
            latency: The duration in milliseconds, finite and not negative.
            input: A text, or any other JSON, such as a list of messages.
            output: A text, or any other JSON.
            input_embeddings: 1 to 4,096 finite numbers. They are stored as float32.
            output_embeddings: 1 to 4,096 finite numbers. They are stored as float32.

        Raises:
            ValidationError: A field is invalid, or the encoded write is larger than 1 MiB.
            QueueFullError: The queue is full; see `fail_when_full` and `block_timeout`.
            ClosedError: The client is closed.
            SpoolError: The write could not be written to the spool.
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
        """Queues an update of an event. The given fields change; a field that is None is cleared.

        The fields and exceptions are those of `track_event`. At least one field must be given. The
        event name cannot be cleared.
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
        """Queues a patch of an event. It is like `update_event`, except for the metadata.

        `conversation_metadata` is a JSON merge patch (RFC 7396) of the event's metadata: the keys
        of the patch are set, keys whose value is None are removed, dicts are merged, and all other
        keys keep their values. So writers of different keys do not overwrite each other.
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
        """Queues the delete of an event. A delete is final. It raises as `track_event` does."""
        self._core.put(_encode.delete(id))

    def flush(self, timeout: float | None = None) -> None:
        """Sends the queued writes now, and returns when all of them have their final answer.

        Args:
            timeout: In seconds. Default: no limit.

        Raises:
            FlushTimeoutError: The timeout is over. The remaining writes stay queued.
            ClosedError: The client is closed.
        """
        self._core.flush(timeout)

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Flushes the queue and closes the client. Later calls raise ClosedError.

        A second close does nothing.

        Args:
            timeout: The timeout of the flush, in seconds. None: no limit.

        Raises:
            FlushTimeoutError: Writes are left; the error says how many. With a spool, the next
                client that opens its directory sends them; otherwise they are lost. The client is
                closed in either case.
        """
        self._core.close(timeout)

    def event(self, id: str, *, raw: bool = False, wait: float | None = None) -> Event:
        """Reads an event, with its embeddings.

        All reads are retried after network errors and the statuses 408, 425, 429 and 5xx, for at
        most 30 seconds in total.

        Args:
            id: The event's id.
            raw: Whether the event also has its contents as JSON text, as `RawJSON` in `raw`. The
                text keeps every digit and can be written back unchanged.
            wait: Reads your own writes: the read flushes the queue, and then waits on the server
                until the flushed writes are applied. Each of the two steps may take this number of
                seconds: 1 to 30. Default: no flush and no wait.

        Raises:
            ApiError: The code is `unknown_event` if the event does not exist or was deleted, and
                `not_yet_applied` if the wait timed out.
            NetworkError: The server could not be reached.
            FlushTimeoutError: The flush took longer than `wait`.
            ValidationError: The id or the wait is invalid.
            ClosedError: The client is closed.
        """
        return cast(Event, self._read(_reads.event(id, raw=raw), wait))

    def conversation(
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
        """Reads one page of a conversation's events. It raises as `event` does.

        Args:
            conversation_id: The conversation's id. Without events, the page is empty.
            order: Default `timestamp`, the oldest first.
            limit: The maximum number of events in the page, 1 to 1,000. Default 100.
            cursor: The `next_cursor` of the previous page, which must have had the same filter and
                order. Default: the first page.
            embeddings: Whether the events have their embeddings.
            raw: As for `event`.
            wait: As for `event`.
            **filter: The members of a `ConversationFilter`, which select events.
        """
        read = _reads.conversation(
            conversation_id,
            filter,
            order=order,
            limit=limit,
            cursor=cursor,
            embeddings=embeddings,
            raw=raw,
        )
        return cast(ConversationPage, self._read(read, wait))

    def conversation_events(
        self,
        conversation_id: str,
        *,
        order: TimeOrder | None = None,
        limit: int | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[ConversationFilter],
    ) -> Iterator[Event]:
        """Iterates over all events of a conversation that match the filter. It reads page by page.

        `limit` is the size of a page, and `wait` applies to the first page only. The other
        arguments and the exceptions are those of `conversation`.
        """
        cursor = None
        while True:
            page = self.conversation(
                conversation_id,
                order=order,
                limit=limit,
                cursor=cursor,
                embeddings=embeddings,
                raw=raw,
                wait=wait,
                **filter,
            )
            yield from page["events"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    def list_events(
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
        """Reads one page of the events of all conversations that match the filter.

        It raises as `event` does.

        Args:
            order: Default `-timestamp`, the newest first.
            limit: The maximum number of events in the page, 1 to 1,000. Default 100.
            cursor: The `next_cursor` of the previous page, which must have had the same filter and
                order. Default: the first page.
            embeddings: Whether the events have their embeddings.
            raw: As for `event`.
            wait: As for `event`.
            **filter: The members of a `Filter`, which select events.
        """
        read = _reads.events(
            filter, order=order, limit=limit, cursor=cursor, embeddings=embeddings, raw=raw
        )
        return cast(EventPage, self._read(read, wait))

    def all_events(
        self,
        *,
        order: TimeOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        embeddings: bool = False,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> Iterator[Event]:
        """Iterates over all events that match the filter, from `cursor` on. It reads page by page.

        `limit` is the size of a page, and `wait` applies to the first page only. The other
        arguments and the exceptions are those of `list_events`.
        """
        while True:
            page = self.list_events(
                order=order,
                limit=limit,
                cursor=cursor,
                embeddings=embeddings,
                raw=raw,
                wait=wait,
                **filter,
            )
            yield from page["events"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    def list_conversations(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> ConversationList:
        """Reads one page of the conversations that have an event which matches the filter.

        The conversation with the latest such event comes first. Everything said about a
        conversation is about its matching events. It raises as `event` does.

        Args:
            limit: The maximum number of conversations in the page, 1 to 1,000. Default 50.
            cursor: The `next_cursor` of the previous page, which must have had the same filter.
                Default: the first page.
            wait: As for `event`.
            **filter: The members of a `Filter`, which select events.
        """
        read = _reads.conversations(filter, limit=limit, cursor=cursor)
        return cast(ConversationList, self._read(read, wait))

    def all_conversations(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> Iterator[ConversationSummary]:
        """Iterates over all conversations of `list_conversations`, from `cursor` on.

        It reads page by page. `limit` is the size of a page, and `wait` applies to the first page
        only. A conversation that gets a new event meanwhile moves to the front, so it may be left
        out. The other arguments and the exceptions are those of `list_conversations`.
        """
        while True:
            page = self.list_conversations(limit=limit, cursor=cursor, wait=wait, **filter)
            yield from page["conversations"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    def errors(
        self,
        *,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> ErrorCount:
        """Counts events and errors. It raises as `event` does.

        Args:
            wait: As for `event`.
            **filter: The members of a `Filter`, which select events. By default, the query is about
                the last 7 days.
        """
        read = _reads.analytics(
            "errors",
            filter,
        )
        return cast(ErrorCount, self._read(read, wait))

    def latency(
        self,
        *,
        q: Sequence[float] | None = None,
        group_by: Sequence[Literal["conversation", "event_name"]] | None = None,
        limit: int | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> LatencyRows:
        """Reads latency quantiles in milliseconds for each group, the highest first.

        It raises as `event` does.

        Args:
            q: Up to 16 quantiles, each above 0 and below 1. Default 0.95.
            group_by: The fields to group by. Default: both.
            limit: The maximum number of rows, 1 to 10,000. Default 100.
            wait: As for `event`.
            **filter: As for `errors`.
        """
        read = _reads.analytics(
            "latency",
            filter,
            q=q,
            group_by=group_by,
            limit=limit,
        )
        return cast(LatencyRows, self._read(read, wait))

    def conversations(
        self,
        *,
        order_by: Literal["error_rate", "errors", "events"] | None = None,
        min_events: int | None = None,
        limit: int | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> ConversationRows:
        """Ranks conversations by `order_by`, the highest first. It raises as `event` does.

        Args:
            order_by: The count that ranks the conversations. Default `error_rate`.
            min_events: Leaves out conversations with fewer events than this. Default 1.
            limit: The maximum number of rows, 1 to 10,000. Default 100.
            wait: As for `event`.
            **filter: As for `errors`.
        """
        read = _reads.analytics(
            "conversations",
            filter,
            order_by=order_by,
            min_events=min_events,
            limit=limit,
        )
        return cast(ConversationRows, self._read(read, wait))

    def time_series(
        self,
        *,
        interval: str | None = None,
        q: Sequence[float] | None = None,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> TimeSeriesRows:
        """Reads events, errors and latency quantiles per interval, in order of time.

        It raises as `event` does.

        Args:
            interval: The length of an interval, such as `5m`. At most 10,000 intervals may lie
                between `since` and `until`. Default `1h`.
            q: Up to 16 quantiles, each above 0 and below 1. Default 0.95.
            wait: As for `event`.
            **filter: As for `errors`.
        """
        read = _reads.analytics(
            "timeseries",
            filter,
            interval=interval,
            q=q,
        )
        return cast(TimeSeriesRows, self._read(read, wait))

    def search(
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
        """Finds events by a text, by the similarity of embeddings, or by both.

        It reads one page of them, the best first. It needs `text`, `vector` or `like`, or `text`
        beside one of the other two. It raises as `event` does; `unknown_event` means that `like`
        names no event.

        Args:
            text: Words, and phrases in double quotes. An event is found if one of its fields has
                all of them, whatever their case. The newest events come first.
            vector: 1 to 4,096 numbers. Finds the events whose embeddings have as many dimensions
                and the nearest direction.
            like: The id of an event, whose embeddings are the vector. The event itself is not
                found.
            field: The field that is searched; `error` only in a search of text alone. Default: all
                of them; for `like`, the input if the event has embeddings of its input, otherwise
                the output.
            exact: Whether a search by similarity compares every embedding. Among very many it
                otherwise chooses candidates first, and may miss some of the nearest events.
            limit: The maximum number of results in the page, 1 to 100. Default 10.
            cursor: The `next_cursor` of the previous page, which must have had the same arguments.
                Only searches of text alone have several pages. Default: the first page.
            raw: As for `event`.
            wait: As for `event`.
            **filter: The members of a `Filter`, which select the events that are searched.
        """
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
        return cast(SearchPage, self._read(read, wait))

    def search_all(
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
    ) -> Iterator[SearchResult]:
        """Iterates over all results of `search`, from `cursor` on. It reads page by page.

        `limit` is the size of a page, and `wait` applies to the first page only. The other
        arguments and the exceptions are those of `search`.
        """
        while True:
            page = self.search(
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
            yield from page["results"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            wait = None

    def export_events(
        self,
        *,
        embeddings: bool = False,
        cursor: str | None = None,
        raw: bool = False,
        wait: float | None = None,
        **filter: Unpack[Filter],
    ) -> Iterator[Event]:
        """Iterates over all events that match the filter, in order of time, however many.

        It reads them from one answer while it comes. If the answer breaks off, also because the
        loop takes too long for the server, it goes on after the last event. It raises as `event`
        does.

        Args:
            embeddings: Whether the events have their embeddings.
            cursor: The id of an event; the export begins after it. Default: the first event.
            raw: As for `event`.
            wait: As for `event`. It applies to the beginning.
            **filter: The members of a `Filter`, which select events.
        """
        export = _export.Export(filter, embeddings=embeddings, cursor=cursor, raw=raw)
        while True:
            with contextlib.closing(self._stream(export.read(), wait)) as stream:
                wait = None
                try:
                    while piece := stream.read():
                        yield from export.feed(piece)
                    export.end()
                    return
                except NetworkError as e:
                    self._core.check_open()
                    pause = export.broken(e)
            self._core.read_sleep(pause)

    def insights(
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
        """Computes measures of events, by group and by interval.

        Groups and intervals without events have no row. Without both there is exactly one row. It
        raises as `event` does.

        Args:
            measures: 1 to 16 measures: `events`, `errors`, `error_rate`, `conversations`, or sum,
                avg, min, max or a quantile of the latency or of a member of the metadata, such as
                `p95(latency)` and `sum(metadata.tokens)`.
            group_by: Up to three of `event_name`, `conversation` and members of the metadata such
                as `metadata.plan`. Default: all events are one group.
            interval: The length of a bucket of time: a number and s, m, h, d, w (weeks from Monday)
                or mo (months). At most 10,000 buckets may lie between `since` and `until`. Default:
                no buckets.
            tz: The name of the time zone of days, weeks and months, such as `Europe/Berlin`.
                Default UTC.
            order_by: One of the measures, or `time` with an interval. Default: `time` with an
                interval, otherwise the first measure.
            order: Default `asc` for the time, and `desc` for a measure.
            limit: The maximum number of rows, 1 to 10,000. Default 100; with an interval 10,000.
            wait: As for `event`.
            **filter: As for `errors`.
        """
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
        return cast(InsightsRows, self._read(read, wait))

    def funnel(
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
        """Counts how many subjects do the steps in their order within a window, and how fast.

        It raises as `event` does.

        Args:
            steps: 2 to 10 steps in their order: names of events, or names with filters.
            window: The longest time from the first to the last step, inclusive, such as `30m` or
                `7d`, up to `366d`. Default `24h`.
            per: What is counted: `conversation`, or the values of a member of the metadata, such as
                `metadata.user`. Default `conversation`.
            group_by: Breaks the answer down by a property of the first event of the first step:
                `event_name`, `conversation`, or `metadata.plan`. Default: there is one row.
            limit: The maximum number of rows, 1 to 10,000. Default 100.
            wait: As for `event`.
            **filter: As for `errors`.
        """
        read = _reads.funnel(
            filter, steps=steps, window=window, per=per, group_by=group_by, limit=limit
        )
        return cast(FunnelRows, self._read(read, wait))

    def retention(
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
        """Counts, of the subjects that did something in a period, how many return later.

        There is a row for each period, in order of time. It raises as `event` does.

        Args:
            did: The first event: its name, or a name with filters.
            returned: The later event. Default: `did`.
            interval: The length of a period in days, weeks or months, such as `1w`. At most 366 may
                lie between `since` and `until`. Default `1d`.
            tz: As for `insights`.
            per: As for `funnel`.
            wait: As for `event`.
            **filter: As for `errors`.
        """
        read = _reads.retention(
            filter, did=did, returned=returned, interval=interval, tz=tz, per=per
        )
        return cast(RetentionRows, self._read(read, wait))

    def sql(self, query: str, *, wait: float | None = None) -> SQLRows:
        """Runs a SELECT in ClickHouse's SQL on the live views, which docs/sql.md describes.

        The whole answer is in memory, which the server bounds; see `write_sql`. It raises as
        `event` does. An `ApiError` with the code `invalid_query` says what is wrong with the query;
        `sql_not_set_up` means that the server has no user for SQL.
        """
        return cast(SQLRows, self._read(_reads.sql(query), wait))

    def write_sql(
        self,
        query: str,
        file: SupportsWrite,
        *,
        format: Literal["csv", "parquet"] = "csv",
        wait: float | None = None,
    ) -> None:
        """Runs a query as `sql` does, and writes the answer to a binary file while it comes.

        It is retried until the answer begins. After that, a `NetworkError` means that the answer
        broke off, or that nothing came for `request_timeout`; a part of it is in the file then.

        Args:
            query: As for `sql`.
            file: A file that was opened with `wb`, or anything else with a `write` method.
            format: `csv` has the names of the columns in its first line, and NULL as `\\N`.
            wait: As for `event`.
        """
        seconds = self._flush_for(wait)
        self._core.copy(_reads.sql(query, format=format), seconds, file)

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
        """Calls `fn` with a span, tracks one event for the call, and returns the result of `fn`.

        The event's timestamp is the start of the call, and its latency the duration in
        milliseconds. If `fn` raises, the event's error is the text of the exception, and the
        exception goes on to the caller. The output is the return value (as text if it is not JSON),
        unless `fn` sets one on the span.

        If `fn` returns a stream (a generator, an asynchronous generator, an iterator), the stream
        is passed through to the caller, and the event ends with the stream. The output is its
        parts: texts and bytes joined, other parts as an array. The latency is the time to the last
        part, and `time_to_first_token_ms` in the metadata is the time to the first part. A stream
        that is closed early or dropped is tracked with its parts so far. The reader of the stream
        never waits for room in the queue: if there is none, the event goes to `on_error`.

        Without `fn`, `trace` returns a context manager for the span. Set the output on the span:

            with client.trace("support-42", input=question) as span:
                span.output = answer(question)

        Tracing does not make a call fail: if the event cannot be queued, it goes to `on_error`. It
        waits for room in the queue as `track_event` does.

        Args:
            conversation_id: As for `track_event`.
            fn: The function to call. `AsyncClient` traces coroutine functions.
            event_name: Default: the client's `trace_event_name`.
            id: As for `track_event`. The span has it.
            conversation_metadata: As for `track_event`. It can also be set on the span.
            input: As for `track_event`. It can also be set on the span.
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
                # An exception that ends the thread or the program must not wait for the network.
                self._core.put(write, block=raised is None or isinstance(raised, Exception))
            except SluiceError as e:
                report(self._core, span, e)

    def _read(self, read: _reads.Read, wait: float | None) -> object:
        return self._core.read(read, self._flush_for(wait))

    def _stream(self, read: _reads.Read, wait: float | None) -> _http.Stream:
        return cast(_http.Stream, self._read(read, wait))

    def _flush_for(self, wait: float | None) -> int | None:
        """Flushes for a read with a wait, and returns the wait in whole seconds."""
        if wait is None:
            return None
        seconds = _reads.check_wait(wait)
        self._core.flush(wait)
        return seconds
