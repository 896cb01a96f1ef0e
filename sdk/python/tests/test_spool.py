from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest

from conftest import MakeClient, record_pauses, track
from server import Server, problem
from sluice import (
    Client,
    FlushTimeoutError,
    QueueFullError,
    SpoolError,
    SpoolInUseError,
    WriteError,
    _spool,
)

SRC = Path(__file__).resolve().parents[1] / "src"


def spool_files(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob("*.spool"))


def line(item: object, checksum: int | None = None) -> bytes:
    data = item if isinstance(item, bytes) else json.dumps(item).encode()
    return b"%08x %b\n" % (zlib.crc32(data) if checksum is None else checksum, data)


def create(id: str) -> dict[str, str]:
    return {"id": id, "conversation_id": "c1", "event_name": "event_a"}


def abandon(client: Client) -> None:
    """Closes the client without a flush."""
    with pytest.raises(FlushTimeoutError):
        client.close(timeout=0)


def test_the_format(make_client: MakeClient, server: Server, spool_dir: Path) -> None:
    server.open.clear()
    client = make_client(spool_dir=spool_dir)
    track(client, "a", input="é\n")
    client.delete_event("a")
    (file,) = spool_dir.glob("*.spool")
    assert file.name == "0000000001.spool"
    lines = file.read_bytes().split(b"\n")
    assert len(lines) == 3
    assert lines[2] == b""
    for text in lines[:2]:
        match = re.fullmatch(rb"([0-9a-f]{8}) (.*)", text)
        assert match is not None
        assert int(match[1], 16) == zlib.crc32(match[2])
    assert json.loads(lines[1][9:]) == {"op": "delete", "id": "a"}

    server.open.set()
    client.flush()
    assert (spool_dir / "done").read_bytes() == b"1 %d" % file.stat().st_size
    client.close()
    assert not spool_files(spool_dir)


def test_unanswered_writes_are_sent_first_by_the_next_start(
    make_client: MakeClient, server: Server, nowhere: str, spool_dir: Path
) -> None:
    first = make_client(url=nowhere, spool_dir=spool_dir)
    for id in ("a", "b"):
        track(first, id)
    first.update_event("a", latency=1)
    abandon(first)

    second = make_client(spool_dir=spool_dir, batch_age_max=600)
    track(second, "c")
    second.flush()
    assert server.ids == [["a", "b", "c"], ["a"]]
    assert server.requests[1].items[0]["latency"] == 1
    second.close()
    assert not spool_files(spool_dir)

    third = make_client(spool_dir=spool_dir)
    third.flush()
    assert len(server.requests) == 2


def test_unanswered_writes_are_sent_without_a_call(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    spool_dir.mkdir()
    (spool_dir / "0000000007.spool").write_bytes(line(create("a")))
    make_client(spool_dir=spool_dir)
    server.wait_for_writes(1)


def test_files_in_order_of_their_numbers(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    spool_dir.mkdir()
    for number, id in ((10, "c"), (2, "b"), (1, "a")):
        (spool_dir / f"{number:010}.spool").write_bytes(line(create(id)))
    (spool_dir / "notes.txt").write_text("not the spool's")
    client = make_client(spool_dir=spool_dir, batch_age_max=600)
    track(client, "d")
    assert spool_files(spool_dir)[-1] == "0000000011.spool"
    client.flush()
    assert server.ids == [["a", "b", "c", "d"]]
    client.close()
    assert sorted(p.name for p in spool_dir.iterdir()) == ["done", "lock", "notes.txt"]


def test_done(make_client: MakeClient, server: Server, spool_dir: Path) -> None:
    spool_dir.mkdir()
    lines = [line(create(id)) for id in "abcdef"]
    (spool_dir / "0000000001.spool").write_bytes(lines[0] + lines[1])
    (spool_dir / "0000000002.spool").write_bytes(lines[2] + lines[3])
    (spool_dir / "0000000003.spool").write_bytes(lines[4])
    (spool_dir / "done").write_text(f"2 {len(lines[2])}")
    client = make_client(spool_dir=spool_dir)
    assert spool_files(spool_dir) == ["0000000002.spool", "0000000003.spool"]
    client.flush()
    assert server.ids == [["d", "e"]]


def test_done_advances_to_the_first_unanswered_write(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    client = make_client(spool_dir=spool_dir, batch_writes_max=1, batch_age_max=0)
    pauses = record_pauses(client)
    for id in "abc":
        track(client, id)
    client.flush()
    server.default = lambda _: problem(503, "unavailable")
    for id in "de":
        track(client, id)
    server.wait_for(4)
    abandon(client)
    assert pauses

    with Server() as another:
        make_client(url=another.url, spool_dir=spool_dir).flush()
        assert [id for batch in another.ids for id in batch] == ["d", "e"]


def test_file_numbers_are_not_reused(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    for number in (1, 2, 3):
        client = make_client(spool_dir=spool_dir)
        track(client)
        assert spool_files(spool_dir) == [f"{number:010}.spool"]
        client.close()
    assert len(server.requests) == 3


def test_a_broken_done_sends_all_again(
    make_client: MakeClient, server: Server, spool_dir: Path, reported: list[WriteError]
) -> None:
    spool_dir.mkdir()
    (spool_dir / "0000000001.spool").write_bytes(line(create("a")))
    (spool_dir / "done").write_bytes(b"1 \xff")
    make_client(spool_dir=spool_dir).flush()
    assert server.ids == [["a"]]
    assert [error.code for error in reported] == ["spool_corrupt"]


def test_torn_and_corrupt_lines(
    make_client: MakeClient, server: Server, spool_dir: Path, reported: list[WriteError]
) -> None:
    spool_dir.mkdir()
    good = [line(create(id)) for id in "abc"]
    (spool_dir / "0000000001.spool").write_bytes(
        good[0]
        + line(create("x"), checksum=1)
        + b"\n"
        + b"no checksum\n"
        + line(b"not JSON")
        + line({"op": "upsert", "id": "x"})
        + line({"conversation_id": "c1"})
        + line(["x"])
        + good[1][:20]
    )
    (spool_dir / "0000000002.spool").write_bytes(good[2] + good[1].rstrip(b"\n"))
    client = make_client(spool_dir=spool_dir)
    client.flush()
    assert server.ids == [["a", "c"]]
    assert len(reported) == 9
    assert {(error.op, error.id, error.code) for error in reported} == {("", "", "spool_corrupt")}
    client.close()
    assert not spool_files(spool_dir)


def test_a_file_of_nothing_but_corrupt_lines_is_removed(
    make_client: MakeClient, spool_dir: Path, reported: list[WriteError]
) -> None:
    spool_dir.mkdir()
    (spool_dir / "0000000001.spool").write_bytes(line(b"not JSON"))
    (spool_dir / "0000000002.spool").write_bytes(b"torn")
    make_client(spool_dir=spool_dir)
    assert not spool_files(spool_dir)
    assert len(reported) == 2


def test_a_new_file_when_the_last_is_full(
    make_client: MakeClient, server: Server, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _spool.FILE_BYTES_MAX == 4 << 20
    monkeypatch.setattr(_spool, "FILE_BYTES_MAX", 200)
    server.open.clear()
    client = make_client(spool_dir=spool_dir, batch_age_max=600)
    ids = [track(client, f"id-{n}") for n in range(10)]
    files = spool_files(spool_dir)
    assert len(files) > 2
    assert all((spool_dir / file).stat().st_size >= 200 for file in files[:-1])
    server.open.set()
    client.flush()
    assert spool_files(spool_dir) == files[-1:]  # the current file
    assert server.ids == [ids]


def test_a_file_is_removed_when_all_its_writes_are_answered(
    make_client: MakeClient, server: Server, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_spool, "FILE_BYTES_MAX", 1)
    client = make_client(spool_dir=spool_dir, batch_writes_max=1, batch_age_max=600)
    pauses = record_pauses(client)
    server.open.clear()
    for id in "abcd":
        track(client, id)
    assert len(spool_files(spool_dir)) == 4
    server.open.set()
    client.flush()
    assert not pauses
    assert spool_files(spool_dir) == ["0000000004.spool"]


def test_refused_writes_are_not_sent_again(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    server.answers = [lambda _: problem(422, "invalid_value")]
    first = make_client(spool_dir=spool_dir)
    track(first)
    first.flush()
    first.close()
    make_client(spool_dir=spool_dir).flush()
    assert len(server.requests) == 1


def test_a_directory_in_use(make_client: MakeClient, spool_dir: Path) -> None:
    first = make_client(spool_dir=spool_dir)
    for _ in range(2):
        with pytest.raises(SpoolInUseError):
            make_client(spool_dir=spool_dir)
    first.close()
    make_client(spool_dir=str(spool_dir))


def test_a_directory_in_use_by_another_process(make_client: MakeClient, spool_dir: Path) -> None:
    program = (
        "import sluice, sys; client = sluice.Client(spool_dir=sys.argv[1]);"
        "print('open', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(spool_dir)],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(SpoolInUseError):
            make_client(spool_dir=spool_dir)
        other.communicate(b"\n")
    make_client(spool_dir=spool_dir)


def test_an_unusable_directory(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError):
        make_client(spool_dir=tmp_path / "file")


def test_the_bounds_count_unanswered_writes(
    make_client: MakeClient, server: Server, spool_dir: Path
) -> None:
    server.open.clear()
    spool_dir.mkdir()
    (spool_dir / "0000000001.spool").write_bytes(b"".join(line(create(f"{n}")) for n in range(5)))
    client = make_client(spool_dir=spool_dir, queue_writes_max=5, fail_when_full=True)
    with pytest.raises(QueueFullError):
        track(client)
    assert spool_files(spool_dir) == ["0000000001.spool"]
    server.open.set()
    client.flush()
    track(client)


def test_a_write_that_cannot_be_spooled(
    make_client: MakeClient, server: Server, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(spool_dir=spool_dir, batch_age_max=600)
    track(client, "a")
    write = os.write
    with monkeypatch.context() as patched:
        # The disk is full in the middle of a line.
        patched.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        with pytest.raises(SpoolError):
            track(client, "b")
    track(client, "c")
    (file,) = spool_dir.glob("*.spool")
    ids = [json.loads(text[9:])["id"] for text in file.read_bytes().splitlines()]
    assert ids == ["a", "c"]
    client.flush()
    assert server.ids == [["a", "c"]]


KILLED = """
    import sys
    import sluice, sluice._spool
    sluice._spool.FILE_BYTES_MAX = 20_000
    url, directory, turn = sys.argv[1:]
    client = sluice.Client(
        url, spool_dir=directory, batch_writes_max=50, queue_writes_max=100_000
    )
    n = 0
    while True:
        n += 1
        event = {"id": f"{turn}-{n}", "conversation_id": "c1", "event_name": "event_a"}
        print(client.track_event(**event, input="x" * (n % 500)), flush=True)
"""


@pytest.mark.parametrize("answers", [True, False], ids=["answered", "not answered"])
def test_kill(
    answers: bool,
    make_client: MakeClient,
    server: Server,
    spool_dir: Path,
    reported: list[WriteError],
) -> None:
    if not answers:
        server.default = lambda _: problem(503, "unavailable")
    tracked: list[str] = []
    for turn in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), server.url, str(spool_dir), f"{turn}"],
            env=os.environ | {"PYTHONPATH": str(SRC)},
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            for _ in range(700):
                tracked.append(child.stdout.readline().strip())
            child.send_signal(signal.SIGKILL)
            # The rest of its output counts as well. The last line may be torn.
            rest = child.stdout.read()
            tracked += rest.splitlines()[: rest.count("\n")]
    assert len(tracked) >= 2100

    accepted = {id for request in server.requests for id in request.ids} if answers else set()
    with Server() as another:
        client = make_client(url=another.url, spool_dir=spool_dir)
        client.flush()
        accepted |= {id for request in another.requests for id in request.ids}
    assert set(tracked) <= accepted
    # Each kill tears at most one line.
    assert len(reported) <= 3
    assert {error.code for error in reported} <= {"spool_corrupt"}
    client.close()
    assert not spool_files(spool_dir)
