"""A recorded terminal session as an animated SVG. tmux is the terminal that the recording is played to."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.tmux import Pane, pane

Event = tuple[float, str]
"""Seconds from the beginning, and what came then."""
FRAME_S = 0.12
"""What comes closer together is one frame."""
END_S = 4.0
CELL_WIDTH, CELL_HEIGHT, FONT, MARGIN = 8.4, 18, 14, 12
BACKGROUND, FOREGROUND = "#16181d", "#d7dae0"
COLORS = {
    **dict(enumerate(("#3b4048", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d7dae0"), 30)),
    **dict(enumerate(("#7f848e", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#ffffff"), 90)),
}
"""Source: the palette of Atom's One Dark."""
_SGR = re.compile(r"\x1b\[([0-9;]*)m")


def frames(events: Sequence[Event], columns: int, rows: int, idle_most_s: float) -> Iterator[tuple[float, list[str]]]:
    """(seconds it is shown, rows with escape sequences) of each state of the screen."""
    with TemporaryDirectory() as folder:
        pipe = Path(folder) / "pipe"
        # Bytes as they are: what the recorded terminal was sent has its line ends already.
        with pane(
            ["sh", "-c", f"stty raw -echo; mkfifo {pipe}; exec cat {pipe}"], {}, columns=columns, rows=rows
        ) as it:
            while not pipe.exists():
                time.sleep(0.01)
            with pipe.open("w") as out:
                yield from _played(events, it, out, idle_most_s)


def _played(events: Sequence[Event], it: Pane, out: object, idle_most_s: float) -> Iterator[tuple[float, list[str]]]:
    last: list[str] | None = None
    shown_s = 0.0
    for number, (text, seconds) in enumerate(_grouped(events, idle_most_s)):
        out.write(f"{text}\x1b]2;frame {number}\x07")  # type: ignore[attr-defined]
        out.flush()  # type: ignore[attr-defined]
        while it.command("display-message", "-p", "#{pane_title}").strip() != f"frame {number}":
            time.sleep(0.005)
        rows = it.command("capture-pane", "-e", "-p").rstrip("\n").split("\n")
        if last is not None and rows != last:
            yield shown_s, last
            shown_s = 0.0
        last, shown_s = rows, shown_s + seconds
    if last is not None:
        yield END_S, last


def _grouped(events: Sequence[Event], idle_most_s: float) -> Iterator[tuple[str, float]]:
    """(what came together, seconds until the next)."""
    text, began = "", 0.0
    for at, (when, piece) in enumerate(events):
        if not text:
            began = when
        text += piece
        following = events[at + 1][0] if at + 1 < len(events) else when + END_S
        if following - began >= FRAME_S:
            yield text, min(following - began, idle_most_s)
            text = ""


def draw(events: Sequence[Event], columns: int, rows: int, idle_most_s: float) -> str:
    """The SVG. Each different row is there once; the film of frames moves behind its window."""
    film = list(frames(events, columns, rows, idle_most_s))
    known: dict[str, str] = {}
    groups = []
    height = rows * CELL_HEIGHT + 2 * MARGIN
    width = columns * CELL_WIDTH + 2 * MARGIN
    for number, (_, lines) in enumerate(film):
        uses = []
        for at, line in enumerate(lines):
            body = row(line)
            if body:
                name = known.setdefault(body, f"r{len(known)}")
                uses.append(f'<use href="#{name}" y="{at * CELL_HEIGHT}"/>')
        groups.append(f'<g transform="translate(0 {number * height})">{"".join(uses)}</g>')
    total, steps, at_s = sum(seconds for seconds, _ in film), [], 0.0
    for number, (seconds, _) in enumerate(film):
        steps.append(f"{at_s / total:.4%}{{transform:translateY({-number * height}px)}}")
        at_s += seconds
    style = (
        f"text{{font:{FONT}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:{FOREGROUND};white-space:pre}}"
        f".b{{font-weight:bold}}.d{{opacity:.6}}.i{{font-style:italic}}.u{{text-decoration:underline}}"
        f".film{{animation:play {total:.2f}s steps(1,end) infinite}}@keyframes play{{{''.join(steps)}}}"
    )
    rows_drawn = "".join(
        f'<text id="{name}" x="{MARGIN}" y="{MARGIN + FONT}">{body}</text>' for body, name in known.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}">'
        f"<style>{style}</style><defs>{rows_drawn}</defs>"
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/><g class="film">{"".join(groups)}</g></svg>\n'
    )


def row(line: str) -> str:
    """One row of the screen as the inside of a text element; nothing for an empty one."""
    spans, style, column, at = [], frozenset[int](), 0, 0
    for match in [*_SGR.finditer(line), None]:
        text = line[at : match.start() if match else len(line)]
        if text.strip():
            spans.append(f'<tspan x="{MARGIN + column * CELL_WIDTH:g}"{_attributes(style)}>{escape(text)}</tspan>')
        column += len(text)
        if match:
            style, at = _changed(style, match[1]), match.end()
    return "".join(spans)


def _changed(style: frozenset[int], codes: str) -> frozenset[int]:
    for code in map(int, codes.split(";") if codes else ["0"]):
        if code == 0:
            style = frozenset()
        elif code in (39, *COLORS):
            style = frozenset(it for it in style if it not in COLORS) | ({code} if code in COLORS else set())
        elif code in (1, 2, 3, 4):
            style |= {code}
    return style


def _attributes(style: frozenset[int]) -> str:
    classes = " ".join(name for code, name in ((1, "b"), (2, "d"), (3, "i"), (4, "u")) if code in style)
    color = next((COLORS[code] for code in style if code in COLORS), None)
    return (f' class="{classes}"' if classes else "") + (f' fill="{color}"' if color else "")
