"""What the benchmarks make of what they measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.bench import machine
from tests.bench.peers import PEERS
from tests.bench.pull_bench import ratios
from tests.bench.pull_site import Taken, timed
from tests.bench.report import verdict
from tests.bench.router_failover import longest_silence
from tests.bench.router_report import added, checks, figures_table
from tests.support.traffic import Seen


def test_a_pull_is_compared_with_what_was_measured_beside_it() -> None:
    taken = {
        "pull": [Taken(2.0, 1.0), Taken(4.0, 2.0), Taken(1.0, 9.0)],
        "curl": [Taken(1.0, 0.5), Taken(4.0, 1.0), Taken(1.0, 1.0)],
        "sync": [Taken(0.5, 0.0)] * 3,
        "sha256sum": [Taken(0.5, 0.5), Taken(3.5, 1.0), Taken(1.0, 2.0)],
    }
    speed, same, work = ratios(taken, 400_000_000)
    assert (speed.value, same.value, work.value) == (1.0, 2.0, 1.0)
    assert [verdict(it.value, it.bar) for it in (speed, same, work)] == ["ok", "", "ok"]


def test_what_is_added_is_the_median_difference_within_a_round() -> None:
    table = {"first.p50": {"direct": [1.0, 10.0, 2.0], "llmlb": [3.0, 13.0, 3.0]}}
    assert added(table, "first.p50", "llmlb") == 2.0
    assert added(table, "first.p50", "LiteLLM") is None
    assert added(table, "first.p99", "llmlb") is None


def test_a_router_that_was_not_measured_has_a_column_without_numbers() -> None:
    lines = figures_table({"rate.16": {"direct": [100.0], "llmlb": [50.0]}}).splitlines()
    row = next(line for line in lines if line.startswith("| requests, 16 at a time"))
    assert row == "| requests, 16 at a time | 1/s | 100 | - | 50 | - | - | - |"


def test_streams_that_break_or_were_not_all_open_miss_their_bars() -> None:
    table = {"held.open": {"llmlb": [1999.0]}, "held.failed": {"llmlb": [1.0]}, "held.kb": {"llmlb": [30.0]}}
    found = {check.name.strip(): verdict(check.value, check.bar) for check in checks(table, 2000)}
    assert found["streams open at once"] == "**not**"
    assert found["of them, not whole at their end"] == "**not**"
    assert found["memory of the gateway for each"] == "ok"
    assert found["CPU of the gateway a request, 16 at a time"] == ""


def test_the_silence_after_a_kill_is_that_of_streams_that_ran_then() -> None:
    ran = Seen(None, 0.0, times=[1.0, 1.1, 1.9, 2.0])
    later = Seen(None, 1.5, times=[1.6, 9.0])
    over = Seen(None, 0.0, times=[0.1, 0.9])
    assert longest_silence([ran, later, over], killed_at=1.2) == pytest.approx(0.8)
    assert longest_silence([], killed_at=1.2) == 0.0


def test_a_command_is_timed_with_the_cpu_it_took() -> None:
    taken = timed(["sh", "-c", "exit 0"])
    assert 0 <= taken.cpu <= taken.wall + 0.1
    with pytest.raises(RuntimeError, match="ended with 3"):
        timed(["sh", "-c", "exit 3"])


def test_cpu_time_of_a_process_counts_what_it_worked() -> None:
    before, began = machine.cpu_exact_s(os.getpid()), time.thread_time()
    while time.thread_time() - began < 0.05:
        pass
    assert machine.cpu_exact_s(os.getpid()) - before >= 0.03


def test_every_peer_is_pinned_and_listens_on_loopback_only(tmp_path: Path) -> None:
    for peer in PEERS:
        command = peer.command(tmp_path, 1234, 5678, tmp_path)
        assert peer.version
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert command[command.index("--port") + 1] == "1234"
