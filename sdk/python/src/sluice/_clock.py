"""Compares this machine's clock with the server's, by the Date header of its answers."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from email.message import Message

TOLERANCE = 300.0
"""A clock that is off by more than this many seconds is wrong."""

SERVER_MIN = 946_684_800.0
"""2000-01-01. A server whose time is before that has a wrong clock itself."""


def server_time(headers: Mapping[str, str] | Message) -> float | None:
    """Returns the server's time in Unix seconds, from the Date header; None without a usable one.

    An answer with an Age header comes from a cache, so that its Date is old.
    """
    if headers.get("Age") is not None:
        return None
    try:
        seconds = email.utils.parsedate_to_datetime(headers.get("Date") or "").timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None
    return seconds if seconds >= SERVER_MIN else None


def offset(server: float, local: float) -> float:
    """Returns how many seconds the server's clock is ahead; 0 within the tolerance."""
    ahead = server - local
    return ahead if abs(ahead) > TOLERANCE else 0.0


def text_of(seconds: float) -> str:
    """Formats a duration for humans."""
    for size, unit in ((86400, "days"), (3600, "hours")):
        if abs(seconds) >= 1.5 * size:
            return f"{abs(seconds) / size:.1f} {unit}"
    return f"{abs(seconds) / 60:.0f} minutes"
