"""``make demo-cast``: the terminal session of the README, recorded from the real thing.

Starts ``llmlb serve`` with the demo model on the usual ports, types the commands below into a shell, and writes what
comes back with its times (asciinema's cast, version 2), and the SVG drawn from that.
"""

from __future__ import annotations

import argparse
import codecs
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect

from docs.media.cast_svg import Event, draw
from llmlb.bus.settings import NODE_PORT, ROUTER_PORT
from tests.support.cluster import cluster

HERE = Path(__file__).parent
CAST, SVG = HERE / "demo.cast", HERE / "demo.svg"
COLUMNS, ROWS = 84, 26
SVG_MOST_BYTES = 300_000
KEY_S, READ_S, WAIT_S = 0.045, 1.2, 60.0
"""Between two keys, to read what came, and for a command at most."""
IDLE_MOST_S = 2.0
SHELL = r"\$ $"
PROMPT = r"Send a message \(/\? for help\)"


class Recorder:
    """A shell in a terminal; everything it shows, with its time in seconds."""

    def __init__(self, env: dict[str, str]) -> None:
        self.events: list[Event] = []
        self._began = time.monotonic()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._child: pexpect.spawn[bytes] = pexpect.spawn(
            "bash", ["--norc", "--noprofile"], env=env, dimensions=(ROWS, COLUMNS)
        )
        self._child.delaybeforesend = None

    def _read(self, seconds: float) -> str:
        try:
            text = self._decoder.decode(self._child.read_nonblocking(65536, seconds))
        except pexpect.TIMEOUT:
            return ""
        if text:
            self.events.append((time.monotonic() - self._began, text))
        return text

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._read(left)

    def wait(self, pattern: str) -> None:
        """Until what came since the last call matches. Raises RuntimeError when it does not come."""
        seen, until = "", time.monotonic() + WAIT_S
        while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)):
            if time.monotonic() > until:
                raise RuntimeError(f"waited for {pattern!r}, got {seen[-500:]!r}")
            seen += self._read(0.1)

    def type(self, text: str, then: str) -> None:
        """Type a line, press Enter, and wait for ``then``."""
        for char in text:
            self._child.send(char)
            self.pause(KEY_S)
        self.pause(0.3)
        self._child.send("\r")
        self.wait(then)
        self.pause(READ_S)

    def close(self) -> None:
        self._child.close(force=True)


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """``llmlb serve``; the environment of a shell for its commands."""
    with cluster(folder) as it:
        process = it.start("serve", "--port", str(ROUTER_PORT), "--node-port", str(NODE_PORT), home="one")
        process.router_port, process.node_port = ROUTER_PORT, NODE_PORT
        process.wait_ready()
        env = it.environ(folder / "home")
        kept = {name: env[name] for name in ("LLMLB_HOME", "LANG", "LC_ALL") if name in env}
        path = f"{Path(sys.executable).parent}:{env['PATH']}"
        yield {**kept, "PATH": path, "TERM": "xterm-256color", "PS1": "$ ", "HOME": str(folder), "LC_CTYPE": "C.UTF-8"}


def record() -> list[Event]:
    """The session."""
    with tempfile.TemporaryDirectory(prefix="llmlb-demo-") as name, served(Path(name)) as env:
        it = Recorder(env)
        try:
            it.wait(SHELL)
            it.type("llmlb node list", SHELL)
            it.type("llmlb node run smollm2", PROMPT)
            it.type("What is the capital of Japan?", PROMPT)
            it.type("Write hello world in Python, in a code block.", PROMPT)
            it.type("/bye", SHELL)
            it.type("llmlb node ps", SHELL)
            it.type("llmlb router status", SHELL)
        finally:
            it.close()
        return it.events


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-cast", description=__doc__)
    parser.add_argument("--svg-only", action="store_true", help="draw the SVG from the cast that is there")
    if not parser.parse_args().svg_only:
        head = {"version": 2, "width": COLUMNS, "height": ROWS, "idle_time_limit": IDLE_MOST_S, "title": "llmlb"}
        lines = [json.dumps(head), *(json.dumps([round(at, 3), "o", text]) for at, text in record())]
        CAST.write_text("\n".join(lines) + "\n")
    head, *events = map(json.loads, CAST.read_text().splitlines())
    drawn = draw([(at, text) for at, _, text in events], head["width"], head["height"], head["idle_time_limit"])
    if len(drawn.encode()) > SVG_MOST_BYTES:
        raise SystemExit(f"the SVG has {len(drawn.encode())} bytes; {SVG_MOST_BYTES} is the most")
    SVG.write_text(drawn)
    print(f"{CAST}: {len(events)} events, {SVG}: {len(drawn.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
