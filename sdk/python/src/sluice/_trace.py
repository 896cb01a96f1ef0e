"""Spans: one traced call, and the event that it becomes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from sluice import _encode
from sluice._core import Core
from sluice._ids import mint
from sluice._queue import Write
from sluice.errors import ClosedError, QueueFullError, SluiceError, ValidationError
from sluice.types import UNSET, Embedding, WriteError


class Span:
    """A traced call, to be told what it is about; see `Client.trace`.

    The attributes may be set until the call ends:

    - `input`, `output`: anything that JSON can express. An `output` that is not set is what the
      function returned.
    - `conversation_metadata`, `input_embeddings`, `output_embeddings`: as of `track_event`.
    - `error`: text; one that is not set is that of the exception that the call raised.

    `id` is the event's id, `conversation_id` and `event_name` are as given to `trace`.
    """

    def __init__(
        self,
        conversation_id: str,
        event_name: str,
        id: str | None,
        conversation_metadata: Mapping[str, object] | None,
        input: object,
    ) -> None:
        self._own_id = id is not None
        self._micros = time.time_ns() // 1000
        self._started = time.perf_counter()
        self._returned: object = None
        if id is None:
            # What is wrong with a conversation is told when the event is made of the span.
            known = conversation_id if isinstance(conversation_id, str) else ""
            id = mint(known, self._micros)
        self.id = id
        self.conversation_id = conversation_id
        self.event_name = event_name
        self.conversation_metadata = conversation_metadata
        self.input = input
        self.output: object = UNSET
        self.input_embeddings: Embedding | None = None
        self.output_embeddings: Embedding | None = None
        self.error: str | None = None


def finished(core: Core, span: Span, raised: BaseException | None) -> Write | None:
    """The event of a span that has ended; one that cannot be is reported and None."""
    latency = round((time.perf_counter() - span._started) * 1000, 3)
    if raised is not None and span.error is None:
        span.error = str(raised) or type(raised).__name__
    try:
        if span.output is not UNSET:
            return _event(span, latency, span.output)
        try:
            return _event(span, latency, span._returned)
        except ValidationError as e:
            if e.field != "output":
                raise
            # Functions return objects that were not made to be JSON.
            return _event(span, latency, str(span._returned))
    except Exception as e:
        report(core, span, e)
        return None


def report(core: Core, span: Span, error: Exception) -> None:
    """Tells the error callback that the span's event was not queued.

    A call must not fail because it is traced, so the caller is not told by an exception.
    """
    field, detail = "", str(error)
    if isinstance(error, QueueFullError):
        code = "queue_full"
    elif isinstance(error, ClosedError):
        code = "closed"
    elif isinstance(error, ValidationError):
        code, field, detail = "invalid", error.field, error.detail
    else:
        code = "spool" if isinstance(error, SluiceError) else "invalid"
    core.report(WriteError("create", span.id, 0, code, detail, field))


def _event(span: Span, latency: float, output: object) -> Write:
    started = _encode.EPOCH + timedelta(microseconds=span._micros)
    return _encode.create(
        id=span.id,
        # A minted id carries it.
        timestamp=started if span._own_id else None,
        conversation_id=span.conversation_id,
        event_name=span.event_name,
        conversation_metadata=span.conversation_metadata,
        error=span.error,
        latency=latency,
        input=span.input,
        output=output,
        input_embeddings=span.input_embeddings,
        output_embeddings=span.output_embeddings,
    )
