"""What tests start as forks behaves as what a user starts: same output, same exit code, same end by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.conftest import LONGEST
from tests.support import forks
from tests.support.cluster import alive, free_port
from tests.unit.test_project import ROOT

ENV = {k: v for k, v in os.environ.items() if not k.startswith(("LLMLB_", "XLLM_", "HF_"))}


@pytest.mark.parametrize("command", [["--version"], ["node", "frobnicate"], ["node", "show", "--help"]])
def test_a_fork_prints_and_ends_as_a_new_interpreter_does(command: list[str]) -> None:
    env = {**ENV, "NO_COLOR": "1", "COLUMNS": "100"}
    assert forks.can_be_forked("llmlb", env)
    forked = forks.run("llmlb", *command, env=env, timeout_s=60)
    real = subprocess.run([sys.executable, "-m", "llmlb", *command], env=env, capture_output=True, text=True)
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)


def test_a_fork_that_is_killed_says_so_and_one_that_is_stopped_has_not_ended(tmp_path: Path) -> None:
    env = {**ENV, "LLMLB_HOME": str(tmp_path), "LLMLB_BUS_URL": f"nats://127.0.0.1:{free_port()}"}
    with open(os.devnull, "r+b") as null:
        files = dict.fromkeys(("stdin", "stdout", "stderr"), null.fileno())
        asked = ("--node-id", "0" * 32, "--model", "simulated/m")
        process = forks.fork("tests.support.sim_node", *asked, env={**env, "LLMLB_EMBEDDED_BUS": "false"}, **files)
    process.send_signal(signal.SIGSTOP)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(20) == process.poll() == process.returncode == -signal.SIGKILL
    process.kill()
    assert not alive(process.pid)


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONWARNINGS", "LC_ALL"])
def test_what_a_new_interpreter_would_read_is_not_left_to_a_fork(name: str) -> None:
    assert not forks.can_be_forked("llmlb", {**ENV, name: "something else"})
    assert not forks.can_be_forked("json.tool", ENV)


def test_what_is_left_out_of_workers_for_the_tests_is_in_them_outside() -> None:
    """tests/support/site/sitecustomize.py replaces it by name."""
    assert callable(LlamaCppEngine._test_a_little)


def test_the_files_that_are_begun_first_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
