"""How the id of an event is made: see sdk/spec/vectors, which pin every bit."""

from __future__ import annotations

import functools
import os
import struct
import threading
import time

_MASK = (1 << 64) - 1
_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5

_COUNT_BITS = 38
_COUNT_MASK = (1 << _COUNT_BITS) - 1

# Of the times that are given out, in microseconds: how far they go on by one microsecond each
# while the clock is behind them, and the largest step back of the clock that they do not follow.
_AHEAD_MAX = 5_000_000
_BACK_MAX = 10_000_000


def _rotated(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & _MASK


def _round(lane: int, word: int) -> int:
    return _rotated((lane + word * _P2) & _MASK, 31) * _P1 & _MASK


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0."""
    length = len(data)
    done = length & ~31
    if done:
        a, b, c, d = (_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK
        for w, x, y, z in struct.iter_unpack("<4Q", data[:done]):
            a, b, c, d = _round(a, w), _round(b, x), _round(c, y), _round(d, z)
        h = (_rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)) & _MASK
        for lane in (a, b, c, d):
            h = ((h ^ _round(0, lane)) * _P1 + _P4) & _MASK
    else:
        h = _P5
    h = (h + length) & _MASK

    while done + 8 <= length:
        word = int.from_bytes(data[done : done + 8], "little")
        h = (_rotated(h ^ _round(0, word), 27) * _P1 + _P4) & _MASK
        done += 8
    if done + 4 <= length:
        word = int.from_bytes(data[done : done + 4], "little")
        h = (_rotated(h ^ (word * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
        done += 4
    for byte in data[done:]:
        h = _rotated(h ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK

    h = (h ^ (h >> 33)) * _P2 & _MASK
    h = (h ^ (h >> 29)) * _P3 & _MASK
    return h ^ (h >> 32)


# Pure Python takes some microseconds for a hash, and one conversation has many events.
@functools.lru_cache(maxsize=4096)
def conversation_hash(conversation_id: str) -> int:
    """The top 24 bits of the hash of the conversation's UTF-8 bytes."""
    return xxh64(conversation_id.encode("utf-8", "surrogatepass")) >> 40


def mint(conversation_id: str, unix_micros: int, count: int) -> str:
    """The id of an event of the conversation at that time, with the low 38 bits of count."""
    millis, micros = divmod(unix_micros, 1000)
    high = millis << 16 | 8 << 12 | micros
    low = 2 << 62 | conversation_hash(conversation_id) << _COUNT_BITS | count & _COUNT_MASK
    digits = f"{high:016x}{low:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Process:
    """Mints ids that are unique within the process, and ascend as they are minted.

    Ids of one conversation and time differ by a count; times that are given out grow. Both may be
    called by several threads.
    """

    def __init__(self, first: int | None = None) -> None:
        self._count = first  # of the next id; None until there is one
        self._last = 0
        self._lock = threading.Lock()
        # The server's time in Unix seconds, and time.monotonic() when it was that, while the
        # system's clock is known to be wrong.
        self._server: tuple[float, float] | None = None

    def mint(self, conversation_id: str, unix_micros: int) -> str:
        """The id of an event of the conversation at the time, in Unix microseconds."""
        with self._lock:
            count = self._count
            if count is None:
                # Below 2^37, so that as many ids come before the count starts again. Not from the
                # random module: programs seed it, and two with one seed would mint the same ids.
                count = int.from_bytes(os.urandom(8), "little") >> (64 - _COUNT_BITS + 1)
            self._count = count + 1
        return mint(conversation_id, unix_micros, count)

    def follow(self, server: float | None) -> None:
        """Has the time be the server's, in Unix seconds, from now on; None for the system's."""
        self._server = None if server is None else (server, time.monotonic())

    def now(self) -> int:
        """The time in Unix microseconds, by the system's clock unless that is known to be wrong."""
        server = self._server
        if server is None:
            return time.time_ns() // 1000
        return int((server[0] + time.monotonic() - server[1]) * 1_000_000)

    def micros(self, clock: int | None = None) -> int:
        """The time of an event without a timestamp, in Unix microseconds.

        It is `now`, but later than any given out before, unless the clock was set back by
        more than 10 s. `clock` stands for the system's clock in tests.
        """
        with self._lock:
            now = self.now() if clock is None else clock
            ahead = self._last - now
            if ahead < 0 or ahead > _BACK_MAX:
                self._last = now
            elif ahead < _AHEAD_MAX:
                self._last += 1
            return self._last

    def after_fork(self) -> None:
        """In the child of a fork: counts from another number, as the parent goes on with this."""
        self._count = None
        self._lock = threading.Lock()  # another thread of the parent may have held it


# The counter belongs to the process: all clients share it.
PROCESS = Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.after_fork)
