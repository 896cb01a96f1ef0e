"""Track a few events, and list, search and count them by filters.

SLUICE_URL=http://127.0.0.1:8080 python examples/lists.py
"""

from __future__ import annotations

import os

import sluice

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8080")


def main() -> None:
    with sluice.Client(URL) as client:
        for tokens, error in ((200, None), (1500, "tool timeout"), (3000, "tool timeout")):
            client.track_event(
                conversation_id="lists-python",
                conversation_metadata={"plan": "pro", "tokens": tokens},
                event_name="event_a",
                input="Where is my order?",
                error=error,
            )

        # The errors of the last hour that used many tokens, the newest first. With wait, the list
        # has the events above.
        expensive: sluice.Filter = {
            "since": "1h",
            "error": True,
            "metadata": {"plan": "pro"},
            "conditions": [("tokens", ">", 1000)],
        }
        events = list(client.all_events(**expensive, wait=10))
        for event in events:
            print(event["timestamp"], event["conversation_id"], event["error"])
        assert len(events) >= 2

        # The conversations that had these errors, the one with the latest error first.
        for listed in client.list_conversations(**expensive, limit=20)["conversations"]:
            print(listed["conversation_id"], listed["errors"], listed["first_input"])

        # Those of them that have all words of a text.
        found = client.search(text="order where", **expensive)["results"]
        assert len(found) >= 2

        # How many tokens they took.
        insights = client.insights(
            ["events", "sum(metadata.tokens)"], group_by=["event_name"], **expensive
        )
        for row in insights["rows"]:
            print(row["event_name"], row["events"], row["sum(metadata.tokens)"])


if __name__ == "__main__":
    main()
