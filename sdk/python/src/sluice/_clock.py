"""Whether this machine's clock is right, by what the server's answers say."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from email.message import Message

TOLERANCE = 300.0
"""How many seconds a clock may be off before it counts as wrong."""

SERVER_MIN = 946_684_800.0
"""2000-01-01, before which the server's own clock is wrong."""


def server_time(headers: Mapping[str, str] | Message) -> float | None:
    """The time of an answer by its Date, in Unix seconds; None where that says nothing.

    An answer out of a cache, which has an Age, is an old one.
    """
    if headers.get("Age") is not None:
        return None
    try:
        seconds = email.utils.parsedate_to_datetime(headers.get("Date") or "").timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
    return seconds if seconds >= SERVER_MIN else None


def offset(server: float, local: float) -> float:
    """How many seconds the server's clock is ahead of the local one; 0 for as good as none."""
    ahead = server - local
    return ahead if abs(ahead) > TOLERANCE else 0.0


def text_of(seconds: float) -> str:
    """A duration for people."""
    for size, unit in ((86400, "days"), (3600, "hours")):
        if abs(seconds) >= 1.5 * size:
            return f"{abs(seconds) / size:.1f} {unit}"
    return f"{abs(seconds) / 60:.0f} minutes"
