"""Trace calls of a language model. Each call is one event, also if it fails.

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
    """Stands in for the call of a model."""
    time.sleep(0.05)
    if "fail" in messages[-1]["content"]:
        raise OverloadedError("the model is overloaded")
    return f"You said: {messages[-1]['content']}"


def main() -> None:
    conversation = f"trace-{uuid.uuid4()}"
    with sluice.Client(URL) as client:
        messages: Messages = [{"role": "user", "content": "Hello"}]

        # The output is the return value, and the latency the duration of the call.
        answer = client.trace(conversation, lambda span: complete(messages), input=messages)
        print(answer)

        # With the context manager, set the output on the span.
        with client.trace(conversation, input=messages) as span:
            text = complete(messages)
            span.output = [{"role": "assistant", "content": text}]
            span.output_embeddings = [0.1, 0.2]

        # An exception becomes the event's error, and goes on to the caller.
        try:
            client.trace(conversation, lambda span: complete([{"role": "user", "content": "fail"}]))
        except OverloadedError as e:
            print(f"it failed: {e}")

        for event in client.conversation_events(conversation, wait=10):
            print(event["event_name"], event["latency"], event["output"], event["error"])


if __name__ == "__main__":
    main()
