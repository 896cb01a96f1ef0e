"""What the recorder and the renderers agree on: the script, and the cast."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

# Columns and rows of the whole picture, and the rows of it that the shell has.
# Below those is the caption: a rule with the chapter's title, and three lines.
COLUMNS = 112
ROWS = 29
SHELL_ROWS = 25
CAPTION_LINES = ROWS - SHELL_ROWS - 1

# The shell marks its prompts, and the begin and end of a command's output, as
# terminals know it from shell integration (OSC 133).
PROMPT = "\x1b]133;B\x07"
MORE = "\x1b]133;B;k=s\x07"
OUTPUT = "\x1b]133;C\x07"
DONE = re.compile(r"\x1b\]133;D;(\d+)\x07")


@dataclass
class Step:
    """A caption, the command that is typed under it, and what its output must match."""

    chapter: str
    caption: str
    line: int
    command: list[str] = field(default_factory=list)
    wanted: list[re.Pattern[str]] = field(default_factory=list)
    status: int = 0


class ScriptError(Exception):
    """The script, or a cast, is not in its format."""


def read_script(path: Path) -> list[Step]:
    """Read the script. Its format is described at its top."""
    steps: list[Step] = []
    chapter = ""
    caption: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        mark, _, text = line.partition(" ")
        if mark == "==":
            chapter = text
        elif mark == "--":
            caption.append(text)
        elif mark == "$":
            if not chapter or not caption:
                raise ScriptError(f"{path}:{number}: a command needs a chapter and a caption")
            steps.append(Step(chapter, " ".join(caption), number, [text]))
            caption = []
        elif mark in (">", "~", "?") and not steps:
            raise ScriptError(f"{path}:{number}: {mark} before any command")
        elif mark == ">":
            steps[-1].command.append(text)
        elif mark == "~":
            steps[-1].wanted.append(re.compile(text, re.MULTILINE))
        elif mark == "?":
            steps[-1].status = int(text)
        elif line and mark != "#":
            raise ScriptError(f"{path}:{number}: what is {line!r}?")
    if caption:
        raise ScriptError(f"{path}: the last caption has no command")
    return steps


@dataclass
class Cast:
    """An asciicast of version 2, as asciinema and its players read it."""

    header: dict[str, object]
    events: list[tuple[float, str, str]]

    @property
    def duration(self) -> float:
        """The time of the last event, in seconds."""
        return self.events[-1][0]

    def write(self, path: Path) -> None:
        """Write the cast: a header, then an event a line."""
        with path.open("w", encoding="utf-8") as out:
            out.write(json.dumps(self.header) + "\n")
            for at, kind, text in self.events:
                out.write(json.dumps([round(at, 3), kind, text], ensure_ascii=False) + "\n")


def read_cast(path: Path) -> Cast:
    """Read a cast."""
    lines = path.read_text(encoding="utf-8").split("\n")
    header = json.loads(lines[0])
    if header.get("version") != 2:
        raise ScriptError(f"{path}: not an asciicast of version 2")
    return Cast(header, [tuple(json.loads(line)) for line in lines[1:] if line])
