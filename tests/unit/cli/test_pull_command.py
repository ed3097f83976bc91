"""``node pull`` and ``node rm`` against a stand-in: what is asked, what is printed, and the exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pexpect
import pytest

from llmlb.bus.errors import Cancelled, LlmlbError, ModelUnknown
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import Unreachable, exit_code
from llmlb.cli.pull import PATIENCE_S, Watch, outcome, watch
from llmlb.cli.pull_output import Plain
from tests.unit.cli.fake_gateway import COMPLETED, TASK_PATH, Gateway, downloading, environ, file, run, task

Fake = tuple[type[Gateway], str]
WHOLE = 6_400_000_000
PULL = "POST /v0/models/pull"
LINES = [
    "pulling manifest ✓",
    "pulling abc123def456... 100% 6.4 GB",
    "verifying sha256 digest ✓",
    "writing manifest ✓",
    "success",
]


def started(state: dict[str, Any], attached: bool = False) -> tuple[int, dict[str, Any]]:
    return 202, {"task": state, "attached": attached}


def refused(code: str, message: str, status: int = 503) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "code": code}}


def test_a_pull_prints_the_lines_of_the_contract_on_standard_error_and_nothing_else(fake: Fake) -> None:
    handler, address = fake
    handler.scripts[PULL] = [started(task(status="pending", phase="waiting"))]
    handler.scripts[f"GET {TASK_PATH}"] = [downloading(file(WHOLE, WHOLE)), COMPLETED]
    done = run("node", "pull", "owner/a:Q4_K_M", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == LINES
    assert handler.asked[0] == ("POST", "/v0/models/pull", {"model": "owner/a:Q4_K_M"})


def test_json_is_the_last_state_on_standard_output(fake: Fake) -> None:
    handler, address = fake
    handler.scripts[PULL] = [started(COMPLETED, attached=True)]
    done = run("node", "pull", "owner/a", "--json", LLMLB_HOST=address)
    assert json.loads(done.stdout) == COMPLETED
    assert done.stderr.splitlines() == LINES


def test_a_pull_that_fails_is_its_reason_and_exit_1(fake: Fake) -> None:
    handler, address = fake
    error = {"reason": "bus_unavailable", "message": "owner/a is gated: set HF_TOKEN", "param": None, "detail": "x"}
    handler.scripts[PULL] = [started(task(status="failed", phase="done", error=error))]
    done = run("node", "pull", "owner/a", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: owner/a is gated: set HF_TOKEN\n"


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (refused("invalid_request", "bad model name 'x'", 400), 1, "Error: bad model name 'x'"),
        (refused("bus_unavailable", "the bus is not reachable"), 2, "Error: the bus is not reachable"),
        (refused("not_found", "nothing here", 404), 1, "does not know this command"),
        ((202, {"attached": False}), 1, "it is not a node's gateway, or another version"),
    ],
)
def test_what_the_node_refuses_is_one_line(fake: Fake, answer: tuple[int, Any], code: int, says: str) -> None:
    handler, address = fake
    handler.scripts[PULL] = [answer]
    done = run("node", "pull", "x", LLMLB_HOST=address)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "query", "kept", "printed"),
    [
        (
            ["--cancel"],
            "",
            1_200_000_000,
            "cancelled 'owner/a'\n1.2 GB of 6.4 GB are kept for another pull; drop them with: "
            "llmlb node pull --cancel --purge owner/a\n",
        ),
        (["--cancel", "--purge"], "?purge=1", 0, "cancelled 'owner/a'\n"),
    ],
)
def test_cancel_says_what_is_kept_and_how_to_drop_it(
    fake: Fake, options: list[str], query: str, kept: int, printed: str
) -> None:
    handler, address = fake
    state = downloading(file(kept, WHOLE), status="cancelled")
    handler.scripts[f"DELETE /v0/tasks/owner%2Fa{query}"] = [{"task": state, "kept_bytes": kept}]
    done = run("node", "pull", "owner/a", *options, LLMLB_HOST=address)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_an_address_is_cancelled_as_one_part_of_the_path(fake: Fake) -> None:
    handler, address = fake
    handler.body = json.dumps({"task": task(status="cancelled"), "kept_bytes": 0}).encode()
    url = "https://huggingface.co/owner/a?download=true"
    assert run("node", "pull", "--cancel", url, LLMLB_HOST=address).returncode == 0
    assert handler.asked[0][1] == "/v0/tasks/https:%2F%2Fhuggingface.co%2Fowner%2Fa%3Fdownload%3Dtrue"


def test_purge_alone_is_a_wrong_call(fake: Fake) -> None:
    done = run("node", "pull", "owner/a", "--purge", LLMLB_HOST=fake[1])
    assert done.returncode == 1
    assert "--purge goes with --cancel" in done.stderr
    assert fake[0].asked == []


def test_a_reader_of_the_progress_that_goes_away_does_not_end_the_watch(fake: Fake) -> None:
    handler, address = fake
    handler.scripts[PULL] = [started(downloading(file(5, WHOLE)))]
    handler.scripts[f"GET {TASK_PATH}"] = [downloading(file(WHOLE, WHOLE)), COMPLETED]
    child = subprocess.Popen(
        [sys.executable, "-m", "llmlb", "node", "pull", "owner/a"],
        env=environ(LLMLB_HOST=address),
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    child.stderr.close()
    assert child.wait(30) == 0


@pytest.fixture
def terminal(fake: Fake) -> Callable[..., pexpect.spawn[str]]:
    """The command in a terminal of 80 columns."""

    def start(*command: str) -> pexpect.spawn[str]:
        return pexpect.spawn(
            sys.executable,
            ["-m", "llmlb", *command],
            env={**environ(LLMLB_HOST=fake[1]), "TERM": "xterm"},
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=20,
        )

    return start


def test_in_a_terminal_there_are_bars_and_the_name_to_run_it_with(
    fake: Fake, terminal: Callable[..., pexpect.spawn[str]]
) -> None:
    handler, _ = fake
    handler.scripts[PULL] = [started(downloading(file(2_900_000_000, WHOLE), speed_bps=14_000_000))]
    handler.scripts[f"GET {TASK_PATH}"] = [COMPLETED]
    child = terminal("node", "pull", "owner/a")
    child.expect_exact("pulling abc123def456... 45% ▓▓▓▓▓▓▓▓░░░░░░░░░░░░ 2.9 GB/6.4 GB  14 MB/s  4m10s")
    child.expect_exact("pulling abc123def456... 100% ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 6.4 GB")
    child.expect_exact("success")
    child.expect_exact("run it with: llmlb node run a\r\n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_lets_the_pull_go_on_and_says_how_to_watch_and_cancel_it(
    fake: Fake, terminal: Callable[..., pexpect.spawn[str]]
) -> None:
    handler, _ = fake
    handler.scripts[PULL] = [started(downloading(file(5, WHOLE)))]
    handler.scripts[f"GET {TASK_PATH}"] = [downloading(file(WHOLE // 2, WHOLE))]
    child = terminal("node", "pull", "owner/a b")
    child.expect_exact("50%")
    child.sendcontrol("c")
    child.expect_exact("The pull goes on in the node.\r\n")
    child.expect_exact("Watch it:  llmlb node pull 'owner/a b'\r\n")
    child.expect_exact("Cancel it: llmlb node pull --cancel 'owner/a b'\r\n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert not [asked for asked in handler.asked if asked[0] == "DELETE"]


class Watching:
    """A watch in this process, whose time passes only while it sleeps."""

    def __init__(self, address: str) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        self.gateway = GatewayClient(Settings.load({"LLMLB_HOST": address}), "node")
        self.output = Plain(self.stream, lambda: self.now)
        self.watch = Watch(self.gateway, "owner/a", self.output, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_node_that_restarts_in_between_is_waited_for(fake: Fake) -> None:
    handler, address = fake
    handler.scripts[PULL] = [started(downloading(file(5, WHOLE)))]
    handler.scripts[f"GET {TASK_PATH}"] = [
        *[None] * 3,
        refused("bus_unavailable", "the bus is not reachable"),
        refused("node_lost", "the node does not answer"),
        refused("model_not_found", "there is no pull 'x' on this node", 404),
        COMPLETED,
    ]
    watching = Watching(address)
    assert watching.watch.run()["status"] == "completed"
    said = watching.stream.getvalue()
    assert "trying again for 15 s" in said
    assert said.endswith("success\n")


def test_a_node_that_stays_away_is_exit_2_after_a_while_and_the_pull_goes_on(fake: Fake) -> None:
    handler, address = fake
    handler.scripts[PULL] = [started(downloading(file(5, WHOLE)))]
    handler.scripts[f"GET {TASK_PATH}"] = [None]
    watching = Watching(address)
    with pytest.raises(Unreachable) as error:
        watching.watch.run()
    assert "The pull goes on when the node is back; watch it with: llmlb node pull owner/a" in error.value.message
    assert exit_code(error.value) == 2
    assert PATIENCE_S <= watching.now <= PATIENCE_S + 1


def test_a_task_that_the_node_does_not_know_any_more_is_an_error_and_not_waited_for_long(fake: Fake) -> None:
    handler, address = fake
    handler.scripts[PULL] = [started(downloading(file(5, WHOLE)))]
    handler.scripts[f"GET {TASK_PATH}"] = [refused("model_not_found", "there is no pull 'x' on this node", 404)]
    watching = Watching(address)
    with pytest.raises(ModelUnknown):
        watching.watch.run()


def test_ctrl_c_before_the_node_has_answered_promises_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching(fake[1])

    def interrupted(*_: Any, **__: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.gateway, "post", interrupted)
    assert watch(watching.watch, watching.output, hint=False) == (130, None)
    assert watching.stream.getvalue().startswith("Not waited for the node's answer.")


def test_only_a_completed_pull_is_a_success() -> None:
    assert outcome(COMPLETED) is None
    assert isinstance(outcome(task(status="cancelled")), Cancelled)
    assert type(outcome(task(status="failed"))) is LlmlbError


def test_rm_removes_each_and_says_so(fake: Fake) -> None:
    handler, address = fake
    for name in ("owner/a", "owner/b"):
        handler.scripts[f"DELETE /v0/models/{name}"] = [{"model": name, "freed_bytes": 5}]
    done = run("node", "rm", "owner/a", "owner/b", LLMLB_HOST=address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "deleted 'owner/a'\ndeleted 'owner/b'\n", "")
    assert run("node", "remove", "owner/a", LLMLB_HOST=address).stdout == "deleted 'owner/a'\n"


def test_rm_goes_on_after_one_that_cannot_be_removed_and_is_exit_1(fake: Fake) -> None:
    handler, address = fake
    handler.scripts["DELETE /v0/models/ollama:x"] = [refused("access_denied", "ollama:x is read-only", 403)]
    handler.scripts["DELETE /v0/models/b"] = [{"model": "owner/b", "freed_bytes": 5}]
    done = run("node", "rm", "ollama:x", "b", LLMLB_HOST=address)
    assert (done.returncode, done.stdout, done.stderr) == (1, "deleted 'owner/b'\n", "Error: ollama:x is read-only\n")


def test_rm_stops_when_the_connection_is_gone(fake: Fake) -> None:
    handler, address = fake
    handler.scripts["DELETE /v0/models/a"] = [None]
    done = run("node", "rm", "a", "b", LLMLB_HOST=address)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert len(handler.asked) == 1
