"""Membership with real processes: what an admin does, a copied home, and a router that dies."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.natsd import NatsServer

ELSEWHERE = {"PYTHONPATH": str(Path(__file__).parents[1] / "support" / "elsewhere"), "LLMLB_TEST_MACHINE": "other"}


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Cluster]:
    """A bus that no process of the cluster owns."""
    server = NatsServer(tmp_path / "nats").start()
    with cluster(tmp_path, LLMLB_EMBEDDED_BUS="false") as made:
        made.bus_port = server.port
        yield made
    server.stop()


def admin(it: Cluster, router: Process, *command: str, code: int = 0) -> str:
    done = it.cli("router", *command, host=f"127.0.0.1:{router.router_port}")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def nodes(router: Process) -> list[dict[str, Any]]:
    found = httpx.get(f"{router.url}/v0/nodes", timeout=10).json()["nodes"]
    assert isinstance(found, list)
    return found


def states(router: Process) -> list[str]:
    return [node["state"] for node in nodes(router)]


def status_of(it: Cluster, router: Process, node_id: str) -> str | None:
    """The STATUS column."""
    rows = [line.split() for line in admin(it, router, "nodes").splitlines()[1:]]
    return next((row[2] for row in rows if row[0] == node_id[:12]), None)


def test_an_admin_lets_a_node_in_drains_it_labels_it_and_throws_it_out(it: Cluster) -> None:
    router = it.start("router", "serve", home="router").wait_ready()
    it.start("node", "serve", home="node", **ELSEWHERE, LLMLB_NODE_LABELS="gpu, rack=7").wait_ready()
    node = wait_until(lambda: nodes(router), 30, "the node is heard")[0]
    node_id = node["node_id"]
    assert (node["state"], node["labels"]) == ("pending", ["gpu", "rack=7"])

    assert "begins with 'zz'" in admin(it, router, "approve", "zz", code=1)
    assert admin(it, router, "approve", node_id[:6]) == f"approved {node_id[:12]}\n"
    wait_until(lambda: states(router) == ["online"], 30, "online")
    admin(it, router, "drain", node_id)
    assert status_of(it, router, node_id) == "draining"

    router.kill()
    router = it.start("router", "serve", home="router").wait_ready()
    wait_until(lambda: states(router) == ["online"], 30, "approved, for the next router")
    assert status_of(it, router, node_id) == "draining"
    admin(it, router, "undrain", node_id)
    assert status_of(it, router, node_id) == "online"

    admin(it, router, "label", node_id, "blue")
    assert nodes(router)[0]["labels"] == ["gpu", "rack=7", "blue"]
    admin(it, router, "reject", node_id)
    assert status_of(it, router, node_id) == "rejected"
    admin(it, router, "remove", node_id)
    wait_until(lambda: states(router) == ["pending"], 30, "new, as it still runs")


def test_a_node_with_a_join_token_needs_no_admin(it: Cluster) -> None:
    router = it.start("router", "serve", home="router").wait_ready()
    token = admin(it, router, "join-token", "--uses", "1", "--expires", "10m").strip()
    assert "Invalid value" in admin(it, router, "join-token", "--expires", "soon", code=1)
    node = it.start("node", "serve", home="node", **ELSEWHERE, LLMLB_JOIN_TOKEN=token).wait_ready()
    wait_until(lambda: states(router) == ["online"], 30, "online")
    assert token not in router.output() + node.output()


def test_a_copied_home_is_refused_and_a_restart_is_not(it: Cluster, tmp_path: Path) -> None:
    router = it.start("router", "serve", home="router").wait_ready()
    node = it.start("node", "serve", home="node").wait_ready()
    wait_until(lambda: states(router) == ["online"], 30, "online")
    shutil.copytree(tmp_path / "node", tmp_path / "copy")

    copy = it.start("node", "serve", home="copy")
    assert copy.popen.wait(30) == 1
    assert "another node with the id" in copy.output()
    assert str(tmp_path / "copy" / "node_id") in copy.output(), "what to delete"
    shown = wait_until(lambda: [n for n in nodes(router) if n["problem"]], 30, "the cluster knows")
    assert "copy" in shown[0]["problem"]
    assert states(router) == ["online"]

    node.kill()
    again = it.start("node", "serve", home="node").wait_ready()
    wait_until(
        lambda: (
            [(n["state"], n["gateway"].rsplit(":", 1)[1]) for n in nodes(router)] == [("online", str(again.node_port))]
        ),
        30,
        "the same node at another port",
    )


def test_a_router_that_was_killed_knows_its_nodes_again_without_their_doing_anything(it: Cluster) -> None:
    router = it.start("router", "serve", home="router").wait_ready()
    it.start("node", "serve", home="node").wait_ready()
    wait_until(lambda: states(router) == ["online"], 30, "online")
    router.kill()
    router = it.start("router", "serve", home="router").wait_ready()
    began = time.monotonic()
    wait_until(lambda: [(n["state"], bool(n["models"])) for n in nodes(router)] == [("online", True)], 30, "online")
    print(f"rebuilt {time.monotonic() - began:.2f} s after /ready")
