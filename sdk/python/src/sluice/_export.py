"""The export of events: what is asked next, and what an answer has. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

from sluice import _reads, _retry
from sluice.errors import NetworkError
from sluice.types import Event, Filter

LINE_BYTES_MAX = 16 << 20
"""The maximum size of a line. An event takes a few MiB at most."""


class LongLineError(NetworkError):
    """A line is too long. It would be again, so the export is not tried again."""


class Export:
    """One iteration over exported events.

    Use `read` to ask, `feed` for each piece of the answer and `end` for its end. If any of this
    raises NetworkError, call `broken` and ask again.
    """

    def __init__(self, filter: Filter, *, embeddings: bool, cursor: str | None, raw: bool) -> None:
        self._first = _reads.export(filter, embeddings=embeddings, raw=raw)
        self._cursor = cursor
        self._line = bytearray()  # that has no end yet
        self._failures = 0
        self._progress = time.monotonic()
        self._received = False  # whether the last answer had an event

    def read(self) -> _reads.Read:
        """Returns the read of all events that were not received yet."""
        self._line.clear()
        self._received = False
        return _reads.after(self._first, self._cursor)

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yields the events whose lines end in the piece. Raises NetworkError."""
        start = 0
        while True:
            end = piece.find(b"\n", start)
            part = piece[start:] if end < 0 else piece[start:end]
            if len(self._line) + len(part) > LINE_BYTES_MAX:
                raise LongLineError(f"a line is longer than {LINE_BYTES_MAX} bytes")
            self._line += part
            if end < 0:
                return
            event = self._event(bytes(self._line))
            self._line.clear()
            self._cursor = event["id"]
            self._received = True
            yield event
            start = end + 1

    def _event(self, line: bytes) -> Event:
        event: Any = _reads.decoded(line, self._first.raw)
        if not isinstance(event, dict) or not isinstance(event.get("id"), str):
            raise NetworkError("a line is no event")
        return cast(Event, event)

    def end(self) -> None:
        """Raises NetworkError if the answer has ended within a line."""
        if self._line:
            raise NetworkError("the answer broke off")

    def broken(self, error: NetworkError) -> float:
        """Returns the pause before the next try, in seconds, or raises the error.

        Tries without a new event end as those of any read do.
        """
        if isinstance(error, LongLineError):
            raise error
        if self._received:
            self._failures = 0
            self._progress = time.monotonic()
        self._failures += 1
        pause = _retry.pause_after(self._failures, 0.0)
        if time.monotonic() + pause > self._progress + _reads.RETRY_FOR:
            raise error
        return pause
