"""Spans: a traced call, and the event that it becomes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import timedelta

from sluice import _encode, _json, _payload, _truncate
from sluice._core import Core
from sluice._ids import PROCESS
from sluice._queue import Write
from sluice.errors import ClosedError, QueueFullError, SluiceError, ValidationError
from sluice.types import UNSET, Embedding, WriteError

FIRST_PART = "time_to_first_token_ms"
"""The metadata key for the milliseconds from the start of the call to the first part of its
stream."""

_log = logging.getLogger("sluice")


class Span:
    """A traced call; see `Client.trace`.

    The attributes that are set before the call ends become the fields of its event:

    - `input`, `output`: any value; `strict` of `Client` says how it is encoded. The input is
      encoded when it is set, so that later changes to the value do not show. Without an `output`,
      the event has the function's return value.
    - `conversation_metadata`: as for `track_event`. It is encoded when it is set.
    - `input_embeddings`, `output_embeddings`: as for `track_event`. Invalid ones are left out.
    - `error`: a text. Without one, the event has the text of the exception that the call raised.

    `id` is the event's id. `conversation_id` and `event_name` are those given to `trace`.
    """

    def __init__(
        self,
        conversation_id: str,
        event_name: str,
        id: str | None,
        conversation_metadata: Mapping[str, object] | _json.RawJSON | None,
        input: object,
    ) -> None:
        self._own_id = id is not None
        self._micros = PROCESS.micros()
        self._started = time.perf_counter()
        self._returned: object = None
        self._first_part: float | None = None  # when the first part of a stream came
        if id is None:
            # An invalid conversation is reported when the event of the span is made.
            known = conversation_id if isinstance(conversation_id, str) else ""
            id = PROCESS.mint(known, self._micros)
        self.id = id
        self.conversation_id = conversation_id
        self.event_name = event_name
        self.conversation_metadata = conversation_metadata
        self.input = input
        self.output: object = UNSET
        self.input_embeddings: Embedding | None = None
        self.output_embeddings: Embedding | None = None
        self.error: str | None = None

    @property
    def conversation_metadata(self) -> Mapping[str, object] | _json.RawJSON | None:
        """The metadata as it was set."""
        return self._metadata

    @conversation_metadata.setter
    def conversation_metadata(self, value: Mapping[str, object] | _json.RawJSON | None) -> None:
        self._metadata = value
        self._metadata_snapshot = None
        if value is not None:
            self._metadata_snapshot = _encode.Snapshot(_payload.encode_object(value))

    @property
    def input(self) -> object:
        """The input as it was set."""
        return self._input

    @input.setter
    def input(self, value: object) -> None:
        self._input = value
        self._input_snapshot = _snapshot(value)


def _snapshot(value: object) -> _encode.Snapshot | None:
    """Returns the encoding of the value as it is now, cut to the size of a write."""
    if value is None:
        return None
    encoded = _payload.encode(value, rename=True)
    if len(encoded) > _encode.WRITE_BYTES_MAX:
        encoded = _truncate.fit({"input": encoded}, _encode.WRITE_BYTES_MAX)["input"]
    return _encode.Snapshot(encoded)


def finished(
    core: Core, span: Span, raised: BaseException | None, ended: float | None = None
) -> Write | None:
    """Returns the event of an ended span. An invalid one is reported, and None is returned.

    `ended` is when the call ended, in time.perf_counter; None means now.
    """
    latency = _millis(span, time.perf_counter() if ended is None else ended)
    if raised is not None and span.error is None:
        span.error = _payload.text_of(raised) or type(raised).__name__
    output = span._returned if span.output is UNSET else span.output
    try:
        try:
            return _event(span, latency, output)
        except ValidationError as e:
            if not e.field.startswith(("input_embeddings", "output_embeddings")):
                raise
            _log.warning("the embeddings of the traced event %s are left out: %s", span.id, e)
            span.input_embeddings = span.output_embeddings = None
            return _event(span, latency, output)
    except Exception as e:
        report(core, span, e)
        return None


def _millis(span: Span, at: float) -> float:
    return round((at - span._started) * 1000, 3)


def _metadata(span: Span) -> _encode.Snapshot | None:
    """Returns the span's metadata, with the time to the first part of a stream."""
    metadata = span._metadata_snapshot
    if span._first_part is None:
        return metadata
    own = b"{}" if metadata is None else metadata.json
    names = _json.members(own.decode())
    if FIRST_PART in names:
        return metadata  # a member of the caller's with the same name wins
    # The time comes first, because metadata that is too large loses its last members.
    first = b'"%b":%b' % (FIRST_PART.encode(), str(_millis(span, span._first_part)).encode())
    return _encode.Snapshot(b"{" + first + (b"," + own[1:] if names else b"}"))


def report(core: Core, span: Span, error: Exception) -> None:
    """Reports to the error callback that the span's event was not queued.

    No exception is raised, because a call must not fail for being traced.
    """
    field, detail = "", _payload.text_of(error)
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
        # A minted id contains the timestamp.
        timestamp=started if span._own_id else None,
        conversation_id=span.conversation_id,
        event_name=span.event_name,
        conversation_metadata=_metadata(span),
        error=span.error,
        latency=latency,
        input=span._input_snapshot,
        output=output,
        input_embeddings=span.input_embeddings,
        output_embeddings=span.output_embeddings,
        traced=True,
    )
