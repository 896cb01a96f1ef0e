"""The machinery that `Client` and `AsyncClient` share: queue, sender, spool, and their end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from sluice import _clock, _reads
from sluice._encode import rfc3339
from sluice._http import Response, Transport
from sluice._ids import PROCESS
from sluice._options import CLOSE_TIMEOUT, Options
from sluice._queue import Queue, Write
from sluice._sender import Sender
from sluice._spool import Spool
from sluice.errors import (
    ApiError,
    ClosedError,
    FlushTimeoutError,
    NetworkError,
    QueueFullError,
    SluiceError,
)
from sluice.types import SupportsWrite, WriteError

_JOIN_TIMEOUT = 1.0

_log = logging.getLogger("sluice")


class OpenStream(Protocol):
    """See `_streams.Stream`."""

    def end(self) -> None:
        """Tracks the stream's event with the parts so far."""


class Core:
    """The machinery of one client. It is closed by `close`, or when the interpreter exits."""

    queue: Queue
    sender: Sender

    def __init__(self, options: Options) -> None:
        self.options = options
        self.forked: Callable[[], None] = lambda: None  # called in the child after a fork
        self._spool = None if options.spool_dir is None else Spool(options.spool_dir)
        self._assemble()
        if self._spool is not None:
            try:
                self._recover(self._spool)
            except BaseException:
                self._spool.close()
                raise
        _open_cores.add(self)

    def _assemble(self) -> None:
        self.closed = False
        self.streams: set[OpenStream] = set()  # the streams of traced calls that have not ended
        self._close_lock = threading.Lock()
        self._stopped = threading.Event()
        self.read_sleep = self._stopped.wait
        self._transport = Transport(
            self.options.url, self.options.api_key, ca_file=self.options.ca_file
        )
        self.queue = Queue(self.options, self._spool)
        self._told_clock = False
        self.sender = Sender(
            self.options,
            self.queue,
            self._transport,
            self.report,
            self._stopped,
            self._observe,
        )

    def _recover(self, spool: Spool) -> None:
        found = spool.recover()
        writes = []
        for place, item in found.items:
            write = _decoded(item)
            if write is None:
                found.corrupt.append(f"{place.file.path.name}: offset {place.offset}: not a write")
                spool.answered([place], None)
            else:
                write.place = place
                write.unsure = True  # the earlier process may have sent it
                writes.append(write)
        for detail in found.corrupt:
            self.report(WriteError("", "", 0, "spool_corrupt", detail, ""))
        if writes:
            self.queue.restore(writes)
            self.sender.start()

    def put(self, write: Write, *, block: bool = True) -> None:
        """Queues the write. If the queue is full, it blocks or raises, as the options say."""
        self.start_sender()
        # The error callback runs in the sender's thread. Only that thread makes room, so the
        # callback must not wait for room.
        block = block and not self.options.fail_when_full and not self.sender.is_current()
        timeout = self.options.block_timeout
        if block and self.sender.is_missing():
            try:
                self.queue.put(write, block=False)
            except QueueFullError:
                self.wait(self.queue.flush_begin(), timeout)  # no other thread makes room
                self.queue.put(write, block=False)
            return
        self.queue.put(write, block=block, timeout=timeout)

    def wait(self, seq: int, timeout: float | None) -> None:
        """Waits until all writes up to `seq` are answered, or the time is over."""
        if self.sender.is_missing():
            self.sender.send_here(seq, timeout)
        else:
            self.queue.flush_wait(seq, timeout)

    def put_at_once(self, write: Write) -> None:
        """Queues the write without waiting. The sender must have been started."""
        self.check_open()
        self.queue.put_at_once(write)

    def start_sender(self) -> None:
        """Starts the sender, if it does not run. A client without writes has no thread."""
        self.check_open()
        self.sender.start()

    def check_open(self) -> None:
        """Raises ClosedError if the client is closed."""
        if self.closed:
            raise ClosedError

    def report(self, error: WriteError) -> None:
        """Calls the error callback, or logs a warning if there is none."""
        if self.options.on_error is None:
            # The detail is left out, because it may quote contents.
            _log.warning(
                "write failed: op=%s id=%s status=%s code=%s field=%s",
                *(error.op, error.id, error.status, error.code, error.field),
            )
            return
        try:
            self.options.on_error(error)
        except Exception:
            _log.exception("on_error raised")

    def _observe(self, response: Response, refused: int = 0) -> None:
        """Compares this machine's clock with the time in an answer of Sluice.

        `refused` is the number of writes that the answer refused for their time. While the clock is
        wrong, events without a timestamp get the server's time. A wrong clock is reported once,
        until it is right again.
        """
        if response.date is None:
            return
        local = time.time()
        ahead = _clock.offset(response.date, local)
        PROCESS.follow(response.date if ahead else None)
        if not ahead:
            self._told_clock = False
            return
        if self._told_clock:
            return
        self._told_clock = True
        there, here = (rfc3339(int(at) * 1_000_000) for at in (response.date, local))
        detail = (
            f"the clock of this machine is {_clock.text_of(ahead)} "
            f"{'behind' if ahead > 0 else 'ahead of'} the server's: here {here}, there {there}. "
            f"The ids minted so far have the wrong time. The server refuses ids before the year "
            f"2000 or more than 24 hours ahead (it just refused {refused} writes; each goes to "
            f"on_error), and stores the others under the wrong time. From now on, events without "
            f"a timestamp get the server's time. Set the clock of this machine, for example by "
            f"NTP; no restart is needed"
        )
        _log.error("%s", detail)
        if self.options.on_error is not None:
            self.report(WriteError("", "", 0, "wrong_clock", detail, ""))

    def flush(self, timeout: float | None) -> None:
        """Waits until all queued writes are answered. Raises FlushTimeoutError and ClosedError."""
        self._not_in_callback()
        seq = self.queue.flush_begin()
        self.wait(seq, timeout)
        self.flush_end(seq)

    def flush_end(self, seq: int) -> None:
        """Raises FlushTimeoutError if writes up to `seq` are unanswered."""
        left = self.queue.left(seq)
        if left:
            raise FlushTimeoutError(left) from self.sender.last_error

    def read(self, read: _reads.Read, wait: int | None) -> Any:
        """Reads from the server. With `wait`, the read sees all writes that were flushed before."""
        self.check_open()
        ask = functools.partial(
            _reads.perform,
            self._transport,
            read,
            request_timeout=self.options.request_timeout,
            wait=wait,
            deadline=_reads.deadline(),
            stopped=self._stopped,
            sleep=self.read_sleep,
            observe=self._observe,
        )
        receipts = self.sender.receipts() if wait is not None else []
        while len(receipts) > _reads.RECEIPTS_MAX:
            # The log hardly ever has so many partitions. If it has, all requests but the last only
            # wait, and their results are ignored.
            try:
                ask(after=receipts[: _reads.RECEIPTS_MAX], ignore=True)
            except ApiError as e:
                if e.code != "unknown_event":
                    raise
            receipts = receipts[_reads.RECEIPTS_MAX :]
        return ask(after=receipts)

    def copy(
        self,
        read: _reads.Read,
        wait: int | None,
        file: SupportsWrite,
        left: Callable[[], bool] = lambda: False,
    ) -> None:
        """Reads a stream from the server and writes it to the file, until the caller has left."""
        with contextlib.closing(self.read(read, wait)) as stream:
            while not left():
                try:
                    piece = stream.read()
                except NetworkError as e:
                    self.check_open()
                    raise e
                if not piece:
                    return
                file.write(piece)

    def close(self, timeout: float | None) -> None:
        """Flushes, then ends everything. Raises FlushTimeoutError if writes are left."""
        self._not_in_callback()
        with self._close_lock:
            if self.closed:
                return
            self.end_streams()
            seq = self.queue.flush_begin(closing=True)
            self.wait(seq, timeout)
            self.shut(seq)

    def end_streams(self) -> None:
        """Tracks the streams that are still open with their parts so far."""
        for stream in list(self.streams):
            stream.end()

    def shut(self, seq: int) -> None:
        """Ends everything after the flush of `close`."""
        self.closed = True
        self._stopped.set()
        self.queue.stop()
        # If writes are left, the sender may be in a request. Closing the transport ends it.
        self._transport.close()
        self.sender.join(_JOIN_TIMEOUT)
        if self._spool is not None:
            self._spool.close()
        _open_cores.discard(self)
        self.flush_end(seq)

    def log_left(self, error: FlushTimeoutError) -> None:
        """Logs that writes are left, if there is no caller to raise to."""
        _log.warning("the client was closed: %s", error)

    def after_fork(self) -> None:
        """Starts anew in the child of a fork. The threads and the spool stay with the parent."""
        if self.closed:
            return
        if self._spool is not None:
            self._spool.abandon()
            self._spool = None
            _log.warning("the spool stays with the parent process; this one goes on without it")
        self._assemble()
        self.forked()

    def _not_in_callback(self) -> None:
        if self.sender.is_current():
            raise SluiceError("on_error runs in the thread that sends and must not wait for it")


def _decoded(item: bytes) -> Write | None:
    try:
        members = json.loads(item)
        op, id = members.get("op", "create"), members["id"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if op not in ("create", "update", "patch", "delete") or not isinstance(id, str):
        return None
    return Write(op, id, item)


# The open cores, for the exit of the interpreter and for forks.
_open_cores: set[Core] = set()


@atexit.register
def _close_all() -> None:
    for core in list(_open_cores):
        try:
            core.close(CLOSE_TIMEOUT)
        except FlushTimeoutError as e:
            core.log_left(e)


def _after_fork() -> None:
    for core in list(_open_cores):
        core.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
