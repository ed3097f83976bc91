"""What ``llmlb router model …`` prints: pure functions from data to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlb.cli.render import age, counted, printable, size, table

DATE_CHARS = 10


def _size(count: int | None) -> str:
    return "-" if count is None else size(count)


def _compact(count: int) -> str:
    """How often, in short: ``950``, ``12K``, ``3.4M``."""
    if count < 1_000:
        return str(count)
    return f"{count / 1_000:.0f}K" if count < 999_500 else f"{count / 1_000_000:.1f}M"


def _files(files: Sequence[str]) -> str:
    if not files:
        return "-"
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def catalog(page: dict[str, Any]) -> str:
    """``router model list``: a row a variant; a repository without one that can be used has a row of its own."""
    rows = []
    for model in page["models"]:
        gated = ["gated"] if model.get("gated") else []
        common = [_compact(model.get("downloads") or 0), (model.get("last_modified") or "-")[:DATE_CHARS]]
        if not model["variants"]:
            rows.append([model["id"], "-", "-", "-", ",".join(gated) or "-", *common, "-"])
        for variant in model["variants"]:
            fits = variant.get("fits_count")
            rows.append(
                [
                    variant["id"],
                    _size(variant["size_bytes"]),
                    _size(variant.get("required_memory_bytes")),
                    "-" if fits is None else f"{fits}/{page.get('nodes_total', 0)}",
                    ",".join([*(["registered"] if variant["registered"] else []), *gated]) or "-",
                    *common,
                    _files(variant["files"]),
                ]
            )
    return table(["MODEL", "SIZE", "MEMORY", "FITS", "STATE", "DOWNLOADS", "UPDATED", "FILE"], rows)


def catalog_trouble(page: dict[str, Any]) -> str | None:
    """Why a page is not all that the hub has now."""
    note = page.get("note")
    if not page.get("stale"):
        return str(note) if note else None
    when = age(page.get("age_s") or 0.0).lower()
    return f"this is what the hub said {when}, not now: {note or 'it does not answer'}"


def _status(model: dict[str, Any]) -> str:
    """``downloading 45%``: over the bytes of the nodes that fetch it now."""
    pending = [node for node in model["nodes"] if node["lifecycle_status"] == "pending"]
    total = sum(node["total_bytes"] for node in pending)
    if model["status"] != "downloading" or not total:
        return str(model["status"])
    return f"downloading {min(99, sum(node['downloaded_bytes'] for node in pending) * 100 // total)}%"


def supported(models: Sequence[dict[str, Any]]) -> str:
    """``router model supported``: the table, and below it what went wrong on which node."""
    rows = [
        [
            model["id"],
            _size(model["size_bytes"]),
            _size(model["required_memory_bytes"]),
            _status(model),
            model["lifecycle_status"] or "-",
            f"{model['nodes_ready']}/{model['nodes_total']}" if model["lifecycle_status"] else "-",
            ",".join(model["aliases"]) or "-",
        ]
        for model in models
    ]
    lines = [table(["MODEL", "SIZE", "MEMORY", "STATUS", "STATE", "NODES", "ALIASES"], rows)]
    for model in models:
        for node in model["nodes"]:
            if node["lifecycle_status"] == "error":
                why = node["error"] or "the download failed"
                lines.append(printable(f"{model['id']} on {node['name']} ({node['node_id'][:12]}): {why}"))
    return "\n".join(lines)


def registered(model: dict[str, Any]) -> str:
    """``router model add``."""
    first = f"registered '{model['id']}'" + (f", {size(model['size_bytes'])}" if model["size_bytes"] else "")
    if model["lifecycle_status"] == "conversion_pending":
        return printable(f"{first}: it waits for a conversion, no node fetches it")
    total = model["nodes_total"]
    verb = "fetches" if total == 1 else "fetch"
    return printable(f"{first}: {counted(total, 'node') if total else 'nodes that come'} {verb} it")


def deleted(gone: dict[str, Any]) -> str:
    """``router model rm``."""
    count = len(gone["nodes"])
    behind = f": {counted(count, 'node')} {'removes' if count == 1 else 'remove'} its files" if count else ""
    return printable(f"deleted '{gone['model']}'{behind}")


def error_line(message: str) -> str:
    """On standard error, where the command goes on after it."""
    return f"Error: {printable(' '.join(message.split()))}"
