"""The conformance driver. sdk/README.md has its protocol."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import sluice
from sluice._ids import Process, mint

Command = dict[str, Any]
Answer = dict[str, Any]

KINDS: list[tuple[type[Exception], str]] = [
    (sluice.ValidationError, "invalid"),
    (sluice.QueueFullError, "queue_full"),
    (sluice.FlushTimeoutError, "timeout"),
    (sluice.ClosedError, "closed"),
    (sluice.ApiError, "api"),
    (sluice.NetworkError, "network"),
    (sluice.SpoolInUseError, "in_use"),
]


class TracedError(Exception):
    pass


class Driver:
    def __init__(self) -> None:
        self.opened: sluice.Client | None = None
        self.reported: list[sluice.WriteError] = []

    @property
    def client(self) -> sluice.Client:
        if self.opened is None:
            raise RuntimeError("no client is open")
        return self.opened

    def do(self, command: Command) -> Answer:
        name = command["do"]
        if name in ("errors", "latency", "conversations", "timeseries"):
            return self.analytics(name, command)
        method: Callable[[Command], Answer] | None = getattr(self, f"do_{name}", None)
        if method is None:
            raise RuntimeError(f"unknown command {name}")
        return method(command)

    def do_mint(self, command: Command) -> Answer:
        random = int(command["random"])
        return {"id": mint(command["conversation_id"], int(command["unix_micros"]), random)}

    def do_sequence(self, command: Command) -> Answer:
        process = Process(int(command["first"]))
        return {
            "ids": [
                process.mint(
                    step["conversation_id"],
                    step.get("timestamp_micros") or process.micros(step["clock_micros"]),
                )
                for step in command["steps"]
            ]
        }

    def do_open(self, command: Command) -> Answer:
        self.opened = sluice.Client(**command.get("options", {}), on_error=self.reported.append)
        return {}

    def do_track(self, command: Command) -> Answer:
        # Python itself would refuse a call without these two arguments.
        return {
            "id": self.client.track_event(
                **{"conversation_id": "", "event_name": ""} | command["event"]
            )
        }

    def do_update(self, command: Command) -> Answer:
        self.client.update_event(command["id"], **command["fields"])
        return {}

    def do_delete(self, command: Command) -> Answer:
        self.client.delete_event(command["id"])
        return {}

    def do_flush(self, command: Command) -> Answer:
        self.client.flush(command.get("timeout"))
        return {}

    def do_close(self, command: Command) -> Answer:
        self.client.close(command.get("timeout", 10))
        return {}

    def do_event(self, command: Command) -> Answer:
        return {"event": self.client.event(command["id"], wait=command.get("wait") or None)}

    def do_conversation(self, command: Command) -> Answer:
        events = self.client.conversation_events(
            command["id"],
            limit=command.get("limit") or None,
            embeddings=command.get("embeddings", False),
            **query(command),
        )
        return {"events": list(events)}

    def do_list_events(self, command: Command) -> Answer:
        return {"events": list(self.client.all_events(**query(command)))}

    def do_list_conversations(self, command: Command) -> Answer:
        return {"conversations": list(self.client.all_conversations(**query(command)))}

    def analytics(self, name: str, command: Command) -> Answer:
        read: Callable[..., Answer] = getattr(
            self.client, "time_series" if name == "timeseries" else name
        )
        return read(**query(command))

    def do_search(self, command: Command) -> Answer:
        return {"results": list(self.client.search_all(**query(command)))}

    def do_export_events(self, command: Command) -> Answer:
        return {"events": list(self.client.export_events(**query(command)))}

    def do_insights(self, command: Command) -> Answer:
        return dict(self.client.insights(**query(command)))

    def do_funnel(self, command: Command) -> Answer:
        return dict(self.client.funnel(**query(command)))

    def do_retention(self, command: Command) -> Answer:
        return dict(self.client.retention(**query(command)))

    def do_sql(self, command: Command) -> Answer:
        arguments = query(command)
        return dict(self.client.sql(arguments["query"], wait=arguments["wait"]))

    def do_write_sql(self, command: Command) -> Answer:
        file = io.BytesIO()
        self.client.write_sql(file=file, **query(command))
        return {"bytes": base64.b64encode(file.getvalue()).decode()}

    def do_trace(self, command: Command) -> Answer:
        spans: list[sluice.Span] = []

        def traced(span: sluice.Span) -> object:
            spans.append(span)
            span.input = command.get("input")
            time.sleep(command.get("sleep") or 0)
            if command.get("error"):
                raise TracedError(command["error"])
            return command.get("output")

        try:
            self.client.trace(command["conversation_id"], traced)
        except TracedError as e:
            return {"id": spans[0].id, "raised": str(e)}
        return {"id": spans[0].id}

    def do_reported(self, command: Command) -> Answer:
        members = ("op", "id", "status", "code", "field")
        errors = [{name: getattr(e, name) for name in members} for e in list(self.reported)]
        return {"errors": errors}


def query(command: Command) -> Command:
    """The arguments of a read."""
    arguments = dict(command.get("query", {}))
    inner = arguments.pop("wait", None)
    arguments["wait"] = command.get("wait") or inner or None
    arguments = dict(step(arguments))
    if "steps" in arguments:
        arguments["steps"] = [step(one) for one in arguments["steps"]]
    for name in ("did", "returned"):
        if name in arguments:
            arguments[name] = step(arguments[name])
    return arguments


def step(arguments: Any) -> Any:
    """A step, or the arguments of a read, with their conditions as tuples."""
    if isinstance(arguments, str) or "conditions" not in arguments:
        return arguments
    conditions = [
        (condition["key"], condition["op"], condition.get("value"))
        for condition in arguments["conditions"]
    ]
    return arguments | {"conditions": conditions}


def failure(error: Exception) -> Answer:
    kind = next((kind for cls, kind in KINDS if isinstance(error, cls)), "other")
    return {
        "error": {
            "kind": kind,
            "field": getattr(error, "field", ""),
            "status": getattr(error, "status", 0),
            "code": getattr(error, "code", ""),
            "detail": getattr(error, "detail", "") or str(error),
        }
    }


def main() -> None:
    driver = Driver()
    for line in sys.stdin.buffer:
        try:
            answer = driver.do(json.loads(line))
        except Exception as e:
            answer = failure(e)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
