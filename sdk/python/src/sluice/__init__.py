"""Client library of Sluice, an event pipeline for chat, agent and LLM products."""

from sluice._json import RawJSON
from sluice._options import OnError
from sluice._trace import Span
from sluice._version import __version__
from sluice.aio import AsyncClient
from sluice.client import Client
from sluice.errors import (
    ApiError,
    ClosedError,
    FlushTimeoutError,
    NetworkError,
    QueueFullError,
    SluiceError,
    SpoolError,
    SpoolInUseError,
    ValidationError,
)
from sluice.types import (
    UNSET,
    ConversationPage,
    ConversationRow,
    ConversationRows,
    Embedding,
    ErrorCount,
    Event,
    LatencyRow,
    LatencyRows,
    Moment,
    Op,
    RawContents,
    TimeSeriesRow,
    TimeSeriesRows,
    Timestamp,
    Unset,
    WriteError,
)

__all__ = [
    "UNSET",
    "ApiError",
    "AsyncClient",
    "Client",
    "ClosedError",
    "ConversationPage",
    "ConversationRow",
    "ConversationRows",
    "Embedding",
    "ErrorCount",
    "Event",
    "FlushTimeoutError",
    "LatencyRow",
    "LatencyRows",
    "Moment",
    "NetworkError",
    "OnError",
    "Op",
    "QueueFullError",
    "RawContents",
    "RawJSON",
    "SluiceError",
    "Span",
    "SpoolError",
    "SpoolInUseError",
    "TimeSeriesRow",
    "TimeSeriesRows",
    "Timestamp",
    "Unset",
    "ValidationError",
    "WriteError",
    "__version__",
]
