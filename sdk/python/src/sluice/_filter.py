"""The filter of reads: its parameters in a query string."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from sluice._encode import datetime_micros, rfc3339
from sluice._payload import to_json
from sluice.errors import ValidationError
from sluice.types import Condition, MetadataValue, Moment

Params = list[tuple[str, str]]

OPERATORS = ("!", "<", ">", "!=", "<=", ">=")
"""What the API reads as a comparison at the end of a name."""


def params(
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    conversation_id: str | None = None,
    event_name: str | None = None,
    event_names: Sequence[str] | None = None,
    error: bool | None = None,
    latency_min: float | None = None,
    latency_max: float | None = None,
    metadata: Mapping[str, MetadataValue] | None = None,
    conditions: Sequence[Condition] | None = None,
) -> Params:
    """Returns the parameters of a filter.

    Raises ValidationError for a value that is not valid, and for a condition that the API cannot
    express.
    """
    if isinstance(event_names, str):
        raise ValidationError("event_names", "must be a list of names, not a string")
    found = named(
        since=_moment("since", since),
        until=_moment("until", until),
        conversation_id=conversation_id,
        event_name=event_name,
    )
    found += [("event_name", name) for name in event_names or ()]
    found += named(
        error=error,
        latency_min=_bound("latency_min", latency_min),
        latency_max=_bound("latency_max", latency_max),
    )
    found += [_parameter(key, "=", text(value)) for key, value in (metadata or {}).items()]
    found += [_condition(condition) for condition in conditions or ()]
    return found


def named(**values: str | float | bool | None) -> Params:
    """Returns the parameters whose value is not None."""
    return [(name, text(value)) for name, value in values.items() if value is not None]


def text(value: str | float | bool) -> str:
    """Returns a string as it is, and a number or boolean as JSON writes it."""
    return value if isinstance(value, str) else to_json(value)


def _moment(field: str, value: Moment | None) -> str | int | None:
    if isinstance(value, datetime):
        return rfc3339(datetime_micros(field, value))
    return value


def _bound(field: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value < math.inf:
        raise ValidationError(field, "must be finite and not negative")
    return value


def _condition(condition: Condition) -> tuple[str, str]:
    key, op, *values = condition
    if op in ("exists", "missing"):
        return _parameter(key, op, "")
    if len(values) != 1 or not isinstance(values[0], (str, int, float)):
        raise ValidationError(f"metadata.{key}", "needs a text, a number or a boolean to compare")
    return _parameter(key, op, text(values[0]))


def _parameter(key: str, op: str, value: str) -> tuple[str, str]:
    """Returns the name and the value of the parameter for a condition.

    The API reads the comparison from the end of the name. If the parameter has no value, it also
    looks for the first comparison in the name, because metadata.KEY>5 is a name without a value. A
    few keys and values would be read in another way; they are refused.
    """
    if not key:
        raise ValidationError("metadata", "has a condition without a key")
    name = f"metadata.{key}"
    misread = False
    sent = (name + op, value)
    if op == "=":
        misread = (
            key.endswith(OPERATORS)
            or (not value and _has_operator(key))
            or (key.endswith(".exists") and value in ("true", "false"))
        )
        sent = (name, value)
    elif op in ("<", ">"):
        misread = (
            _has_operator(key) or not value or value.startswith("=") or value.endswith(OPERATORS)
        )
        sent = (name + op + value, "")
    elif op in ("exists", "missing"):
        sent = (name + ".exists", text(op == "exists"))
    elif op not in ("!=", "<=", ">="):
        raise ValidationError(name, f"has the unknown comparison {op!r}")
    if misread:
        raise ValidationError(
            name,
            f"cannot be compared by {op} with this value, because the server would read the key or "
            "the value as another comparison",
        )
    return sent


def _has_operator(value: str) -> bool:
    """Whether the API reads a part of a name as a comparison, if the parameter has no value."""
    return "<" in value or ">" in value or "!=" in value
