"""The spool: a directory that keeps the unanswered writes for the next process.

sdk/README.md has the format. The files are not synced: a write survives the process, but not the
machine.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sluice.errors import SpoolError, SpoolInUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FILE_BYTES_MAX = 4 << 20
_FILE_NAME = re.compile(r"(\d{10})\.spool", re.ASCII)
_LINE = re.compile(rb"([0-9a-fA-F]{8}) (.*)", re.DOTALL)
_DONE = re.compile(r"(\d{1,10}) (\d{1,15})\n?", re.ASCII)

_log = logging.getLogger("sluice")


@dataclass(eq=False, slots=True)
class File:
    """A file of the spool. Files are in the order of their numbers."""

    number: int
    path: Path
    size: int = 0
    unanswered: int = 0


class Place(NamedTuple):
    """The place at which the line of a write begins."""

    file: File
    offset: int


@dataclass(slots=True)
class Recovered:
    """The rest of an earlier process: unanswered items in order, and errors of corrupt lines."""

    items: list[tuple[Place, bytes]] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)


class Spool:
    """The spool's directory. It is locked against other clients until `close`.

    `append` must be called by one thread at a time. The other methods may be called by any thread.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        # Held while files are begun or removed, and while `done` is written.
        self._lock = threading.Lock()
        self._closed = False
        self._file: File | None = None  # the file that lines are appended to
        self._fd = -1
        try:
            # The contents of events may be secret.
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = _locked(self._directory)
            try:
                numbers = self._numbers()
                self._done, self._done_corrupt = self._read_done()
            except BaseException:
                os.close(self._lock_fd)
                raise
        except OSError as e:
            raise SpoolError(f"cannot open the spool {self._directory}: {e.strerror}") from e
        self._left_numbers = numbers
        # A reused number would count as answered up to the place in `done`.
        self._next_number = max([*numbers, self._done[0]]) + 1

    def recover(self) -> Recovered:
        """Reads the files, and removes the files without unanswered writes."""
        found = Recovered()
        if self._done_corrupt:
            found.corrupt.append("done: is not 'number offset'")
        for number in self._left_numbers:
            file = File(number, self._path(number))
            try:
                data = file.path.read_bytes()
            except OSError as e:
                raise SpoolError(f"cannot read {file.path}: {e.strerror}") from e
            file.size = len(data)
            if number >= self._done[0]:
                start = self._done[1] if number == self._done[0] else 0
                self._read(file, data, start, found)
            if not file.unanswered:
                file.path.unlink(missing_ok=True)
        return found

    def append(self, item: bytes) -> Place:
        """Appends the item. If it raises SpoolError, the item is not in the spool."""
        line = b"%08x %b\n" % (zlib.crc32(item), item)
        with self._lock:
            try:
                file = self._file
                if file is None or file.size >= FILE_BYTES_MAX:
                    file = self._begin_file()
                # One write call, so that the line is not torn if the process dies.
                written = os.write(self._fd, line)
                if written != len(line):
                    os.ftruncate(self._fd, file.size)
                    raise SpoolError(f"cannot write to {file.path}: the disk is full")
            except OSError as e:
                raise SpoolError(f"cannot write to the spool: {e.strerror}") from e
            place = Place(file, file.size)
            file.size += len(line)
            file.unanswered += 1
            return place

    def end(self) -> Place | None:
        """Returns the place after the last line; None if this client has not written one."""
        with self._lock:
            return None if self._file is None else Place(self._file, self._file.size)

    def answered(self, places: list[Place | None], before: Place | None) -> None:
        """Records that the writes at `places`, and all writes before `before`, are answered."""
        with self._lock:
            if self._closed:
                return
            try:
                if before is not None:
                    self._write_done(before.file.number, before.offset)
                for place in places:
                    if place is not None:
                        place.file.unanswered -= 1
                        if not place.file.unanswered and place.file is not self._file:
                            place.file.path.unlink(missing_ok=True)
            except OSError as e:
                # The next start resends the writes, which is harmless.
                _log.warning("cannot record in the spool what was answered: %s", e.strerror)

    def close(self) -> None:
        """Unlocks the directory. Unanswered writes stay in it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._end_file()
            except OSError as e:
                _log.warning("cannot remove a file of the spool: %s", e.strerror)
            finally:
                os.close(self._lock_fd)

    def abandon(self) -> None:
        """Closes the copies of the files in the child of a fork. The parent's stay open."""
        # The child must not wait for this object's lock: a thread of the parent may have held it,
        # and the child does not have that thread.
        self._closed = True
        if self._fd >= 0:
            os.close(self._fd)
        os.close(self._lock_fd)

    def _numbers(self) -> list[int]:
        names = map(_FILE_NAME.fullmatch, os.listdir(self._directory))
        return sorted(int(match[1]) for match in names if match)

    def _read_done(self) -> tuple[tuple[int, int], bool]:
        try:
            text = (self._directory / "done").read_bytes().decode("ascii", "replace")
        except FileNotFoundError:
            return (0, 0), False
        match = _DONE.fullmatch(text)
        return ((int(match[1]), int(match[2])), False) if match else ((0, 0), True)

    def _write_done(self, number: int, offset: int) -> None:
        if (number, offset) == self._done:
            return
        # The file is replaced as a whole, so that a crash leaves the old one or the new one.
        new = self._directory / "done.new"
        new.write_bytes(b"%d %d" % (number, offset))
        os.replace(new, self._directory / "done")
        self._done = (number, offset)

    def _read(self, file: File, data: bytes, start: int, found: Recovered) -> None:
        while start < len(data):
            end = data.find(b"\n", start)
            torn = end < 0
            line = data[start:] if torn else data[start:end]
            match = _LINE.fullmatch(line)
            if torn:
                found.corrupt.append(f"{file.path.name}: offset {start}: the line is torn")
            elif match is None or int(match[1], 16) != zlib.crc32(match[2]):
                found.corrupt.append(f"{file.path.name}: offset {start}: the checksum is wrong")
            else:
                found.items.append((Place(file, start), match[2]))
                file.unanswered += 1
            start += len(line) + 1

    def _begin_file(self) -> File:
        self._end_file()
        path = self._path(self._next_number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags, 0o600)
        self._file = File(self._next_number, path)
        self._next_number += 1
        return self._file

    def _end_file(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        fd, self._fd = self._fd, -1
        os.close(fd)
        if not file.unanswered:
            file.path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:010}.spool"


def _locked(directory: Path) -> int:
    """Locks the directory's lock file, and returns its descriptor. Closing it unlocks it."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(fd)
        if isinstance(e, (BlockingIOError, PermissionError)):
            raise SpoolInUseError(str(directory)) from None
        raise
    return fd
