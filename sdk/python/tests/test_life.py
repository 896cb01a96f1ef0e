"""Close, exit, fork and threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeClient, track
from server import Server, as_json, problem
from sluice import AsyncClient, Client, ClosedError, FlushTimeoutError, ValidationError
from sluice._ids import PROCESS

SRC = Path(__file__).resolve().parents[1] / "src"


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *args],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_close_flushes(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    ids = [track(client) for _ in range(3)]
    client.close()
    assert server.ids == [ids]


def test_with(server: Server) -> None:
    with Client(server.url, batch_age_max=600) as client:
        id = track(client)
    assert server.ids == [[id]]


def test_calls_after_close_fail(make_client: MakeClient) -> None:
    client = make_client()
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: track(client),
        lambda: client.update_event("a", latency=1),
        lambda: client.patch_event("a", latency=1),
        lambda: client.delete_event("a"),
        lambda: client.flush(),
        lambda: client.event("a"),
        lambda: client.event("a", wait=1),
        lambda: client.errors(),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    client.close()


def test_close_says_how_many_writes_are_left(make_client: MakeClient, server: Server) -> None:
    server.open.clear()
    client = make_client()
    for _ in range(3):
        track(client)
    server.wait_for(1)
    begin = time.monotonic()
    with pytest.raises(FlushTimeoutError) as caught:
        client.close(timeout=0.05)
    assert caught.value.left == 3
    assert time.monotonic() - begin < 10  # it does not wait for the request under way
    with pytest.raises(ClosedError):
        track(client)
    client.close()


def test_close_ends_a_pause(make_client: MakeClient, server: Server) -> None:
    server.default = lambda _: problem(503, "overloaded", **{"Retry-After": "60"})
    client = make_client()
    track(client)
    server.wait_for(1)
    begin = time.monotonic()
    with pytest.raises(FlushTimeoutError):
        client.close(timeout=0.05)
    assert time.monotonic() - begin < 10


def test_with_does_not_hide_an_exception(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.open.clear()
    client = Client(server.url)
    track(client)
    close = client._core.close
    monkeypatch.setattr(client._core, "close", lambda timeout: close(0))
    with pytest.raises(KeyError), client:
        raise KeyError
    assert "1 write was not sent" in caplog.text


def test_an_unused_client_has_no_thread(make_client: MakeClient) -> None:
    before = threading.active_count()
    make_client().close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("url", "127.0.0.1:8080"),
        ("url", "ftp://127.0.0.1"),
        ("url", "http://127.0.0.1/?a=b"),
        ("url", "http://127.0.0.1:x"),
        ("url", "http://127.0.0.1:65536"),
        ("url", "http://user:key@127.0.0.1"),
        ("url", "http://127.0.0.1/a b"),
        ("url", "http://"),
        ("url", ""),
        ("api_key", ""),
        ("api_key", "a\nb"),
        ("batch_writes_max", 0),
        ("batch_bytes_max", 1.5),
        ("batch_age_max", -1),
        ("queue_writes_max", -1),
        ("queue_bytes_max", 0),
        ("block_timeout", -1),
        ("retry_for", float("nan")),
        ("request_timeout", 0),
    ],
)
def test_wrong_options(option: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Client(**{option: value})
    assert caught.value.field == option


def test_many_threads(make_client: MakeClient, server: Server) -> None:
    client = make_client(queue_writes_max=50, batch_writes_max=20)
    ids: list[str] = []

    def write() -> None:
        for _ in range(100):
            id = track(client)
            client.update_event(id, latency=1)
            ids.append(id)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    client.flush()
    assert Counter(id for batch in server.ids for id in batch) == dict.fromkeys(ids, 2)
    assert len(ids) == 800
    for request in server.requests:
        assert len(set(request.ids)) == len(request.ids) <= 20


def test_flushes_of_many_threads(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    failures: list[str] = []

    def write_and_flush() -> None:
        for _ in range(10):
            id = track(client)
            client.flush(timeout=60)
            if not any(id in batch for batch in server.ids):
                failures.append(id)

    threads = [threading.Thread(target=write_and_flush) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_exit_flushes(server: Server) -> None:
    done = run(
        """
        import sluice, sys
        client = sluice.Client(sys.argv[1], batch_age_max=600)
        for id in ("a", "b"):
            client.track_event(id=id, conversation_id="c1", event_name="event_a")
        """,
        server.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.ids == [["a", "b"]]


def test_exit_flushes_after_an_exception(server: Server) -> None:
    done = run(
        """
        import sluice, sys
        client = sluice.Client(sys.argv[1])
        client.track_event(id="a", conversation_id="c1", event_name="event_a")
        raise SystemExit(3)
        """,
        server.url,
    )
    assert done.returncode == 3
    assert server.ids == [["a"]]


def test_exit_waits_no_longer_than_close(server: Server) -> None:
    server.open.clear()
    done = run(
        """
        import sluice, sluice._core, sys
        sluice._core.CLOSE_TIMEOUT = 0.2
        client = sluice.Client(sys.argv[1])
        client.track_event(id="a", conversation_id="c1", event_name="event_a")
        """,
        server.url,
    )
    assert done.returncode == 0
    assert "1 write was not sent in time" in done.stderr


def test_exit_with_asyncio(server: Server) -> None:
    done = run(
        """
        import asyncio, sluice, sys
        async def main():
            client = sluice.AsyncClient(sys.argv[1], batch_age_max=600)
            await client.track_event(id="a", conversation_id="c1", event_name="event_a")
        asyncio.run(main())
        """,
        server.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.ids == [["a"]]


NO_THREADS = """
import threading

def refuse(thread):
    # As in Python 3.12 and later.
    raise RuntimeError("can't create new thread at interpreter shutdown")

def no_more_threads():
    threading.Thread.start = refuse
"""


@pytest.mark.parametrize("full", [False, True])
def test_a_first_write_at_the_exit(full: bool, server: Server) -> None:
    done = run(
        NO_THREADS
        + """
import atexit, sluice, sys
client = sluice.Client(sys.argv[1], queue_writes_max=int(sys.argv[2]))
def last():
    no_more_threads()
    for id in "abc":
        client.trace("c1", lambda span: None, id=id)
    client.track_event(id="d", conversation_id="c1", event_name="event_a")
    list(client.trace("c1", lambda span: iter("ef"), id="e"))
atexit.register(last)
""",
        server.url,
        "3" if full else "100",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [id for batch in server.ids for id in batch] == ["a", "b", "c", "d", "e"]


def test_a_first_write_at_the_exit_with_asyncio(server: Server) -> None:
    done = run(
        NO_THREADS
        + """
import asyncio, atexit, sluice, sys
client = sluice.AsyncClient(sys.argv[1], queue_writes_max=1)
async def main():
    for id in "ab":
        await client.track_event(id=id, conversation_id="c1", event_name="event_a")
    await client.flush()
    await client.trace("c1", call, id="c")
    await client.close()
async def call(span):
    return 1
def last():
    no_more_threads()
    loop = asyncio.new_event_loop()  # asyncio.run would start a thread of its own
    loop.run_until_complete(main())
    loop.close()
atexit.register(last)
""",
        server.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [id for batch in server.ids for id in batch] == ["a", "b", "c"]


def test_an_exit_without_threads_waits_no_longer_than_close(nowhere: str) -> None:
    done = run(
        NO_THREADS
        + """
import atexit, sluice, sluice._core, sys
sluice._core.CLOSE_TIMEOUT = 0.2
client = sluice.Client(sys.argv[1])
def last():
    no_more_threads()
    client.track_event(id="a", conversation_id="c1", event_name="event_a")
atexit.register(last)
""",
        nowhere,
    )
    assert done.returncode == 0
    assert "1 write was not sent in time" in done.stderr


def test_sigterm_by_a_handler_that_exits(server: Server) -> None:
    done = run(
        """
        import os, signal, sluice, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        client = sluice.Client(sys.argv[1], batch_age_max=600)
        client.track_event(id="a", conversation_id="c1", event_name="event_a")
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        server.url,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert server.ids == [["a"]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str, server: Server, tmp_path: Path) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sluice, sys
            client = sluice.Client(sys.argv[1])
            def work(id):
                # A worker does not run the handlers of atexit.
                client.track_event(id=id, conversation_id="c1", event_name="event_a")
                client.close()
            if __name__ == "__main__":
                client.track_event(id="parent", conversation_id="c1", event_name="event_a")
                context = multiprocessing.get_context(sys.argv[2])
                workers = [context.Process(target=work, args=(id,)) for id in "ab"]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
                assert [worker.exitcode for worker in workers] == [0, 0]
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program), server.url, method],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(id for batch in server.ids for id in batch) == ["a", "b", "parent"]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def in_child(program: Any) -> None:
    """Runs the function in a forked process and asserts that it returned."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            program()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_fork
def test_fork(make_client: MakeClient, server: Server) -> None:
    client = make_client(batch_age_max=600)
    track(client, "before")
    client.flush()
    track(client, "queued")

    def child() -> None:
        track(client, "child")
        client.flush(timeout=30)
        track(client, "closed")
        client.close(timeout=30)

    in_child(child)
    track(client, "after")
    client.flush()
    assert server.ids == [["before"], ["child"], ["closed"], ["queued", "after"]]


@needs_fork
def test_ids_after_a_fork() -> None:
    def minted() -> list[str]:
        return [PROCESS.mint("c1", 1767323045678901) for _ in range(1000)]

    before = minted()
    read, write = os.pipe()

    def child() -> None:
        os.write(write, " ".join(minted()).encode())

    # Another thread of the parent may be about to mint.
    with PROCESS._lock:
        in_child(child)
    os.close(write)
    with os.fdopen(read) as pipe:
        childs = pipe.read().split()
    after = minted()
    assert before + after == sorted(before + after)
    assert childs == sorted(childs)
    assert len({*before, *childs, *after}) == 3000


@needs_fork
def test_fork_while_the_lock_is_held(make_client: MakeClient, server: Server) -> None:
    client = make_client()
    track(client, "before")

    def child() -> None:
        track(client, "child")
        client.flush(timeout=30)

    with client._core.queue._lock:
        in_child(child)
    client.flush()
    assert sorted(server.ids) == [["before"], ["child"]]


@needs_fork
def test_fork_leaves_the_spool_to_the_parent(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    client = make_client(spool_dir=spool_dir, batch_age_max=600)
    track(client, "before")
    files = sorted(spool_dir.iterdir())
    sizes = [file.stat().st_size for file in files]

    def child() -> None:
        track(client, "child")
        client.close(timeout=30)
        assert sorted(spool_dir.iterdir()) == files
        assert [file.stat().st_size for file in files] == sizes

    in_child(child)
    track(client, "after")
    client.close()
    assert server.ids == [["child"], ["before", "after"]]
    # The child closed its copy of the lock's descriptor.
    make_client(spool_dir=spool_dir)


@needs_fork
def test_reads_of_asyncio_after_a_fork(server: Server) -> None:
    server.default = lambda _: as_json(200, {"id": "a"})

    async def read(client: AsyncClient) -> None:
        assert (await asyncio.wait_for(client.event("a"), 30))["id"] == "a"

    client = AsyncClient(server.url)
    asyncio.run(read(client))
    in_child(lambda: asyncio.run(read(client)))
    asyncio.run(client.close())
