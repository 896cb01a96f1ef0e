"""Cuts JSON that is too large."""

from __future__ import annotations

import re
from typing import Any

from sluice import _json
from sluice._payload import to_json

_CUT_CHARS_MIN = 256  # shorter strings are never cut
_MARK = re.compile(r"… \[sluice_truncated: (\d+) bytes\]\Z", re.ASCII)


def fit(fields: dict[str, bytes], room: int) -> dict[str, bytes]:
    """Shortens fields of JSON to `room` bytes in total.

    It cuts the longest strings, and each cut string states its original size. If that is not
    enough, the largest field is replaced by the beginning of its JSON.
    """
    values = {name: _json.loads_exactly(encoded) for name, encoded in fields.items()}
    lengths = sorted(_size(text) for value in values.values() for text in _strings(value))
    lengths = [length for length in lengths if length > _CUT_CHARS_MIN]
    excess = sum(map(len, fields.values())) - room
    limit = _CUT_CHARS_MIN
    # Find the largest limit for the length of strings that saves enough.
    low, high = _CUT_CHARS_MIN, lengths[-1] if lengths else _CUT_CHARS_MIN
    while low <= high:
        middle = (low + high) // 2
        cut = [length for length in lengths if length > middle]
        if sum(cut) - len(cut) * (middle + 64) >= excess:
            limit, low = middle, middle + 1
        else:
            high = middle - 1
    result = {
        name: _json.unmarked(to_json(_cut(value, limit)).encode()) for name, value in values.items()
    }
    while (total := sum(map(len, result.values()))) > room:
        name = max(result, key=lambda name: len(result[name]))
        rest = total - len(result[name])
        size = max(room - rest, room // 4) - 128
        beginning = _beginning(fields[name].decode(), size)
        if name == "error":
            mark: object = f"{beginning}… [sluice_truncated: {len(fields[name])} bytes]"
        else:
            mark = {"sluice_truncated": {"bytes": len(fields[name]), "beginning": beginning}}
        result[name] = to_json(mark).encode()
    return result


def fit_object(encoded: bytes, room: int) -> bytes:
    """Shortens the JSON of an object to `room` bytes.

    Its last members are left out, and `sluice_truncated` states its original size.
    """
    if len(encoded) <= room:
        return encoded
    kept = [to_json({"sluice_truncated": {"bytes": len(encoded)}})[1:-1].encode()]
    size = len(kept[0]) + 2
    for name, value in _json.members(encoded.decode()).items():
        member = f"{to_json(name)}:{value}".encode()
        if size + len(member) + 1 <= room and name != "sluice_truncated":
            kept.append(member)
            size += len(member) + 1
    return b"{%b}" % b",".join(kept)


def _size(text: str) -> int:
    """Returns the size in bytes of the text as JSON, without its quotes."""
    return len(to_json(text).encode()) - 2


def _beginning(text: str, size: int) -> str:
    """Returns a beginning of the text whose JSON has at most `size` bytes, and nearly as many."""
    text = text[:size]
    while (has := _size(text)) > size:
        text = text[: len(text) * size // has]
    return text


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for member in value.values() for text in _strings(member)]
    if isinstance(value, list):
        return [text for member in value for text in _strings(member)]
    return []


def _cut(value: Any, limit: int) -> object:
    if isinstance(value, str):
        if _size(value) <= limit:
            return value
        size = len(value.encode())
        beginning = _beginning(value, limit)
        # A string that was cut before, such as the input of a traced call, keeps its original size.
        cut = _MARK.search(value)
        if cut is not None:
            size = int(cut[1])
        return f"{beginning}… [sluice_truncated: {size} bytes]"
    if isinstance(value, dict):
        return {name: _cut(member, limit) for name, member in value.items()}
    if isinstance(value, list):
        return [_cut(member, limit) for member in value]
    if isinstance(value, _json.RawJSON):
        return _json.marked(value.json)
    return value
