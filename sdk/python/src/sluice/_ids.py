"""How the id of an event is made: see sdk/spec/vectors, which pin every bit."""

from __future__ import annotations

import functools
import os
import struct

_MASK = (1 << 64) - 1
_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5

_RANDOM_BITS = 38


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


def mint(conversation_id: str, unix_micros: int, random: int | None = None) -> str:
    """The id of an event of the conversation at that time, with 38 random bits."""
    if random is None:
        # Not the random module: a fork would go on with the same numbers in both processes.
        random = int.from_bytes(os.urandom(5), "little") & ((1 << _RANDOM_BITS) - 1)
    millis, micros = divmod(unix_micros, 1000)
    high = millis << 16 | 8 << 12 | micros
    low = 2 << 62 | conversation_hash(conversation_id) << _RANDOM_BITS | random
    digits = f"{high:016x}{low:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
