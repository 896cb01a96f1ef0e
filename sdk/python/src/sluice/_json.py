"""JSON text whose numbers keep every digit."""

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
    """JSON text that is written unchanged, with every digit of its numbers.

    A read with `raw` returns it, and you can make your own. Text that is not valid JSON is written
    as a string; a strict client refuses it.
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
    """Parses JSON with integers of any length. json.loads refuses thousands of digits."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=_integer)


def loads_exactly(text: str | bytes) -> Any:
    """Parses JSON. Numbers become RawJSON."""
    return json.loads(text, parse_int=RawJSON, parse_float=RawJSON)


def _integer(text: str) -> int:
    digits = text.lstrip("-")
    value = 0
    for at in range(0, len(digits), 4000):
        chunk = digits[at : at + 4000]
        value = value * 10 ** len(chunk) + int(chunk)
    return -value if text.startswith("-") else value


def marked(raw: str) -> str:
    """Returns a string that stands for raw JSON until `unmarked`. It has no line breaks."""
    line = re.sub(r"[\r\n]", " ", raw).strip()
    return _MARK + base64.b64encode(line.encode("utf-8", "replace")).decode()


def unmarked(encoded: bytes) -> bytes:
    """Replaces the strings of `marked` in encoded JSON by their raw JSON."""
    if _MARK.encode() not in encoded:
        return encoded
    return _MARKED.sub(lambda match: base64.b64decode(match[1]), encoded)


def members(text: str, at: int = 0) -> dict[str, str]:
    """Splits the JSON of an object that begins at `at` into its members. Values stay JSON text."""
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
    """Splits the JSON of an array into its elements. They stay JSON text."""
    found = []
    at = _skip(text, 0) + 1
    while text[at := _skip(text, at)] != "]":
        at = _skip(text, at + (text[at] == ","))
        end = _end(text, at)
        found.append(text[at:end])
        at = end
    return found


# Numbers are parsed as text, because Python refuses to parse the longest integers.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str)


def _end(text: str, at: int) -> int:
    return _decoder.raw_decode(text, at)[1]


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
