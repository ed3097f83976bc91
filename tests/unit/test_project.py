"""What has to stay true of the project itself: packaging, layers, documents, compose file."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmlb.bus.settings import Settings, setting_help

ROOT = Path(__file__).parents[2]
ROOMS = ("bus", "router", "node", "cli")


def test_every_sub_package_is_in_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {"llmlb"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            folders.add("llmlb." + ".".join(path.parent.relative_to(ROOT).parts))
    assert listed == folders
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").exists() for name in listed - {"llmlb"})


@pytest.mark.parametrize("room", ROOMS)
def test_type_checkers_find_the_rooms(room: str) -> None:
    link = ROOT / "src" / "llmlb" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_constraints_name_no_index_and_no_address() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    assert all("==" in line for line in text.splitlines() if line and not line.startswith("#"))


def test_every_setting_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for env, shown, help in setting_help():
        assert f"| `{env}` | {shown or '-'} | {help} |" in text, f"docs/configuration.md lacks the row of {env}"


def test_every_command_is_in_the_documents() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for command in (
        "llmlb serve",
        "llmlb node serve",
        "llmlb node run",
        "llmlb node list",
        "llmlb node pull",
        "llmlb node rm",
        "llmlb node show",
        "llmlb node stop",
        "llmlb node ps",
        "llmlb router serve",
        "llmlb router nodes",
        "llmlb router models",
        "llmlb router status",
        "llmlb router approve",
        "llmlb config show",
    ):
        assert f"`{command}" in text


def test_the_asyncapi_document_is_the_one_the_code_makes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_asyncapi.py"), "--print"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "asyncapi.json").read_text(), "run: make docs"


def test_the_readme_says_how_to_start_and_test() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make serve" in text
    assert "make test" in text


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_compose_runs_the_same_topology(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"nats", "router", "node", "node-gpu"}
    assert services["nats"]["image"].startswith("nats:")
    assert all("healthcheck" in service for service in services.values())
    assert services["node-gpu"]["profiles"] == ["gpu"]
    for name in ("router", "node", "node-gpu"):
        assert services[name]["depends_on"]["nats"]["condition"] == "service_healthy"
        assert "profiles" not in services[name] or name == "node-gpu"
    assert "jetstream" in compose["configs"]["nats"]["content"]
    assert "max_payload: 8388608" in compose["configs"]["nats"]["content"]


def test_compose_publishes_on_this_machine_only(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:32768:32768"]


def test_compose_sets_only_settings_that_exist(compose: dict[str, Any]) -> None:
    known = {field.metadata["env"] for field in fields(Settings)}
    for name in ("router", "node", "node-gpu"):
        environment = compose["services"][name]["environment"]
        assert set(environment) <= known
        settings = Settings.load({key: str(value) for key, value in environment.items()})
        assert not settings.embedded_bus
        assert settings.bus_url == "nats://nats:4222"


def test_the_image_has_an_init_that_reaps_and_hands_signals_on() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["tini", "--"]' in dockerfile
    assert re.search(r"apt-get install .*\btini\b", dockerfile)
