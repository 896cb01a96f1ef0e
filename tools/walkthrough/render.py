"""Renders a cast as an animated SVG and as an MP4.

    render.py CAST SVG MP4

A terminal emulator (pyte) plays the cast; every picture is drawn from its
screen, cell by cell. The MP4 is 1280 by 720, H.264, without sound.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.sax.saxutils import escape

import pyte
from cast import COLUMNS, ROWS, Cast, read_cast
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1280, 720
CELL_WIDTH, CELL_HEIGHT = 11, 24
FONT_SIZE = 18
FONTS = Path("/usr/share/fonts/truetype/dejavu")
LEFT, TOP = (WIDTH - COLUMNS * CELL_WIDTH) // 2, (HEIGHT - ROWS * CELL_HEIGHT) // 2

MP4_RATE = 10  # pictures a second
SVG_SECONDS = 0.4  # the least time that a picture of the SVG is shown

BACKGROUND, FOREGROUND, CURSOR = "#14181f", "#d5d9e0", "#8fa3bf"
COLORS = {
    "default": FOREGROUND,
    "black": "#3b4252",
    "red": "#f0776c",
    "green": "#8fd081",
    "brown": "#e0b75f",
    "blue": "#7aaaf0",
    "magenta": "#c99be8",
    "cyan": "#6fc3d0",
    "white": FOREGROUND,
    "brightyellow": "#ffe3a0",
    "brightbrown": "#ffe3a0",
}

# The arms of the characters that tables are drawn with: left, right, up, down.
# The font's own leave gaps between lines.
BOX = {
    "─": (1, 1, 0, 0),
    "│": (0, 0, 1, 1),
    "┌": (0, 1, 0, 1),
    "┐": (1, 0, 0, 1),
    "└": (0, 1, 1, 0),
    "┘": (1, 0, 1, 0),
    "├": (0, 1, 1, 1),
    "┤": (1, 0, 1, 1),
    "┬": (1, 1, 0, 1),
    "┴": (1, 1, 1, 0),
    "┼": (1, 1, 1, 1),
}

# A run of cells of one look: column, text, colour, bold.
Run = tuple[int, str, str, bool]
Row = tuple[Run, ...]


@dataclass(frozen=True)
class Picture:
    """What the screen shows from a time on."""

    at: float
    rows: tuple[Row, ...]
    cursor: tuple[int, int]


def row_of(line: dict[int, pyte.screens.Char]) -> Row:
    """Join a line's cells to runs; blank ones are in none."""
    runs: list[Run] = []
    for column in range(COLUMNS):
        cell = line[column]
        if cell.data in ("", " "):
            continue
        look = (COLORS[cell.fg], cell.bold)
        if runs:
            start, text, *before = runs[-1]
            gap = column - start - len(text)
            # Over one blank a run goes on, so that a sentence is one.
            if tuple(before) == look and gap <= 1:
                runs[-1] = (start, text + " " * gap + cell.data, *look)
                continue
        runs.append((column, cell.data, *look))
    return tuple(runs)


def pictures(cast: Cast, seconds: float) -> Iterator[Picture]:
    """Play the cast. No picture but the last is shown for less than the seconds."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    rows: list[Row] = [()] * ROWS
    began = 0.0
    output = [(at, text) for at, kind, text in cast.events if kind == "o"]
    for number, (_, text) in enumerate(output):
        stream.feed(text)
        following = output[number + 1][0] if number + 1 < len(output) else cast.duration
        if following - began < seconds and number + 1 < len(output):
            continue
        for dirty in screen.dirty:
            rows[dirty] = row_of(screen.buffer[dirty])
        screen.dirty.clear()
        yield Picture(began, tuple(rows), (screen.cursor.x, screen.cursor.y))
        began = following


@lru_cache(maxsize=4096)
def draw_row(row: Row) -> Image.Image:
    """Draw a row of cells."""
    image = Image.new("RGB", (COLUMNS * CELL_WIDTH, CELL_HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for column, text, color, bold in row:
        for at, char in enumerate(text, column):
            x, y = at * CELL_WIDTH, CELL_HEIGHT // 2
            if char not in BOX:
                draw.text((x, 2), char, font=font(bold), fill=color)
                continue
            left, right, up, down = BOX[char]
            middle = x + CELL_WIDTH // 2
            draw.line((middle - left * (middle - x), y, middle + right * CELL_WIDTH // 2, y), color)
            draw.line((middle, y - up * y, middle, y + down * y), color)
    return image


@lru_cache
def font(bold: bool) -> ImageFont.FreeTypeFont:
    """Load the font."""
    name = "DejaVuSansMono-Bold.ttf" if bold else "DejaVuSansMono.ttf"
    return ImageFont.truetype(FONTS / name, FONT_SIZE)


def draw(picture: Picture) -> Image.Image:
    """Draw a picture of the video."""
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    for number, row in enumerate(picture.rows):
        image.paste(draw_row(row), (LEFT, TOP + number * CELL_HEIGHT))
    x, y = LEFT + picture.cursor[0] * CELL_WIDTH, TOP + picture.cursor[1] * CELL_HEIGHT
    ImageDraw.Draw(image).rectangle((x, y + 2, x + CELL_WIDTH - 2, y + CELL_HEIGHT - 3), CURSOR)
    return image


def write_mp4(cast: Cast, path: Path) -> None:
    """Encode the video, a picture at a constant rate."""
    source = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r {MP4_RATE} -i -"
    codec = f"-c:v libx264 -preset medium -tune animation -crf 22 -g {10 * MP4_RATE}"
    # Every player shows yuv420p, and begins before it has the whole file.
    form = "-pix_fmt yuv420p -fflags +bitexact -movflags +faststart"
    command = f"ffmpeg -y -loglevel error {source} {codec} {form}".split()
    encoder = subprocess.Popen([*command, str(path)], stdin=subprocess.PIPE)
    assert encoder.stdin
    written = 0
    before: bytes = b""
    for picture in pictures(cast, 1 / MP4_RATE):
        first = round(picture.at * MP4_RATE)
        encoder.stdin.write(before * (first - written))
        written = first
        before = draw(picture).tobytes()
    encoder.stdin.write(before * (round(cast.duration * MP4_RATE) - written))
    encoder.stdin.close()
    if encoder.wait():
        raise SystemExit(f"render: ffmpeg exited {encoder.returncode}")


def write_svg(cast: Cast, path: Path) -> None:
    """Write the animation: a strip of pictures, of which one is in view at a time.

    Rows that several pictures have are in the file once.
    """
    shown = list(pictures(cast, SVG_SECONDS))
    names: dict[Row, str] = {}
    defs: list[str] = []
    strip: list[str] = []
    steps: list[str] = []
    for number, picture in enumerate(shown):
        uses = []
        for at, row in enumerate(picture.rows):
            if not row:
                continue
            if row not in names:
                names[row] = f"r{len(names)}"
                defs.append(f'<g id="{names[row]}">{"".join(svg_run(run) for run in row)}</g>')
            uses.append(f'<use href="#{names[row]}" y="{at * CELL_HEIGHT}"/>')
        x, y = picture.cursor[0] * CELL_WIDTH, picture.cursor[1] * CELL_HEIGHT
        uses.append(f'<use href="#c" x="{x}" y="{y}"/>')
        strip.append(f'<g transform="translate({number * WIDTH})">{"".join(uses)}</g>')
        percent = f"{100 * picture.at / cast.duration:.3f}".rstrip("0").rstrip(".")
        steps.append(f"{percent}%{{transform:translateX({-number * WIDTH}px)}}")
    # What is shown to those who want nothing to move: the fullest one.
    still = max(range(len(shown)), key=lambda n: sum(map(bool, shown[n].rows)))
    classes = "".join(
        f".{color_class(color)}{{fill:{color}}}" for color in sorted(set(COLORS.values()))
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-size="{FONT_SIZE}">'
        f"<title>{escape(str(cast.header['title']))}</title><style>"
        "text{white-space:pre;font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace}"
        f".b{{font-weight:bold}}{classes}"
        f"#s{{animation:a {cast.duration:.3f}s steps(1,end) infinite}}"
        "@media(prefers-reduced-motion:reduce)"
        f"{{#s{{animation:none;transform:translateX({-still * WIDTH}px)}}}}"
        f"@keyframes a{{{''.join(steps)}}}</style>"
        f'<defs><rect id="c" y="2" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 4}" '
        f'fill="{CURSOR}"/>{"".join(defs)}</defs>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{BACKGROUND}"/>'
        f'<svg x="{LEFT}" y="{TOP}" width="{COLUMNS * CELL_WIDTH}" height="{ROWS * CELL_HEIGHT}">'
        f'<g id="s">{"".join(strip)}</g></svg></svg>\n',
        encoding="utf-8",
    )


def svg_run(run: Run) -> str:
    """Draw a run, as wide as its cells whatever font there is."""
    column, text, color, bold = run
    name = color_class(color) + (" b" if bold else "")
    return (
        f'<text x="{column * CELL_WIDTH}" y="18" class="{name}" '
        f'textLength="{len(text) * CELL_WIDTH}" lengthAdjust="spacingAndGlyphs">'
        f"{escape(text)}</text>"
    )


def color_class(color: str) -> str:
    """Name a colour's class."""
    return "f" + color[1:]


def main() -> int:
    """Render both from the one cast."""
    source, svg, mp4 = (Path(name) for name in sys.argv[1:])
    cast = read_cast(source)
    write_svg(cast, svg)
    write_mp4(cast, mp4)
    for path in (source, svg, mp4):
        print(f"{path.stat().st_size / 1000:8.0f} kB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
