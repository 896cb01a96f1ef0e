"""The limits of a batch."""

from __future__ import annotations

GROW_AFTER_BATCHES = 100
"""After this many accepted batches in a row, a lowered byte limit is doubled, to find out whether
larger batches pass again."""


class BatchLimits:
    """The current limits of a batch.

    They begin as the options say. They are lowered when a batch is refused as a whole, and raised
    again after batches were accepted.
    """

    def __init__(self, writes_max: int, bytes_max: int) -> None:
        self._writes_max = writes_max
        self._bytes_max = bytes_max
        self.writes = writes_max
        self.bytes = bytes_max
        self._accepted = 0  # accepted batches in a row since bytes last changed

    def too_large(self, bytes: int) -> None:
        """Lowers the byte limit to half of a batch that was too large, or to one write."""
        self.bytes = max(1, min(self.bytes, bytes // 2))
        self._accepted = 0

    def halve(self, writes: int) -> None:
        """Halves the number of writes of the next batches, until one of them is accepted."""
        self.writes = max(1, writes // 2)

    def ok(self) -> None:
        """Raises the limits after a batch was answered write by write."""
        self.writes = self._writes_max
        if self.bytes == self._bytes_max:
            return
        self._accepted += 1
        if self._accepted >= GROW_AFTER_BATCHES:
            self.bytes = min(2 * self.bytes, self._bytes_max)
            self._accepted = 0
