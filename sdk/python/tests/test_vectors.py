"""The vectors of sdk/spec, which all client libraries share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeClient, record_pauses, track
from server import Answer, Server
from sluice import Client, ValidationError, WriteError
from sluice._encode import check_id, create
from sluice._ids import Process, conversation_hash, mint

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"

Vector = dict[str, Any]


def load(file: str, *members: str) -> list[Any]:
    vectors = json.loads((VECTORS / file).read_text(encoding="utf-8"))
    return [
        pytest.param(vector, id=vector["name"]) for member in members for vector in vectors[member]
    ]


def call(client: Client, vector: Vector) -> str:
    if vector["call"] == "track":
        event = {"conversation_id": "", "event_name": ""} | vector["event"]
        if "repeat_dimensions" in vector:
            event["output_embeddings"] = [0.0] * vector["repeat_dimensions"]
        return client.track_event(**event)
    if vector["call"] == "update":
        client.update_event(vector["id"], **vector["fields"])
    else:
        client.delete_event(vector["id"])
    return str(vector["id"])


@pytest.mark.parametrize("vector", load("ids.json", "mint"))
def test_mint(vector: Vector) -> None:
    assert f"{conversation_hash(vector['conversation_id']):06x}" == vector["hash"]
    id = mint(vector["conversation_id"], vector["unix_micros"], int(vector["random"]))
    assert id == vector["id"]


@pytest.mark.parametrize("vector", load("ids.json", "sequences"))
def test_sequence(vector: Vector) -> None:
    process = Process(int(vector["first"]))
    for step in vector["steps"]:
        micros = step.get("timestamp_micros")
        if micros is None:
            micros = process.micros(step["clock_micros"])
        assert micros == step["unix_micros"]
        assert process.mint(step["conversation_id"], micros) == step["id"]


@pytest.mark.parametrize("vector", load("ids.json", "refs"))
def test_own_ids(vector: Vector) -> None:
    if vector["kind"] != "invalid":
        check_id(vector["id"])
    elif not vector["name"].startswith(("UUIDv8", "internal")):  # the server refuses those
        with pytest.raises(ValidationError):
            check_id(vector["id"])


@pytest.mark.parametrize("vector", load("clients.json", "bodies"))
def test_bodies(vector: Vector, client: Client, server: Server) -> None:
    id = call(client, vector)
    client.flush()
    (request,) = server.requests
    (item,) = request.items
    if vector.get("minted"):
        assert item.pop("id") == id
        assert id.startswith(vector.get("id_prefix", ""))
    assert item == vector["item"]


@pytest.mark.parametrize("vector", load("clients.json", "invalid"))
def test_invalid(vector: Vector, client: Client, server: Server) -> None:
    with pytest.raises(ValidationError) as caught:
        call(client, vector)
    assert caught.value.field.startswith(vector["field"])
    assert bool(caught.value.field) == bool(vector["field"])
    client.flush()
    assert not server.requests


@pytest.mark.parametrize("vector", load("clients.json", "responses"))
def test_responses(
    vector: Vector, make_client: MakeClient, server: Server, reported: list[WriteError]
) -> None:
    answer = Answer(vector["status"], vector["body"].encode(), vector["headers"])
    server.answers = [lambda _: answer]
    client = make_client()
    pauses = record_pauses(client)
    track(client, "order-1")
    client.flush()

    if vector["outcome"] == "retried":
        assert server.ids == [["order-1"], ["order-1"]]
        assert len(pauses) == 1
        assert pauses[0] >= vector.get("retry_after", 0.05)
    else:
        assert server.ids == [["order-1"]]
        assert not pauses
    if vector["outcome"] == "refused":
        (error,) = reported
        assert (error.op, error.id) == ("create", "order-1")
        for member, value in vector["error"].items():
            assert getattr(error, member) == value
    else:
        assert not reported


EVENTS = json.loads((VECTORS / "events.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case["name"])
        for case in EVENTS
        if case["call"] == "create" and case["name"].startswith(("timestamp", "earliest timestamp"))
    ],
)
def test_timestamps_as_the_server_reads_them(case: Vector) -> None:
    body = json.loads(case["body"])
    if "error" in case:
        with pytest.raises(ValidationError) as caught:
            create(**body)
        assert caught.value.field == case["error"]["field"] == "timestamp"
        return
    item = json.loads(create(**body, id="order-1").item)
    assert item["timestamp"] == case["event"]["timestamp"]
