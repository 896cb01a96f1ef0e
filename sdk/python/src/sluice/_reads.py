"""Reads of events and analytics: their requests and retries."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import quote, urlencode

from sluice import _encode, _filter, _http, _json, _retry
from sluice._encode import check_conversation_id, check_id
from sluice.errors import ApiError, ClosedError, NetworkError, ValidationError
from sluice.types import ConversationFilter, Embedding, Filter, Step, TimeOrder

if TYPE_CHECKING:
    from typing_extensions import Unpack

RETRY_FOR = 30.0
WAIT_MIN = 1
WAIT_MAX = 30
RECEIPTS_MAX = 100
"""The maximum number of receipts in one request. It is the server's limit."""


@dataclass(frozen=True, slots=True)
class Read:
    """A read: a path, and the parameters of its query string.

    Every read may be sent again, because it changes nothing.
    """

    path: str
    params: list[tuple[str, str]]
    raw: bool = False  # whether events also have their contents as JSON text
    # The body and its type, if the read is a POST.
    body: bytes | None = None
    content_type: str = ""
    # The media type of the answer, if it is a stream.
    stream: str | None = None


class Page(TypedDict):
    """What all pages of events have in common."""

    order: TimeOrder | None
    limit: int | None
    cursor: str | None
    embeddings: bool
    raw: bool


def event(id: str, *, raw: bool) -> Read:
    """GET /event/{id}."""
    check_id(id)
    return _locate("/event", "/event/{}", id, raw=raw)


def conversation(id: str, filter: ConversationFilter, **page: Unpack[Page]) -> Read:
    """GET /conversations/{id}/events."""
    check_conversation_id(id)
    read = _locate("/conversation/events", "/conversations/{}/events", id, raw=page["raw"])
    read.params.extend(_filter.params(**filter) + _page(page))
    return read


def events(filter: Filter, **page: Unpack[Page]) -> Read:
    """GET /events."""
    return Read("/events", _filter.params(**filter) + _page(page), page["raw"])


def conversations(filter: Filter, *, limit: int | None, cursor: str | None) -> Read:
    """GET /conversations."""
    params = _filter.params(**filter) + _filter.named(limit=limit, cursor=cursor)
    return Read("/conversations", params)


def analytics(
    name: str,
    filter: Filter,
    *,
    q: Sequence[float] | None = None,
    group_by: Iterable[str] | None = None,
    **others: str | int | None,
) -> Read:
    """GET /analytics/{name}."""
    params = _filter.params(**filter)
    params += _filter.named(
        group_by=None if group_by is None else ",".join(group_by),
        **others,
    )
    params += [("q", _filter.text(quantile)) for quantile in q or ()]
    return Read(f"/analytics/{name}", params)


def search(
    filter: Filter,
    *,
    text: str | None,
    vector: Embedding | None,
    like: str | None,
    field: str | None,
    exact: bool,
    limit: int | None,
    cursor: str | None,
    raw: bool,
) -> Read:
    """POST /search."""
    members = {
        "text": text,
        "vector": None if vector is None else _encode.vector("vector", vector),
        "like": like,
        "field": field,
        "filter": _filter.members(filter) or None,
        "exact": exact or None,
        "limit": limit,
        "cursor": cursor,
    }
    given = {name: value for name, value in members.items() if value is not None}
    return Read("/search", [], raw, json.dumps(given).encode(), "application/json")


def insights(
    filter: Filter,
    *,
    measures: Sequence[str],
    group_by: Sequence[str] | None,
    **others: str | int | None,
) -> Read:
    """GET /analytics/insights."""
    params = _filter.params(**filter) + _filter.named(**others)
    params += _each("measure", "measures", measures) + _each("group_by", "group_by", group_by)
    return Read("/analytics/insights", params)


def funnel(filter: Filter, *, steps: Sequence[str | Step], **others: str | int | None) -> Read:
    """GET /analytics/funnel."""
    if isinstance(steps, str):
        raise ValidationError("steps", "must be a list of steps, not a string")
    params = _filter.params(**filter) + _filter.named(**others)
    params += [("step", _filter.step(step)) for step in steps]
    return Read("/analytics/funnel", params)


def retention(
    filter: Filter, *, did: str | Step, returned: str | Step | None, **others: str | int | None
) -> Read:
    """GET /analytics/retention."""
    params = [*_filter.params(**filter), *_filter.named(**others), ("did", _filter.step(did))]
    if returned is not None:
        params.append(("returned", _filter.step(returned)))
    return Read("/analytics/retention", params)


def sql(query: str, *, format: str | None = None) -> Read:
    """POST /sql. With a format, the answer is a stream."""
    # If the query is not valid Unicode, the server's answer says so.
    body = query.encode("utf-8", "surrogatepass")
    params = _filter.named(format=format)
    stream = None if format is None else SQL_TYPES.get(format)
    if format is not None and stream is None:
        raise ValidationError("format", "must be csv or parquet")
    return Read("/sql", params, False, body, "text/plain; charset=utf-8", stream)


SQL_TYPES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


def export(filter: Filter, *, embeddings: bool, raw: bool) -> Read:
    """GET /export."""
    params = _filter.params(**filter) + _filter.named(embeddings=embeddings or None)
    return Read("/export", params, raw, stream="application/x-ndjson")


def after(read: Read, cursor: str | None) -> Read:
    """Returns the export of what comes after the event whose id is the cursor."""
    return replace(read, params=read.params + _filter.named(cursor=cursor))


def _each(name: str, field: str, values: Sequence[str] | None) -> _filter.Params:
    if isinstance(values, str):
        raise ValidationError(field, "must be a list of texts, not a string")
    return [(name, value) for value in values or ()]


def check_wait(wait: float) -> int:
    """Checks the wait, and rounds it up to whole seconds, because the server takes only those."""
    if not WAIT_MIN <= wait <= WAIT_MAX:
        raise ValidationError("wait", f"must be {WAIT_MIN} to {WAIT_MAX} seconds")
    return math.ceil(wait)


def deadline() -> float:
    """Returns until when a read that begins now is retried, without the time of its wait."""
    return time.monotonic() + RETRY_FOR


def perform(
    transport: _http.Transport,
    read: Read,
    *,
    request_timeout: float,
    wait: int | None,
    after: Sequence[str],
    deadline: float,
    stopped: threading.Event,
    sleep: Callable[[float], object],
    observe: Callable[[_http.Response], None],
    ignore: bool = False,
) -> Any:
    """Sends the read, with retries until the deadline, and returns the decoded answer or a Stream.

    With `ignore`, it returns None instead. With `wait`, the server first waits until the writes of
    the receipts `after` are applied. Raises ApiError, NetworkError and ClosedError.
    """
    params = list(read.params)
    headers = {"Accept": read.stream or "application/json"}
    if read.content_type:
        headers["Content-Type"] = read.content_type
    if wait is not None:
        params += [("after", receipt) for receipt in after]
        headers["Prefer"] = f"wait={wait}"
    target = read.path
    if params:
        # If an id is not valid Unicode, the server's answer says so.
        target += "?" + urlencode(params, quote_via=quote, errors="surrogatepass")

    tries = 0
    while True:
        retry_after = 0.0
        try:
            # The wait does not count against the server's time to answer.
            timeout = min(request_timeout, max(deadline - time.monotonic(), 1)) + (wait or 0)
            response = transport.request(
                "GET" if read.body is None else "POST",
                target,
                body=read.body,
                headers=headers,
                timeout=timeout,
                idle=None if read.stream is None or ignore else request_timeout,
            )
            if response.status == 200:
                answer = None
                if response.stream is not None and response.media_type != read.stream:
                    response.stream.close()
                    raise NetworkError(f"the answer is not {read.stream}")
                if response.stream is None and not ignore:
                    answer = decoded(response.body, read.raw)
                observe(response)
                return answer if response.stream is None else response.stream
            if response.is_problem():
                observe(response)
            retry_after = response.retry_after
            raise response.error()
        except (ApiError, NetworkError) as e:
            tries += 1
            pause = _retry.pause_after(tries, retry_after)
            if not _worth_another(e) or time.monotonic() + pause >= deadline:
                raise
            if stopped.is_set():
                raise ClosedError from e
        sleep(pause)


def _worth_another(error: ApiError | NetworkError) -> bool:
    # A wait on the server that timed out is not repeated. 501 means that the server is not set up
    # for the read.
    if isinstance(error, ApiError) and (error.code == "not_yet_applied" or error.status == 501):
        return False
    return _retry.is_retryable(error)


def decoded(body: bytes, raw: bool) -> Any:
    """Decodes an answer in JSON. With `raw`, its events get their contents as JSON text too."""
    try:
        found = _json.loads(body)
        if raw:
            _add_raw(found, body.decode())
        return found
    except (ValueError, RecursionError):
        raise NetworkError("the answer cannot be read") from None


def _add_raw(decoded: Any, text: str) -> None:
    members = _json.members(text)
    if "events" in members:
        for event, one in zip(decoded["events"], _json.elements(members["events"]), strict=True):
            _add_raw(event, one)
        return
    if "results" in members:
        for result, one in zip(decoded["results"], _json.elements(members["results"]), strict=True):
            _add_raw(result["event"], _json.members(one)["event"])
        return
    decoded["raw"] = {
        name: None if decoded.get(name) is None else _json.RawJSON(members[name])
        for name in ("conversation_metadata", "input", "output")
    }


def _locate(by_id: str, path: str, id: str, *, raw: bool) -> Read:
    """Returns the path with the id in it, or by_id with the id as a query parameter.

    An id that has a slash or is "." or ".." must be a parameter, because proxies decode an escaped
    slash and resolve dots in a path.
    """
    if id in (".", "..") or "/" in id:
        return Read(by_id, [("id", id)], raw)
    return Read(path.format(quote(id, safe="")), [], raw)


def _page(page: Page) -> _filter.Params:
    return _filter.named(
        order=page["order"],
        limit=page["limit"],
        cursor=page["cursor"],
        embeddings=page["embeddings"] or None,
    )
