"""The filter of reads: its parameters in a query string."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from sluice._encode import datetime_micros, rfc3339
from sluice._payload import to_json
from sluice.errors import ValidationError
from sluice.types import Condition, Filter, MetadataValue, Moment, Step

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
    found += [_parameter(key, op, value) for key, op, value in _conditions(metadata, conditions)]
    return found


def members(filter: Filter) -> dict[str, str | list[str]]:
    """Returns a filter as a JSON object of strings and lists of strings. It raises as `params`."""
    others = filter.copy()
    metadata, conditions = others.pop("metadata", None), others.pop("conditions", None)
    found = params(**others)
    found += [_member(key, op, value) for key, op, value in _conditions(metadata, conditions)]
    object: dict[str, list[str]] = {}
    for name, value in found:
        object.setdefault(name, []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in object.items()}


def step(step: str | Step) -> str:
    """Returns a step of a funnel or of a retention as the API writes it. It raises as `params`.

    That is the name and the filters, separated by semicolons. What has a meaning there is
    percent-encoded.
    """
    if isinstance(step, str):
        return _escaped(step)
    found = params(
        error=step.get("error"),
        latency_min=step.get("latency_min"),
        latency_max=step.get("latency_max"),
        metadata=step.get("metadata"),
        conditions=step.get("conditions"),
    )
    parts = [f"{_escaped(name)}={_escaped(value)}" for name, value in found]
    return ";".join([_escaped(step["event_name"]), *parts])


def _escaped(part: str) -> str:
    for c in "%;&+=":
        part = part.replace(c, f"%{ord(c):02X}")
    return part


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


def _conditions(
    metadata: Mapping[str, MetadataValue] | None, conditions: Sequence[Condition] | None
) -> list[tuple[str, str, str]]:
    """Returns the key, the comparison and the value of each condition."""
    found = [(key, "=", text(value)) for key, value in (metadata or {}).items()]
    for condition in conditions or ():
        key, op, *values = condition
        if op in ("exists", "missing"):
            found.append((key, op, ""))
        elif len(values) != 1 or not isinstance(values[0], (str, int, float)):
            detail = "needs a text, a number or a boolean to compare"
            raise ValidationError(f"metadata.{key}", detail)
        else:
            found.append((key, op, text(values[0])))
    return found


def _member(key: str, op: str, value: str) -> tuple[str, str]:
    """Returns the name and the value of a condition as a member of a filter in JSON.

    There, the value never becomes a part of the name, so only "=" can be misread.
    """
    if key and op in ("<", ">"):
        return f"metadata.{key}{op}", value
    return _parameter(key, op, value)


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
