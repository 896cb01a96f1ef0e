"""The sender: a thread that takes batches from the queue and sends them, one at a time."""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
import time
from collections.abc import Callable

from sluice import _http
from sluice._options import Options
from sluice._queue import Queue, Write
from sluice.errors import ApiError, NetworkError
from sluice.types import WriteError

GZIP_BYTES_MIN = 1024
_RECEIPT = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)

_log = logging.getLogger("sluice")


class Sender:
    """Sends what is in the queue until `stopped` is set and the queue stopped."""

    def __init__(
        self,
        options: Options,
        queue: Queue,
        transport: _http.Transport,
        report: Callable[[WriteError], None],
        stopped: threading.Event,
    ) -> None:
        self._options = options
        self._queue = queue
        self._transport = transport
        self._report = report
        self._stopped = stopped
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._receipts: dict[str, tuple[str, int, str]] = {}  # the last of each partition
        self.sleep: Callable[[float], object] = stopped.wait

    def start(self) -> None:
        """Starts the thread, unless it was started already."""
        if self._thread is not None:
            return
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="sluice-sender", daemon=True)
                thread.start()
                self._thread = thread

    def join(self, timeout: float) -> None:
        """Waits until the thread has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def is_current(self) -> bool:
        """Whether this is the sender's thread, as in the error callback."""
        return self._thread is threading.current_thread()

    def receipts(self) -> list[str]:
        """The last receipt of each partition that this client has written to."""
        return [text for _, _, text in list(self._receipts.values())]

    def _run(self) -> None:
        while batch := self._queue.take():
            try:
                pause = self._send(batch)
            except Exception:
                # The queue must not stand still for good, whatever happens here.
                _log.exception("BUG: the batch could not be sent; it is tried again")
                self._queue.settle([], batch)
                pause = _http.PAUSE_MAX
            if pause:
                self.sleep(pause)

    def _send(self, batch: list[Write]) -> float:
        """Sends the batch and settles its writes. Returns how long to pause before the next."""
        now = time.monotonic()
        for write in batch:
            if write.first_tried is None:
                write.first_tried = now
        retry_after = 0.0
        outcomes: list[ApiError | NetworkError | None]
        try:
            response = self._post(batch)
            retry_after = response.retry_after
            outcomes = self._outcomes(response, len(batch))
        except NetworkError as e:
            outcomes = [e] * len(batch)

        answered: list[Write] = []
        retried: list[tuple[Write, ApiError | NetworkError]] = []
        for write, error in zip(batch, outcomes, strict=True):
            if error is not None and _http.is_retryable(error):
                write.tries += 1
                retried.append((write, error))
                continue
            answered.append(write)
            if error is not None:
                self._report(_write_error(write, error))

        pause = 0.0
        again = [write for write, _ in retried]
        if retried:
            pause = _http.pause_after(max(write.tries for write in again), retry_after)
            if self._options.retry_for is not None:
                end = time.monotonic() + pause - self._options.retry_for
                for write, error in retried:
                    if write.first_tried is not None and write.first_tried <= end:
                        answered.append(write)
                        self._report(_write_error(write, error))
                again = [write for write in again if (write.first_tried or 0) > end]
        self._queue.settle(answered, again)
        return pause if again else 0.0

    def _post(self, batch: list[Write]) -> _http.Response:
        body = b"\n".join([write.item for write in batch]) + b"\n"
        headers = {"Content-Type": "application/x-ndjson"}
        if self._options.gzip and len(body) >= GZIP_BYTES_MIN:
            body = gzip.compress(body, compresslevel=6, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return self._transport.request(
            "POST", "/events", body=body, headers=headers, timeout=self._options.request_timeout
        )

    def _outcomes(
        self, response: _http.Response, writes: int
    ) -> list[ApiError | NetworkError | None]:
        """What became of each write: None where it was accepted."""
        if not 200 <= response.status < 300:
            return [response.error()] * writes
        results = _results(response.body)
        if results is None or len(results) != writes:
            return [NetworkError("the answer cannot be read")] * writes
        outcomes: list[ApiError | NetworkError | None] = []
        for result in results:
            error = result.get("error")
            if isinstance(error, dict) and isinstance(error.get("status"), int):
                outcomes.append(_http.problem_error(error["status"], error))
            elif error is None and isinstance(result.get("id"), str):
                outcomes.append(None)
                self._keep(result.get("receipt"))
            else:
                return [NetworkError("the answer cannot be read")] * writes
        return outcomes

    def _keep(self, receipt: object) -> None:
        match = _RECEIPT.fullmatch(receipt) if isinstance(receipt, str) else None
        if match is None:
            return
        generation, partition, offset = match[1], match[2], int(match[3])
        last = self._receipts.get(partition)
        # Within an answer, the receipts of a partition need not be in the log's order.
        if last is None or last[0] != generation or last[1] < offset:
            self._receipts[partition] = (generation, offset, match[0])


def _results(body: bytes) -> list[dict[str, object]] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        return None
    return results


def _write_error(write: Write, error: ApiError | NetworkError) -> WriteError:
    if isinstance(error, NetworkError):
        return WriteError(write.op, write.id, 0, "network", str(error), "")
    return WriteError(write.op, write.id, error.status, error.code, error.detail, error.field)
