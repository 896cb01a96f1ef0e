"""Encodes any Python value as JSON, for input, output and metadata.

A value that JSON does not have is encoded as the nearest JSON value, or as its text. The only
exception that these functions raise for a value is `TwoKeysError`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping, Set, ValuesView
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from sluice import _json

DEPTH_MAX = 31
"""How many levels a field may nest. The server allows 32, and the write itself is one."""

METADATA_BYTES_MAX = 16 << 10

_TEXT_CHARS_MAX = 1000  # the length of the text of a value that nests too deep
# A bound on the recursion for values such as mocks, whose every method returns another mock.
_PARENTS_MAX = 2 * DEPTH_MAX + 2
_CIRCULAR = "[circular]"

to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class TwoKeysError(ValueError):
    """Two keys of a mapping have the same text, so that a JSON object cannot have both."""


def encode(value: object, *, rename: bool = False) -> bytes:
    """Encodes the value as JSON.

    If two keys of a mapping have the same text, the later one is renamed with `rename`; otherwise
    it raises TwoKeysError.
    """
    try:
        # This way is much faster, and enough for most values.
        if _is_plain(value, DEPTH_MAX):
            return to_json(value).encode()
    except Exception:
        pass  # NaN, lone surrogates, integers of thousands of digits
    try:
        return _json.unmarked(to_json(_plain(value, DEPTH_MAX, [], rename)).encode())
    except TwoKeysError:
        raise
    except Exception:
        return to_json(_text(value)).encode()


def encode_object(value: object) -> bytes:
    """Encodes metadata as an object. Any other value becomes the member `value` of an object."""
    encoded = encode(value, rename=True)
    return encoded if encoded.startswith(b"{") else b'{"value":%b}' % encoded


def text_of(value: object) -> str:
    """Returns the value's text in valid Unicode. It does not raise, even if its methods do."""
    return _text(value)


def _is_plain(value: Any, depth: int) -> bool:
    """Whether the value has only JSON's types and string keys, and does not nest too deep."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if depth == 0 or kind not in _CONTAINERS:
        return False
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    for member in value:
        if type(member) not in _SCALARS and not _is_plain(member, depth - 1):
            return False
    return True


_SCALARS = frozenset((str, int, float, bool, type(None)))
_CONTAINERS = frozenset((dict, list, tuple))


def _plain(value: Any, depth: int, parents: list[object], rename: bool) -> object:
    """Converts the value to JSON's types. `parents` contain the value, to find cycles."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, _json.RawJSON):
        return _raw(value, depth, rename)
    if isinstance(value, Enum):
        return _plain(value.value, depth, parents, rename)
    if isinstance(value, str):
        return _valid(str.__str__(value))
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError:  # Python refuses to format some thousands of digits
            return hex(value)
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if any(value is parent for parent in parents):
        return _CIRCULAR
    if len(parents) > _PARENTS_MAX:
        return _text(value)[:_TEXT_CHARS_MAX]
    try:
        known = _known(value)
        if known is not value:
            return _plain(known, depth, [*parents, value], rename)
        if isinstance(value, Mapping):
            return _object(value, depth, parents, rename)
        if isinstance(value, (list, tuple, Set, deque, ValuesView)):
            if depth == 0:
                return _text(value)[:_TEXT_CHARS_MAX]
            inner = [*parents, value]
            return [_plain(member, depth - 1, inner, rename) for member in value]
    except TwoKeysError:
        raise
    except Exception:
        pass  # the value's own methods failed; its text may work
    return _text(value)


def _raw(value: _json.RawJSON, depth: int, rename: bool) -> object:
    """Marks the raw JSON, or converts it if it is invalid or nests too deep."""
    try:
        parsed = _json.loads_exactly(value.json)
    except (ValueError, RecursionError, TypeError):
        return _text(value)
    if isinstance(parsed, _json.RawJSON) or (
        _nests_within(parsed, depth) and "\\ud" not in value.json.lower()
    ):
        return _json.marked(value.json)
    return _plain(parsed, depth, [], rename)


def _nests_within(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return depth > 0 and all(_nests_within(member, depth - 1) for member in value)
    return True


def _known(value: Any) -> object:
    """Converts an object of a known type; returns the value itself for any other type."""
    if isinstance(value, datetime):
        text = value.isoformat()
        return text[:-6] + "Z" if text.endswith("+00:00") else text
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal, PurePath)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, (Mapping, list, tuple, Set, deque, ValuesView, type)):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # Pydantic models (versions 2 and 1), and arrays and scalars of NumPy and similar libraries.
    for name in ("model_dump", "tolist"):
        method = getattr(value, name, None)
        if callable(method):
            return _other(method(), value)
    if hasattr(value, "__fields__") and callable(getattr(value, "dict", None)):
        return _other(value.dict(), value)
    return value


def _other(found: object, value: object) -> object:
    return _text(value) if found is value else found


def _object(value: Mapping[Any, Any], depth: int, parents: list[object], rename: bool) -> object:
    if depth == 0:
        return _text(value)[:_TEXT_CHARS_MAX]
    inner = [*parents, value]
    members: dict[str, object] = {}
    for key, member in value.items():
        name = _key(key)
        if name in members:
            if not rename:
                raise TwoKeysError("has two keys that are the same as text")
            n = 2
            while f"{name} ({n})" in members:
                n += 1
            name = f"{name} ({n})"
        members[name] = _plain(member, depth - 1, inner, rename)
    return members


def _key(key: object) -> str:
    plain = _plain(key, 0, [], True)
    if isinstance(plain, str):
        return plain
    return to_json(plain) if plain is None or isinstance(plain, (int, float)) else _text(key)


def _text(value: object) -> str:
    try:
        return _valid(str(value))
    except Exception:
        return f"<{type(value).__name__}>"


def _valid(text: str) -> str:
    """Replaces lone surrogates by U+FFFD, because UTF-8 does not have them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
