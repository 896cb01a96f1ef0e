"""The sender: a thread that takes batches from the queue, and sends and retries them."""

from __future__ import annotations

import gzip
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from sluice import _http, _retry
from sluice._options import Options
from sluice._queue import Queue, Write
from sluice.errors import ApiError, NetworkError
from sluice.types import WriteError

GZIP_BYTES_MIN = 1024
_RECEIPT = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)

_log = logging.getLogger("sluice")


class Sender:
    """Sends the queue, one batch at a time, until `stopped` is set and the queue is stopped."""

    def __init__(
        self,
        options: Options,
        queue: Queue,
        transport: _http.Transport,
        report: Callable[[WriteError], None],
        stopped: threading.Event,
        observe: Callable[[_http.Response, int], None],
    ) -> None:
        self._options = options
        self._queue = queue
        self._transport = transport
        self._report = report
        self._stopped = stopped
        self._observe = observe
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._receipts: dict[str, tuple[str, int, str]] = {}  # the last of each partition
        self._end = math.inf  # when send_here ends, in time.monotonic
        self._told = ""  # the last error that was logged for held writes
        # The error of the last batch; None if it was acknowledged.
        self.last_error: ApiError | NetworkError | None = None
        self.sleep: Callable[[float], object] = stopped.wait

    def start(self) -> None:
        """Starts the thread, if it does not run.

        No thread can be started while the interpreter exits, from Python 3.12 on. Callers that wait
        for the queue then send it by `send_here`.
        """
        if self._thread is not None:
            return
        with self._start_lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="sluice-sender", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return
                self._thread = thread

    def is_missing(self) -> bool:
        """Whether no thread sends the queue."""
        return self._thread is None

    def send_here(self, seq: int, timeout: float | None) -> None:
        """Sends in this thread until all writes up to `seq` are answered or the time is over.

        It is for an interpreter that exits and cannot start the sender's thread.
        """
        self._end = math.inf if timeout is None else time.monotonic() + timeout
        self._thread = threading.current_thread()  # for is_current in the error callback
        try:
            while self._queue.left(seq) and (left := self._end - time.monotonic()) > 0:
                pause = self._send(self._queue.take())
                if pause:
                    time.sleep(min(pause, max(left, 0)))
        finally:
            self._thread = None
            self._end = math.inf

    def join(self, timeout: float) -> None:
        """Waits until the thread has ended."""
        if self._thread is not None:
            self._thread.join(timeout)

    def is_current(self) -> bool:
        """Whether this is the sender's thread, as in the error callback."""
        return self._thread is threading.current_thread()

    def receipts(self) -> list[str]:
        """Returns the last receipt of each partition that has writes of this client."""
        return [text for _, _, text in list(self._receipts.values())]

    def _run(self) -> None:
        while batch := self._queue.take():
            try:
                pause = self._send(batch)
            except Exception:
                # After an unexpected error, the queue must not stop for good.
                _log.exception("BUG: the batch could not be sent; it is tried again")
                self._queue.settle([], batch)
                pause = _retry.PAUSE_MAX
            if pause:
                self.sleep(pause)

    def _send(self, batch: list[Write]) -> float:
        """Sends the batch and settles its writes. Returns the pause before the next, in seconds."""
        now = time.monotonic()
        for write in batch:
            if write.first_tried is None:
                write.first_tried = now
        retry_after = 0.0
        outcomes: list[_Outcome]
        try:
            response = self._post(batch)
            retry_after = response.retry_after
            outcomes = self._outcomes(response, len(batch))
        except _Refused as refused:
            if refused.final and len(batch) > 1:
                self._queue.put_back(batch, too_large=refused.error.status == 413)
                return 0.0
            outcomes = [_Outcome(refused.error, refused.final)] * len(batch)
        except NetworkError as e:
            outcomes = [_Outcome(e, False)] * len(batch)

        answered: list[Write] = []
        retried: list[tuple[Write, ApiError | NetworkError]] = []
        for write, (error, final) in zip(batch, outcomes, strict=True):
            if error is None or _is_own(write, error):
                answered.append(write)
            elif final:
                answered.append(write)
                self._report(_write_error(write, error))
            else:
                write.tries += 1
                write.unsure = write.unsure or _retry.may_have_written(error)
                retried.append((write, error))

        pause = 0.0
        again = [write for write, _ in retried]
        if not retried:
            self.last_error, self._told = None, ""
        else:
            error = retried[-1][1]
            if not self._stopped.is_set():  # stopping breaks off the request by itself
                self.last_error = error
                self._tell_held(error)
            pause = _retry.pause_after(max(write.tries for write in again), retry_after)
            if self._options.retry_for is not None:
                end = time.monotonic() + pause - self._options.retry_for
                for write, last_error in retried:
                    if write.first_tried is not None and write.first_tried <= end:
                        answered.append(write)
                        self._report(_write_error(write, last_error))
                again = [write for write in again if (write.first_tried or 0) > end]
        self._queue.settle(answered, again)
        return pause if again else 0.0

    def _tell_held(self, error: ApiError | NetworkError) -> None:
        """Logs that writes are held, once for each cause until a batch is acknowledged.

        Held writes are retried, but somebody must change something before they can succeed.
        """
        # The detail is left out, because it may quote contents. This library wrote the detail of a
        # redirect, so it quotes nothing.
        if isinstance(error, ApiError) and error.status >= 400:
            text = f"{error.status} {error.code}".rstrip()
        else:
            text = str(error)
        if _retry.is_held(error) and text != self._told:
            self._told = text
            _log.error(
                "writes are held and retried: the server refuses this client, or is not Sluice; "
                "check url and api_key: %s",
                text,
            )

    def _post(self, batch: list[Write]) -> _http.Response:
        body = b"\n".join([write.item for write in batch]) + b"\n"
        headers = {"Content-Type": "application/x-ndjson"}
        if self._options.gzip and len(body) >= GZIP_BYTES_MIN:
            body = gzip.compress(body, compresslevel=6, mtime=0)
            headers["Content-Encoding"] = "gzip"
        timeout = self._options.request_timeout
        if self._options.wait_applied is not None:
            wait = math.ceil(self._options.wait_applied)
            headers["Prefer"] = f"wait={wait}"
            timeout += wait
        timeout = min(timeout, max(self._end - time.monotonic(), 0.001))
        return self._transport.request(
            "POST", "/events", body=body, headers=headers, timeout=timeout
        )

    def _outcomes(self, response: _http.Response, writes: int) -> list[_Outcome]:
        """Returns the outcome of each write.

        Raises _Refused if the batch was refused as a whole, and UnreadableError.
        """
        status = response.status
        # A batch whose writes are all refused may have a status of 4xx, and has results too.
        results = None
        if status < 300 or 400 <= status < 500:
            results = _results(response.body, writes)
        if results is None:
            if status < 300:
                raise _retry.UnreadableError(f"the answer of status {status} is not Sluice's")
            if response.is_problem():
                error = response.error()
                self._observe(response, writes if _is_of_time(error) else 0)
            raise _Refused(response.error(), response.is_final())
        self._queue.batch_ok()
        outcomes = []
        for result in results:
            problem = result.get("error")
            if isinstance(problem, dict):
                error = _retry.problem_error(problem["status"], problem)
                outcomes.append(_Outcome(error, _retry.is_final_item(error)))
                self._keep(problem.get("receipt"))
            else:
                outcomes.append(_Outcome(None, True))
                self._keep(result.get("receipt"))
        refused = sum(isinstance(e, ApiError) and _is_of_time(e) for e, _ in outcomes)
        self._observe(response, refused)
        return outcomes

    def _keep(self, receipt: object) -> None:
        match = _RECEIPT.fullmatch(receipt) if isinstance(receipt, str) else None
        if match is None:
            return
        generation, partition, offset = match[1], match[2], int(match[3])
        last = self._receipts.get(partition)
        # The receipts of a partition within an answer need not be in the order of the log.
        if last is None or last[0] != generation or last[1] < offset:
            self._receipts[partition] = (generation, offset, match[0])


class _Outcome(NamedTuple):
    """The outcome of a write: its error, or None if it was accepted, and whether it is final."""

    error: ApiError | NetworkError | None
    final: bool


class _Refused(Exception):
    """A batch was refused as a whole.

    `final` is whether the same answer would refuse a single write for good.
    """

    def __init__(self, error: ApiError, final: bool) -> None:
        self.error = error
        self.final = final


def _is_of_time(error: ApiError) -> bool:
    """Whether a write was refused for its time, which is in a timestamp or in a minted id."""
    return error.code == "invalid_value" and error.field in ("id", "timestamp")


def _is_own(write: Write, error: ApiError | NetworkError) -> bool:
    """Whether an earlier attempt of this same write took the id."""
    return (
        isinstance(error, ApiError)
        and error.code == "id_taken"
        and write.op == "create"
        and (write.minted or write.unsure)
    )


def _results(body: bytes, writes: int) -> list[dict[str, object]] | None:
    """Parses the results of a batch; None unless there is a valid result for each write."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list) or len(results) != writes:
        return None
    return results if all(map(_is_result, results)) else None


def _is_result(result: object) -> bool:
    if not isinstance(result, dict):
        return False
    error = result.get("error")
    if error is None:
        return isinstance(result.get("receipt"), str) and result["receipt"] != ""
    if not isinstance(error, dict):
        return False
    status, code = error.get("status"), error.get("code")
    return isinstance(status, int) and 400 <= status < 600 and isinstance(code, str) and code != ""


def _write_error(write: Write, error: ApiError | NetworkError) -> WriteError:
    if isinstance(error, NetworkError):
        return WriteError(write.op, write.id, 0, "network", str(error), "")
    return WriteError(write.op, write.id, error.status, error.code, error.detail, error.field)
