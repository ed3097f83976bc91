"""What listings look like: pure functions from data to text. Columns as in specs/cli-contract.md."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

GAP = 2
_SIZES = ((" B", 0), (" KB", 0), (" MB", 0), (" GB", 1), (" TB", 1))
_COUNTS = (("", 0), ("K", 2), ("M", 2), ("B", 2), ("T", 2))
"""Unit and decimals, each unit 1000 times the one before."""


def _scaled(count: int, units: Sequence[tuple[str, int]]) -> str:
    text = ""
    for power, (unit, decimals) in enumerate(units):
        number = f"{count / 1000**power:.{decimals}f}"
        text = number + unit
        # Judged after rounding: 999,999,999 bytes are 1.0 GB, not 1000 MB.
        if float(number) < 1000:
            break
    return text


def size(count: int) -> str:
    """Bytes for people, decimal: ``6.4 GB``, ``98 MB``."""
    return _scaled(count, _SIZES)


def counted(number: int, unit: str) -> str:
    """``1 day``, ``2 days``."""
    return f"{number} {unit}{'' if number == 1 else 's'}"


def age(seconds: float) -> str:
    """How long ago: ``2 hours ago``, ``1 day ago``, ``Just now``."""
    for length, unit in ((31_536_000, "year"), (2_592_000, "month"), (604_800, "week"), (86_400, "day")):
        if seconds >= length:
            return f"{counted(int(seconds // length), unit)} ago"
    for length, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= length:
            return f"{counted(int(seconds // length), unit)} ago"
    return "Just now" if seconds < 5 else f"{counted(int(seconds), 'second')} ago"


def until(seconds: float | None) -> str:
    """Time left: ``4 minutes``, ``About a minute``, ``Forever``."""
    if seconds is None:
        return "Forever"
    if seconds < 60:
        return "Less than a minute"
    if seconds < 120:
        return "About a minute"
    if seconds < 7200:
        return counted(int(seconds // 60), "minute")
    return counted(int(seconds // 3600), "hour")


def parameters(count: int | None) -> str:
    """Number of weights: ``3.21B``, ``134.52M``."""
    return "-" if count is None else _scaled(count, _COUNTS)


def columns_of(text: str) -> int:
    """Columns of a terminal that a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def printable(cell: str) -> str:
    """Names come from other machines: no control characters, which could move the cursor or end the row."""
    if cell.isprintable():
        return cell
    return "".join(char if char.isprintable() else "?" for char in cell)


def clipped(text: str, width: int) -> str:
    """At most ``width`` columns of it, the last one an ellipsis when something is missing."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 1:
        text = text[:-1]
    return text + "…" if width > 0 else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, nothing cut, no trailing blanks."""
    lines = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(columns_of(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "".join(
            cell + " " * (width + GAP - columns_of(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def models(models: Sequence[dict[str, Any]], now: float) -> str:
    """``node list``."""
    rows = [
        [
            model["name"] + (" (readonly)" if model["source"] == "Ollama" else ""),
            size(model["size_bytes"]),
            age(max(0.0, now - model["created_at"])),
        ]
        for model in models
    ]
    return table(["NAME", "SIZE", "MODIFIED"], rows)


def _until(model: dict[str, Any]) -> str:
    """When it is unloaded, or what it does meanwhile."""
    if model["state"] == "loading" and model.get("percent"):
        return f"Loading... {model['percent']}%"
    words = {"loading": "Loading...", "stopping": "Stopping...", "failed": "failed"}
    return words.get(model["state"]) or until(model["expires_in_s"])


def running(models: Sequence[dict[str, Any]]) -> str:
    """``node ps``."""
    rows = [
        [
            model["name"],
            model["instance"] or "-",
            size(model["size_bytes"]) if model["size_bytes"] else "-",
            model["processor"],
            _until(model),
            "-" if model["vram_percent"] is None else f"{model['vram_percent']:.0f}%",
            "-" if model["gpu_temperature_c"] is None else f"{model['gpu_temperature_c']:.0f}°C",
        ]
        for model in models
    ]
    return table(["NAME", "ID", "SIZE", "PROCESSOR", "UNTIL", "VRAM", "TEMP"], rows)


def details(found: dict[str, Any]) -> str:
    """``node show``."""
    model = found["model"]
    context = model["context_length"]
    rows = [
        f"Model: {model['name']}",
        f"  Architecture: {model['architecture']}",
        f"  Parameters: {parameters(model['parameters'])}",
        f"  Quantization: {model['quantization'] or '-'}",
        f"  Context Length: {'-' if context is None else context}",
        f"  Format: {model['format']}",
        f"  Size: {size(model['size_bytes'])}",
        f"  License: {(found['license'] or '-').strip().partition(chr(10))[0]}",
    ]
    if model.get("aliases"):
        rows.append(f"  Aliases: {', '.join(model['aliases'])}")
    if found.get("problem"):
        rows.append(f"  Failed: {found['problem']}")
    return "\n".join(printable(row) for row in rows)


def parameter_lines(found: dict[str, Any]) -> str:
    """``node show --parameters``."""
    width = max((columns_of(printable(key)) for key in found), default=0)
    return "\n".join(f"{printable(key).ljust(width)}  {printable(str(value))}" for key, value in found.items())


def modelfile(found: dict[str, Any]) -> str:
    """``node show --modelfile``: where the model is, and what is made of it."""
    lines = [f"FROM {found['path']}", f'TEMPLATE """{found["template"]}"""']
    if found["system"]:
        lines.append(f'SYSTEM """{found["system"]}"""')
    return "\n".join(lines)


@functools.cache
def gpu_name(name: str) -> str:
    """``NVIDIA GeForce RTX 4090`` → ``RTX4090``, ``NVIDIA A100-SXM4-80GB`` → ``A100``."""
    short = re.sub(r"^(NVIDIA|AMD|Intel)\s+|GeForce\s+|Tesla\s+|Radeon\s+", "", name).strip()
    return re.sub(r"[-\s](SXM|PCIe|PCIE|HBM|NVL|\d+GB).*$", "", short).replace(" ", "") or name


def node_state(node: dict[str, Any]) -> str:
    """The STATUS of a node: its state, or what is wrong inside it."""
    if node.get("rejected"):
        return "rejected"
    if node["state"] == "online" and node["draining"]:
        return "draining"
    if node["state"] == "online" and node["suspect"]:
        return "suspect"
    return str(node["state"])


def nodes(nodes: Sequence[dict[str, Any]]) -> str:
    """``router nodes``. HOST has the port, so that several nodes of one machine can be told apart."""
    rows = [
        [
            node["node_id"][:12],
            node["name"] + (f":{node['gateway'].rsplit(':', 1)[1]}" if ":" in node["gateway"] else ""),
            node_state(node),
            ",".join(gpu_name(gpu["name"]) for gpu in node["gpus"]) or "-",
            str(len(node["models"])),
        ]
        for node in nodes
    ]
    return table(["ID", "HOST", "STATUS", "GPU", "MODELS"], rows)


def cluster_models(models: Sequence[dict[str, Any]]) -> str:
    """``router models``."""
    rows = [[model["name"], str(model["nodes"]), model["status"]] for model in models]
    return table(["MODEL", "NODES", "STATUS"], rows)


def status(status: dict[str, Any]) -> str:
    """``router status``."""
    vram = status["vram_percent"]
    return "\n".join(
        [
            f"Cluster Status: {status['health']}",
            "",
            f"Nodes:      {status['nodes_online']} online / {status['nodes_offline']} offline",
            f"Models:     {status['models_available']} available",
            f"Requests:   {status['requests_last_hour']:,} (last hour)",
            f"VRAM:       {'-' if vram is None else f'{vram:.0f}% average utilization'}",
        ]
    )
