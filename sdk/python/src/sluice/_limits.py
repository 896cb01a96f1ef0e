"""The limits of one batch."""

from __future__ import annotations

GROW_AFTER_BATCHES = 100
"""After so many accepted batches in a row a limit that was learned is doubled, to find out whether
it still holds."""


class BatchLimits:
    """The limits of the options, and smaller ones while something refuses larger bodies."""

    def __init__(self, writes_max: int, bytes_max: int) -> None:
        self._writes_max = writes_max
        self._bytes_max = bytes_max
        self.writes = writes_max
        self.bytes = bytes_max
        self._accepted = 0  # batches in a row since bytes last changed

    def too_large(self, bytes: int) -> None:
        """Learns that so many bytes are too large: the next batch is half of it, or one write."""
        self.bytes = max(1, min(self.bytes, bytes // 2))
        self._accepted = 0

    def halve(self, writes: int) -> None:
        """The next batches have at most half as many writes, until one of them is accepted."""
        self.writes = max(1, writes // 2)

    def ok(self) -> None:
        """Notes that a batch was answered write by write."""
        self.writes = self._writes_max
        if self.bytes == self._bytes_max:
            return
        self._accepted += 1
        if self._accepted >= GROW_AFTER_BATCHES:
            self.bytes = min(2 * self.bytes, self._bytes_max)
            self._accepted = 0
