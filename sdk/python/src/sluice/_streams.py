"""Watches a stream that a traced call returned, while the caller iterates over it.

The caller gets the same parts in the same order and at its own pace. The event of the call ends
when the stream is exhausted, fails, is closed, or is dropped.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any

from sluice._core import Core
from sluice._encode import Snapshot
from sluice._parts import Parts
from sluice._trace import Span, finished, report
from sluice.errors import SluiceError


def is_stream(value: object) -> bool:
    """Whether the value is a stream: an iterator or an async iterable."""
    kind = type(value)
    return not callable(value) and any(
        hasattr(kind, name) for name in ("__next__", "__anext__", "__aiter__")
    )


def passed_through(core: Core, span: Span, value: Any) -> Any:
    """Returns a stream with the same parts, which become the output of the span's event.

    For a generator, it returns a generator, and all its methods work. For any other stream, it
    returns an object that has the stream's class by `isinstance` and all its attributes.
    """
    try:
        # The sender is started now, because the stream may end in the garbage collector, where no
        # thread can be started.
        core.start_sender()
    except SluiceError as e:
        report(core, span, e)
        return value
    stream = Stream(core, span)
    passing: Any
    if isinstance(value, Generator):
        passing = _generator(value, stream)
        next(passing)
        _name_as(passing, value)
    elif isinstance(value, AsyncGenerator):
        # A started generator must be registered with the running event loop. Without a loop, it is
        # not started here.
        in_loop = sys.get_asyncgen_hooks().firstiter is not None
        passing = _async_generator(value, stream, started=in_loop)
        if in_loop:
            _start_async(passing)
        _name_as(passing, value)
    else:
        passing = _Stream(value, stream)
    # A stream that is dropped without a close is tracked with its parts so far.
    weakref.finalize(passing, stream.end).atexit = False
    return passing


class Stream:
    """Collects a stream for the event of its call. The methods never raise and never wait."""

    def __init__(self, core: Core, span: Span) -> None:
        self._core = core
        self._span = span
        self._parts = Parts()
        self._first: float | None = None
        self._last: float | None = None
        core.streams.add(self)

    def add(self, part: object) -> None:
        """Records a part before the caller gets it."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        with contextlib.suppress(Exception):
            self._parts.add(part)

    def end(self, raised: BaseException | None = None) -> None:
        """Tracks the event with the parts so far. Only the first call has an effect."""
        try:
            self._core.streams.remove(self)
        except KeyError:
            return
        span = self._span
        try:
            if self._first is not None:
                span._first_part = self._first
                span._returned = Snapshot(self._parts.joined())
            # A failed stream ends now. Otherwise the call ended with the last part.
            write = finished(self._core, span, raised, self._last if raised is None else None)
            if write is not None:
                self._core.put_at_once(write)
        except Exception as e:
            report(self._core, span, e)


def _name_as(passing: Any, value: Any) -> None:
    with contextlib.suppress(Exception):
        passing.__name__, passing.__qualname__ = value.__name__, value.__qualname__


def _generator(source: Generator[Any, Any, Any], stream: Stream) -> Generator[Any, Any, Any]:
    """Does what `yield from` does, and records each part.

    Its maker must start it. Otherwise a close would not run its `finally`.
    """
    part = None
    try:
        while True:
            try:
                sent = yield part
            except GeneratorExit:
                returned: Any = source.close()  # type: ignore[func-returns-value]
                if returned is None:  # always the case before Python 3.13
                    raise
                return returned
            except BaseException as e:
                step = functools.partial(source.throw, e)
            else:
                step = functools.partial(next, source)
                if sent is not None:
                    step = functools.partial(source.send, sent)
            try:
                part = step()
            except StopIteration as e:
                return e.value
            stream.add(part)
    except GeneratorExit:
        raise
    except BaseException as e:
        stream.end(e)
        raise
    finally:
        stream.end()


async def _async_generator(
    source: AsyncGenerator[Any, Any], stream: Stream, *, started: bool = False
) -> AsyncGenerator[Any, Any]:
    """Does the same for an asynchronous generator. With `started`, its maker must start it."""
    part = None
    step: Callable[[], Any]
    try:
        while True:
            if not started:
                started = True
                step = source.__anext__
            else:
                try:
                    sent = yield part
                except GeneratorExit:
                    await source.aclose()
                    raise
                except BaseException as e:
                    step = functools.partial(source.athrow, e)
                else:
                    step = functools.partial(source.asend, sent)
            try:
                part = await step()
            except StopAsyncIteration:
                return
            stream.add(part)
    except GeneratorExit:
        raise
    except BaseException as e:
        stream.end(e)
        raise
    finally:
        stream.end()


def _start_async(passing: AsyncGenerator[Any, Any]) -> None:
    with contextlib.suppress(StopIteration):
        passing.asend(None).__await__().send(None)


class _Stream:
    """A stream that is not a generator, such as the stream object of a model's client library."""

    __slots__ = ("__weakref__", "_sluice_source", "_sluice_stream")

    def __init__(self, source: Any, stream: Stream) -> None:
        object.__setattr__(self, "_sluice_source", source)
        object.__setattr__(self, "_sluice_stream", stream)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._sluice_source)

    def __repr__(self) -> str:
        return repr(self._sluice_source)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._sluice_source, name)
        if name in ("close", "aclose") and callable(value):
            return self._closing(value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._sluice_source, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._sluice_source, name)

    def __iter__(self) -> Iterator[Any]:
        if not hasattr(type(self._sluice_source), "__next__"):
            return iter(self._sluice_source)
        return self

    def __next__(self) -> Any:
        try:
            part = next(self._sluice_source)
        except StopIteration:
            self._sluice_stream.end()
            raise
        except BaseException as e:
            self._sluice_stream.end(e)
            raise
        self._sluice_stream.add(part)
        return part

    def __aiter__(self) -> AsyncIterator[Any]:
        if hasattr(type(self._sluice_source), "__anext__"):
            return self
        iterator = self._sluice_source.__aiter__()
        if isinstance(iterator, AsyncGenerator):
            return _async_generator(iterator, self._sluice_stream)
        return _Stream(iterator, self._sluice_stream)

    async def __anext__(self) -> Any:
        try:
            part = await self._sluice_source.__anext__()
        except StopAsyncIteration:
            self._sluice_stream.end()
            raise
        except BaseException as e:
            self._sluice_stream.end(e)
            raise
        self._sluice_stream.add(part)
        return part

    def __enter__(self) -> Any:
        return self._entered(self._sluice_source.__enter__())

    def __exit__(self, *exc: Any) -> Any:
        try:
            return self._sluice_source.__exit__(*exc)
        finally:
            self._sluice_stream.end()

    async def __aenter__(self) -> Any:
        return self._entered(await self._sluice_source.__aenter__())

    async def __aexit__(self, *exc: Any) -> Any:
        try:
            return await self._sluice_source.__aexit__(*exc)
        finally:
            self._sluice_stream.end()

    def _entered(self, entered: Any) -> Any:
        return self if entered is self._sluice_source else entered

    def _closing(self, close: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a method that closes the stream, so that the event ends with it."""
        stream = self._sluice_stream

        async def awaited(result: Any) -> Any:
            try:
                return await result
            finally:
                stream.end()

        def closing(*args: Any, **kwargs: Any) -> Any:
            result = None
            try:
                result = close(*args, **kwargs)
                return awaited(result) if inspect.isawaitable(result) else result
            finally:
                if not inspect.isawaitable(result):
                    stream.end()

        return closing
