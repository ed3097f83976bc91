"""What a router answers about the models of a cluster, for a stand-in."""

from __future__ import annotations

from typing import Any

from tests.unit.cli.fake_gateway import GB, task

NAME = "owner/m:Q4_K_M"
ID = "0123456789abcdef"
EARLIER = "GET /v0/tasks/owner%2Fm:Q4_K_M"
START = f"POST /v0/models/{NAME}/download"
LOOK = f"GET /v0/tasks/{ID}"
NODE_A, NODE_B = "aa11" * 16, "bb22" * 16
NOTHING_YET = (404, {"error": {"message": "there is no download", "code": "not_found", "param": "task"}})


def on(node_id: str, name: str = "", *, online: bool = True, **fields: Any) -> dict[str, Any]:
    """A task of the cluster."""
    state = task(node_id=node_id, model=NAME, total_bytes=2 * GB, **fields)
    return {
        "id": f"{node_id}.{ID}",
        "node_id": node_id,
        "node_name": name or node_id[:2],
        "online": online,
        "task": state,
    }


def failed(node_id: str, message: str, **fields: Any) -> dict[str, Any]:
    return on(node_id, status="failed", phase="done", error={"reason": "out_of_disk", "message": message}, **fields)


def completed(node_id: str, **fields: Any) -> dict[str, Any]:
    return on(node_id, status="completed", phase="done", downloaded_bytes=2 * GB, **fields)


def listed(*tasks: dict[str, Any]) -> dict[str, Any]:
    return {"tasks": list(tasks)}


def started(*tasks: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 202, {"model": NAME, "tasks": list(tasks), "attached": []}


def refused(code: str, message: str, status: int, **fields: Any) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "code": code, "param": None, **fields}}


def hub_model(**fields: Any) -> dict[str, Any]:
    """As GET /v0/models/hub shows one."""
    return {
        "id": NAME,
        "size_bytes": 6_400_000_000,
        "required_memory_bytes": 8 * GB,
        "status": "available",
        "lifecycle_status": None,
        "nodes": [],
        "nodes_ready": 0,
        "nodes_total": 0,
        "aliases": [],
        "registered_at": None,
        **fields,
    }


def variant(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": name,
        "files": ["m-Q4_K_M.gguf"],
        "quantization": "Q4_K_M",
        "size_bytes": 6_400_000_000,
        "required_memory_bytes": 8 * GB,
        "url": "x",
        "registered": False,
        "fits_count": 2,
        **fields,
    }


def catalog_page(*variants: dict[str, Any], **fields: Any) -> dict[str, Any]:
    model = {
        "id": "owner/m",
        "last_modified": "2026-01-02T03:04:05.000Z",
        "downloads": 12_345,
        "likes": 6,
        "gated": False,
        "variants": list(variants),
    }
    return {
        "models": [model],
        "has_more": False,
        "nodes_total": 3,
        "stale": False,
        "age_s": 0.0,
        "note": None,
        **fields,
    }
