"""The checks of ``llmlb doctor``: what each says when all is well, and when not."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.settings import Settings
from llmlb.cli import checks
from llmlb.cli.checks import Verdict
from llmlb.cli.doctor import line, run
from tests.support.cluster import free_port
from tests.support.natsd import NatsServer
from tests.unit.cli.fake_gateway import Gateway

Fake = tuple[type[Gateway], str]


def settings(**values: Any) -> Settings:
    return Settings.load({}, **values)


def only(verdicts: list[Verdict]) -> Verdict:
    (found,) = verdicts
    return found


def test_a_home_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    there, disk = checks.home(settings(home=tmp_path))
    assert there == Verdict("ok", "home", f"{tmp_path} is writable")
    assert disk.check == "disk"
    missing, _ = checks.home(settings(home=tmp_path / "a" / "b"))
    assert missing.found.endswith("is writable (it will be made)")
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_fails_and_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = only(checks.home(settings(home=tmp_path / "file" / "home")))
    assert (found.level, found.check) == ("fail", "home")
    assert "LLMLB_HOME" in str(found.todo)


@pytest.mark.parametrize(("free", "level"), [(20e9, "ok"), (5e9, "warn"), (1e8, "fail")])
def test_little_room_is_a_warning_and_none_a_failure(
    free: float, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stat:
        f_bavail, f_frsize, f_blocks = int(free), 1, int(1e11)

    monkeypatch.setattr(checks.os, "statvfs", lambda _: Stat)
    assert checks.home(settings(home=tmp_path))[1].level == level


def test_a_port_is_free_ours_or_somebody_elses(fake: Fake) -> None:
    handler, address = fake
    port = int(address.rpartition(":")[2])
    both = {"router_bind": "127.0.0.1", "node_bind": "127.0.0.1"}
    router, node = checks.ports(settings(router_port=free_port(), node_port=port, **both))
    assert router.level == "ok"
    assert (node.level, node.found) == ("fail", f"{port} is held by another program")
    handler.bodies = {"/health": {"role": "node", "version": "0.1.0"}}
    assert checks.ports(settings(router_port=free_port(), node_port=port, **both))[1].found == (
        f"{port} is held by llmlb 0.1.0, a running node"
    )
    wrong = checks.ports(settings(router_port=port, node_port=free_port(), **both))[0]
    assert (wrong.level, wrong.found) == ("fail", f"{port} is held by a node of llmlb")


def test_an_address_that_cannot_be_had_is_not_blamed_on_another_program() -> None:
    elsewhere = checks.ports(settings(router_bind="192.0.2.1", node_bind="127.0.0.1", node_port=free_port()))[0]
    assert elsewhere.level == "fail"
    assert "can't listen on 192.0.2.1" in elsewhere.found


def test_a_bus_with_jetstream_is_well(tmp_path: Path) -> None:
    server = NatsServer(tmp_path).start()
    try:
        found = only(checks.bus(settings(bus_url=server.url)))
    finally:
        server.stop()
    assert found.level == "ok"
    assert found.found.endswith("with JetStream")


def test_a_silent_bus_is_well_where_serve_starts_one_and_a_failure_elsewhere() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    assert only(checks.bus(settings(bus_url=url))).level == "ok"
    away = only(checks.bus(settings(bus_url=url, embedded_bus=False)))
    assert (away.level, away.todo) == ("fail", "start it, or set LLMLB_BUS_URL")


@pytest.mark.parametrize(
    ("greeting", "level", "says"),
    [
        (b'INFO {"version":"2.9.0","max_payload":8388608}\r\n', "fail", "has no JetStream"),
        (b'INFO {"version":"2.9.0","max_payload":1048576,"jetstream":true}\r\n', "warn", "1 MB only"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "fail", "no NATS server"),
        (b"INFO nonsense\r\n", "fail", "no NATS server"),
    ],
)
def test_another_bus_than_llmlb_needs_is_told(greeting: bytes, level: str, says: str) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        found = only(checks.bus(settings(bus_url=f"nats://127.0.0.1:{listening.getsockname()[1]}")))
        thread.join()
    assert found.level == level
    assert says in found.found


def test_the_gateway_that_commands_talk_to_is_asked_for_its_version(fake: Fake) -> None:
    handler, address = fake
    handler.bodies = {"/health": {"role": "router", "version": "9.0.0"}, "/v0/models": {"models": []}}
    newer = only(checks.servers(settings(host=address)))
    assert (newer.level, newer.check) == ("warn", "LLMLB_HOST")
    assert "is newer (9.0.0)" in str(newer.todo)
    denied = (401, {"error": {"message": "no key", "type": "t", "param": None, "code": "unauthenticated"}})
    handler.scripts = {"GET /v0/models": [denied]}
    assert "LLMLB_API_KEY" in str(only(checks.servers(settings(host=address))).todo)
    gone = only(checks.servers(settings(host=f"127.0.0.1:{free_port()}")))
    assert (gone.level, gone.check) == ("fail", "LLMLB_HOST")


@pytest.mark.parametrize(
    ("code", "out", "level", "says"),
    [
        (-4, "", "fail", "another CPU (SIGILL)"),
        (1, "", "fail", "it can't be loaded: ImportError: libfoo"),
        (0, '["AMX_INT8 = 1 |", false]', "warn", "AMX"),
        (0, '["AVX2 = 1 |", false]', "ok", "built for the CPU"),
    ],
)
def test_an_engine_that_was_built_for_another_machine_is_told(
    code: int, out: str, level: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], code, out, "Traceback\nImportError: libfoo")
    monkeypatch.setattr(checks.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(checks, "_virtual", lambda: True)
    monkeypatch.setattr(checks, "_driver", lambda: False)
    found = only(checks.engine(settings()))
    assert found.level == level
    assert says in found.found
    assert ("-DGGML_NATIVE=OFF" in str(found.todo)) == ("SIGILL" in says or "AMX" in says)


def test_a_hub_that_is_away_is_a_warning_that_hides_credentials(fake: Fake) -> None:
    handler, address = fake
    away = only(checks.hub(settings(hf_endpoint=f"http://me:pw@127.0.0.1:{free_port()}")))
    assert away.level == "warn"
    assert "pw" not in line(away)
    assert only(checks.hub(settings(hf_endpoint=f"http://{address}"))).level == "ok"
    handler.status = 503
    assert only(checks.hub(settings(hf_endpoint=f"http://{address}"))).level == "warn"


def test_one_failure_is_exit_1_and_a_check_that_breaks_hides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Settings) -> list[Verdict]:
        raise RuntimeError("boom")

    def failing(_: Settings) -> list[Verdict]:
        return [Verdict("fail", "x", "is bad", "mend it")]

    assert run(settings(), as_json=False, chosen=[broken]) == 0
    assert capsys.readouterr().out == "warn  broken          could not be checked: RuntimeError: boom\n"
    assert run(settings(), as_json=True, chosen=[broken, failing]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [set(row) for row in rows] == [{"level", "check", "found", "todo"}] * 2
    assert line(failing(settings())[0]) == "fail  x               is bad → mend it"
