"""Types of what is given to the client and of what it returns."""

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
"""Stands for a field that an update leaves alone; None clears it."""

Op: TypeAlias = Literal["create", "update", "patch", "delete"]
"""What a write does to its event."""


class SupportsToList(Protocol):
    """An array of another library, such as NumPy's: what has a `tolist` method."""

    def tolist(self) -> Any:
        """The elements as Python's own objects."""


Embedding: TypeAlias = Sequence[float] | SupportsToList
"""1 to 4,096 finite numbers of float32's range: a list, an `array`, an array of NumPy's. One of
float32 is taken as it is, without a conversion."""

Timestamp: TypeAlias = datetime | str | int
"""A datetime with a time zone, RFC 3339 text, or Unix milliseconds."""

Moment: TypeAlias = datetime | str | int
"""A bound of a query: a `Timestamp`, or a time before now such as `7d`, `24h`, `30m` or `90s`."""


@dataclass(frozen=True)
class WriteError:
    """What the error callback gets: a write that was refused or given up, and why.

    `status` is that of the item or of the whole batch's answer. It is 0 where there was none: a
    write given up after `retry_for` with a network error (`code` is `network`), one that `trace`
    could not queue (`invalid`, `queue_full`, `closed`, `spool`), or what has neither op nor id: a
    line of the spool that cannot be read (`spool_corrupt`), or that this machine's clock is wrong
    (`wrong_clock`, once, with what to do in `detail`).
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
    """The contents of an event as JSON, with every digit, to be written back as they are."""

    conversation_metadata: RawJSON | None
    input: RawJSON | None
    output: RawJSON | None


class Event(_EventFields, total=False):
    """An event as the server has it.

    `timestamp` is RFC 3339 in UTC, `latency` in milliseconds. The embeddings are there where they
    were asked for, and so is `raw`.
    """

    raw: RawContents
    input_embeddings: list[float] | None
    output_embeddings: list[float] | None


class ConversationPage(TypedDict):
    """A page of a conversation's events; `next_cursor` is None on the last one."""

    events: list[Event]
    next_cursor: str | None


class ErrorCount(TypedDict):
    """How many events were errors; `error_rate` is 0 to 1."""

    event_name: str | None
    events: int
    errors: int
    error_rate: float
    since: str
    until: str


class LatencyRow(TypedDict):
    """Quantiles of one group, in milliseconds by quantile; None where no event has a latency."""

    conversation_id: str | None
    event_name: str | None
    events: int
    quantiles: dict[str, float | None]


class LatencyRows(TypedDict):
    """Groups, ranked by the first quantile asked for."""

    rows: list[LatencyRow]


class ConversationRow(TypedDict):
    """What there is of one conversation; `first` and `last` are times in RFC 3339."""

    conversation_id: str
    events: int
    errors: int
    error_rate: float
    first: str
    last: str


class ConversationRows(TypedDict):
    """Conversations, in the order asked for."""

    rows: list[ConversationRow]


class TimeSeriesRow(TypedDict):
    """What happened in one interval, which begins at `time`; quantiles are in milliseconds."""

    time: str
    events: int
    errors: int
    error_rate: float
    quantiles: dict[str, float | None]


class TimeSeriesRows(TypedDict):
    """Intervals in order of time; those without events have no row."""

    rows: list[TimeSeriesRow]
