from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server import DEADLINE, Server
from sluice import Client, FlushTimeoutError, WriteError

MakeClient = Callable[..., Client]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def nowhere() -> str:
    """A URL on which nothing listens."""
    with Server() as server:
        return server.url


@pytest.fixture
def reported() -> list[WriteError]:
    """The errors that the callback of the clients of `make_client` got."""
    return []


@pytest.fixture
def make_client(server: Server, reported: list[WriteError]) -> Iterator[MakeClient]:
    """Makes clients of the server that are closed after the test."""
    made: list[Client] = []

    def make(**options: Any) -> Client:
        defaults: dict[str, Any] = {"url": server.url, "on_error": reported.append}
        client = Client(**defaults | options)
        made.append(client)
        return client

    yield make
    for client in made:
        with contextlib.suppress(FlushTimeoutError):
            client.close(timeout=0)


@pytest.fixture
def client(make_client: MakeClient) -> Client:
    return make_client()


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def track(client: Client, id: str | None = None, **fields: Any) -> str:
    """Tracks an event whose fields do not matter to the test."""
    return client.track_event(
        **{"conversation_id": "c1", "event_name": "event_a", "id": id} | fields
    )


def record_pauses(client: Client) -> list[float]:
    """Makes the client's sender skip its pauses, and returns them."""
    pauses: list[float] = []
    client._core.sender.sleep = pauses.append
    return pauses


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until the condition is true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.005)
