"""Values that JSON does not have."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict, UserDict, deque, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest

from conftest import MakeClient, track
from server import Server
from sluice import Client, ValidationError
from sluice._encode import WRITE_BYTES_MAX, create, update
from sluice._payload import DEPTH_MAX, METADATA_BYTES_MAX


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: float
    inner: Any = None


Pair = namedtuple("Pair", "a b")


class Model:  # like a model of Pydantic 2
    def model_dump(self) -> dict[str, object]:
        return {"at": NOON, "tags": {"a"}}


class Old:  # like a model of Pydantic 1
    __fields__ = ()

    def dict(self) -> dict[str, object]:
        return {"n": Decimal("1.5")}


class Array:  # like an array of NumPy
    def __init__(self, value: object) -> None:
        self.value = value

    def tolist(self) -> object:
        return self.value


class Hostile(dict[str, object]):
    def items(self) -> Any:
        raise RuntimeError("on purpose")

    def __str__(self) -> str:
        raise RuntimeError("on purpose")


class Text(str):
    pass


class Selfish:
    def tolist(self) -> object:
        return self

    def __str__(self) -> str:
        return "selfish"


NOON = datetime(2026, 1, 2, 12, 0, 0, 250, tzinfo=timezone.utc)


def circular() -> list[object]:
    value: list[object] = [1]
    value.append({"again": value})
    return value


VALUES: list[tuple[object, object]] = [
    (NOON, "2026-01-02T12:00:00.000250Z"),
    (NOON.astimezone(timezone(timedelta(hours=5.5))), "2026-01-02T17:30:00.000250+05:30"),
    (datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (time(1, 2), "01:02:00"),
    (timedelta(seconds=90), "0:01:30"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Decimal("0.10"), "0.10"),
    (PurePosixPath("/a/b"), "/a/b"),
    ({3}, [3]),
    (frozenset({"a"}), ["a"]),
    (deque([1, 2]), [1, 2]),
    ({1: 2}.keys(), [1]),
    ({1: 2}.values(), [2]),
    (b"\x00\xff", "AP8="),
    (bytearray(b"abc"), "YWJj"),
    (memoryview(b"abc"), "YWJj"),
    (math.nan, "NaN"),
    (math.inf, "Infinity"),
    (-math.inf, "-Infinity"),
    ([1, {"a": math.nan}], [1, {"a": "NaN"}]),
    (Array([1.5, math.nan]), [1.5, "NaN"]),
    (Array(7), 7),
    (Array([[1], [2]]), [[1], [2]]),
    (Selfish(), "selfish"),
    (Pair(1, 2), [1, 2]),
    (Point(1.0, Point(2.0)), {"x": 1.0, "inner": {"x": 2.0, "inner": None}}),
    (Model(), {"at": "2026-01-02T12:00:00.000250Z", "tags": ["a"]}),
    (Old(), {"n": "1.5"}),
    (Color.RED, "red"),
    ({"level": Level.HIGH}, {"level": 3}),
    ({Color.RED: 1}, {"red": 1}),
    (OrderedDict(a={1}), {"a": [1]}),
    (UserDict(a=1), {"a": 1}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (Text("a"), "a"),
    ({(1, 2): "x"}, {"(1, 2)": "x"}),
    ({1: "a", None: "b", 1.5: "d"}, {"1": "a", "null": "b", "1.5": "d"}),
    ({False: "a"}, {"false": "a"}),
    ({NOON: 1}, {"2026-01-02T12:00:00.000250Z": 1}),
    ("a\ud83db", "a\ufffdb"),
    ("\ud83d\ude00", "😀"),
    ({"\udfff": ["\ud83d"]}, {"\ufffd": ["\ufffd"]}),
    (circular(), [1, {"again": "[circular]"}]),
    (10**5000, hex(10**5000)),
    (1 << 100, 1 << 100),
    (Hostile(a=1), "<Hostile>"),
    ([Hostile(a=1), 1], ["<Hostile>", 1]),
    (int, "<class 'int'>"),
    (Point, str(Point)),
    (len, "<built-in function len>"),
    (1 + 2j, "(1+2j)"),
]


@pytest.mark.parametrize(("value", "want"), VALUES, ids=lambda v: type(v).__name__)
def test_values(value: object, want: object) -> None:
    for field in ("input", "output"):
        write = create(conversation_id="c1", event_name="event_a", **{field: value})  # type: ignore[arg-type]
        assert json.loads(write.item)[field] == want
        assert json.loads(update("a", **{field: value}).item)[field] == want  # type: ignore[arg-type]
    metadata = create(
        conversation_id="c1", event_name="event_a", conversation_metadata={"m": value}
    )
    assert json.loads(metadata.item)["conversation_metadata"]["m"] == want


def test_the_same_object_twice_is_not_circular() -> None:
    part = {"a": {1}}
    write = create(conversation_id="c1", event_name="event_a", input=[part, part])
    assert json.loads(write.item)["input"] == [{"a": [1]}, {"a": [1]}]


def test_a_value_that_nests_too_deep_becomes_text() -> None:
    for levels in (DEPTH_MAX, DEPTH_MAX + 1, 100_000):
        value: object = "end"
        for _ in range(levels):
            value = [value]
        item = create(conversation_id="c1", event_name="event_a", input=value).item
        depth, at = 0, json.loads(item)["input"]
        while isinstance(at, list):
            depth, at = depth + 1, at[0]
        assert depth == min(levels, DEPTH_MAX)
        assert isinstance(at, str)


@pytest.mark.parametrize(
    "value", [{1: "a", "1": "b"}, dict.fromkeys(["\ud800", "\udfff"]), [{(): 1, "()": 2}]]
)
def test_two_keys_with_the_same_text(value: Any, client: Client, server: Server) -> None:
    with pytest.raises(ValidationError) as caught:
        track(client, input=value)
    assert caught.value.field == "input"
    client.trace("c1", lambda span: value)
    client.flush()
    output = server.requests[0].items[0]["output"]
    assert len(output if isinstance(output, dict) else output[0]) == 2


def test_an_error_that_is_no_text() -> None:
    write = create(conversation_id="c1", event_name="event_a", error=ValueError("no \ud83d"))  # type: ignore[arg-type]
    assert json.loads(write.item)["error"] == "no \ufffd"


BIG: list[dict[str, Any]] = [
    {"input": "x" * 2_000_000},
    {"input": "é" * 2_000_000, "output": "\x00" * 1_000_000},
    {
        "input": [
            {"role": "user", "content": "x" * 1_500_000},
            {"role": "assistant", "content": "hi"},
        ]
    },
    {"input": list(range(500_000)), "output": {str(i): "" for i in range(200_000)}},
    {"input": ["\x01" * 200] * 10_000, "output": ["\x01" * 200] * 10_000},
    {"error": "e" * 3_000_000, "input": "x" * 1_100_000, "output": "y"},
    {"input": b"\x00" * 1_500_000},
    {"input": {"x" * 2_000_000: 1}},
]


@pytest.mark.parametrize("fields", BIG, ids=range(len(BIG)))
def test_a_value_that_is_too_large_is_cut(fields: dict[str, Any]) -> None:
    write = create(conversation_id="c1", event_name="event_a", latency=3, **fields)
    assert WRITE_BYTES_MAX // 5 < len(write.item) <= WRITE_BYTES_MAX
    item = json.loads(write.item)
    assert "sluice_truncated" in write.item.decode()
    assert item["latency"] == 3
    assert set(fields) <= set(item)
    if "error" in fields:
        assert item["error"].endswith("… [sluice_truncated: 3000000 bytes]")


def test_everything_else_is_kept() -> None:
    item = json.loads(create(conversation_id="c1", event_name="event_a", **BIG[2]).item)
    first, second = item["input"]
    assert first["role"] == "user"
    assert first["content"].endswith("… [sluice_truncated: 1500000 bytes]")
    assert len(first["content"]) > 1_000_000
    assert second == {"role": "assistant", "content": "hi"}


def test_metadata_that_is_too_large_is_cut() -> None:
    metadata = {"plan": "pro", "large": "x" * 20_000, "user": "u1"}
    write = create(conversation_id="c1", event_name="event_a", conversation_metadata=metadata)
    got = json.loads(write.item)["conversation_metadata"]
    size = got.pop("sluice_truncated")["bytes"]
    assert size == len(json.dumps(metadata, separators=(",", ":"))) > METADATA_BYTES_MAX
    assert got == {"plan": "pro", "user": "u1"}


def test_strict(make_client: MakeClient, server: Server) -> None:
    client = make_client(strict=True)
    for value in ({1, 2}, "x" * WRITE_BYTES_MAX, "\ud83d", {1: 1, "1": 2}):
        with pytest.raises(ValidationError):
            track(client, input=value)
        with pytest.raises(ValidationError):
            client.update_event("a", output=value)
    track(client, input=[{"role": "user"}, (1, 2), {1: 2}])
    client.trace("c1", lambda span: {1, 2})
    client.flush()
    assert len(server.requests[0].items) == 2
