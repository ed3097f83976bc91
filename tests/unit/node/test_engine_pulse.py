"""Whether vLLM lives, without vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmlb.node.engine import vllm_pulse
from llmlb.node.engine.vllm_pulse import Pulse, cpu_seconds


@contextmanager
def process(code: str) -> Iterator[int]:
    """A child that says when it begins."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"import time; print(flush=True)\n{code}"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is due after each hundredth of a second, and a while later still; a busy machine gives few time slices."""
    monkeypatch.setattr(vllm_pulse, "LOOK_S", 0.05)
    monkeypatch.setattr(vllm_pulse, "COMPUTING", 0.02)


def looked(pulse: Pulse, until: float) -> bool:
    """Whether it showed life before so much time is over."""
    before, deadline = pulse.at, time.monotonic() + until
    while pulse.at == before and time.monotonic() < deadline:
        pulse.look()
        time.sleep(0.01)
    return pulse.at > before


@pytest.mark.usefixtures("quick")
def test_a_process_that_computes_lives_without_a_step() -> None:
    with process("while True: pass") as pid:
        pulse = Pulse()
        pulse.watch([pid])
        pulse.begin()
        assert looked(pulse, 30.0)


@pytest.mark.usefixtures("quick")
def test_a_process_that_waits_for_something_does_not() -> None:
    with process("time.sleep(60)") as pid:
        pulse = Pulse()
        pulse.watch([pid])
        pulse.begin()
        assert not looked(pulse, 0.5)


@pytest.mark.usefixtures("quick")
def test_a_step_that_computes_for_ever_is_no_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_pulse, "STEP_S", 0.0)
    with process("while True: pass") as pid:
        pulse = Pulse()
        pulse.watch([pid])
        pulse.begin()
        assert not looked(pulse, 0.5)


def test_a_step_is_life() -> None:
    pulse = Pulse()
    pulse.record()
    assert time.monotonic() - pulse.at < 60


def test_the_time_of_a_process_that_is_gone_is_none() -> None:
    with process("pass") as pid:
        pass
    assert cpu_seconds(pid) == 0.0
    assert cpu_seconds(os.getpid()) > 0.0
