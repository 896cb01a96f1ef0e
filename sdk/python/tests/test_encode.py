from __future__ import annotations

import array
import base64
import functools
import json
import math
import operator
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest

from sluice import UNSET, ValidationError
from sluice._encode import WRITE_BYTES_MAX, create, update
from sluice._ids import PROCESS, Process


def item(**fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(
        create(**{"conversation_id": "c1", "event_name": "event_a"} | fields).item
    )
    return decoded


def refused(**fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        item(**fields)
    return caught.value


def floats(text: str) -> list[float]:
    data = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


class Array:
    """An array like NumPy's, of any type but float32."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def tolist(self) -> Any:
        return self.values


class Float:
    """An array like NumPy's, of float32."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)


@pytest.mark.parametrize(
    "value",
    [
        [0.5, -2, 3],
        (0.5, -2.0, 3.0),
        array.array("f", [0.5, -2, 3]),
        array.array("d", [0.5, -2, 3]),
        memoryview(array.array("f", [0.5, 9, -2, 9, 3]))[::2],
        Array([0.5, -2.0, 3.0]),
        [Float(0.5), Float(-2), Decimal(3)],
        {0.5: "a", -2: "b", 3: "c"}.keys(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_embeddings(value: Any) -> None:
    assert floats(item(input_embeddings=value)["input_embeddings"]) == [0.5, -2, 3]


def test_embeddings_of_float32_are_kept_bit_by_bit() -> None:
    values = array.array("f", [math.pi, -0.0, 1e-45, 3.4028234e38])
    assert base64.b64decode(item(output_embeddings=values)["output_embeddings"]) == values.tobytes()


def test_most_dimensions() -> None:
    assert len(floats(item(input_embeddings=[1e38] * 4096)["input_embeddings"])) == 4096


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([1, math.nan], "[1]"),
        ([math.inf, 1], "[0]"),
        ([1, -math.inf, math.inf], "[1]"),
        ([1, 2, 1e39], "[2]"),
        ([1, 10**400], "[1]"),
        ([1, "2"], "[1]"),
        ([1, None], "[1]"),
        ([1, [2]], "[1]"),
        (Array([[1.0], [2.0]]), "[0]"),
        (Array(1.0), ""),
        (array.array("f", [1, math.nan]), "[1]"),
        (array.array("f"), ""),
        ([0.0] * 4097, ""),
        ([], ""),
        ("AACAPwAAIMA=", ""),
        (b"\0\0\0\0", ""),
        ({"0": 1}, ""),
        (1.5, ""),
        (object(), ""),
    ],
    ids=str,
)
def test_wrong_embeddings(value: Any, field: str) -> None:
    assert refused(input_embeddings=value).field == "input_embeddings" + field
    with pytest.raises(ValidationError) as caught:
        update("order-1", output_embeddings=value)
    assert caught.value.field == "output_embeddings" + field


NOON = datetime(2026, 1, 2, 12, 0, 0, 250, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        NOON.astimezone(timezone(timedelta(hours=-5, minutes=-30))),
        "2026-01-02T12:00:00.000250Z",
        "2026-01-02T13:00:00.0002509+01:00",
    ],
    ids=str,
)
def test_timestamps(value: Any) -> None:
    assert item(timestamp=value, id="a")["timestamp"] == "2026-01-02T12:00:00.00025Z"
    assert "timestamp" not in item(timestamp=value)
    assert item(timestamp=value)["id"].startswith("019b7e94-3200-80fa-82d3-93")


@pytest.mark.parametrize(
    "value", [datetime(2026, 1, 2), True, 1767355200000.0, [], "noon"], ids=str
)
def test_wrong_timestamps(value: Any) -> None:
    assert refused(timestamp=value).field == "timestamp"


def test_timestamp_up_to_a_day_ahead() -> None:
    now = datetime.now(timezone.utc)
    item(timestamp=now + timedelta(hours=23))
    assert refused(timestamp=now + timedelta(hours=25)).field == "timestamp"


@pytest.mark.parametrize(
    ("value", "sent"), [(0, 0), (12.5, 12.5), (Float(2.5), 2.5), (Decimal("1.5"), 1.5)]
)
def test_latency(value: Any, sent: float) -> None:
    assert item(latency=value)["latency"] == sent


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -0.1, 10**400, True, "1", [], Float(-1)], ids=str
)
def test_wrong_latency(value: Any) -> None:
    assert refused(latency=value).field == "latency"


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, OrderedDict(a=1), MappingProxyType({"a": 1})],
    ids=lambda v: type(v).__name__,
)
def test_metadata(value: Mapping[str, object]) -> None:
    assert item(conversation_metadata=value)["conversation_metadata"] == {"a": 1}


@pytest.mark.parametrize("value", ["{}", [], 1, True], ids=str)
def test_wrong_metadata(value: Any) -> None:
    assert refused(conversation_metadata=value).field == "conversation_metadata"


def circular() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


def deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        {"a": [math.inf]},
        object(),
        {1, 2},
        b"x",
        "\ud83d",
        {"\udfff": 1},
        {(): 1},
        circular(),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("field", ["input", "output", "error"])
def test_values_that_are_not_json(field: str, value: object) -> None:
    error = refused(**{field: value}, strict=True)
    assert error.field == field
    with pytest.raises(ValidationError) as caught:
        update("order-1", **{field: value}, strict=True)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_value_that_nests_too_deep() -> None:
    assert refused(output=deep(), strict=True).field == "output"


def test_errors_do_not_quote_values() -> None:
    for value in ("secret\ud83d", {"a": {"secret": math.nan}}, {"secret": math.nan}):
        assert "secret" not in str(refused(input=value, strict=True))


def test_texts_are_utf8() -> None:
    write = create(conversation_id="c1", event_name="event_a", input="漢字 \u2028 😀")
    assert "漢字 \u2028 😀".encode() in write.item
    assert b"\n" not in write.item


def test_none_is_absent_in_a_create() -> None:
    nothing = dict.fromkeys(
        ["id", "timestamp", "conversation_metadata", "error", "latency", "input", "output"]
    ) | dict.fromkeys(["input_embeddings", "output_embeddings"])
    assert set(item(**nothing)) == {"id", "conversation_id", "event_name"}


def test_an_event_name_cannot_be_cleared() -> None:
    with pytest.raises(ValidationError) as caught:
        update("order-1", event_name=None)  # type: ignore[arg-type]
    assert caught.value.field == "event_name"


def test_unset_keeps_the_field() -> None:
    assert json.loads(update("order-1", error=None, latency=UNSET).item) == {
        "op": "update",
        "id": "order-1",
        "error": None,
    }


@pytest.mark.parametrize("field", ["conversation_id", "event_name", "id"])
@pytest.mark.parametrize("value", [1, b"c1", "", "\ud83d"], ids=repr)
def test_wrong_texts(field: str, value: Any) -> None:
    assert refused(**{field: value}).field == field


def test_largest_write() -> None:
    rest = len(create(conversation_id="c1", event_name="event_a", input="").item)
    fits = create(conversation_id="c1", event_name="event_a", input="x" * (WRITE_BYTES_MAX - rest))
    assert len(fits.item) == WRITE_BYTES_MAX
    assert refused(input="x" * (WRITE_BYTES_MAX - rest + 1), strict=True).field == ""


@pytest.mark.parametrize("timestamp", [None, 1767323045678], ids=repr)
def test_minted_ids_ascend(timestamp: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: now)  # the clock stands still
    ids = [item(timestamp=timestamp)["id"] for _ in range(1000)]
    assert ids == sorted(set(ids))


def test_minted_ids_of_threads_differ() -> None:
    def many() -> list[str]:
        return [PROCESS.mint("c1", 1767323045678901) for _ in range(5000)]

    with ThreadPoolExecutor(8) as pool:
        threads = [thread.result() for thread in [pool.submit(many) for _ in range(8)]]
    assert all(ids == sorted(ids) for ids in threads)
    assert len({id for ids in threads for id in ids}) == 8 * 5000


def test_a_process_counts_from_a_random_number() -> None:
    counts = [int(Process().mint("c1", 0)[-10:], 16) & (1 << 38) - 1 for _ in range(64)]
    assert len(set(counts)) == 64  # fails by chance once in 10^7 runs
    assert max(counts) < 1 << 37
    assert functools.reduce(operator.or_, counts) == (1 << 37) - 1


class Autumn(tzinfo):
    """A time zone at the end of summer time: 2025-10-26 02:30 comes twice, by its fold."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1 if moment is not None and moment.fold else 2)

    def dst(self, moment: datetime | None) -> timedelta:
        return self.utcoffset(moment) - timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> str:
        return "UTC+1" if self.dst(moment) == timedelta() else "UTC+2"


def test_the_repeated_hour_of_summer_time_keeps_its_order() -> None:
    first = datetime(2025, 10, 26, 2, 30, tzinfo=Autumn())
    ids = [item(timestamp=first.replace(fold=fold))["id"] for fold in (0, 1)]
    assert ids == sorted(ids)
    assert item(id="a", timestamp=first)["timestamp"] == "2025-10-26T00:30:00Z"
    assert item(id="a", timestamp=first.replace(fold=1))["timestamp"] == "2025-10-26T01:30:00Z"
