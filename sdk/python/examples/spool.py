"""Keep writes in files while the server cannot be reached, and send them at the next start.

SLUICE_URL=http://127.0.0.1:8080 python examples/spool.py
"""

from __future__ import annotations

import os
import tempfile

import sluice

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8080")
NOWHERE = "http://127.0.0.1:9"


def main() -> None:
    # A service has a permanent directory for each of its processes.
    with tempfile.TemporaryDirectory() as directory:
        client = sluice.Client(NOWHERE, spool_dir=directory)
        ids = [
            client.track_event(conversation_id="spool-python", event_name="event_a", input=n)
            for n in range(3)
        ]
        try:
            client.close(timeout=0.5)
        except sluice.FlushTimeoutError as e:
            print(f"before the end: {e.left} writes are left")

        # The next start sends the writes before anything else.
        with sluice.Client(URL, spool_dir=directory) as client:
            client.flush(timeout=30)
            for id in ids:
                print(client.event(id, wait=10)["input"])


if __name__ == "__main__":
    main()
