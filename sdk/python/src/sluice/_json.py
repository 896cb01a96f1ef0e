"""JSON whose numbers are kept as they are written."""

from __future__ import annotations

import base64
import json
import re
import secrets
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

_MARK = f"sluice json {secrets.token_hex(16)} "
_MARKED = re.compile(rf'"{_MARK}([A-Za-z0-9+/=]*)"'.encode())
_SPACE = re.compile(r"[ \t\n\r]*")


class RawJSON:
    """JSON that is written as it is, with every digit of its numbers.

    It is what `raw` of a read gives, or your own. What is not JSON is written as text, and refused
    by a client that is strict.
    """

    __slots__ = ("json",)

    def __init__(self, json: str) -> None:
        self.json = json

    def __str__(self) -> str:
        return self.json

    def __repr__(self) -> str:
        return f"RawJSON({self.json!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawJSON) and self.json == other.json

    def __hash__(self) -> int:
        return hash(self.json)


def loads(text: str | bytes) -> Any:
    """The value, with integers of any length, which Python by itself refuses above some."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=_integer)


def loads_exactly(text: str | bytes) -> Any:
    """The value, with numbers as RawJSON."""
    return json.loads(text, parse_int=RawJSON, parse_float=RawJSON)


def _integer(text: str) -> int:
    digits = text.lstrip("-")
    value = 0
    for at in range(0, len(digits), 4000):
        chunk = digits[at : at + 4000]
        value = value * 10 ** len(chunk) + int(chunk)
    return -value if text.startswith("-") else value


def marked(raw: str) -> str:
    """A string that stands for raw JSON until `unmarked`. It has no line breaks."""
    line = re.sub(r"[\r\n]", " ", raw).strip()
    return _MARK + base64.b64encode(line.encode("utf-8", "replace")).decode()


def unmarked(encoded: bytes) -> bytes:
    """The JSON with raw JSON for what stands for it."""
    if _MARK.encode() not in encoded:
        return encoded
    return _MARKED.sub(lambda match: base64.b64decode(match[1]), encoded)


def members(text: str, at: int = 0) -> dict[str, str]:
    """The members of an object that begins there, each as the JSON that it is."""
    found = {}
    at = _skip(text, at) + 1
    while text[at := _skip(text, at)] != "}":
        at += text[at] == ","
        name, at = scanstring(text, _skip(text, at) + 1, True)
        at = _skip(text, _skip(text, at) + 1)
        end = _end(text, at)
        found[name] = text[at:end]
        at = end
    return found


def elements(text: str) -> list[str]:
    """The elements of an array, each as the JSON that it is."""
    found = []
    at = _skip(text, 0) + 1
    while text[at := _skip(text, at)] != "]":
        at = _skip(text, at + (text[at] == ","))
        end = _end(text, at)
        found.append(text[at:end])
        at = end
    return found


# Numbers as text, as the longest are refused as integers.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str)


def _end(text: str, at: int) -> int:
    return _decoder.raw_decode(text, at)[1]


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
