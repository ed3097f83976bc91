"""The command line: whole processes, and the first token of the conversation beside a direct call (issue 7)."""

from __future__ import annotations

import argparse
import functools
import http.client
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pexpect

from tests.bench import about, commands, report
from tests.bench.report import Bar, Check
from tests.support.cluster import Process, cluster, wait_until

TITLE = "Command line"
HELP_S, LISTING_S, FIRST_TOKEN = 0.15, 0.25, 1.10
QUESTIONS = 30
MODEL = "smollm2"
WAIT_S = 60.0
_READY = re.compile(rb"\x1b\[\?2004h.*>>> ", re.DOTALL)
_SPINNER = rb"\r\xe2[\xa0-\xa3][\x80-\xbf] [^\x1b]*\x1b\[K"
_BEGUN = re.compile(rb"\x1b\[\?2004l(?:\x1b\[[0-9;?]*[A-Za-z]|" + _SPINNER + rb"|\s)*([^\s\x1b\xe2])")
"""The first character of an answer: behind the end of the prompt, escape sequences and spinner, with what it says of
the model (``Reading the prompt...``), left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("command line")
    group.add_argument("--questions", type=int, help=f"questions of the conversation ({QUESTIONS})")


def run(arguments: argparse.Namespace) -> str:
    """Measure; the text of this part."""
    measured = about.Measured()
    runs = 5 if arguments.quick else commands.RUNS
    questions = arguments.questions or (6 if arguments.quick else QUESTIONS)
    with tempfile.TemporaryDirectory(prefix="llmlb-bench-") as name:
        folder = Path(name)
        with cluster(folder, LLMLB_CONTEXT_LENGTH="2048") as it:
            process = it.start("serve", home="one").wait_ready()
            env = it.environ(folder / "client")
            checks = [*_processes(process, env, runs), *_first_token(process, env, questions)]
    lines = [*about.lines(), measured.line()]
    return "\n\n".join(["\n".join(lines), report.checks_table(checks), f"### Method of the command line\n\n{METHOD}"])


def _processes(process: Process, env: Mapping[str, str], runs: int) -> Iterator[Check]:
    bare = commands.bare(env, runs)
    note = f"median of {runs}; python with typer and rich alone: {bare:.3f} s"
    node, router = f"127.0.0.1:{process.node_port}", f"127.0.0.1:{process.router_port}"
    for command, host, limit in (
        ("--help", node, HELP_S),
        ("node list", node, LISTING_S),
        ("node ps", node, LISTING_S),
        (f"node show {MODEL}", node, LISTING_S),
        ("router status", router, LISTING_S),
        ("__complete models", node, LISTING_S),  # at each press of Tab
    ):
        taken = commands.seconds(commands.llmlb(*command.split()), {**env, "LLMLB_HOST": host}, runs)
        yield Check(f"`llmlb {command}`, whole process", "s", taken, Bar(limit), note)


def _first_token(process: Process, env: Mapping[str, str], count: int) -> Iterator[Check]:
    """Both ask the same kind of question in turn, none of them twice, of a model that has tested itself.

    The self-test takes caches and begins anew after each answer that comes in between: who asks after a pause then
    computes the whole prompt, who asks at once finds its beginning.
    """
    assert process.node_port is not None
    talk = Conversation(process.node_port, env)
    numbers = itertools.count(100)
    direct: list[float] = []
    shown: list[float] = []
    try:
        for at in range(count + 2):
            one, other = (
                direct_s(process.node_port, question(next(numbers))),
                talk.first_token_s(question(next(numbers))),
            )
            if at < 2:  # what is loaded and opened once
                wait_until(functools.partial(_tested, process.node_port), WAIT_S, "the self-test of the model")
                continue
            direct.append(one)
            shown.append(other)
            print(f"{at} direct {one * 1000:.1f} ms, conversation {other * 1000:.1f} ms", file=sys.stderr, flush=True)
    finally:
        talk.close()
    usual, taken = report.median(direct), report.median(shown)
    assert usual is not None
    assert taken is not None
    note = f"medians of {count}: {taken * 1000:.0f} ms ÷ {usual * 1000:.0f} ms"
    yield Check("first token in `llmlb node run` ÷ a direct streaming call", "", taken / usual, Bar(FIRST_TOKEN), note)


def _tested(port: int) -> bool:
    return bool(httpx.get(f"http://127.0.0.1:{port}/v0/ps", timeout=WAIT_S).json()["models"][0]["same_answer"])


def question(number: int) -> str:
    """One that no cache knows beyond its first words, and of the length that people type."""
    return (
        f"{number} friends, {number * 7} apples, {number * 3} pears: what could one cook with them on a rainy evening?"
    )


def direct_s(port: int, text: str) -> float:
    """Seconds from a request to the first text of its answer."""
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL, "messages": messages, "stream": True, "temperature": 0.7, "top_p": 0.9, "max_tokens": 4}
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        got = b""
        while not re.search(rb'"content":"[^"]', got):
            piece = response.read1(65536)
            if not piece:
                raise RuntimeError(f"no answer: {got[-300:]!r}")
            got += piece
        taken = time.perf_counter() - began
        response.read()
        return taken
    finally:
        connection.close()


class Conversation:
    """``llmlb node run`` in a terminal."""

    def __init__(self, port: int, env: Mapping[str, str]) -> None:
        more = {"LLMLB_HOST": f"127.0.0.1:{port}", "TERM": "xterm-256color", "LLMLB_NOHISTORY": "1", "NO_COLOR": ""}
        command = commands.llmlb("node", "run", MODEL)
        self._child: pexpect.spawn[bytes] = pexpect.spawn(
            command[0], command[1:], env={**env, **more}, dimensions=(24, 200), timeout=WAIT_S
        )
        self._child.delaybeforesend = None
        self._child.expect(_READY)

    def first_token_s(self, text: str) -> float:
        """Seconds from Enter to the first character of the answer. Then it is stopped and forgotten."""
        self._child.send(text)
        self._child.expect(re.escape(text[-12:].encode()))
        began = time.perf_counter()
        self._child.send("\r")
        self._child.expect(_BEGUN)
        taken = time.perf_counter() - began
        self._child.sendintr()
        self._child.expect(_READY)
        self._child.send("/clear\r")
        self._child.expect(b"Cleared the conversation")
        self._child.expect(_READY)
        return taken

    def close(self) -> None:
        self._child.close(force=True)


METHOD = f"""Whole processes, from start to exit, the first one of each not counted. The first token: {MODEL} on the CPU
of this machine, in `llmlb serve`. In turn a question goes to the node's gateway by Python's `http.client` (until the
first text is in the buffer) and to `llmlb node run` in a terminal of its own (from the Enter key to the first character
on the screen, the spinner's words left out; the answer is then stopped). It begins when the model's self-test is over,
which takes the caches of idle slots. No question is asked twice, and each conversation begins anew, so both have
the same few cached tokens."""
