"""Measures the client: python bench/bench.py [--events N]

It measures the time and memory of track_event, and the events per second until all are answered: by
a server in another process that discards them, and by the server of SLUICE_URL if it is set.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

import sluice

Fields = dict[str, Any]

SMALL: Fields = {"event_name": "event_a", "latency": 412.5, "input": "Hello", "output": "Hi"}
MESSAGES: Fields = SMALL | {
    "conversation_metadata": {"plan": "pro", "user": 42},
    "input": [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "y" * 500}],
    "output": "z" * 1000,
}
VECTOR = [random.Random(1).uniform(-1, 1) for _ in range(1536)]
SHAPES: dict[str, Fields] = {
    "small": SMALL,
    "2 KB of messages": MESSAGES,
    "1,536 floats, list": SMALL | {"input_embeddings": VECTOR},
    "1,536 floats, array": SMALL | {"input_embeddings": array("f", VECTOR)},
}


def track(client: sluice.Client, events: int, fields: Fields) -> float:
    """Tracks events of 100 conversations, and returns the seconds that it took."""
    conversations = [f"conversation-{n}" for n in range(100)]
    begin = time.perf_counter()
    for n in range(events):
        client.track_event(conversation_id=conversations[n % 100], **fields)
    return time.perf_counter() - begin


def best(runs: int, measure: Callable[[], float]) -> float:
    return max(measure() for _ in range(runs))


def queue_only(url: str, events: int, fields: Fields) -> float:
    """Returns the events per second of track_event while nothing is sent."""
    client = sluice.Client(
        url,
        batch_age_max=3600,
        batch_writes_max=1 << 30,
        batch_bytes_max=1 << 40,
        queue_writes_max=events,
        queue_bytes_max=1 << 40,
    )
    seconds = track(client, events, fields)
    with contextlib.suppress(sluice.FlushTimeoutError):
        client.close(timeout=0)
    return events / seconds


def until_answered(url: str, events: int, fields: Fields, **options: Any) -> float:
    """Returns the events per second from the first call until all are answered."""
    with sluice.Client(url, **options) as client:
        begin = time.perf_counter()
        track(client, events, fields)
        client.flush()
        return events / (time.perf_counter() - begin)


def memory(url: str, fields: Fields) -> tuple[float, float]:
    """Returns the bytes and the memory blocks of a queued event."""
    events = 2000
    client = sluice.Client(
        url, batch_age_max=3600, batch_writes_max=1 << 30, batch_bytes_max=1 << 40
    )
    track(client, 200, fields)
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    track(client, events, fields)
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    with contextlib.suppress(sluice.FlushTimeoutError):
        client.close(timeout=0)
    difference = after.compare_to(before, "filename")
    of_bench = [d for d in difference if "tracemalloc" not in d.traceback[0].filename]
    size = sum(d.size_diff for d in of_bench)
    blocks = sum(d.count_diff for d in of_bench)
    return size / events, blocks / events


@contextlib.contextmanager
def discard_server() -> Iterator[str]:
    with subprocess.Popen([sys.executable, str(HERE / "discard.py")], stdout=subprocess.PIPE) as p:
        assert p.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(p.stdout.readline())}"
        finally:
            p.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--events", type=int, default=20_000, help="events of a run")
    parser.add_argument("--runs", type=int, default=3, help="runs, of which the best counts")
    arguments = parser.parse_args()
    events, runs = arguments.events, arguments.runs

    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {events:,} events a run")
    print(f"{'':22}{'track_event':>14}{'answered':>14}{'held':>22}")
    with discard_server() as url:
        for name, fields in SHAPES.items():
            queued = best(runs, lambda fields=fields: queue_only(url, events, fields))  # type: ignore[misc]
            sent = best(runs, lambda fields=fields: until_answered(url, events, fields))  # type: ignore[misc]
            size, blocks = memory(url, fields)
            print(
                f"{name:22}{queued:>12,.0f}/s{sent:>12,.0f}/s{size:>10,.0f} B{blocks:>4.1f} blocks"
            )
        with tempfile.TemporaryDirectory() as directory:
            sent = best(runs, lambda: until_answered(url, events, SMALL, spool_dir=directory))
            print(f"{'small, with a spool':22}{'':14}{sent:>12,.0f}/s")
        sent = best(runs, lambda: until_answered(url, events, MESSAGES, gzip=True))
        print(f"{'2 KB, with gzip':22}{'':14}{sent:>12,.0f}/s")
    if real := os.environ.get("SLUICE_URL"):
        sent = best(runs, lambda: until_answered(real, events, SMALL))
        print(f"{'small, SLUICE_URL':22}{'':14}{sent:>12,.0f}/s")


if __name__ == "__main__":
    main()
