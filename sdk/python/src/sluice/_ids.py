"""Mints the ids of events. sdk/spec/vectors/README.md has the algorithm."""

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

# Bounds of Process.micros, in microseconds: how far its times may run ahead of the clock, one
# microsecond for each call, and the largest backward step of the clock that it does not follow.
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


# A hash takes some microseconds in pure Python, and one conversation has many events.
@functools.lru_cache(maxsize=4096)
def conversation_hash(conversation_id: str) -> int:
    """Returns the top 24 bits of the XXH64 of the conversation's UTF-8 bytes."""
    return xxh64(conversation_id.encode("utf-8", "surrogatepass")) >> 40


def mint(conversation_id: str, unix_micros: int, count: int) -> str:
    """Composes an id from the conversation, the time and the low 38 bits of count."""
    millis, micros = divmod(unix_micros, 1000)
    high = millis << 16 | 8 << 12 | micros
    low = 2 << 62 | conversation_hash(conversation_id) << _COUNT_BITS | count & _COUNT_MASK
    digits = f"{high:016x}{low:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Process:
    """Mints the ids of a process. It may be used by several threads.

    Ids are unique. The ids of one conversation and time ascend in the order in which they are
    minted, because each has the next count.
    """

    def __init__(self, first: int | None = None) -> None:
        self._count = first  # the count of the next id; None before the first id
        self._last = 0
        self._lock = threading.Lock()
        # Set while the system's clock is known to be wrong: the server's time in Unix seconds, and
        # time.monotonic() at the same moment.
        self._server: tuple[float, float] | None = None

    def mint(self, conversation_id: str, unix_micros: int) -> str:
        """Mints the id of an event of the conversation at the time, in Unix microseconds."""
        with self._lock:
            count = self._count
            if count is None:
                # A random count below 2^37, so that at least 2^37 ids come before the 38-bit count
                # wraps around. It is not from the random module: programs seed that, and two
                # programs with the same seed would mint the same ids.
                count = int.from_bytes(os.urandom(8), "little") >> (64 - _COUNT_BITS + 1)
            self._count = count + 1
        return mint(conversation_id, unix_micros, count)

    def follow(self, server: float | None) -> None:
        """Sets the time to the server's, in Unix seconds. None returns to the system's clock."""
        self._server = None if server is None else (server, time.monotonic())

    def now(self) -> int:
        """Returns the time in Unix microseconds.

        It is the system's time, or the server's while the system's clock is known to be wrong.
        """
        server = self._server
        if server is None:
            return time.time_ns() // 1000
        return int((server[0] + time.monotonic() - server[1]) * 1_000_000)

    def micros(self, clock: int | None = None) -> int:
        """Returns the time for an event without a timestamp, in Unix microseconds.

        It is `now`, but later than any time returned before, so that events sort in the order in
        which they were tracked. If the clock is set back by more than 10 s, it follows the clock.
        `clock` replaces the system's clock in tests.
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
        """Begins a new count in the child of a fork, because the parent goes on with this one."""
        self._count = None
        self._lock = threading.Lock()  # another thread of the parent may have held it


# All clients of the process share one counter, so that their ids are unique.
PROCESS = Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.after_fork)
