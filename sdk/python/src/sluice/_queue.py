"""The bounded queue of all writes that have no final answer."""

from __future__ import annotations

import _thread
import contextlib
import itertools
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from sluice._limits import BatchLimits
from sluice._options import Options
from sluice._spool import Place, Spool
from sluice.errors import ClosedError, QueueFullError, ValidationError
from sluice.types import Op


class Write:
    """An encoded write. The attributes after `item` belong to the queue and the sender."""

    __slots__ = (
        "first_tried",
        "id",
        "item",
        "minted",
        "next",
        "op",
        "place",
        "queued_at",
        "seq",
        "tries",
        "unsure",
    )

    def __init__(self, op: Op, id: str, item: bytes, *, minted: bool = False) -> None:
        self.op = op
        self.id = id
        self.item = item
        self.minted = minted  # whether this library minted the id of this create
        self.seq = 0
        self.queued_at = 0.0
        self.place: Place | None = None
        # The next write of the same id. It waits until this write is answered.
        self.next: Write | None = None
        self.first_tried: float | None = None
        self.tries = 0
        # Whether an earlier attempt may have reached the log: the write was sent, and no answer
        # told its result.
        self.unsure = False


class Queue:
    """The queued writes in order. `take` returns batches with at most one write of an id.

    A write is in one of three states: it is ready, it waits for an earlier write of its id, or it
    is in the batch that was taken. It counts against the bounds until `settle` says that it is
    answered. The cost of an operation does not depend on the length of the queue.
    """

    def __init__(self, options: Options, spool: Spool | None) -> None:
        self._options = options
        self._spool = spool
        self._limits = BatchLimits(options.batch_writes_max, options.batch_bytes_max)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the sender waits for a batch
        self._room = threading.Condition(self._lock)  # calls wait for room
        self._progress = threading.Condition(self._lock)  # flushes wait for answers
        self._late: deque[Write] = deque()  # writes of put_at_once that are not queued yet
        self._wakers: dict[Callable[[], None], None] = {}  # coroutines wait for room or answers

        self._unanswered: OrderedDict[int, Write] = OrderedDict()  # by seq
        self._bytes = 0
        self._last_of: dict[str, Write] = {}  # the last unanswered write of each id
        self._ready: deque[Write] = deque()
        self._ready_bytes = 0
        self._oldest = math.inf  # when the oldest ready write was queued
        self._last_seq = 0
        self._flush_seq = 0  # writes up to here are sent without waiting for a full batch
        self._closing = False
        self._stopped = False

    def put(self, write: Write, *, block: bool, timeout: float | None = None) -> None:
        """Queues the write. With `block`, it waits for room for `timeout` seconds, or forever.

        Raises QueueFullError, ClosedError, SpoolError, and ValidationError for a write that is
        larger than the whole queue.
        """
        with self._lock:
            if not self._fits(write) and not (
                block and self._room.wait_for(lambda: self._fits(write), timeout)
            ):
                raise QueueFullError("the queue is full")
            self._admit(write)

    def try_put(self, write: Write, wake: Callable[[], None]) -> bool:
        """Queues the write if there is room. Otherwise calls `wake` once when there may be."""
        with self._lock:
            if self._fits(write):
                self._admit(write)
                return True
            self._wakers[wake] = None
            return False

    def put_at_once(self, write: Write) -> None:
        """Queues the write without waiting, not even for the lock.

        The garbage collector may call it in a thread that holds the lock. It raises the errors of
        `put`, except that a SpoolError is lost if another thread queues the write.
        """
        if not self._fits(write):
            raise QueueFullError("the queue is full")
        self._late.append(write)
        if self._lock.acquire(blocking=False):
            try:
                self._admit_late()
            finally:
                self._lock.release()
            return
        with contextlib.suppress(RuntimeError):  # no thread can be started at shutdown
            _thread.start_new_thread(self._wait_to_admit_late, ())

    def restore(self, writes: Iterable[Write]) -> None:
        """Queues the writes of the spool, even if they exceed the bounds."""
        with self._lock:
            for write in writes:
                self._append(write)

    def take(self) -> list[Write]:
        """Waits until a batch is due and returns it. Returns an empty one if the queue stopped."""
        limits = self._limits
        with self._lock:
            while not self._stopped:
                wait = self._due_in()
                if wait is not None and wait <= 0:
                    break
                self._work.wait(wait)
            else:
                return []
            batch: list[Write] = []
            size = 0
            while self._ready and len(batch) < limits.writes:
                size += len(self._ready[0].item) + 1  # the newline
                if batch and size > limits.bytes:
                    break
                write = self._ready.popleft()
                self._ready_bytes -= len(write.item) + 1
                batch.append(write)
            self._oldest = self._ready[0].queued_at if self._ready else math.inf
            return batch

    def put_back(self, batch: list[Write], *, too_large: bool) -> None:
        """Puts back a batch that was refused as a whole. The next batches are smaller."""
        with self._lock:
            if too_large:
                self._limits.too_large(sum(len(write.item) + 1 for write in batch))
            else:
                self._limits.halve(len(batch))
            self._make_ready_first(batch)

    def batch_ok(self) -> None:
        """Raises the batch limits after a batch was answered write by write."""
        with self._lock:
            self._limits.ok()

    def settle(self, answered: list[Write], retried: list[Write]) -> None:
        """Ends a batch: `answered` leave the queue, and `retried` are put in front of it."""
        with self._lock:
            for write in answered:
                del self._unanswered[write.seq]
                self._bytes -= len(write.item)
                if write.next is not None:
                    self._make_ready(write.next)
                else:
                    del self._last_of[write.id]
            self._make_ready_first(retried)
            first = next(iter(self._unanswered.values()), None)
            if self._spool is not None:
                answered_before = self._spool.end() if first is None else first.place
        if self._spool is not None:
            # Not under the lock, because it is slow, and before waiting flushes return.
            self._spool.answered([write.place for write in answered], answered_before)
        self._tell()

    def flush_begin(self, *, closing: bool = False) -> int:
        """Makes all queued writes due now. With `closing`, later writes are refused.

        Returns the seq of the last write. Without `closing`, raises ClosedError if it is closed.
        """
        with self._lock:
            if self._closing and not closing:
                raise ClosedError
            self._admit_late()
            self._closing = closing
            seq = self._flush_seq = self._last_seq
            self._work.notify()
        if closing:
            self._tell()
        return seq

    def flush_wait(self, seq: int, timeout: float | None) -> None:
        """Waits until all writes up to `seq` are answered, the queue stops or the time is over."""
        with self._lock:
            self._progress.wait_for(lambda: self._flushed(seq), timeout)

    def flush_poll(self, seq: int, wake: Callable[[], None]) -> bool:
        """Whether flush_wait would return at once. Otherwise calls `wake` once when it may."""
        with self._lock:
            if self._flushed(seq):
                return True
            self._wakers[wake] = None
            return False

    def forget(self, wake: Callable[[], None]) -> None:
        """Removes the waker of a coroutine that no longer waits."""
        with self._lock:
            self._wakers.pop(wake, None)

    def left(self, seq: int) -> int:
        """Returns the number of unanswered writes up to `seq`."""
        with self._lock:
            return sum(1 for _ in itertools.takewhile(lambda s: s <= seq, self._unanswered))

    def stop(self) -> None:
        """Stops the queue: wakes all that wait, and `take` returns empty batches."""
        with self._lock:
            self._closing = self._stopped = True
            self._work.notify()
        self._tell()

    def _fits(self, write: Write) -> bool:
        if self._closing:
            raise ClosedError
        options = self._options
        if len(write.item) > options.queue_bytes_max:
            raise ValidationError("", "the write is larger than the whole queue")
        return (
            len(self._unanswered) < options.queue_writes_max
            and self._bytes + len(write.item) <= options.queue_bytes_max
        )

    def _wait_to_admit_late(self) -> None:
        with self._lock:
            self._admit_late()

    def _admit_late(self) -> None:
        while self._late:
            self._admit(self._late.popleft())

    def _admit(self, write: Write) -> None:
        if self._spool is not None:
            write.place = self._spool.append(write.item)
        self._append(write)

    def _append(self, write: Write) -> None:
        self._last_seq += 1
        write.seq = self._last_seq
        write.queued_at = time.monotonic()
        self._unanswered[write.seq] = write
        self._bytes += len(write.item)
        previous = self._last_of.get(write.id)
        self._last_of[write.id] = write
        if previous is None:
            self._make_ready(write)
        else:
            previous.next = write

    def _make_ready(self, write: Write) -> None:
        self._ready.append(write)
        self._ready_bytes += len(write.item) + 1
        self._oldest = min(self._oldest, write.queued_at)
        if len(self._ready) == 1 or self._full_batch():
            self._work.notify()

    def _make_ready_first(self, writes: list[Write]) -> None:
        for write in reversed(writes):
            self._ready.appendleft(write)
            self._ready_bytes += len(write.item) + 1
            self._oldest = min(self._oldest, write.queued_at)

    def _full_batch(self) -> bool:
        return len(self._ready) >= self._limits.writes or self._ready_bytes >= self._limits.bytes

    def _due_in(self) -> float | None:
        """Returns in how many seconds the next batch is due; None if there is nothing to send."""
        if not self._ready:
            return None
        # The sender asks only between batches. So the first unanswered write is ready, or waits for
        # a ready write.
        if self._full_batch() or next(iter(self._unanswered)) <= self._flush_seq:
            return 0.0
        return self._oldest + self._options.batch_age_max - time.monotonic()

    def _flushed(self, seq: int) -> bool:
        return self._stopped or next(iter(self._unanswered), seq + 1) > seq

    def _tell(self) -> None:
        with self._lock:
            self._room.notify_all()
            self._progress.notify_all()
            wakers, self._wakers = self._wakers, {}
        for wake in wakers:
            wake()
