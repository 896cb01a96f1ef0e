"""Batches, order, retries and answers."""

from __future__ import annotations

import logging
import socket
import threading
import time
from email.utils import formatdate
from random import Random
from typing import Any

import pytest

from conftest import MakeClient, eventually, record_pauses, track
from server import Answer, Request, Server, accept, as_json, problem
from sluice import Client, FlushTimeoutError, WriteError, __version__


def results(*errors: int | None, **headers: str) -> Any:
    """Answers with one result for each write: accepted, or an error with that status."""

    def answer(request: Request) -> Answer:
        assert len(request.ids) == len(errors)
        return as_json(
            207,
            {
                "results": [
                    {"id": id, "receipt": "1.0.1"}
                    if status is None
                    else {"error": {"status": status, "code": "c", "detail": "d", "field": "f"}}
                    for id, status in zip(request.ids, errors, strict=True)
                ]
            },
            **headers,
        )

    return answer


def test_the_request(make_client: MakeClient, server: Server) -> None:
    client = make_client(url=server.url + "/base/", api_key="k1")
    track(client)
    client.flush()
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/base/events")
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.headers["authorization"] == "Bearer k1"
    assert request.headers["user-agent"] == f"sluice-python/{__version__}"
    assert "content-encoding" not in request.headers


def test_a_batch_by_count(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600, batch_writes_max=3)
    ids = [track(client) for _ in range(7)]
    server.wait_for(2)
    client.flush()
    assert server.ids == [ids[:3], ids[3:6], ids[6:]]


def test_a_batch_by_bytes(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600, batch_bytes_max=1000)
    ids = [track(client, input="x" * 200) for _ in range(4)]
    server.wait_for(1)
    ids.append(
        track(client, input="x" * 2000)
    )  # larger than batch_bytes_max, so it is a batch of its own
    client.flush()
    assert server.ids[-1] == ids[-1:]
    assert [id for batch in server.ids for id in batch] == ids
    assert all(len(request.body) <= 1000 for request in server.requests[:-1])


def test_a_batch_by_age(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=0.3)
    begin = time.monotonic()
    ids = [track(client), track(client)]
    server.wait_for(1)
    assert server.ids == [ids]
    assert server.requests[0].at - begin >= 0.3


def test_default_limits_of_a_batch(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    for _ in range(500):
        track(client)
    server.wait_for(1)
    for _ in range(6):
        track(client, input="x" * 200_000)
    server.wait_for(2)
    assert len(server.ids[0]) == 500
    assert len(server.ids[1]) == 5


def test_one_connection_is_kept(client: Client, server: Server) -> None:
    for _ in range(3):
        track(client)
        client.flush()
    assert len({request.connection for request in server.requests}) == 1


def test_a_connection_that_was_closed_while_idle(make_client: MakeClient, server: Server) -> None:
    server.answers = [lambda r: Answer(202, accept(r).body, close=True)]
    client = make_client()
    pauses = record_pauses(client)
    for id in ("a", "b"):
        track(client, id)
        client.flush()
    assert server.ids == [["a"], ["b"]]
    assert not pauses


def test_one_write_of_an_id_in_a_batch(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    for id in ("a", "b"):
        track(client, id)
    client.update_event("a", latency=1)
    client.update_event("a", latency=2)
    client.delete_event("b")
    client.flush()
    assert server.ids == [["a", "b"], ["a", "b"], ["a"]]
    assert [item.get("op") for item in server.requests[1].items] == ["update", "delete"]
    assert server.requests[1].items[0]["latency"] == 1
    assert server.requests[2].items[0]["latency"] == 2


def test_order_of_an_id_whatever_is_retried(make_client: MakeClient, server: Server) -> None:
    server.answers = [
        results(None, 503, 503),
        lambda _: problem(503, "overloaded"),
        lambda _: Answer(hang_up=True),
        results(429, None),
    ]
    client = make_client(batch_age_max=600)
    pauses = record_pauses(client)
    for id in ("a", "b", "c"):
        track(client, id)
    for latency in range(3):
        for id in ("a", "b", "c"):
            client.update_event(id, latency=latency)
    client.flush()
    assert pauses

    seen: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    for request in server.requests:
        assert len(set(request.ids)) == len(request.ids)
        for item in request.items:
            latency = item.get("latency", -1)
            if not seen[item["id"]] or seen[item["id"]][-1] != latency:
                seen[item["id"]].append(latency)
    assert seen == {id: [-1, 0, 1, 2] for id in "abc"}


@pytest.mark.parametrize("seed", range(5))
def test_random_answers(
    seed: int, make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    """Each write is accepted or reported once, in the order of its id, whatever the answers."""
    random = Random(seed)
    accepted: dict[str, list[int]] = {f"id-{n}": [] for n in range(20)}

    def answer(request: Request) -> Answer:
        chance = random.random()
        if chance < 0.2:
            return Answer(hang_up=True)
        if chance < 0.4:
            return problem(random.choice([429, 500, 503]), "it")
        statuses = [random.choice([None, None, None, 422, 503, 429]) for _ in request.items]
        for item, status in zip(request.items, statuses, strict=True):
            if status is None:
                accepted[item["id"]].append(item["latency"])
        return results(*statuses)(request)  # type: ignore[no-any-return]

    server.default = answer
    client = make_client(batch_writes_max=7, batch_age_max=0.001, queue_writes_max=30)
    record_pauses(client)

    def write(ids: list[str]) -> None:
        for latency in range(20):
            for id in ids:
                client.update_event(id, latency=latency)

    ids = list(accepted)
    threads = [threading.Thread(target=write, args=(ids[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    client.flush(timeout=60)
    for id, latencies in accepted.items():
        assert latencies == sorted(set(latencies))
        refused = [error for error in reported if error.id == id]
        assert len(latencies) + len(refused) == 20
    assert {error.status for error in reported} == {422}


def test_retried_writes_go_first_and_with_others(make_client: MakeClient, server: Server) -> None:
    server.answers = [results(None, 503, None)]
    client = make_client(batch_writes_max=3, batch_age_max=600)
    record_pauses(client)
    server.open.clear()
    for id in "abc":
        track(client, id)
    server.wait_for(1)
    for id in "def":
        track(client, id)
    server.open.set()
    client.flush()
    assert server.ids == [["a", "b", "c"], ["b", "d", "e"], ["f"]]


def test_207(make_client: MakeClient, server: Server, reported: list[WriteError]) -> None:
    server.answers = [results(None, 422, 503, 429, 400)]
    client = make_client(batch_age_max=600)
    pauses = record_pauses(client)
    for id in "abcde":
        track(client, id)
    client.flush()
    assert server.ids == [list("abcde"), ["c", "d"]]
    assert reported == [
        WriteError("create", "b", 422, "c", "d", "f"),
        WriteError("create", "e", 400, "c", "d", "f"),
    ]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "answer",
    [
        as_json(202, {"results": [{"id": "a", "receipt": "1.0.1"}] * 3}),
        as_json(202, {"results": [{"id": "a", "receipt": "1.0.1"}, {}]}),
        as_json(202, {"results": [{"id": "a", "receipt": "1.0.1"}, {"error": {}}]}),
        as_json(202, {"results": ["a", "b"]}),
        as_json(202, ["a", "b"]),
        as_json(202, None),
        Answer(204),
        Answer(202, b"\xff"),
        Answer(202, b'{"results"', {"Content-Length": "100"}, close=True),
        Answer(hang_up=True),
    ],
    ids=lambda answer: f"{answer.status} {answer.body!r}"[:40],
)
def test_answers_that_cannot_be_read(
    answer: Answer, make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    server.answers = [lambda _: answer]
    client = make_client(batch_age_max=600)
    pauses = record_pauses(client)
    for id in "ab":
        track(client, id)
    client.flush()
    assert server.ids == [["a", "b"], ["a", "b"]]
    assert len(pauses) == 1
    assert not reported


def test_pauses_double_and_are_bounded(make_client: MakeClient, server: Server) -> None:
    server.answers = [lambda _: problem(500, "internal")] * 10
    client = make_client()
    pauses = record_pauses(client)
    track(client)
    client.flush()
    wholes = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert len(pauses) == len(wholes)
    for pause, whole in zip(pauses, wholes, strict=True):
        assert whole / 2 <= pause <= whole
    # After a success, the pauses begin anew.
    server.answers = [lambda _: problem(500, "internal")]
    track(client)
    client.flush()
    assert pauses[-1] <= 0.1


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("7", 7, 7),
        ("3600", 60, 60),
        ("99999999999999999999", 60, 60),
        (lambda: formatdate(time.time() + 30, usegmt=True), 25, 30),
        (lambda: formatdate(time.time() - 30, usegmt=True), 0.05, 0.1),
        ("soon", 0.05, 0.1),
        ("-5", 0.05, 0.1),
    ],
)
def test_retry_after(
    retry_after: Any, least: float, most: float, make_client: MakeClient, server: Server
) -> None:
    value = retry_after if isinstance(retry_after, str) else retry_after()
    server.answers = [lambda _: problem(503, "overloaded", **{"Retry-After": value})]
    client = make_client()
    pauses = record_pauses(client)
    track(client)
    client.flush()
    assert len(pauses) == 1
    assert least <= pauses[0] <= most


def test_retry_after_of_a_207(make_client: MakeClient, server: Server) -> None:
    server.answers = [results(503, **{"Retry-After": "3"})]
    client = make_client()
    pauses = record_pauses(client)
    track(client)
    client.flush()
    assert pauses == [3]


def test_retry_for(make_client: MakeClient, server: Server, reported: list[WriteError]) -> None:
    server.answers = [lambda _: problem(503, "unavailable", **{"Retry-After": "1"})]
    client = make_client(retry_for=0.5)
    pauses = record_pauses(client)
    track(client, "a")
    client.flush()
    # The next attempt would be too late.
    assert reported == [WriteError("create", "a", 503, "unavailable", "it is so", "")]
    assert not pauses
    track(client, "b")
    client.flush()
    assert server.ids == [["a"], ["b"]]


def test_retry_for_with_a_network_error(
    make_client: MakeClient, reported: list[WriteError]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    client = make_client(url=f"http://127.0.0.1:{port}", retry_for=0.3)
    track(client, "a")
    client.flush()
    (error,) = reported
    assert (error.op, error.id, error.status, error.code) == ("create", "a", 0, "network")


def test_a_later_write_of_an_id_that_was_given_up(
    make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    server.answers = [lambda _: problem(422, "invalid_value")]
    client = make_client(batch_age_max=600)
    track(client, "a")
    client.update_event("a", latency=1)
    client.flush()
    assert server.ids == [["a"], ["a"]]
    assert len(reported) == 1


def test_the_server_comes_later(make_client: MakeClient) -> None:
    with Server() as first:
        port = first.port
    client = make_client(url=f"http://127.0.0.1:{port}")
    pauses = record_pauses(client)
    id = track(client)
    eventually(lambda: bool(pauses))
    with Server(port) as second:
        client.flush()
        assert second.ids == [[id]]


def test_a_request_that_takes_too_long(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client(request_timeout=0.1)
    record_pauses(client)
    track(client, "a")
    server.wait_for(2)
    server.open.set()
    client.flush()
    assert set(map(tuple, server.ids)) == {("a",)}


def test_gzip(make_client: MakeClient, server: Server) -> None:
    client = make_client(gzip=True)
    track(client)
    client.flush()
    assert "content-encoding" not in server.requests[0].headers
    id = track(client, input="x" * 1000)
    client.flush()
    assert server.requests[1].headers["content-encoding"] == "gzip"
    assert server.ids[1] == [id]
    assert len(server.requests[1].body) < 300


def test_without_a_callback_it_is_logged(
    make_client: MakeClient, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [
        lambda _: as_json(
            400,
            {
                "type": "urn:sluice:problem:invalid_json",
                "code": "invalid_json",
                "field": "input",
                "detail": "secret",
            },
            **{"Content-Type": "application/problem+json"},
        )
    ]
    client = make_client(on_error=None)
    track(client, "a", input="secret")
    with caplog.at_level(logging.WARNING, "sluice"):
        client.flush()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for word in ("create", "id=a", "400", "invalid_json", "input"):
        assert word in record.getMessage()
    assert "secret" not in record.getMessage()


def test_a_callback_that_raises(
    make_client: MakeClient, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def on_error(error: WriteError) -> None:
        raise RuntimeError("on purpose")

    server.answers = [lambda _: problem(422, "invalid_value")]
    client = make_client(on_error=on_error)
    track(client, "a")
    client.flush()
    track(client, "b")
    client.flush()
    assert server.ids == [["a"], ["b"]]
    assert "on_error raised" in caplog.text


def test_a_callback_that_writes_and_flushes(make_client: MakeClient, server: Server) -> None:
    caught: list[str] = []

    def on_error(error: WriteError) -> None:
        for attempt in (lambda: track(client, "b"), lambda: client.flush(), lambda: client.close()):
            try:
                attempt()
                caught.append("")
            except Exception as e:
                caught.append(type(e).__name__)

    server.answers = [lambda _: problem(422, "invalid_value")]
    client = make_client(on_error=on_error, queue_writes_max=1)
    track(client, "a")
    client.flush()
    # The queue is full until the callback has returned.
    assert caught == ["QueueFullError", "SluiceError", "SluiceError"]


def test_a_flush_sends_at_once(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    id = track(client)
    client.flush(timeout=10)
    assert server.ids == [[id]]


def test_a_flush_does_not_wait_for_later_writes(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    server.open.clear()
    track(client, "a")
    flush = threading.Thread(target=client.flush)
    flush.start()
    server.wait_for(1)  # the flush has begun
    track(client, "b")
    server.open.set()
    flush.join(30)
    assert not flush.is_alive()
    assert server.ids == [["a"]]


def test_a_flush_out_of_time(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client()
    for _ in range(3):
        track(client)
    with pytest.raises(FlushTimeoutError) as caught:
        client.flush(timeout=0.05)
    assert caught.value.left == 3
    assert isinstance(caught.value, TimeoutError)
    server.open.set()
    client.flush()


def test_a_flush_of_an_empty_queue(client: Client, server: Server) -> None:
    client.flush(timeout=0)
    assert not server.requests
