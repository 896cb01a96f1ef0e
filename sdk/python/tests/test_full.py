"""Writes to a full queue."""

from __future__ import annotations

import threading
import time

import pytest

from conftest import MakeClient, eventually, track
from server import Server
from sluice import ClosedError, QueueFullError, ValidationError


def test_a_write_blocks_until_there_is_room(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=3, batch_age_max=0)
    for id in ("a", "b", "c"):
        track(client, id)
    fourth = threading.Thread(target=track, args=(client, "d"))
    fourth.start()
    fourth.join(0.1)
    assert fourth.is_alive()
    server.open.set()
    fourth.join(30)
    assert not fourth.is_alive()
    client.flush()
    assert sorted(id for batch in server.ids for id in batch) == ["a", "b", "c", "d"]


def test_sent_and_unanswered_writes_count(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=2, batch_age_max=0, fail_when_full=True)
    track(client)
    server.wait_for(1)
    track(client)
    with pytest.raises(QueueFullError):
        track(client)
    server.open.set()
    client.flush()
    track(client)


def test_by_bytes(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(queue_bytes_max=1000, fail_when_full=True)
    track(client, input="x" * 700)
    with pytest.raises(QueueFullError):
        track(client, input="x" * 700)
    track(client)
    server.open.set()
    client.flush()
    track(client, input="x" * 700)


def test_a_write_larger_than_the_queue(make_client: MakeClient) -> None:
    client = make_client(queue_bytes_max=1000)
    with pytest.raises(ValidationError):
        track(client, input="x" * 1000)


def test_block_timeout(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=1, block_timeout=0.1)
    id = track(client)
    begin = time.monotonic()
    with pytest.raises(QueueFullError):
        track(client)
    assert time.monotonic() - begin >= 0.1
    server.open.set()
    client.flush()
    assert server.ids == [[id]]


def test_updates_and_deletes_count(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=2, fail_when_full=True)
    client.update_event("a", latency=1)
    client.delete_event("a")
    with pytest.raises(QueueFullError):
        client.update_event("a", latency=2)
    with pytest.raises(QueueFullError):
        client.delete_event("b")


def test_a_close_ends_the_wait_for_room(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(queue_writes_max=1)
    track(client)
    caught: list[Exception] = []

    def blocked() -> None:
        try:
            track(client)
        except ClosedError as e:
            caught.append(e)

    thread = threading.Thread(target=blocked)
    thread.start()
    eventually(lambda: len(client._core.queue._room._waiters) == 1)  # type: ignore[attr-defined]
    closer = threading.Thread(target=client.close)
    closer.start()
    thread.join(30)
    assert len(caught) == 1
    server.open.set()
    closer.join(30)
