"""The contract of the command line (specs/cli-contract.md), line by line, on a running cluster."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from llmlb.cli.completion import places
from tests.support.cluster import Cluster, Process, free_port

NAME = "smollm2:135m-instruct-q4_1"
Served = tuple[Cluster, Process]

OPTIONS = {
    "node serve": {"--port", "--host"},
    "node run": {"--think", "--hidethinking"},
    "node pull": set[str](),
    "node list": set[str](),
    "node show": {"--license", "--parameters", "--modelfile", "--template", "--system"},
    "node rm": set[str](),
    "node stop": set[str](),
    "node ps": set[str](),
    "router nodes": set[str](),
    "router models": set[str](),
    "router status": set[str](),
}
SIZE = r"\d+(\.\d)? [KMGT]?B"
AGE = r"(Just now|\d+ (second|minute|hour|day|week|month|year)s? ago)"
PRINTS = {
    "node list": [r"NAME +SIZE +MODIFIED", rf"{NAME} +{SIZE} +{AGE}"],
    "node show smollm2": [
        rf"Model: {NAME}",
        r"  Architecture: llama",
        r"  Parameters: \d+\.\d\d[KMBT]",
        r"  Quantization: Q4_1",
        r"  Context Length: \d+",
        r"  Format: GGUF",
        rf"  Size: {SIZE}",
        r"  License: apache-2.0",
        r"  Aliases: smollm2",
    ],
    "node ps": [
        r"NAME +ID +SIZE +PROCESSOR +UNTIL +VRAM +TEMP",
        rf"{NAME} +[0-9a-f]{{12}} +{SIZE} +100% CPU +4 minutes +- +-",
    ],
    "router nodes": [r"ID +HOST +STATUS +GPU +MODELS", r"[0-9a-f]{12} +\S+ +online +\S+ +1"],
    "router models": [r"MODEL +NODES +STATUS", rf"{NAME} +1 +available"],
    "router status": [
        r"Cluster Status: healthy",
        r"",
        r"Nodes:      1 online / 0 offline",
        r"Models:     1 available",
        r"Requests:   [\d,]+ \(last hour\)",
        r"VRAM:       (-|\d+% average utilization)",
    ],
}
KEYS = {
    "node list": {"name", "aliases", "size_bytes", "created_at", "source", "format"},
    "node ps": {"name", "instance", "size_bytes", "processor", "expires_in_s", "vram_percent", "gpu_temperature_c"},
    "node show smollm2": {"model", "license", "parameters", "template", "system", "path"},
    "router nodes": {"node_id", "name", "state", "gpus", "models"},
    "router models": {"name", "nodes", "status"},
    "router status": {"health", "nodes_online", "nodes_offline", "models_available", "requests_last_hour"},
}


def call(served: Served, command: str) -> subprocess.CompletedProcess[str]:
    it, process = served
    port = process.node_port if command.startswith("node") else process.router_port
    return it.cli(*command.split(), host=f"127.0.0.1:{port}")


@pytest.mark.parametrize("command", OPTIONS)
def test_the_command_and_its_options_exist(command: str) -> None:
    found = {place.path: place for place in places()}
    assert OPTIONS[command] <= {name for name, _ in found[command].options}


@pytest.fixture(scope="module")
def loaded(served: Served) -> Served:
    """With the model in memory."""
    assert call(served, "node run smollm2 hi").returncode == 0
    return served


@pytest.mark.parametrize("command", PRINTS)
def test_it_prints_the_columns_of_the_contract_into_a_pipe(loaded: Served, command: str) -> None:
    done = call(loaded, command)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.rstrip("\n").split("\n")
    assert len(lines) == len(PRINTS[command])
    for line, pattern in zip(lines, PRINTS[command], strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


@pytest.mark.parametrize("command", KEYS)
def test_json_has_its_keys(loaded: Served, command: str) -> None:
    done = call(loaded, f"{command} --json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert KEYS[command] <= set(found[0] if isinstance(found, list) else found)


def test_only_models_with_that_beginning_are_listed(loaded: Served) -> None:
    assert NAME in call(loaded, "node ls SMOL").stdout
    assert call(loaded, "node ls nothing-begins-so").stdout == "NAME  SIZE  MODIFIED\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("node run nope", "'nope' was not found"),
        ("node show nope", "'nope' was not found"),
        ("node rm nope", "'nope' was not found"),
        ("node stop nope", "'nope' was not found"),
    ],
)
def test_an_unknown_model_is_exit_1(loaded: Served, command: str, says: str) -> None:
    done = call(loaded, command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_rm_reports_each_name_and_is_exit_1_if_one_failed(loaded: Served) -> None:
    done = call(loaded, "node rm nope smollm2 --json")
    assert done.returncode == 1
    assert [(row["model"], row["deleted"]) for row in json.loads(done.stdout)] == [("nope", False), ("smollm2", False)]
    assert done.stderr.count("Error: ") == 2


def test_stop_unloads_and_a_second_one_is_exit_1(loaded: Served) -> None:
    done = call(loaded, "node stop smollm2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert call(loaded, "node ps").stdout == "NAME  ID  SIZE  PROCESSOR  UNTIL  VRAM  TEMP\n"
    again = call(loaded, "node stop smollm2")
    assert (again.returncode, again.stdout) == (1, "")
    assert "is not loaded" in again.stderr


@pytest.mark.parametrize(
    "command", [f"{name} x" if name in ("node run", "node pull") else name for name in OPTIONS][1:3]
)
def test_no_server_is_exit_2(served: Served, command: str) -> None:
    """The others: tests/unit/cli/test_commands.py."""
    done = served[0].cli(*command.split(), host=f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: cannot reach llmlb at ")


def test_a_node_command_says_that_the_router_does_not_know_it(served: Served) -> None:
    it, process = served
    done = it.cli("node", "ps", host=f"127.0.0.1:{process.router_port}")
    assert done.returncode == 1
    assert "is not a node's gateway" in done.stderr


def test_the_doctor_finds_everything_well(served: Served) -> None:
    it, process = served
    hub = f"http://127.0.0.1:{process.node_port}"  # answers, which is all that is asked of it
    before = dict(it.settings)
    it.settings |= {
        "HF_ENDPOINT": hub,
        "LLMLB_ROUTER_PORT": str(process.router_port),
        "XLLM_PORT": str(process.node_port),
    }
    try:
        done = it.cli("doctor", "--json", host=f"127.0.0.1:{process.router_port}")
    finally:
        it.settings = before
    found = {row["check"]: row for row in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (0, "")
    assert set(found) == {
        *("versions", "home", "disk", "router port", "node port", "bus", "LLMLB_HOST", "GPU", "llama.cpp", "hub")
    }
    assert {row["level"] for row in found.values()} <= {"ok", "warn"}
    for check in ("router port", "node port", "bus", "LLMLB_HOST", "hub"):
        assert found[check]["level"] == "ok", found[check]
