"""Decides what is retried, and after which pause."""

from __future__ import annotations

import random

from sluice.errors import ApiError, NetworkError

PAUSE_MIN = 0.1
PAUSE_MAX = 10.0
RETRY_AFTER_MAX = 60.0

# The codes by which Sluice refuses a write for good. Other codes are about the request, its sender
# or the server.
FINAL_CODES = frozenset(
    (
        *("invalid_json", "too_deep", "duplicate_field", "unknown_field", "invalid_type"),
        *("required", "invalid_value", "too_large", "immutable", "id_mismatch", "unknown_event"),
        *(
            "bad_record",
            "unsupported_version",
            "unreadable_batch",
            "rejected_by_store",
            "id_taken",
            "event_deleted",
        ),
    )
)


class NotSentError(NetworkError):
    """The connection failed, so that the request was not sent."""


class UnreadableError(NetworkError):
    """The answer has a status of 2xx, and is not Sluice's."""


def problem_error(status: int, problem: dict[str, object]) -> ApiError:
    """Returns the error for the members of a problem document, or of an item's error."""
    texts = (problem.get(name) for name in ("code", "detail", "field"))
    return ApiError(status, *(text if isinstance(text, str) else "" for text in texts))


def is_retryable(error: ApiError | NetworkError) -> bool:
    """Whether a retry may succeed without anybody changing anything."""
    return isinstance(error, NetworkError) or error.status in (408, 425, 429) or error.status >= 500


def is_final_item(error: ApiError) -> bool:
    """Whether an item's error refuses its write for good. Only Sluice makes such errors."""
    return error.code in FINAL_CODES or not (is_retryable(error) or error.status in (401, 403))


def is_held(error: ApiError | NetworkError) -> bool:
    """Whether the error holds writes until somebody changes something. They are retried."""
    return isinstance(error, UnreadableError) or not is_retryable(error)


def may_have_written(error: ApiError | NetworkError) -> bool:
    """Whether the writes may have reached the log although the request ended with this error."""
    if isinstance(error, NetworkError):
        return not isinstance(error, NotSentError)
    return error.status >= 500 or error.status == 408


def pause_after(tries: int, retry_after: float) -> float:
    """Returns the pause in seconds after the given number of failed attempts.

    It is exponential backoff with jitter, and at least `retry_after` seconds.
    """
    pause = min(PAUSE_MIN * (1 << min(tries - 1, 10)), PAUSE_MAX)
    return max(pause * random.uniform(0.5, 1), min(retry_after, RETRY_AFTER_MAX))
