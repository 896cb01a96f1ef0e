"""A wrong clock of this machine, which the server's answers show."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeClient, track
from server import Answer, Request, Server, accept, as_json, problem
from sluice import ApiError, Client, ValidationError, WriteError, _clock
from sluice._ids import PROCESS

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "clocks.json"
CASES = json.loads(VECTORS.read_text(encoding="utf-8"))["clocks"]

DAYS = 24 * 3600.0


@pytest.fixture(autouse=True)
def right_again() -> Iterator[None]:
    """Resets the time of the process for the tests that follow."""
    yield
    PROCESS.follow(None)


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in CASES])
def test_clocks(case: dict[str, Any]) -> None:
    server = _clock.server_time(case["headers"])
    local = datetime.fromisoformat(case["local"].replace("Z", "+00:00")).timestamp()
    offset = None if server is None else _clock.offset(server, local)
    assert offset == case["offset_seconds"]


def dated(seconds_ahead: float, answerer: Callable[[Request], Answer] = accept) -> Any:
    """Answers like a server whose clock is ahead by this number of seconds."""

    def answer(request: Request) -> Answer:
        answer = answerer(request)
        answer.headers["Date"] = email.utils.formatdate(time.time() + seconds_ahead, usegmt=True)
        return answer

    return answer


def seconds_ahead(id: str) -> float:
    return int(id.replace("-", "")[:12], 16) / 1000 - time.time()


def refuse(request: Request) -> Answer:
    error = {"status": 422, "code": "invalid_value", "field": "id", "detail": "has a wrong time"}
    return as_json(422, {"results": [{"id": id, "error": error} for id in request.ids]})


@pytest.mark.parametrize("days", [-2.0, 2.0, 20_000.0])
def test_a_wrong_clock(
    days: float,
    make_client: MakeClient,
    server: Server,
    reported: list[WriteError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make_client()
    server.answers = [dated(days * DAYS, refuse)]
    first = track(client)
    client.flush()
    assert [(error.code, error.id) for error in reported] == [
        ("wrong_clock", ""),
        ("invalid_value", first),
    ]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    side = "behind" if days > 0 else "ahead of"
    for text in (
        f"{abs(days):.1f} days {side} the server's",
        "just refused 1 writes",
        "Set the clock",
    ):
        assert text in record.getMessage()
        assert text in reported[0].detail

    server.default = dated(days * DAYS)
    ids = [track(client) for _ in range(3)]
    assert ids == sorted(ids)
    for id in ids:
        assert abs(seconds_ahead(id) - days * DAYS) < 60
    client.trace("c1", lambda span: ids.append(span.id))
    assert abs(seconds_ahead(ids[-1]) - days * DAYS) < 60
    client.flush()
    assert len(caplog.records) == 1, "it is told once"

    # The clock was set right.
    server.default = accept
    track(client)
    client.flush()
    assert abs(seconds_ahead(track(client))) < 60


def test_a_read_reports_a_wrong_clock(
    client: Client, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = dated(2 * DAYS, lambda _: problem(404, "unknown_event"))
    with pytest.raises(ApiError):
        client.event("a")
    assert "2.0 days behind" in caplog.text
    assert abs(seconds_ahead(track(client)) - 2 * DAYS) < 60


def test_the_date_of_a_proxy_is_ignored(
    client: Client, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [dated(2 * DAYS, lambda _: Answer(200, b"<html>log in</html>"))]
    track(client)
    client.flush()
    assert "clock" not in caplog.text
    assert abs(seconds_ahead(track(client))) < 60


def test_timestamps_are_checked_by_the_right_time(client: Client, server: Server) -> None:
    soon = int((time.time() + 2.5 * DAYS) * 1000)
    with pytest.raises(ValidationError):
        track(client, timestamp=soon)
    server.default = dated(2 * DAYS)
    track(client)
    client.flush()
    track(client, timestamp=soon)


def test_a_clock_of_1970_limits_no_timestamp(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PROCESS, "now", lambda: 10_000_000)
    track(client, "a", timestamp="2026-01-02T03:04:05Z")
    client.flush()
    assert server.ids == [["a"]]
