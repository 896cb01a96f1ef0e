"""The types of the client's arguments and results."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
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


class SupportsWrite(Protocol):
    """A binary file, or anything else with a `write` method for bytes."""

    def write(self, data: bytes, /) -> object:
        """Writes the bytes."""


Embedding: TypeAlias = Sequence[float] | SupportsToList
"""1 to 4,096 finite numbers in the range of float32: a list, an `array` or a NumPy array. An array
of float32 is not converted."""

Timestamp: TypeAlias = datetime | str | int
"""A datetime with a time zone, RFC 3339 text, or Unix milliseconds."""

Moment: TypeAlias = datetime | str | int
"""A bound of a query: a `Timestamp`, or a duration before now: `7d`, `24h`, `30m` or `90s`."""


TimeOrder: TypeAlias = Literal["timestamp", "-timestamp"]
"""The order of events by their timestamps; `-timestamp` is the newest first. Events with equal
timestamps are sorted by id."""

MetadataValue: TypeAlias = str | float | bool
"""A value that a member of the metadata is compared with."""

Condition: TypeAlias = (
    tuple[str, Literal["=", "!=", "<", "<=", ">", ">="], MetadataValue]
    | tuple[str, Literal["exists", "missing"]]
)
"""A condition on a top-level member of the metadata, such as `("tokens", ">", 1000)`.

- `=`: the member is the text, or the number or boolean that is written like the value.
- `!=`: it is not; also for events without the member.
- `<`, `<=`, `>`, `>=`: numbers compare with numbers. If the value is not a number, texts are
  compared byte by byte.
- `exists`: the metadata has the member, whatever its value is. `missing`: it does not.

Integers are compared exactly, whatever their size, and other numbers as 64-bit floats."""


class ConversationFilter(TypedDict, total=False):
    """Selects the events of a conversation that match all of these members.

    `since` is the earliest timestamp, inclusive: a datetime with a time zone, RFC 3339 text, Unix
    milliseconds, or a duration before now such as `7d`, `24h`, `30m` or `90s`. `until` is the
    latest timestamp, exclusive. By default, lists of events and conversations have no bounds, and
    analytics queries are about the last 7 days.

    `event_name` and `event_names` select events that have one of these names, up to 100. `error`
    selects events with an error (True) or without one (False). `latency_min` and `latency_max`
    bound the latency in milliseconds, inclusive; an event without a latency does not match.

    `metadata` selects events whose metadata has all these members, and `conditions` has more
    conditions on members, which must all hold. They may have up to 16 together.
    """

    since: Moment | None
    until: Moment | None
    event_name: str | None
    event_names: Sequence[str] | None
    error: bool | None
    latency_min: float | None
    latency_max: float | None
    metadata: Mapping[str, MetadataValue] | None
    conditions: Sequence[Condition] | None


class Filter(ConversationFilter, total=False):
    """Selects the events that match all of these members. See `ConversationFilter`.

    The members are keyword arguments of every read but `event`:

        recent: sluice.Filter = {"since": "1h", "error": True}
        client.errors(**recent)
        client.all_events(**recent, order="timestamp")
    """

    conversation_id: str | None


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


class EventPage(TypedDict):
    """A page of events. `next_cursor` is None on the last page."""

    events: list[Event]
    next_cursor: str | None


ConversationPage: TypeAlias = EventPage
"""A page of a conversation's events."""


class ConversationSummary(TypedDict):
    """What the matching events of a conversation are like.

    `first` and `last` are the timestamps of the first and the last event, RFC 3339. `error_rate` is
    errors per event, 0 to 1. `event_names` has up to 100 names in alphabetical order. `first_input`
    is the first 200 characters of the first input among the first five events, and `last_output`
    those of the last output among the last five. JSON is shown as its text.
    """

    conversation_id: str
    first: str
    last: str
    events: int
    errors: int
    error_rate: float
    event_names: list[str]
    first_input: str | None
    last_output: str | None


class ConversationList(TypedDict):
    """A page of conversations, the one with the latest event first.

    `next_cursor` is None on the last page.
    """

    conversations: list[ConversationSummary]
    next_cursor: str | None


class ErrorCount(TypedDict):
    """The number of events and errors. `error_rate` is errors per event, 0 to 1.

    `event_name` is that of the filter; None if the filter has none or several.
    """

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


SearchField: TypeAlias = Literal["input", "output", "error"]
"""A field of an event that a search looks in."""


class Fragment(TypedDict):
    """A part of a `Highlight`. `match` is whether it is what was searched for."""

    text: str
    match: bool


class Highlight(TypedDict):
    """A piece of a field in which a text was found. Its fragments joined are the piece."""

    field: SearchField
    fragments: list[Fragment]


class SearchResult(TypedDict):
    """An event that a search found, without its embeddings.

    `score` is 1 for a search of text alone, and the cosine similarity for one by similarity alone.
    With both, it is the sum of 1/(60 + rank) over the ranks that the event has among the first 50
    of each. `highlights` are the places in which the text was found, up to three of a field.
    """

    event: Event
    score: float
    highlights: list[Highlight]


class SearchPage(TypedDict):
    """A page of what a search found, the best first. `next_cursor` is None on the last page."""

    results: list[SearchResult]
    next_cursor: str | None


class InsightsRows(TypedDict):
    """The rows of `insights`. `truncated` is whether there are more than the limit.

    A row has a member for each measure, by its text such as `sum(metadata.tokens)`, and for each
    group: `event_name`, `conversation_id`, `metadata.plan`. With an interval, it has `time`, the
    start of the bucket. A measure without a value, such as the average of no numbers, is None, and
    so is the group of the events without a member of the metadata. Integers have all their digits.
    """

    rows: list[dict[str, Any]]
    truncated: bool


class _StepName(TypedDict):
    event_name: str


class Step(_StepName, total=False):
    """Selects the events of a step: those that have the name and match all other members.

    The other members are those of a `Filter`.
    """

    error: bool | None
    latency_min: float | None
    latency_max: float | None
    metadata: Mapping[str, MetadataValue] | None
    conditions: Sequence[Condition] | None


class FunnelRows(TypedDict):
    """The rows of `funnel`. `truncated` is whether there are more groups than the limit.

    A row has `steps`, a list of `FunnelStep`, and, with `group_by`, the value of its group:
    `event_name`, `conversation_id` or `metadata.plan`. The group with the most subjects comes
    first.
    """

    rows: list[dict[str, Any]]
    truncated: bool


class FunnelStep(TypedDict):
    """How many subjects reach a step.

    `conversion` is the share of the subjects of the first step, and `conversion_from_previous` that
    of the step before, 0 to 1; None if there are none. `median_ms_from_previous` is the median time
    since the step before, in milliseconds.
    """

    event_name: str
    subjects: int
    conversion: float | None
    conversion_from_previous: float | None
    median_ms_from_previous: float | None


class RetentionRow(TypedDict):
    """The counts of the subjects that did something in the period that begins at `time`.

    `returned` has how many of them returned in the period itself and in each period after it. If
    the period has not ended, `complete` is false, and its count may still grow.
    """

    time: str
    complete: bool
    subjects: int
    returned: list[int]


class RetentionRows(TypedDict):
    """The periods in order of time."""

    rows: list[RetentionRow]


class SQLColumn(TypedDict):
    """A column, with ClickHouse's name of its type, such as `UInt64` or `Nullable(String)`."""

    name: str
    type: str


class SQLRows(TypedDict):
    """The answer to a query in SQL: a list for each row, with a value for each column.

    Integers have all their digits. NaN and infinities are None, and times are RFC 3339 in UTC.
    """

    columns: list[SQLColumn]
    rows: list[list[Any]]
