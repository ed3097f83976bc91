"""What is watched live: in a real terminal, and the bus."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pexpect
import pytest

from tests.support.cluster import Cluster, Process

Served = tuple[Cluster, Process]


@pytest.fixture
def shell(served: Served) -> Iterator[pexpect.spawn[str]]:
    """A shell in a terminal, where ``$LLMLB`` is the command."""
    it, process = served
    child = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile"],
        env={
            **it.environ(it.root / "client", LLMLB_HOST=f"127.0.0.1:{process.node_port}"),
            "LLMLB": f"{sys.executable} -m llmlb",
            "TERM": "xterm",
            "PS1": "ready> ",
        },
        dimensions=(24, 100),
        encoding="utf-8",
        timeout=30,
    )
    child.expect_exact("ready> ")
    yield child
    child.close(force=True)


def settings_of(shell: pexpect.spawn[str]) -> str:
    """How the terminal is set, as stty tells it."""
    shell.sendline("stty -a; echo 'set''tings'")
    shell.expect("(?s)speed(.*)settings")
    found: str = shell.match.group(1)  # type: ignore[union-attr]
    shell.expect_exact("ready> ")
    return found


def test_ps_is_refreshed_in_place_and_ctrl_c_leaves_the_terminal_as_it_was(shell: pexpect.spawn[str]) -> None:
    before = settings_of(shell)
    shell.sendline("$LLMLB node ps --watch --interval 100ms; echo code=$?")
    shell.expect("NAME +ID +SIZE +PROCESSOR +UNTIL +VRAM +TEMP")
    for _ in range(3):
        shell.expect(r"\x1b\[\d+A")
    shell.sendcontrol("c")
    shell.expect(r"code=(\d+)\r")
    assert shell.match.group(1) == "130"  # type: ignore[union-attr]
    shell.expect_exact("ready> ")
    assert settings_of(shell) == before


def test_ctrl_c_while_a_command_waits_for_its_server_is_130_and_silent(shell: pexpect.spawn[str]) -> None:
    with __import__("socket").create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        shell.sendline(f"LLMLB_HOST=127.0.0.1:{port} $LLMLB node list; echo code=$?")
        mute.settimeout(30)
        peer, _ = mute.accept()
        peer.recv(10)  # it has asked, and waits
        shell.sendcontrol("c")
        shell.expect(r"code=(\d+)\r")
        peer.close()
    assert shell.match.group(1) == "130"  # type: ignore[union-attr]
    assert "Traceback" not in shell.before
    assert "Error" not in shell.before


def test_a_narrow_terminal_gets_rows_that_do_not_wrap(shell: pexpect.spawn[str]) -> None:
    shell.setwinsize(24, 30)
    shell.sendline("$LLMLB node ps --watch --interval 100ms")
    shell.expect(r"NAME.*…")
    shell.sendcontrol("c")
    shell.expect_exact("ready> ")


def test_the_bus_is_watched_live_without_prompts_and_with_filters(served: Served) -> None:
    it, process = served
    watching = subprocess.Popen(
        [sys.executable, "-m", "llmlb", "bus", "watch", "--json", "--model", "smollm2"],
        env=it.environ(it.root / "client"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    seen = []
    try:
        with httpx.Client(timeout=60) as client:
            ask = {"model": "smollm2", "messages": [{"role": "user", "content": "swordfish"}], "max_tokens": 2}
            # It has no sign of being ready but what it prints: ask until the first line comes.
            os_set_blocking(watching, False)
            while not (line := watching.stdout.readline()):
                assert client.post(f"{process.url}/v1/chat/completions", json=ask).status_code == 200
            os_set_blocking(watching, True)
            seen.append(json.loads(line))
            request = client.post(f"{process.url}/v1/chat/completions", json=ask).json()["id"]
            assert request
        while not any(one["type"] == "llmlb.infer.end.v1" for one in seen[2:]):
            seen.append(json.loads(watching.stdout.readline()))
    finally:
        watching.send_signal(signal.SIGINT)
        try:
            rest, errors = watching.communicate(timeout=20)
        finally:
            watching.kill()
    assert watching.returncode == 130
    assert errors == ""
    assert {one["kind"] for one in seen} >= {"infer", "reply"}
    assert not any(one["kind"] in ("heartbeat", "piece", "probe") for one in seen)
    assert all("smollm2" in one["model"] for one in seen)
    assert "swordfish" not in json.dumps(seen) + rest


def os_set_blocking(process: subprocess.Popen[str], blocking: bool) -> None:
    import os

    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), blocking)


def test_without_a_bus_watching_is_exit_2(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = Cluster(tmp_path_factory.mktemp("nowhere"))
    done = nowhere.cli("bus", "watch")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Error: no bus answers at {nowhere.bus_url} (LLMLB_BUS_URL)" in done.stderr
