"""Commands that ask a gateway and print a table, against a stand-in."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.fake_gateway import DETAILS, MODEL, Gateway, run

RUNNING = {
    "name": "owner/a",
    "instance": "0123456789ab",
    "state": "ready",
    "size_bytes": 6_400_000_000,
    "processor": "100% GPU",
    "expires_in_s": 250.0,
    "vram_percent": 85.0,
    "gpu_temperature_c": 62.0,
}
NODE = {
    "node_id": "0123456789abcdef0123456789abcdef",
    "name": "box",
    "gateway": "0.0.0.0:32769",
    "state": "online",
    "suspect": False,
    "draining": False,
    "gpus": [],
    "models": ["owner/a"],
}
CLUSTER_MODEL = {"name": "owner/a", "aliases": [], "nodes": 2, "loaded": 1, "status": "available"}
STATUS = {
    "health": "degraded",
    "nodes_online": 2,
    "nodes_offline": 1,
    "models_available": 1,
    "requests_last_hour": 1234,
    "vram_percent": None,
}
Fake = tuple[type[Gateway], str]


@pytest.mark.parametrize(
    ("command", "path", "field", "row", "lines"),
    [
        ("node list", "/v0/models", "models", MODEL, [r"NAME     SIZE    MODIFIED", "owner/a  6.4 GB  "]),
        ("node ls", "/v0/models", "models", MODEL, [r"NAME     SIZE    MODIFIED", "owner/a  6.4 GB  "]),
        (
            "node ps",
            "/v0/ps",
            "models",
            RUNNING,
            [
                "NAME     ID            SIZE    PROCESSOR  UNTIL      VRAM  TEMP",
                "owner/a  0123456789ab  6.4 GB  100% GPU   4 minutes  85%   62°C",
            ],
        ),
        (
            "router nodes",
            "/v0/nodes",
            "nodes",
            NODE,
            [
                "ID            HOST       STATUS  GPU  MODELS",
                "0123456789ab  box:32769  online  -    1",
            ],
        ),
        (
            "router models",
            "/v0/models",
            "models",
            CLUSTER_MODEL,
            ["MODEL    NODES  STATUS", "owner/a  2      available"],
        ),
    ],
)
def test_a_listing_is_the_table_of_the_contract_or_json(
    fake: Fake, command: str, path: str, field: str, row: dict[str, object], lines: list[str]
) -> None:
    handler, address = fake
    handler.bodies[path] = {"type": "x", field: [row]}
    done = run(*command.split(), LLMLB_HOST=address)
    assert (done.returncode, done.stderr) == (0, "")
    printed = done.stdout.rstrip("\n").split("\n")
    assert len(printed) == 2
    assert printed[0] == lines[0]
    assert printed[1].startswith(lines[1])
    assert json.loads(run(*command.split(), "--json", LLMLB_HOST=f"http://{address}/").stdout) == [row]


def test_nothing_to_list_is_the_header_alone(fake: Fake) -> None:
    handler, address = fake
    handler.bodies["/v0/ps"] = {"models": []}
    assert run("node", "ps", LLMLB_HOST=address).stdout == "NAME  ID  SIZE  PROCESSOR  UNTIL  VRAM  TEMP\n"


def test_router_status_is_the_block_of_the_contract(fake: Fake) -> None:
    handler, address = fake
    handler.bodies["/v0/status"] = STATUS
    done = run("router", "status", LLMLB_HOST=address)
    assert done.returncode == 0
    assert done.stdout.split("\n")[:3] == ["Cluster Status: degraded", "", "Nodes:      2 online / 1 offline"]
    assert json.loads(run("router", "status", "--json", LLMLB_HOST=address).stdout) == STATUS


@pytest.mark.parametrize(
    ("option", "printed"),
    [
        ("--license", "\n"),
        ("--template", "{{ messages }}\n"),
        ("--system", "\n"),
        ("--parameters", "llama.block_count  30\ngeneral.name       A\n"),
        ("--modelfile", 'FROM /models/a.gguf\nTEMPLATE """{{ messages }}"""\n'),
    ],
)
def test_show_has_an_option_for_each_part(fake: Fake, option: str, printed: str) -> None:
    _, address = fake
    assert run("node", "show", "owner/a", option, LLMLB_HOST=address).stdout == printed


def test_a_model_name_is_quoted_in_the_path_and_keeps_its_slashes(fake: Fake) -> None:
    handler, address = fake
    handler.bodies["/v0/models/owner/a:Q4_K_M%3F%20%23"] = DETAILS
    assert run("node", "show", "owner/a:Q4_K_M? #", LLMLB_HOST=address).returncode == 0
    assert [path for _, path, _ in handler.asked] == ["/v0/models/owner/a:Q4_K_M%3F%20%23"]


def test_stop_and_approve_post_what_they_are_given(fake: Fake) -> None:
    handler, address = fake
    handler.body = json.dumps({"model": "owner/a", "node_id": NODE["node_id"]}).encode()
    assert run("node", "stop", "owner/a", LLMLB_HOST=address).returncode == 0
    assert run("router", "approve", "0123", LLMLB_HOST=address).stdout == "approved 0123456789ab\n"
    assert handler.asked == [
        ("POST", "/v0/models/stop", {"model": "owner/a"}),
        ("POST", "/v0/nodes/0123/approve", {}),
    ]


@pytest.mark.parametrize(
    ("command", "body"),
    [
        ("node list", {"models": [CLUSTER_MODEL]}),
        ("router models", {"models": [MODEL]}),
        ("router status", {"role": "node", "ready": True}),
        ("node ps", {"models": "many"}),
    ],
)
def test_the_gateway_of_the_other_role_is_named_as_such(fake: Fake, command: str, body: object) -> None:
    handler, address = fake
    handler.body = json.dumps(body).encode()
    done = run(*command.split(), LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"it is not a {command.split()[0]}'s gateway" in done.stderr


def test_what_nobody_expected_is_one_line_and_a_traceback_only_for_debugging(fake: Fake) -> None:
    handler, address = fake
    handler.bodies["/v0/nodes"] = {"nodes": [{"node_id": "x"}]}
    done = run("router", "nodes", LLMLB_HOST=address)
    assert done.returncode == 1
    assert done.stderr == "Error: KeyError: 'name' (LLMLB_DEBUG=true shows where)\n"
    assert "Traceback" in run("router", "nodes", LLMLB_HOST=address, LLMLB_DEBUG="true").stderr


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b'{"error": {"message": "x was not found", "code": "model_not_found"}}', "Error: x was not found"),
        (200, b"<html>hello</html>", "is not a llmlb gateway"),
        (500, b"oops", "is not a llmlb gateway"),
        (200, b"[]", "is not a llmlb gateway"),
        (200, b'{"hello": 1}', "it is not a node's gateway, or another version"),
        (404, b'{"error": "not found"}', "is not a llmlb gateway"),
        (404, b'{"error": {"message": "m", "code": "not_found"}}', "does not know this command"),
        (405, b'{"error": {"message": "m", "code": "method_not_allowed"}}', "does not know this command"),
    ],
)
def test_what_a_server_refuses_is_one_line(
    fake: tuple[type[Gateway], str], status: int, body: bytes, says: str
) -> None:
    handler, address = fake
    handler.status, handler.body = status, body
    done = run("node", "show", "x", LLMLB_HOST=address)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1


def test_a_bus_that_is_away_is_a_connection_error(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.status = 503
    handler.body = b'{"error": {"message": "the bus is not reachable", "code": "bus_unavailable"}}'
    assert run("node", "list", LLMLB_HOST=address).returncode == 2
