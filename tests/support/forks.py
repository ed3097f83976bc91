"""Processes forked from one that has imported llmlb: what most tests start, as its imports are most of a start's cost.

``python -m llmlb serve`` takes 2 s of CPU time before its first line of work, a fork of a process that has it all
imported 0.05 s. What a fork does from there on is what ``python -m`` does: its own session, environment, standard
streams and ``sys.argv``, then the module as ``__main__``, then what ``atexit`` has. Tests of the start itself use real
ones.

The process that is forked ends with the test process, even by kill -9, and takes with it what the tests left running:
its socket is at its end then.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

PRELOADED = ("llmlb.cli.main", "llmlb.cli.app", "llmlb.cli.serve", "tests.support.sim_node")
MODULES = ("llmlb", "tests.support.sim_node")
"""What can be forked: modules that run as ``__main__``."""
PIPE_BYTES = 64 * 1024
"""What a pipe takes before anybody reads (Linux)."""
NUMBER = struct.Struct("<q")
"""A process id, then an exit code, on the pipe of each fork."""
REQUEST_BYTES = 128 * 1024
"""Of one request, the environment included."""
START_S = 60.0


enabled = False
"""Set by tests/conftest.py: benchmarks and the soak start what they measure as a user does."""


class Fork:
    """One such process, with the part of :class:`subprocess.Popen` that tests use."""

    def __init__(self, pid: int, status: int) -> None:
        """``status``: a pipe that says the exit code once, or ends without if the forked process is gone."""
        self.pid = pid
        self.returncode: int | None = None
        self._status: int | None = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._look(0)

    def _look(self, timeout_s: float | None) -> int | None:
        with self._lock:
            if self._status is not None and select.select([self._status], [], [], timeout_s)[0]:
                said = os.read(self._status, NUMBER.size)
                os.close(self._status)
                self._status = None
                self.returncode = NUMBER.unpack(said)[0] if said else -signal.SIGKILL
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            # In short waits, as another thread may poll meanwhile.
            code = self._look(0.05 if deadline is None else max(0.0, min(0.05, deadline - time.monotonic())))
            if code is not None:
                return code
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _read_at_start(name: str) -> bool:
    """An environment variable that only a new interpreter looks at; a fork sees to PYTHONUNBUFFERED itself."""
    return (name.startswith(("PYTHON", "LC_")) and name != "PYTHONUNBUFFERED") or name == "LANG"


@functools.cache
def _parent() -> socket.socket:
    """The socket of the process that is forked; it is started with the first use."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.support.forks", str(theirs.fileno())],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},  # a fork takes no threads along
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    ours.settimeout(START_S)
    assert ours.recv(16) == b"ready"
    ours.settimeout(None)

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


def can_be_forked(module: str, env: dict[str, str]) -> bool:
    """Whether a fork is the same: not with other code, and not with what an interpreter reads when it starts."""
    if not enabled or module not in MODULES or sys.platform != "linux":
        return False
    return all(env.get(name) == os.environ.get(name) for name in env.keys() | os.environ.keys() if _read_at_start(name))


def fork(module: str, *arguments: str, env: dict[str, str], stdin: int, stdout: int, stderr: int) -> Fork:
    """As ``python -m module arguments`` in a session of its own, with these files."""
    assert module in MODULES
    parent = _parent()
    ours, theirs = os.pipe()
    request = json.dumps({"module": module, "arguments": arguments, "env": env, "cwd": os.getcwd()}).encode()
    assert len(request) <= REQUEST_BYTES
    try:
        socket.send_fds(parent, [request], [stdin, stdout, stderr, theirs])
    finally:
        os.close(theirs)
    pid = os.read(ours, NUMBER.size)
    assert pid, "the process that is forked is gone"
    return Fork(NUMBER.unpack(pid)[0], ours)


def run(
    module: str, *arguments: str, env: dict[str, str], stdin: str = "", timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run` of ``python -m module arguments``, with pipes for all that it reads and prints.

    Not a fork where that would not be the same. Raises subprocess.TimeoutExpired, when it has been killed.
    """
    if not can_be_forked(module, env) or len(stdin) > PIPE_BYTES // 4:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    pipes = [os.pipe() for _ in range(3)]
    (read, write), (out, _), (err, _) = pipes
    os.write(write, stdin.encode())
    os.close(write)
    theirs = [read, pipes[1][1], pipes[2][1]]
    try:
        process = fork(module, *arguments, env=env, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2])
    finally:
        for fd in theirs:
            os.close(fd)
    killer = threading.Timer(timeout_s, process.kill)
    killer.start()
    with ThreadPoolExecutor(1) as pool, open(out) as said, open(err) as complained:
        stderr = pool.submit(complained.read)
        stdout = said.read()
        code = process.wait()
    killer.cancel()
    if not killer.is_alive() and code == -signal.SIGKILL:
        raise subprocess.TimeoutExpired([module, *arguments], timeout_s)
    return subprocess.CompletedProcess([module, *arguments], code, stdout, stderr.result())


def main() -> None:
    """The process that is forked: a child for each request. In a child it returns as that child."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    statuses: dict[int, int] = {}
    sock.send(b"ready")
    while True:
        readable = select.select([sock, wake], [], [])[0]
        if wake in readable:
            wake.recv(4096)
            _reap(statuses)
        if sock in readable:
            data, fds, _, _ = socket.recv_fds(sock, REQUEST_BYTES, 4)
            if not data:
                return _end(statuses)
            pid = os.fork()
            if pid == 0:
                return _become(json.loads(data), fds[:3])
            for fd in fds[:3]:
                os.close(fd)
            statuses[pid] = fds[3]
            _say(fds[3], pid)


def _end(children: Iterable[int]) -> None:
    """The test process is gone: what it left behind must not run on."""
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    sys.exit(0)


def _say(pipe: int, number: int) -> None:
    """To a test that may be gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, NUMBER.pack(number))


def _reap(statuses: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pipe = statuses.pop(ended[0])
            _say(pipe, os.waitstatus_to_exitcode(ended[1]))
            os.close(pipe)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Make this fork what was asked for, up to the module itself."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.default_int_handler)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 4096)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    # Anew: whether a stream can be rewound is asked when it is made, and nothing that was made before may be read.
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout = _writer(1, sys.stdout, unbuffered=unbuffered)
    sys.stderr = _writer(2, sys.stderr, unbuffered=unbuffered, line_buffering=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.argv = [request["module"], *request["arguments"]]


def _writer(fd: int, before: TextIO, *, unbuffered: bool, line_buffering: bool = False) -> TextIO:
    """A standard stream as the interpreter makes it."""
    file = open(fd, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        file, before.encoding, before.errors, line_buffering=line_buffering, write_through=unbuffered
    )


def _run_as_main() -> int:
    """Run the module that ``sys.argv`` names; the exit code that the interpreter would end with."""
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
    code = _run_as_main()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not the usual end: to clear away all modules takes 0.2 s of CPU time, and nothing is told of it.
    os._exit(code & 0xFF)
