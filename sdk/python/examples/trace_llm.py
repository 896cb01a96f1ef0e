"""Trace calls of a language model: one event for each, also when it fails.

SLUICE_URL=http://127.0.0.1:8080 python examples/trace_llm.py
"""

from __future__ import annotations

import os
import time
import uuid

import sluice

URL = os.environ.get("SLUICE_URL", "http://127.0.0.1:8080")

Messages = list[dict[str, str]]


class OverloadedError(Exception):
    pass


def complete(messages: Messages) -> str:
    """Stands for the call of a model."""
    time.sleep(0.05)
    if "fail" in messages[-1]["content"]:
        raise OverloadedError("the model is overloaded")
    return f"You said: {messages[-1]['content']}"


def main() -> None:
    conversation = f"trace-{uuid.uuid4()}"
    with sluice.Client(URL) as client:
        messages: Messages = [{"role": "user", "content": "Hello"}]

        # The output is what the function returns, the latency how long it took.
        answer = client.trace(conversation, lambda span: complete(messages), input=messages)
        print(answer)

        # As a context manager, the output is told.
        with client.trace(conversation, input=messages) as span:
            text = complete(messages)
            span.output = [{"role": "assistant", "content": text}]
            span.output_embeddings = [0.1, 0.2]

        # An exception goes on to the caller, and is the event's error.
        try:
            client.trace(conversation, lambda span: complete([{"role": "user", "content": "fail"}]))
        except OverloadedError as e:
            print(f"it failed: {e}")

        for event in client.conversation_events(conversation, wait=10):
            print(event["event_name"], event["latency"], event["output"], event["error"])


if __name__ == "__main__":
    main()
