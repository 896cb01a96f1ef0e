"""The types of the client's arguments and results."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeAlias, TypedDict

from sluice._json import RawJSON


class Unset(enum.Enum):
    """The type of `UNSET`."""

    UNSET = enum.auto()

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""The value of a field that an update does not change. None clears a field instead."""

Op: TypeAlias = Literal["create", "update", "patch", "delete"]
"""The kind of a write."""


class SupportsToList(Protocol):
    """An array of another library, such as NumPy, with a `tolist` method."""

    def tolist(self) -> Any:
        """Returns the elements as Python's own objects."""


Embedding: TypeAlias = Sequence[float] | SupportsToList
"""1 to 4,096 finite numbers in the range of float32: a list, an `array` or a NumPy array. An array
of float32 is not converted."""

Timestamp: TypeAlias = datetime | str | int
"""A datetime with a time zone, RFC 3339 text, or Unix milliseconds."""

Moment: TypeAlias = datetime | str | int
"""A bound of a query: a `Timestamp`, or a duration before now: `7d`, `24h`, `30m` or `90s`."""


@dataclass(frozen=True)
class WriteError:
    """A failure that the error callback gets.

    `op` and `id` name the write; both are empty if the failure is not about a write. `status` is
    the HTTP status of the write or of the whole batch; 0 if the server did not answer. `code` is
    the API's code, or one of these, whose status is 0:

    - `network`: the write was given up after `retry_for`.
    - `invalid`, `queue_full`, `closed`, `spool`: the event of a traced call could not be queued.
    - `spool_corrupt`: a line of the spool could not be read.
    - `wrong_clock`: this machine's clock is wrong; `detail` says what to do. It is reported once.
    """

    op: Op | Literal[""]
    id: str
    status: int
    code: str
    detail: str
    field: str


class _EventFields(TypedDict):
    id: str
    conversation_id: str
    conversation_metadata: dict[str, Any] | None
    event_name: str
    timestamp: str
    error: str | None
    latency: float | None
    input: Any
    output: Any


class RawContents(TypedDict):
    """The contents of an event as JSON text with every digit. They can be written back as is."""

    conversation_metadata: RawJSON | None
    input: RawJSON | None
    output: RawJSON | None


class Event(_EventFields, total=False):
    """An event as the server stores it.

    `timestamp` is RFC 3339 in UTC, and `latency` is in milliseconds. The embeddings and `raw` are
    only there if the read asked for them.
    """

    raw: RawContents
    input_embeddings: list[float] | None
    output_embeddings: list[float] | None


class ConversationPage(TypedDict):
    """A page of a conversation's events. `next_cursor` is None on the last page."""

    events: list[Event]
    next_cursor: str | None


class ErrorCount(TypedDict):
    """The number of events and errors. `error_rate` is errors per event, 0 to 1."""

    event_name: str | None
    events: int
    errors: int
    error_rate: float
    since: str
    until: str


class LatencyRow(TypedDict):
    """The latencies of one group in milliseconds, by quantile as text, such as `0.95`.

    A latency is None if no event has one.
    """

    conversation_id: str | None
    event_name: str | None
    events: int
    quantiles: dict[str, float | None]


class LatencyRows(TypedDict):
    """The groups, ranked by the first quantile of the query."""

    rows: list[LatencyRow]


class ConversationRow(TypedDict):
    """The counts of one conversation.

    `first` and `last` are the timestamps of its first and last event, RFC 3339.
    """

    conversation_id: str
    events: int
    errors: int
    error_rate: float
    first: str
    last: str


class ConversationRows(TypedDict):
    """The conversations, in the order of the query."""

    rows: list[ConversationRow]


class TimeSeriesRow(TypedDict):
    """The counts of one interval, which begins at `time`. Quantiles are in milliseconds."""

    time: str
    events: int
    errors: int
    error_rate: float
    quantiles: dict[str, float | None]


class TimeSeriesRows(TypedDict):
    """The intervals in order of time. Intervals without events have no row."""

    rows: list[TimeSeriesRow]
