"""The examples and a round trip against the real server of SLUICE_URL, if it is set."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import sluice

URL = os.environ.get("SLUICE_URL", "")
ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not URL, reason="SLUICE_URL is not set")


@pytest.mark.parametrize("example", sorted(path.name for path in ROOT.glob("examples/*.py")))
def test_examples(example: str) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        check=True,
        timeout=120,
    )


def test_round_trip() -> None:
    reported: list[sluice.WriteError] = []
    conversation = f"live/{uuid.uuid4()} 漢"
    with sluice.Client(URL, gzip=True, on_error=reported.append) as client:
        ids = [
            client.track_event(
                conversation_id=conversation,
                event_name="event_a",
                conversation_metadata={"run": conversation},
                input={"n": n, "text": "é\u2028\0"},
                latency=n,
                input_embeddings=[0.5, n],
            )
            for n in range(25)
        ]
        for id in ids:
            client.update_event(id, error="late")
            client.update_event(id, error=None, output=id)
        client.delete_event(ids[0])
        client.update_event(f"{uuid.uuid4()}", event_name="no such name")

        events = list(client.conversation_events(conversation, limit=10, embeddings=True, wait=20))
        assert [event["id"] for event in events] == ids[1:]
        for n, event in enumerate(events, 1):
            assert event["input"] == {"n": n, "text": "é\u2028\0"}
            assert event["output"] == event["id"]
            assert event["error"] is None
            assert event["latency"] == n
            assert event["input_embeddings"] == [0.5, n]

        with pytest.raises(sluice.ApiError) as caught:
            client.event(ids[0])
        assert caught.value.code == "unknown_event"
        of_run = {"run": conversation}
        assert client.errors(metadata=of_run)["events"] == 24
        (row,) = client.latency(q=[0.5, 0.9], group_by=["event_name"], metadata=of_run)["rows"]
        assert set(row["quantiles"]) == {"0.5", "0.9"}
        (conversations,) = client.conversations(conversation_id=conversation)["rows"]
        assert conversations["events"] == 24
        series = client.time_series(interval="1h", conversation_id=conversation)["rows"]
        assert sum(bucket["events"] for bucket in series) == 24
        with pytest.raises(sluice.ApiError) as caught:
            client.time_series(interval="soon")
        assert caught.value.field == "interval"
    (error,) = reported
    assert (error.op, error.status, error.field) == ("update", 422, "event_name")
