from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import ConfigError
from llmlb.bus.settings import Settings, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("-1", -1), ("-5m", -1), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= -1


@pytest.mark.parametrize(
    ("text", "size"), [("1048576", 2**20), ("7MiB", 7 * 2**20), ("20MB", 20_000_000), ("1k", 1000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("env", "value"),
    [
        ("XLLM_PORT", "99999"),
        ("XLLM_PORT", "abc"),
        ("LLMLB_KEEP_ALIVE", "soon"),
        ("LLMLB_BUS_URL", "http://x"),
        ("LLMLB_BUS_URL", "nats://host:notaport"),
        ("LLMLB_AUTH", "maybe"),
        ("LLMLB_NUM_PARALLEL", "0"),
        ("LLMLB_DEBUG", "perhaps"),
        ("LLMLB_MAX_BODY", "lots"),
        ("LLMLB_HOST", "ftp://x"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_variable(env: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load({env: value})
    assert env in caught.value.message
    assert value in caught.value.message


def test_options_win_over_the_environment_and_none_means_not_given() -> None:
    settings = Settings.load({"XLLM_PORT": "1111"}, node_port=2222, router_port=None)
    assert settings.node_port == 2222
    assert settings.router_port == 32768


def test_a_child_process_gets_the_same_settings() -> None:
    settings = Settings.load({}, home=Path("/somewhere"), embedded_bus=False, num_parallel=3, debug=True)
    assert Settings.load(settings.to_environ()) == settings


def test_credentials_in_addresses_are_masked() -> None:
    settings = Settings.load(
        {"LLMLB_BUS_URL": "nats://me:secret@10.0.0.1:4222,nats://token@10.0.0.2", "LLMLB_HOST": "me:secret@box:1"}
    )
    assert "secret" not in str(settings.describe())
    assert settings.bus_url_shown == "nats://****@10.0.0.1:4222,nats://****@10.0.0.2"


def test_every_setting_has_a_variable_and_a_help_text() -> None:
    names = [field.metadata["env"] for field in fields(Settings)]
    assert len(set(names)) == len(names)
    assert all(field.metadata["help"] for field in fields(Settings))


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("nats://127.0.0.1:4222", True),
        ("nats://localhost", True),
        ("nats://[::1]:4222", True),
        ("nats://10.0.0.1:4222", False),
        ("nats://127.0.0.1:1,nats://127.0.0.1:2", False),
    ],
)
def test_a_bus_may_only_be_started_on_this_machine(url: str, loopback: bool) -> None:
    assert Settings.load({}, bus_url=url).bus_is_loopback is loopback
