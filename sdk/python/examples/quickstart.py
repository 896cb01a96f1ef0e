"""Track an event, change it, read it back.

SLUICE_URL=http://127.0.0.1:8080 python examples/quickstart.py
"""

from __future__ import annotations

import os

import sluice

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8080")


def main() -> None:
    with sluice.Client(URL) as client:
        # The call returns at once. A thread sends the event within 100 ms, in a batch.
        id = client.track_event(
            conversation_id="quickstart-python",
            conversation_metadata={"plan": "free"},
            event_name="event_a",
            latency=412.5,
            input="Where is my order?",
            output="On its way.",
            input_embeddings=[0.25, -1.0, 0.5],
        )

        # An update changes only the fields that it has. None clears a field.
        client.update_event(id, output="It arrives on Monday.", latency=None)

        # With wait, a read includes everything that this client wrote before.
        event = client.event(id, wait=10)
        print(event["timestamp"], event["output"], event["latency"])

        for event in client.conversation_events("quickstart-python", limit=100):
            print(event["id"], event["event_name"])

        count = client.errors(event_name="event_a", since="7d", metadata={"plan": "free"})
        print(f"{count['errors']} errors in {count['events']} events")


if __name__ == "__main__":
    main()
