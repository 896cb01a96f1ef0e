"""Plays the script in a shell on a pseudo-terminal, and records it as a cast.

    record.py SCRIPT CAST

The commands, their output and its pace are real. Made up are the pace of the
typing, the pauses for reading, and that the shell is silent for no longer than
IDLE_SECONDS: such a wait is cut short, as players do. It exits 1, and writes no
cast, when a command's exit status or its output is not what the script wants.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from pathlib import Path

from cast import (
    CAPTION_LINES,
    COLUMNS,
    DONE,
    MORE,
    OUTPUT,
    PROMPT,
    ROWS,
    SHELL_ROWS,
    Cast,
    Step,
    read_script,
)

IDLE_SECONDS = 1.2
STEP_SECONDS = 180
CLOSE_SECONDS = 30
ECHO_SECONDS = 30
DURATION_SECONDS_MAX = 300
TYPING_SECONDS = 0.016
# What a viewer needs to look up from a caption, and to read a word of one and a
# line of output.
LOOK_SECONDS = 1.2
WORD_SECONDS = 0.22
LINE_SECONDS = 0.07
CAPTION_SECONDS = 0.8
ENTER_SECONDS = 0.3
END_SECONDS = 3.0
# Output that comes in smaller pieces than this is one event.
PIECE_SECONDS = 0.015

ANSI = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]")

PS1 = "\x1b[1;32m$ \x1b[0;1m" + PROMPT
# What the shell prints in the end of a line that was entered: it asks for more of
# the command, or the command has ended and it asks for the next.
ENDED = re.compile(f"{re.escape(MORE)}|{DONE.pattern}.*{re.escape(PROMPT)}", re.DOTALL)

RC = r"""
PROMPT_COMMAND='printf "\e[0m\e]133;D;%s\a" $?'
PS0='\e[0m\e]133;C\a'
PS1='\e[1;32m$ \e[0;1m\e]133;B\a'
PS2='\e[1;32m> \e[0;1m\e]133;B;k=s\a'
set -o pipefail
"""


class StepError(Exception):
    """A step did not do what the script wants."""


class Recorder:
    """A shell and what is recorded of it, in a time of its own."""

    def __init__(self, directory: Path, repository: Path) -> None:
        (directory / "rc").write_text(RC, encoding="utf-8")
        keep = ("HOME", "XDG_CACHE_HOME", "TMPDIR")
        env = {name: os.environ[name] for name in keep if name in os.environ}
        env |= {
            "PATH": f"{repository / 'bin'}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "repo": str(repository),
        }
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", SHELL_ROWS, COLUMNS, 0, 0))
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--rcfile", str(directory / "rc"), "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory / "home",
            env=env,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        os.close(slave)
        self.master = master
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.events: list[tuple[float, str, str]] = []
        self.now = 0.0
        self.seen = time.monotonic()

    def emit(self, text: str, kind: str = "o") -> None:
        """Record something now."""
        self.events.append((self.now, kind, text))

    def hold(self, seconds: float) -> None:
        """Let time go by in the recording."""
        self.now += max(0.0, seconds)

    def read(self, until: re.Pattern[str], seconds: float) -> str:
        """Record what the shell prints until the pattern is in it, and return it."""
        text = ""
        deadline = time.monotonic() + seconds
        while not until.search(text):
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            if not ready:
                raise StepError(f"nothing like {until.pattern!r} within {seconds} s:\n{text}")
            try:
                piece = self.decode(os.read(self.master, 1 << 16))
            except OSError as err:
                raise StepError(f"the shell has ended:\n{text}") from err
            came = time.monotonic()
            self.now += min(came - self.seen, IDLE_SECONDS)
            self.seen = came
            text += piece
            if self.events[-1][1] == "o" and self.now - self.events[-1][0] < PIECE_SECONDS:
                at, kind, before = self.events[-1]
                self.events[-1] = (at, kind, before + piece)
            else:
                self.emit(piece)
        return text

    def type(self, line: str) -> None:
        """Type a line, character by character as they are echoed."""
        for char in line:
            os.write(self.master, char.encode())
            self.seen = time.monotonic()
            began = self.now
            self.read(re.compile(re.escape(char)), ECHO_SECONDS)
            self.now = began + TYPING_SECONDS * (2 if char == " " else 1)

    def enter(self, until: re.Pattern[str], seconds: float) -> str:
        """Press the enter key and read on."""
        os.write(self.master, b"\n")
        self.seen = time.monotonic()
        return self.read(until, seconds)

    def caption(self, number: int, chapter: str, text: str) -> None:
        """Show a caption under the shell's rows."""
        title = f" {number}  {chapter} "
        lines = textwrap.wrap(text, COLUMNS - 4, break_on_hyphens=False)
        if len(lines) > CAPTION_LINES:
            raise StepError(f"a caption of {len(lines)} lines: {text}")
        lines += [""] * (CAPTION_LINES - len(lines))
        picture = f"\x1b7\x1b[{SHELL_ROWS + 1};1H\x1b[0;36m──\x1b[1m{title}\x1b[0;36m"
        picture += "─" * (COLUMNS - 2 - len(title))
        for row, line in enumerate(lines, SHELL_ROWS + 2):
            picture += f"\x1b[{row};1H\x1b[0;93m  {line}\x1b[0m\x1b[K"
        self.emit(f"{chapter}: {text}", "m")
        self.emit(picture + "\x1b[0m\x1b8")

    def clear(self) -> None:
        """Clear the shell's rows, and show its prompt on the first."""
        rows = "".join(f"\x1b[{row};1H\x1b[2K" for row in range(1, SHELL_ROWS + 1))
        self.emit("\x1b[0m" + rows + "\x1b[1;1H" + PS1)

    def step(self, step: Step) -> None:
        """Type a step's lines and check what comes of them."""
        output = ""
        for number, line in enumerate(step.command, 1):
            self.type(line)
            self.hold(ENTER_SECONDS)
            text = self.enter(ENDED, STEP_SECONDS)
            done = DONE.search(text)
            last = number == len(step.command)
            if not done:
                if last:
                    raise StepError("the command goes on after its last line")
                continue
            output += ANSI.sub("", text[: done.start()].partition(OUTPUT)[2]).replace("\r\n", "\n")
            if int(done[1]) != (step.status if last else 0):
                raise StepError(f"{line}: exit status {done[1]}, want {step.status}:\n{output}")
        for wanted in step.wanted:
            if not wanted.search(output):
                raise StepError(f"nothing like {wanted.pattern!r} in the output:\n{output}")
        self.hold(LINE_SECONDS * min(output.count("\n"), SHELL_ROWS))

    def close(self) -> None:
        """Hang up, and wait until the shell and all that it started have ended."""
        self.shell.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + CLOSE_SECONDS
        # Until nobody has the terminal any more, which is what the error says.
        with contextlib.suppress(OSError):
            while select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.read(self.master, 1 << 16)
        os.close(self.master)
        if self.shell.poll() is None:
            self.shell.kill()
            self.shell.wait()


def record(script: Path, directory: Path, repository: Path) -> Cast:
    """Play the script."""
    steps = read_script(script)
    (directory / "home").mkdir()
    recorder = Recorder(directory, repository)
    began = int(time.time())
    chapters: list[str] = []
    try:
        # The shell scrolls in its own rows alone.
        recorder.emit(f"\x1b[2J\x1b[1;{SHELL_ROWS}r\x1b[1;1H")
        recorder.read(re.compile(re.escape(PROMPT)), ECHO_SECONDS)
        for step in steps:
            print(f"{recorder.now:5.0f} s  {step.chapter}: {step.command[0]}", flush=True)
            if step.chapter not in chapters:
                chapters.append(step.chapter)
                if len(chapters) > 1:
                    recorder.clear()
            shown = recorder.now
            recorder.caption(len(chapters), step.chapter, step.caption)
            recorder.hold(CAPTION_SECONDS)
            try:
                recorder.step(step)
            except StepError as err:
                raise StepError(f"{script}:{step.line}: {err}") from err
            reading = LOOK_SECONDS + WORD_SECONDS * len(step.caption.split())
            recorder.hold(max(LOOK_SECONDS, shown + reading - recorder.now))
        recorder.hold(END_SECONDS)
        recorder.emit(f"\x1b[r\x1b[{ROWS};1H")
    finally:
        recorder.close()
    header: dict[str, object] = {
        "version": 2,
        "width": COLUMNS,
        "height": ROWS,
        "timestamp": began,
        "title": "Sluice: a walk-through",
        "env": {"SHELL": "bash", "TERM": "xterm-256color"},
    }
    return Cast(header, recorder.events)


def main() -> int:
    """Record, and say what went wrong."""
    script, out = (Path(name) for name in sys.argv[1:])
    repository = Path(__file__).resolve().parents[2]
    directory = Path(tempfile.mkdtemp(prefix="sluice-walkthrough-"))
    # So that what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        cast = record(script, directory, repository)
        if cast.duration > DURATION_SECONDS_MAX:
            raise StepError(f"{cast.duration:.0f} s, longer than {DURATION_SECONDS_MAX} s")
        cast.write(out)
    except StepError as err:
        print(f"walkthrough: {err}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{cast.duration:5.0f} s  {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
