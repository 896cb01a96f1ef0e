"""Proxies, certificate authorities, and the limits that all libraries share."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeClient, track
from server import Answer, Server, as_json
from sluice import ApiError, Client, ValidationError
from sluice._proxies import Proxy, proxy_for
from test_vectors import VECTORS

PROXIES = json.loads((VECTORS / "proxies.json").read_text(encoding="utf-8"))["proxies"]
OPTIONS = json.loads((VECTORS / "clients.json").read_text(encoding="utf-8"))["options"]


@pytest.mark.parametrize("case", PROXIES, ids=str)
def test_which_proxy(case: dict[str, Any]) -> None:
    assert proxy_for(case["url"], case["environment"]) == case["proxy"]


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options(case: dict[str, Any]) -> None:
    options = {case["option"]: case["value"]}
    if case["valid"]:
        Client(**options).close()
        return
    with pytest.raises(ValidationError) as caught:
        Client(**options)
    assert caught.value.field == case["option"]


@pytest.mark.parametrize("text", ["socks5://h:1", "https://h:1", "http://", "http://h:port"])
def test_invalid_proxies(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Proxy.of("http://sluice.example", {"HTTP_PROXY": text})
    assert caught.value.field == "HTTP_PROXY"


def test_http_through_a_proxy(
    make_client: MakeClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://us%65r:secret@127.0.0.1:{server.port}")
    client = make_client(url="http://sluice.example:8080/base", api_key="k1")
    track(client)
    client.flush()
    (request,) = server.requests
    assert request.path == "http://sluice.example:8080/base/events"
    assert request.headers["host"] == "sluice.example:8080"
    assert request.headers["authorization"] == "Bearer k1"
    login = base64.b64encode(b"user:secret").decode()
    assert request.headers["proxy-authorization"] == f"Basic {login}"


def test_https_through_a_proxy_asks_for_a_tunnel(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as (port, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        client = make_client(url="https://sluice.example", retry_for=0.0, api_key="secret")
        track(client)
        client.flush()
    assert heads[0].startswith(b"CONNECT sluice.example:443 HTTP/1.")
    assert b"secret" not in heads[0]


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """Runs a proxy that refuses every tunnel, and records the heads of its requests."""
    heads: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and (more := connection.recv(4096)):
                    head += more
                heads.append(head)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heads


def test_the_authorities_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for file in ("missing.pem", "empty.pem"):
        with pytest.raises(ValidationError) as caught:
            Client("https://sluice.example", ca_file=tmp_path / file)
        assert caught.value.field == "ca_file"


def test_a_read_waits_for_more_partitions_than_one_request_takes(
    client: Client, server: Server
) -> None:
    writes = 250

    def results(request: Any) -> Answer:
        return as_json(
            202,
            {"results": [{"id": id, "receipt": f"1.{n}.0"} for n, id in enumerate(request.ids)]},
        )

    server.answers = [
        results,
        lambda _: as_json(404, {"code": "unknown_event"}),
        lambda _: as_json(200, {"id": "a"}),
        lambda _: as_json(200, {"id": "a"}),
    ]
    for _ in range(writes):
        track(client)
    assert client.event("a", wait=1)["id"] == "a"
    after = [request.path.count("after=") for request in server.requests[1:]]
    assert after == [100, 100, 50]
    receipts = {part for r in server.requests[1:] for part in r.path.split("?")[1].split("&")}
    assert len(receipts) == writes


def test_an_error_of_the_first_request_ends_the_read(client: Client, server: Server) -> None:
    def results(request: Any) -> Answer:
        return as_json(
            202,
            {"results": [{"id": id, "receipt": f"1.{n}.0"} for n, id in enumerate(request.ids)]},
        )

    server.answers = [results, lambda _: as_json(503, {"code": "not_yet_applied"})]
    for _ in range(101):
        track(client)
    with pytest.raises(ApiError) as caught:
        client.event("a", wait=1)
    assert caught.value.code == "not_yet_applied"
