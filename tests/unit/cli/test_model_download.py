"""``router model download``: nodes watched to the end of their downloads, and what that looks like."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pexpect
import pytest

from llmlb.bus.errors import LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli import pull_output
from llmlb.cli.client import GatewayClient
from llmlb.cli.download import PATIENCE_S, Wanted, Watch, outcome, watch
from llmlb.cli.download_view import DownloadView, PlainDownloads
from llmlb.cli.exit_codes import Unreachable
from llmlb.cli.pull_output import Output, Terminal
from tests.unit.cli.fake_gateway import GB, Gateway, environ, run
from tests.unit.cli.fake_models import (
    EARLIER,
    ID,
    LOOK,
    NAME,
    NODE_A,
    NODE_B,
    NOTHING_YET,
    START,
    completed,
    failed,
    listed,
    on,
    refused,
    started,
)
from tests.unit.cli.tiny_terminal import TinyTerminal

Fake = tuple[type[Gateway], str]


def test_a_download_is_shown_a_line_a_node_and_one_failure_is_exit_1(fake: Fake) -> None:
    handler, address = fake
    handler.scripts |= {
        EARLIER: [NOTHING_YET],
        START: [started(on(NODE_A, status="pending"), on(NODE_B, status="pending"))],
        LOOK: [
            listed(on(NODE_A, downloaded_bytes=GB), on(NODE_B, downloaded_bytes=GB // 2)),
            listed(completed(NODE_A), failed(NODE_B, "the disk is full"), on("cc" * 32, downloaded_bytes=1)),
        ],
    }
    done = run("router", "model", "download", NAME, "--all", "--json", LLMLB_HOST=address)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"downloading {NAME} on 2 nodes",
        "pulling aa... 50% 1.0 GB/2.0 GB",
        "pulling bb... 25% 500 MB/2.0 GB",
        "pulling aa... 100% 2.0 GB",
        "bb: the disk is full",
        "Error: 1 of 2 nodes did not get it: bb: the disk is full",
    ]
    assert [each["task"]["status"] for each in json.loads(done.stdout)["tasks"]] == ["completed", "failed"]
    assert handler.asked[1] == ("POST", f"/v0/models/{NAME}/download", {"all": True})


class Recorder:
    """An output that keeps what was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[dict[str, str], str | None]] = []
        self.said: list[str] = []

    def show(self, task: Any, trouble: str | None = None) -> None:
        self.shown.append(({each["node_name"]: each["task"]["status"] for each in task["tasks"]}, trouble))

    def leave(self) -> None:
        self.said.append("left")

    def say(self, text: str) -> None:
        self.said.append(text)


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watching(address: str, clock: Clock, output: Output, *nodes: str) -> Watch:
    gateway = GatewayClient(Settings(host=address), "router")
    wanted = Wanted(NAME, f"/v0/models/{NAME}/download", nodes)
    return Watch(gateway, wanted, output, clock=clock, sleep=clock.sleep)


def test_the_end_of_an_earlier_download_is_not_taken_for_the_new_one(fake: Fake, clock: Clock) -> None:
    handler, address = fake
    old = failed(NODE_A, "of yesterday", sent_at=1.0)
    handler.scripts |= {
        EARLIER: [listed(old)],
        START: [started(old)],
        LOOK: [
            listed(old),
            listed(on(NODE_A, downloaded_bytes=GB)),
            listed(old),
            listed(completed(NODE_A, sent_at=2.0)),
        ],
    }
    output = Recorder()
    code, state, error = watch(watching(address, clock, output, "aa"))
    assert (code, error) == (0, None)
    assert state is not None
    assert [shown["aa"] for shown, _ in output.shown] == [
        "pending",
        "pending",
        "downloading",
        "downloading",
        "completed",
    ]
    assert handler.asked[1][2] == {"nodes": ["aa"]}


def test_a_node_that_stays_away_is_not_waited_for_without_end(fake: Fake, clock: Clock) -> None:
    handler, address = fake
    away = on(NODE_B, online=False, status="pending", phase="waiting")
    handler.scripts |= {
        EARLIER: [NOTHING_YET],
        START: [started(on(NODE_A, status="pending"), away)],
        LOOK: [listed(on(NODE_A, downloaded_bytes=GB), away), listed(completed(NODE_A), away)],
    }
    code, state, error = watch(watching(address, clock, Recorder()))
    assert code == 0
    assert state is not None
    assert error is not None
    assert error.message == "1 of 2 nodes did not get it: bb: offline, fetches it when it is back"
    assert PATIENCE_S <= clock.now < PATIENCE_S + 2


def test_a_router_that_is_away_for_a_moment_is_waited_for(fake: Fake, clock: Clock) -> None:
    handler, address = fake
    handler.scripts |= {
        EARLIER: [NOTHING_YET],
        START: [started(on(NODE_A))],
        LOOK: [None, refused("bus_unavailable", "the bus is away", 503), NOTHING_YET, listed(completed(NODE_A))],
    }
    output = Recorder()
    assert outcome(watching(address, clock, output).run()) is None
    # The connection that is cut is tried once more at once: the first trouble that is seen may be the bus already.
    assert [trouble for _, trouble in output.shown if trouble][-1].endswith("there is no download")


def test_a_router_that_stays_away_is_exit_2_and_says_that_the_nodes_go_on(fake: Fake, clock: Clock) -> None:
    handler, address = fake
    handler.scripts |= {EARLIER: [NOTHING_YET], START: [started(on(NODE_A))], LOOK: [None]}
    with pytest.raises(
        Unreachable, match=r"The nodes go on by themselves; watch them with: llmlb router model download"
    ):
        watching(address, clock, Recorder()).run()


def test_nodes_that_were_taken_out_of_the_cluster_end_the_watching(fake: Fake, clock: Clock) -> None:
    handler, address = fake
    handler.scripts |= {EARLIER: [NOTHING_YET], START: [started(on(NODE_A))], LOOK: [NOTHING_YET]}
    with pytest.raises(LlmlbError, match="taken out of the cluster"):
        watching(address, clock, Recorder()).run()


def test_ctrl_c_leaves_and_says_how_to_cancel(fake: Fake, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, address = fake
    handler.scripts |= {EARLIER: [NOTHING_YET], START: [started(on(NODE_A))], LOOK: [listed(on(NODE_A))]}

    def pressed(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", pressed)
    output = Recorder()
    assert watch(watching(address, clock, output, "aa", "b b")) == (130, None, None)
    assert output.said[0] == "left"
    assert output.said[1].splitlines() == [
        "The downloads go on in the nodes.",
        f"Watch them:  llmlb router model download {NAME} --node aa --node 'b b'",
        f"Cancel them: llmlb router model download {NAME} --node aa --node 'b b' --cancel",
    ]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (["--all"], "/v0/tasks/owner%2Fm:Q4_K_M"),
        (["--all", "--purge"], "/v0/tasks/owner%2Fm:Q4_K_M?purge=1"),
        (["--node", "AA"], f"/v0/tasks/{NODE_A}.{ID}"),
    ],
)
def test_cancel_ends_it_everywhere_or_on_one_node(fake: Fake, options: list[str], path: str) -> None:
    handler, address = fake
    handler.scripts[EARLIER] = [listed(on(NODE_A), on(NODE_B))]
    handler.scripts[f"DELETE {path}"] = [listed(on(NODE_A, status="cancelled"))]
    done = run("router", "model", "download", NAME, "--cancel", *options, LLMLB_HOST=address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "aa: cancelled\n", "")


@pytest.mark.parametrize(("beginning", "says"), [("cc", "no node whose id begins with 'cc'"), ("aa", "stands for 2")])
def test_cancel_names_one_node_or_says_so(fake: Fake, beginning: str, says: str) -> None:
    handler, address = fake
    handler.scripts[EARLIER] = [listed(on(NODE_A), on("aa" + NODE_B[2:]))]
    done = run("router", "model", "download", NAME, "--cancel", "--node", beginning, LLMLB_HOST=address)
    assert done.returncode == 1
    assert says in done.stderr
    assert all(method == "GET" for method, _, _ in handler.asked)


# What a download looks like


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> TinyTerminal:
    made = TinyTerminal()
    monkeypatch.setattr(pull_output.Stream, "size", lambda self: tuple(made.size))
    return made


def test_in_a_terminal_each_node_has_a_bar_that_moves_in_place(screen: TinyTerminal) -> None:
    output = Terminal(screen, DownloadView())
    for step in range(3):
        output.show(
            {
                "model": NAME,
                "tasks": [
                    on(NODE_A, "den", downloaded_bytes=step * GB // 2, phase="downloading" if step else "manifest"),
                    on(NODE_B, "den", online=False),
                ],
            }
        )
    assert screen.text == [
        f"downloading {NAME} on 2 nodes",
        "pulling den aa11aa11... 50% ▓▓▓▓▓▓▓▓▓░░░░░░░░░░░ 1.0 GB/2.0 GB",
        "pulling den bb22bb22... offline; it goes on when the node is back",
    ]
    output.show({"model": NAME, "tasks": [completed(NODE_A), failed(NODE_B, "x" * 200)]}, "trouble")
    output.leave()
    assert screen.text[1] == "pulling aa... 100% ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 2.0 GB"
    assert screen.text[2].startswith("bb: xxx")
    assert len(screen.text) == 3


def test_the_command_draws_bars_in_a_terminal_and_ctrl_c_leaves(fake: Fake) -> None:
    handler, address = fake
    halves = on(NODE_A, downloaded_bytes=GB), on(NODE_B, downloaded_bytes=GB // 2)
    handler.scripts |= {EARLIER: [NOTHING_YET], START: [started(*halves)], LOOK: [listed(*halves)]}
    child = pexpect.spawn(
        sys.executable,
        ["-m", "llmlb", "router", "model", "download", NAME, "--all"],
        env={**environ(LLMLB_HOST=address), "TERM": "xterm"},
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=30,
    )
    child.expect(r"pulling aa\.\.\. 50% ▓+░+ 1\.0 GB/2\.0 GB")
    child.expect(r"pulling bb\.\.\. 25% ▓+░+ 500 MB/2\.0 GB")
    child.sendcontrol("c")
    child.expect_exact(f"Cancel them: llmlb router model download {NAME} --all --cancel")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_more_nodes_than_lines_are_counted() -> None:
    tasks = [on(f"{n:02d}" * 32, downloaded_bytes=GB if n == 30 else 0) for n in range(40)]
    frame = DownloadView().frame({"model": NAME, "tasks": tasks}, 80, 10)
    assert len(frame.live) == 8
    assert frame.live[0].startswith("pulling 30... 50%")
    assert frame.live[-1] == "and 33 more nodes"


@pytest.mark.parametrize("width", [1, 10, 30, 60])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    states = [on(NODE_A, "a" * 50, downloaded_bytes=GB, note="n" * 50), failed(NODE_B, "e" * 90), completed("cc" * 32)]
    frame = DownloadView().frame({"model": NAME, "tasks": states}, width, 10, "t" * 90)
    assert all(len(line) <= width for line in [*frame.settled, *frame.live, *frame.notes])


def test_plain_lines_come_as_bytes_do_and_none_of_them_twice(clock: Clock) -> None:
    stream = io.StringIO()
    output = PlainDownloads(stream, clock)
    for step in range(100):
        clock.sleep(1)
        output.show(
            {"model": NAME, "tasks": [on(NODE_A, downloaded_bytes=step * GB // 50, note=f"next try in {step} s")]}
        )
    lines = stream.getvalue().splitlines()
    assert lines[0] == f"downloading {NAME} on 1 node"
    assert 8 <= sum("%" in line for line in lines) <= 11
    assert sum("next try" in line for line in lines) == 2
    assert len(set(lines)) == len(lines)
