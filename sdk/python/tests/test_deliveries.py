"""deliveries.json of sdk/spec: the outcome of writes, with anything between client and Sluice."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from conftest import MakeClient, record_pauses, track
from server import Answer, Request, Server, accept, problem
from sluice import ApiError, Client, FlushTimeoutError, ValidationError, WriteError
from sluice._http import may_follow
from sluice._limits import GROW_AFTER_BATCHES
from test_vectors import VECTORS

CASES = json.loads((VECTORS / "deliveries.json").read_text(encoding="utf-8"))

Case = dict[str, Any]


def make(client: Client, write: Case) -> str:
    op, id = write.get("op", "create"), write["id"]
    if op == "update":
        client.update_event(id, latency=1)
    elif op == "delete":
        client.delete_event(id)
    else:
        content = "x" * write["bytes"] if "bytes" in write else None
        return track(client, None if write.get("minted") else id, input=content)
    return str(id)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["name"]) for case in CASES["deliveries"]]
)
def test_deliveries(
    case: Case, make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    accepted: list[list[str]] = []
    url = urlsplit(server.url)
    fillers = {"{origin}": server.url, "{scheme}": "http", "{host}": url.hostname or ""}
    fillers["{port}"] = str(url.port)

    def answer(request: Request) -> Answer:
        n = len(server.requests) - 1
        if len(request.body) > case.get("limit_bytes", 1 << 30):
            return Answer(413, b"too large")
        if n >= len(case["answers"]):
            accepted.extend([item.get("op", "create"), item["id"]] for item in request.items)
            return accept(request)
        wanted = case["answers"][n]
        if wanted.get("hang_up"):
            return Answer(hang_up=True)
        headers = dict(wanted["headers"])
        for filler, text in fillers.items():
            headers = {name: value.replace(filler, text) for name, value in headers.items()}
        body = wanted["body"].encode()
        if "missing_bytes" in wanted:
            headers["Content-Length"] = str(len(body) + wanted["missing_bytes"])
        return Answer(wanted["status"], body, headers, close="missing_bytes" in wanted)

    server.default = answer
    client = make_client(batch_age_max=3600, wait_applied=case.get("wait_applied"))
    record_pauses(client)
    names: dict[str, str] = {}  # names for minted ids
    want = []
    for writes in [case["writes"], *case.get("more", [])]:
        for write in writes:
            names[make(client, write)] = write["id"]
            want.append([write.get("op", "create"), write["id"]])
        client.flush(timeout=60)

    assert [
        {"id": names[error.id], "status": error.status, "code": error.code} for error in reported
    ] == case["reported"]
    assert all(request.method == "POST" for request in server.requests)
    if case["requests"] is not None:
        assert [[names[id] for id in ids] for ids in server.ids] == case["requests"]
    if "paths" in case:
        assert [request.path for request in server.requests] == case["paths"]
    if "wait_applied" in case:
        prefer = {request.headers.get("prefer") for request in server.requests}
        assert prefer == {f"wait={case['wait_applied']}"}
    else:
        lost = {error["id"] for error in case["reported"]}
        assert accepted == case.get("accepted", [w for w in want if w[1] not in lost])


@pytest.mark.parametrize("case", CASES["redirects"], ids=str)
def test_redirects(case: Case) -> None:
    target = urljoin(case["from"], case["location"])
    assert may_follow(case["status"], case["from"], target) is case["followed"]


def test_held_writes_stay_in_the_spool_and_are_logged_once(
    make_client: MakeClient,
    server: Server,
    reported: list[WriteError],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.default = lambda _: problem(401, "unauthorized")
    client = make_client(spool_dir=tmp_path)
    record_pauses(client)
    id = track(client)
    server.wait_for(5)
    with pytest.raises(FlushTimeoutError) as caught:
        client.close(timeout=0)
    assert isinstance(caught.value.__cause__, ApiError)
    assert caught.value.__cause__.status == 401
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].getMessage().endswith("401 unauthorized")
    assert not reported

    server.default = accept
    make_client(spool_dir=tmp_path).flush()
    assert server.ids[-1] == [id]
    assert not reported


def test_a_lowered_limit_is_raised_again(make_client: MakeClient, server: Server) -> None:
    server.default = lambda r: Answer(413) if len(r.items) > 1 else accept(r)
    client = make_client(batch_age_max=3600)
    for _ in range(4):
        track(client)
    client.flush()
    server.default = accept
    before = len(server.requests)
    for _ in range(6 * GROW_AFTER_BATCHES):
        track(client)
    client.flush()
    assert max(map(len, server.ids[before:])) >= 4


@pytest.mark.parametrize("wait", [0, 0.5, 31, float("nan")])
def test_the_wait_is_checked(wait: float, make_client: MakeClient) -> None:
    with pytest.raises(ValidationError) as caught:
        make_client(wait_applied=wait)
    assert caught.value.field == "wait_applied"
