"""Checks the arguments of a call, and encodes them as the item of a write."""

from __future__ import annotations

import array
import binascii
import json
import math
import re
import struct
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Literal

from sluice import _json, _payload, _truncate
from sluice._ids import PROCESS
from sluice._queue import Write
from sluice.errors import ValidationError
from sluice.types import UNSET, Embedding, Timestamp, Unset

CONVERSATION_ID_BYTES_MAX = 256
EVENT_NAME_BYTES_MAX = 128
ID_BYTES_MAX = 128
DIMENSIONS_MAX = 4096
WRITE_BYTES_MAX = 1 << 20
# How many bytes of a stream are kept for its event. The rest of a write is for the other fields.
STREAM_BYTES_MAX = WRITE_BYTES_MAX - (64 << 10)

_TIMESTAMP_MIN = 946_684_800_000_000  # 2000-01-01, in Unix microseconds
_TIMESTAMP_AHEAD = 24 * 3600 * 1_000_000

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)

_to_json = _payload.to_json


def create(
    *,
    conversation_id: str,
    event_name: str,
    id: str | None = None,
    timestamp: Timestamp | None = None,
    conversation_metadata: Mapping[str, object] | _json.RawJSON | Snapshot | None = None,
    error: str | None = None,
    latency: float | None = None,
    input: object = None,
    output: object = None,
    input_embeddings: Embedding | None = None,
    output_embeddings: Embedding | None = None,
    strict: bool = False,
    traced: bool = False,
) -> Write:
    """Returns the write that creates an event. Without an id, it mints one.

    With `strict`, values that are not JSON or are too large are refused. With `traced`, every value
    is encoded in some way, because a call must not fail for being traced.
    """
    check_conversation_id(conversation_id)
    _check_event_name(event_name)
    micros = None if timestamp is None else _micros(timestamp, PROCESS.now())
    members: dict[str, object] = {}
    minted = id is None
    if id is None:
        id = PROCESS.mint(conversation_id, PROCESS.micros() if micros is None else micros)
        members["id"] = id
    else:
        check_id(id)
        members["id"] = id
        if micros is not None:
            members["timestamp"] = rfc3339(micros)
    members["conversation_id"] = conversation_id
    members["event_name"] = event_name
    # In a create, null means the same as an absent field.
    if latency is not None:
        members["latency"] = _latency(latency)
    fields: dict[str, bytes] = {}
    for name, value in (("error", error), ("input", input), ("output", output)):
        if value is not None:
            fields[name] = _content(name, value, strict, traced)
    if conversation_metadata is not None:
        members_of = _metadata(conversation_metadata, strict, traced)
        fields["conversation_metadata"] = members_of
    vectors: dict[str, bytes] = {}
    if input_embeddings is not None:
        vectors["input_embeddings"] = _base64("input_embeddings", input_embeddings)
    if output_embeddings is not None:
        vectors["output_embeddings"] = _base64("output_embeddings", output_embeddings)
    return Write("create", id, _item(members, fields, vectors, strict), minted=minted)


def update(
    id: str,
    *,
    event_name: str | Unset = UNSET,
    conversation_metadata: Mapping[str, object] | _json.RawJSON | Unset | None = UNSET,
    error: str | Unset | None = UNSET,
    latency: float | Unset | None = UNSET,
    input: object = UNSET,
    output: object = UNSET,
    input_embeddings: Embedding | Unset | None = UNSET,
    output_embeddings: Embedding | Unset | None = UNSET,
    strict: bool = False,
    op: Literal["update", "patch"] = "update",
) -> Write:
    """Returns the write that sets the given fields, and clears the fields that are None."""
    check_id(id)
    members: dict[str, object] = {"op": op, "id": id}
    if event_name is not UNSET:
        _check_event_name(event_name)
        members["event_name"] = event_name
    if latency is not UNSET:
        members["latency"] = None if latency is None else _latency(latency)
    fields: dict[str, bytes] = {}
    for name, value in (("error", error), ("input", input), ("output", output)):
        if value is not UNSET:
            fields[name] = b"null" if value is None else _content(name, value, strict, False)
    if conversation_metadata is None:
        members["conversation_metadata"] = None
    elif conversation_metadata is not UNSET:
        fields["conversation_metadata"] = _metadata(conversation_metadata, strict, False)
    vectors: dict[str, bytes] = {}
    if input_embeddings is None:
        members["input_embeddings"] = None
    elif input_embeddings is not UNSET:
        vectors["input_embeddings"] = _base64("input_embeddings", input_embeddings)
    if output_embeddings is None:
        members["output_embeddings"] = None
    elif output_embeddings is not UNSET:
        vectors["output_embeddings"] = _base64("output_embeddings", output_embeddings)
    if len(members) == 2 and not fields and not vectors:
        raise ValidationError("", "an update needs at least one field; None clears one")
    return Write(op, id, _item(members, fields, vectors, strict))


def delete(id: str) -> Write:
    """Returns the write that deletes an event."""
    check_id(id)
    return Write("delete", id, _item({"op": "delete", "id": id}, {}, {}, True))


def check_conversation_id(value: str) -> None:
    """Raises ValidationError unless the value is a valid id of a conversation."""
    _check_text("conversation_id", value, CONVERSATION_ID_BYTES_MAX)


def check_id(value: str) -> None:
    """Raises ValidationError unless the value is a valid id of an event."""
    if not isinstance(value, str) or not value:
        raise ValidationError("id", "must be a string, and not empty")
    if len(value) > ID_BYTES_MAX:
        raise ValidationError("id", f"is longer than {ID_BYTES_MAX} characters")
    if not (value.isascii() and value.isprintable()):
        raise ValidationError("id", "has a character that is not printable ASCII")


def rfc3339(micros: int) -> str:
    """Formats Unix microseconds as RFC 3339 in UTC."""
    moment = EPOCH + micros * _MICROSECOND
    text = moment.replace(tzinfo=None).isoformat(timespec="microseconds")
    return text.rstrip("0").rstrip(".") + "Z"  # as the server formats it


def datetime_micros(field: str, value: datetime) -> int:
    """Converts the datetime to Unix microseconds."""
    if value.utcoffset() is None:
        raise ValidationError(field, "has no time zone; use such as datetime.now(timezone.utc)")
    return (value - EPOCH) // _MICROSECOND


def _check_event_name(value: str) -> None:
    _check_text("event_name", value, EVENT_NAME_BYTES_MAX)


def _check_text(field: str, value: str, bytes_max: int) -> None:
    if not isinstance(value, str) or not value:
        raise ValidationError(field, "must be a string, and not empty")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise ValidationError(field, "has a lone surrogate") from None
    if length > bytes_max:
        raise ValidationError(field, f"is longer than {bytes_max} bytes")


def _micros(value: Timestamp, now: int) -> int:
    """Checks a timestamp, and converts it to Unix microseconds, rounded down."""
    if isinstance(value, datetime):
        micros = datetime_micros("timestamp", value)
    elif isinstance(value, str):
        micros = _parse_rfc3339(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        micros = value * 1000
    else:
        raise ValidationError(
            "timestamp", "must be a datetime, RFC 3339 text or Unix milliseconds (an int)"
        )
    # A clock before 2000 is wrong, so it does not limit timestamps.
    latest = now + _TIMESTAMP_AHEAD if now >= _TIMESTAMP_MIN else math.inf
    if not _TIMESTAMP_MIN <= micros <= latest:
        raise ValidationError("timestamp", "must be from the year 2000 to 24 hours from now")
    return micros


def _parse_rfc3339(text: str) -> int:
    # datetime.fromisoformat accepts more than RFC 3339, and differs between Python versions.
    match = _RFC3339.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        fraction, sign, hours, minutes = match.groups()[6:]
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
        micros = (moment - EPOCH) // _MICROSECOND + int((fraction or "").ljust(6, "0")[:6])
        if sign:
            if int(hours) > 23 or int(minutes) > 59:
                raise ValueError
            offset = (int(hours) * 60 + int(minutes)) * 60_000_000
            micros += offset if sign == "-" else -offset
        return micros
    except ValueError:
        raise ValidationError(
            "timestamp", "is not RFC 3339, such as 2026-01-31T12:00:00.25Z"
        ) from None


def _latency(value: float) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        if not isinstance(value, (int, float)):  # NumPy's float32, Decimal and such
            value = float(value)
        if math.isfinite(value) and value >= 0:
            return value
    except TypeError:
        raise ValidationError("latency", "must be a number of milliseconds") from None
    except OverflowError:  # an int beyond float's range
        pass
    raise ValidationError("latency", "must be finite and not negative")


class Snapshot:
    """A value that was encoded earlier, as it was then."""

    __slots__ = ("json",)

    def __init__(self, json: bytes) -> None:
        self.json = json


def _content(field: str, value: object, strict: bool, traced: bool) -> bytes:
    if isinstance(value, Snapshot):
        return value.json
    if strict:
        return _strict(field, value)
    if field == "error" and not isinstance(value, str):
        value = _payload.text_of(value)
    try:
        return _payload.encode(value, rename=traced)
    except _payload.TwoKeysError as e:
        raise ValidationError(field, str(e)) from None


def _metadata(value: object, strict: bool, traced: bool) -> bytes:
    field = "conversation_metadata"
    if isinstance(value, Snapshot):
        encoded = value.json
    elif traced:
        encoded = _payload.encode_object(value)
    elif strict:
        if isinstance(value, _json.RawJSON):
            encoded = _strict(field, value)
            if encoded.startswith(b"{"):
                return encoded
        if not isinstance(value, Mapping):
            raise ValidationError(field, "must be an object (a mapping)")
        return _strict(field, value if isinstance(value, dict) else dict(value))
    else:
        encoded = _content(field, value, strict, traced)
    if not encoded.startswith(b"{"):
        raise ValidationError(field, "must be an object (a mapping)")
    return _truncate.fit_object(encoded, _payload.METADATA_BYTES_MAX)


def _raw_json(value: object) -> str:
    if isinstance(value, _json.RawJSON):
        return _json.marked(value.json)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_raw_to_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_raw_json
).encode


def _strict(field: str, value: object) -> bytes:
    """Encodes the value as JSON. Raises ValidationError for a value that JSON does not have."""
    try:
        encoded = _json.unmarked(_raw_to_json(value).encode())
        if _payload.encode(value) != encoded:
            raise ValidationError(field, "cannot be encoded as JSON as it is")
        return encoded
    except UnicodeEncodeError:
        raise ValidationError(field, "has a lone surrogate, which is not UTF-8") from None
    except TypeError as e:
        raise ValidationError(field, f"cannot be encoded as JSON: {e}") from None
    except RecursionError:
        raise ValidationError(field, "is nested too deep") from None
    except ValidationError:
        raise
    except ValueError as e:
        raise ValidationError(field, f"cannot be encoded as JSON: {_reason(e)}") from None


def vector(field: str, value: Embedding) -> list[float]:
    """Returns an embedding as numbers that float32 holds. Raises ValidationError."""
    floats = array.array("f", _float32s(field, value))
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()


def _base64(field: str, value: Embedding) -> bytes:
    return binascii.b2a_base64(_float32s(field, value), newline=False)


def _float32s(field: str, value: Embedding) -> bytes:
    """Encodes the embedding as little-endian float32."""
    numbers = _numbers(field, value)
    if not 1 <= len(numbers) <= DIMENSIONS_MAX:
        raise ValidationError(
            field, f"has {len(numbers)} dimensions; there must be 1 to {DIMENSIONS_MAX}"
        )
    if not isinstance(numbers, array.array):
        try:
            numbers = array.array("f", numbers)
        except (TypeError, ValueError, OverflowError):
            raise _wrong_number(field, numbers) from None
    # array makes numbers beyond float32 infinite. The sum of 4,096 finite float32 fits in float64,
    # so the sum is finite only if each number is.
    if not math.isfinite(sum(numbers)):
        raise _wrong_number(field, numbers)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(field: str, value: Embedding) -> list[float] | tuple[float, ...] | array.array[float]:
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        raise ValidationError(field, "must be a sequence of numbers")
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    else:
        if view.format == "f" and view.ndim == 1:
            return array.array("f", view.tobytes())
    try:
        if hasattr(value, "tolist"):
            value = value.tolist()
        return list(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValidationError(field, "must be a sequence of numbers") from None


def _wrong_number(
    field: str, numbers: list[float] | tuple[float, ...] | array.array[float]
) -> ValidationError:
    for i, number in enumerate(numbers):
        try:
            (rounded,) = struct.unpack("<f", struct.pack("<f", number))
            if math.isfinite(rounded):
                continue
            problem = "must be finite"
        except OverflowError:
            problem = "is beyond the range of float32"
        except (struct.error, TypeError, ValueError):
            problem = "must be a number"
        return ValidationError(f"{field}[{i}]", problem)
    return ValidationError(field, "must be finite numbers of float32's range")


def _item(
    members: dict[str, object], fields: dict[str, bytes], vectors: dict[str, bytes], strict: bool
) -> bytes:
    """Joins the members, fields that are JSON already, and vectors in base64 to an item."""
    head = _to_json(members).encode()[:-1]
    tail = b"".join(b',"%b":"%b"' % (name.encode(), text) for name, text in vectors.items())
    names = sum(len(name) + 4 for name in fields)
    size = len(head) + len(tail) + names + sum(map(len, fields.values())) + 1
    if size > WRITE_BYTES_MAX:
        if strict:
            raise ValidationError(
                "", f"the write is larger than {WRITE_BYTES_MAX} bytes as encoded"
            )
        contents = {name: text for name, text in fields.items() if name != "conversation_metadata"}
        over = size - WRITE_BYTES_MAX
        fields |= _truncate.fit(contents, sum(map(len, contents.values())) - over)
    body = b"".join(b',"%b":%b' % (name.encode(), text) for name, text in fields.items())
    return head + body + tail + b"}"


def _reason(e: ValueError) -> str:
    # The rest of json's text is the value, which must not be quoted.
    return str(e).partition(":")[0]
