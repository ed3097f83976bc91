"""Processes of a benchmark: started, waited for, ended by id whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench.load import Order, Result

START_S = 120.0
END_S = 15.0
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
"""Of the outer environment; what else is there (keys, proxies, LLMLB settings) is not for a benchmark."""


class Unavailable(Exception):
    """Something to compare with that is not there; says why, in few words."""


def environ(home: Path, **more: str) -> dict[str, str]:
    """For a process that must not see the outer settings."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "HOME": str(home), "PYTHONUNBUFFERED": "1", **more}


def end(popen: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then kill -9."""
    popen.terminate()
    try:
        popen.wait(END_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to ``log``; ended at the end."""
    with log.open("wb") as out:
        popen = subprocess.Popen(
            command, env=env, cwd=Path.cwd(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield popen
    finally:
        end(popen)


def module(name: str, *arguments: str) -> list[str]:
    """The command of a module of ours."""
    return [sys.executable, "-m", name, *arguments]


@contextlib.contextmanager
def announced(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours after its first line, which must be all it says unasked: nobody reads on.

    Raises RuntimeError when that does not come in time.
    """
    with log.open("wb") as err:
        popen = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err)
    try:
        _wait_ready(popen, log)
        yield popen
    finally:
        end(popen)
        for pipe in (popen.stdin, popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _wait_ready(popen: subprocess.Popen[bytes], log: Path) -> None:
    """Until its first line, which says ``ready``."""
    assert popen.stdout is not None
    ready, _, _ = select.select([popen.stdout], [], [], START_S)
    line = popen.stdout.readline() if ready else b""
    if b"ready" not in line:
        raise RuntimeError(f"{popen.args!r} did not start: {line!r} {log.read_text(errors='replace')[-1500:]}")


class Clients:
    """The process that asks: :mod:`tests.bench.load`."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen, self._log = popen, log

    def _line(self) -> dict[str, object]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"the clients' process ended: {self._log.read_text(errors='replace')[-1500:]}")
        return dict(json.loads(line))

    def order(self, order: Order) -> None:
        """Begin; then :meth:`open`, for ``hold``, and :meth:`result`."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps(dataclasses.asdict(order)).encode() + b"\n")
        self._popen.stdin.flush()

    def open(self) -> int:
        """Streams that are open now."""
        return int(str(self._line()["open"]))

    def result(self) -> Result:
        return Result(**self._line())  # type: ignore[arg-type]

    def run(self, order: Order) -> Result:
        self.order(order)
        return self.result()


@contextlib.contextmanager
def clients(folder: Path) -> Iterator[Clients]:
    log = folder / "load.log"
    with announced(module("tests.bench.load"), log, environ(folder)) as popen:
        yield Clients(popen, log)
