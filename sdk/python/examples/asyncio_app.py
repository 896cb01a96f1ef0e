"""Write, trace and read in a program with asyncio.

SLUICE_URL=http://127.0.0.1:8080 python examples/asyncio_app.py
"""

from __future__ import annotations

import asyncio
import os
import uuid

import sluice

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8080")


async def complete(span: sluice.Span) -> str:
    """Stands in for the call of a model."""
    span.input = "Hello"
    await asyncio.sleep(0.05)
    return "Hi"


async def main() -> None:
    conversation = f"asyncio-{uuid.uuid4()}"
    async with sluice.AsyncClient(URL) as client:
        # These calls wait only if the queue is full, and never block the loop.
        await asyncio.gather(
            *(
                client.track_event(conversation_id=conversation, event_name="event_b", input=n)
                for n in range(10)
            )
        )
        print(await client.trace(conversation, complete))

        events = [event async for event in client.conversation_events(conversation, wait=10)]
        print(f"{len(events)} events")
        series = await client.time_series(interval="1m", since="10m", conversation_id=conversation)
        print(sum(row["events"] for row in series["rows"]), "events in the last 10 minutes")


if __name__ == "__main__":
    asyncio.run(main())
