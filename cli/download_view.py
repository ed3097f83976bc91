"""What a download on several nodes looks like: a line a node, a bar in a terminal, plain lines elsewhere.

The state that is shown is ``{"model": name, "tasks": [ClusterTask …]}``, as ``POST /v0/models/<id>/download`` answers.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from llmlb.cli.pull_output import (
    PLAIN_EVERY_S,
    PLAIN_SLOW_S,
    PLAIN_STEP,
    SAME_NOTE_S,
    UNLIMITED,
    Output,
    Stream,
    Terminal,
)
from llmlb.cli.pull_view import FINAL, Frame, plain_line, progress_line
from llmlb.cli.render import clipped, counted, printable

SHORT_ID = 8
State = Mapping[str, Any]


def labels(tasks: Sequence[State]) -> dict[str, str]:
    """By task id what its node is called: its host name, with the beginning of its id where two have the same."""
    names = Counter(task["node_name"] for task in tasks)
    return {
        task["id"]: printable(
            task["node_name"] if names[task["node_name"]] == 1 else f"{task['node_name']} {task['node_id'][:SHORT_ID]}"
        )
        for task in tasks
    }


def why_failed(task: State) -> str:
    """Of a pull that ended without a model."""
    if task["status"] == "cancelled":
        return "cancelled"
    return printable(str((task.get("error") or {}).get("message") or "failed"))


def waits_for(each: State) -> str | None:
    """Why nothing moves, or what it does besides fetching; None when there is nothing to say."""
    task = each["task"]
    if not each["online"]:
        return "offline; it goes on when the node is back"
    if task.get("note"):
        return printable(str(task["note"]))
    if task["phase"] == "verifying" and task["total_bytes"]:
        done = sum(file.get("verified_bytes", 0) for file in task["files"])
        return f"verifying sha256 digest {min(100, done * 100 // task['total_bytes'])}%"
    return {"manifest": "pulling manifest", "writing": "writing manifest", "waiting": "waiting for its turn"}.get(
        task["phase"]
    )


def ended_line(label: str, task: State, width: int, *, bars: bool) -> str:
    """The last line of a node."""
    if task["status"] != "completed":
        return clipped(f"{label}: {why_failed(task)}", width)
    total = task["total_bytes"]
    return progress_line(label, total, total, width) if bars else plain_line(label, total, total)


def head(state: State) -> str:
    """The first line."""
    return f"downloading {printable(state['model'])} on {counted(len(state['tasks']), 'node')}"


def cancelled_lines(tasks: Sequence[State]) -> list[str]:
    """``--cancel``: a line a node."""
    names = labels(tasks)
    return [f"{names[each['id']]}: {each['task']['status']}" for each in tasks]


class DownloadView:
    """Frames for a terminal: a node that is done has its last line once, the others are drawn again and again."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def frame(self, state: State, width: int, height: int, trouble: str | None = None) -> Frame:
        """``width`` and ``height`` in columns and lines."""
        names = labels(state["tasks"])
        settled = [] if "" in self._said else [clipped(head(state), width)]
        self._said.add("")
        for each in state["tasks"]:
            if each["task"]["status"] in FINAL and each["id"] not in self._said:
                self._said.add(each["id"])
                settled.append(ended_line(names[each["id"]], each["task"], width, bars=True))
        notes = [clipped(f"  {printable(trouble)}", width)] if trouble else []
        return Frame(settled, self._live(state["tasks"], names, width, max(1, height - 2 - len(notes))), notes)

    def _live(self, tasks: Sequence[State], names: Mapping[str, str], width: int, height: int) -> list[str]:
        running = [each for each in tasks if each["task"]["status"] not in FINAL]
        running.sort(key=lambda each: not (each["online"] and each["task"]["downloaded_bytes"]))  # stable
        lines = [self._line(names[each["id"]], each, width) for each in running]
        if len(lines) <= height:
            return lines
        return [*lines[: height - 1], clipped(f"and {len(lines) - height + 1} more nodes", width)]

    @staticmethod
    def _line(label: str, each: State, width: int) -> str:
        task, waits = each["task"], waits_for(each)
        done, total = task["downloaded_bytes"], task["total_bytes"]
        if not total or (waits and done in (0, total)) or not each["online"]:
            return clipped(f"pulling {label}... {waits or 'waiting'}", width)
        line = progress_line(label, done, total, width, 0 if waits else task.get("speed_bps", 0))
        return clipped(f"{line}  {waits}", width) if waits else line


class PlainDownloads:
    """Lines for a file or a pipe, none of them twice. ``clock`` in seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = Stream(stream)
        self._clock = clock
        self._said: set[str] = set()
        self._shown: dict[str, tuple[float, int]] = {}
        """By task: when, and how many per cent."""
        self._notes: dict[str, float] = {}

    def show(self, state: State, trouble: str | None = None) -> None:
        names = labels(state["tasks"])
        lines = [] if "" in self._said else [head(state)]
        self._said.add("")
        for each in state["tasks"]:
            name = names[each["id"]]
            if each["task"]["status"] not in FINAL:
                waits = waits_for(each)
                lines += [*self._moved(name, each), *self._noted(f"{name}: {waits}" if waits else None)]
            elif each["id"] not in self._said:
                self._said.add(each["id"])
                lines.append(ended_line(name, each["task"], UNLIMITED, bars=False))
        lines += self._noted(printable(trouble) if trouble else None)
        if lines:
            self._out.write("".join(f"{line}\n" for line in lines))

    def _moved(self, name: str, each: State) -> list[str]:
        task, now = each["task"], self._clock()
        if not 0 < task["downloaded_bytes"] < task["total_bytes"]:
            return []
        share = task["downloaded_bytes"] * 100 // task["total_bytes"]
        at, before = self._shown.get(each["id"], (now - PLAIN_EVERY_S, -PLAIN_STEP))
        waited, moved = now - at, abs(share - before)
        if waited < PLAIN_EVERY_S or not (moved >= PLAIN_STEP or (moved and waited >= PLAIN_SLOW_S)):
            return []
        self._shown[each["id"]] = (now, share)
        return [plain_line(name, task["downloaded_bytes"], task["total_bytes"], task.get("speed_bps", 0))]

    def _noted(self, note: str | None) -> list[str]:
        if note is None:
            return []
        kind, now = re.sub(r"\d+(?= ?(s|%|$))", "0", note), self._clock()
        last = self._notes.get(kind)
        if last is not None and now - last < SAME_NOTE_S:
            return []
        self._notes[kind] = now
        return [note]

    def leave(self) -> None:
        pass

    def say(self, text: str) -> None:
        self._out.write(f"{text}\n")


def output_for(stream: TextIO) -> Output:
    """A terminal that can move its cursor gets bars; ``TERM=dumb`` and everything else gets lines."""
    if not stream.isatty():
        return PlainDownloads(stream)
    from rich.console import Console

    return PlainDownloads(stream) if Console(file=stream).is_dumb_terminal else Terminal(stream, DownloadView())
