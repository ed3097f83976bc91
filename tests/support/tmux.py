"""A program in a real terminal: a tmux server of its own, and what stands on its screen."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmlb.bus.children import die_with_parent
from tests.support.cluster import wait_until

LIMIT_S = 30.0
IDLE = r">>> Send a message \(/\? for help\)$"
"""The prompt of ``llmlb node run``, with nothing typed."""
LEFT = r"EXIT 0 echo icanon$"
"""The program ended well, and the terminal is as it was."""


class Pane:
    """One program. ``rows`` of the screen are without the blanks at their ends."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]

    def command(self, *arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run([*self._tmux, *arguments], input=stdin, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def type(self, text: str) -> None:
        """As from the keyboard, without Enter."""
        self.command("send-keys", "-l", "--", text)

    def keys(self, *names: str) -> None:
        """``Enter``, ``C-c``, ``Up``: as tmux names them."""
        self.command("send-keys", *names)

    def line(self, text: str) -> None:
        self.type(text)
        self.keys("Enter")

    def paste(self, text: str) -> None:
        """As a terminal pastes for programs that asked for brackets around it."""
        self.command("load-buffer", "-", stdin=text)
        self.command("paste-buffer", "-p", "-r")

    def screen(self, *, styles: bool = False, history: bool = False) -> str:
        """What is shown; what scrolled away too if ``history``, and with escape sequences if ``styles``."""
        more = [*(["-e"] if styles else []), *(["-S", "-"] if history else [])]
        return "\n".join(row.rstrip() for row in self.command("capture-pane", "-p", *more).split("\n")).rstrip("\n")

    def wait(self, pattern: str, timeout_s: float = LIMIT_S, *, styles: bool = False) -> re.Match[str]:
        """The first place where the screen matches, with ``.`` for line ends too."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = re.search(pattern, self.screen(styles=styles), re.DOTALL)
            found.extend([match] if match else [])
            return match is not None

        try:
            wait_until(look, timeout_s, f"the screen has {pattern!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it has:\n{self.screen(styles=styles)}") from None
        return found[0]

    def resize(self, columns: int, rows: int) -> None:
        self.command("resize-window", "-x", str(columns), "-y", str(rows))


@contextlib.contextmanager
def pane(command: Sequence[str], env: Mapping[str, str], *, columns: int = 80, rows: int = 24) -> Iterator[Pane]:
    """The command in a terminal; when it ends, the screen stays and says ``EXIT`` and its code.

    ``stty`` after it says whether the terminal is as it was: ``echo icanon`` or ``-echo``.
    """
    folder = Path(tempfile.mkdtemp(prefix="llmlb-tmux-"))  # a socket's path must be short
    socket = folder / "s"
    it = Pane(socket)
    # The trap: Ctrl+C is for the program, and the shell goes on after it.
    script = 'trap : INT; "$@"; echo "EXIT $?" $(stty -a | grep -o -- "-\\?\\(echo\\|icanon\\)\\>" | sort -u); exec cat'
    kept = {**env, "TERM": "screen-256color"}
    kept.pop("TMUX", None)
    size = ("-x", str(columns), "-y", str(rows))
    # Not a daemon: it ends with the test process, even by kill -9, and with it what runs in it.
    server = subprocess.Popen([*it._tmux, "-D"], env=kept, preexec_fn=_as_a_terminal)
    try:
        wait_until(socket.exists, LIMIT_S, "tmux has its socket")
        subprocess.run(
            [*it._tmux, "-N", "new-session", "-d", *size, "sh", "-c", script, "sh", *command],
            env=kept,
            check=True,
            timeout=LIMIT_S,
        )
        yield it
    finally:
        server.terminate()
        try:
            server.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _as_a_terminal() -> None:
    """In the child. Where the tests were started with nohup, what runs in it would not notice that it is gone."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    die_with_parent()
