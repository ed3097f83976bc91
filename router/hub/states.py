"""Where a registered model is: on each node it is meant for, and summed up. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmlb.bus.errors import LlmlbError, ModelDownloading, NoCapableNode
from llmlb.bus.messages.hub import Lifecycle, NodeModelState, Status
from llmlb.bus.messages.models import ModelInfo, RegisteredModel
from llmlb.bus.messages.pulls import PullProgress
from llmlb.router.hub.board import is_over

MOST_SHOWN = 100
"""Nodes named for a model: those that are not ready first."""
RETRY_LEAST_S, RETRY_MOST_S, RETRY_UNKNOWN_S = 1, 60, 5


class Shelf(Protocol):
    """What is known of a node's models. See ``llmlb.router.fleet.Node``."""

    models: dict[str, ModelInfo]
    own_names: dict[str, str]
    repos: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Seat:
    """A node that a model is meant for. ``has``: the model is whole there."""

    node_id: str
    name: str
    online: bool
    has: bool
    task: PullProgress | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Over all nodes. ``shown``: at most MOST_SHOWN of them, by name."""

    status: Status
    lifecycle: Lifecycle
    ready: int
    total: int
    shown: tuple[NodeModelState, ...]


def name_there(record: RegisteredModel, node: Shelf) -> str | None:
    """The name under which a node has a registered model whole; None when it has not.

    A node calls the only model of a repository ``owner/model``.
    """
    direct = node.own_names.get(record.name)
    if direct is not None:
        return direct
    repo, _, tag = record.name.partition(":")
    manifest = record.manifest
    for name in node.repos.get(repo.lower(), ()):
        info = node.models[name]
        if manifest is None and not tag:
            return name
        # Registered by a file's name, where the node goes by the quantization.
        if manifest is not None and (info.quantization, info.size_bytes) == (
            manifest.quantization or info.quantization,
            manifest.size_bytes,
        ):
            return name
    return None


def lifecycle_of(record: RegisteredModel, seat: Seat) -> Lifecycle:
    """Of one node."""
    if seat.has:
        return "ready"
    if record.conversion_pending:
        return "conversion_pending"
    if seat.task is not None and not is_over(seat.task):
        return "pending"
    if seat.task is not None and seat.task.status == "failed":
        return "error"
    return "registered"


def summed_up(record: RegisteredModel, seats: Sequence[Seat]) -> Summary:
    """One ready node is enough to ask the model; an error counts when nobody has it and nobody fetches it."""
    cycles = [lifecycle_of(record, seat) for seat in seats]
    order: tuple[Lifecycle, ...] = ("ready", "pending", "error", "registered")
    lifecycle: Lifecycle = next((each for each in order if each in cycles), "registered")
    if record.conversion_pending:
        lifecycle = "conversion_pending"
    status: Status = "downloading" if "pending" in cycles else "downloaded" if "ready" in cycles else "available"
    pairs = sorted(zip(seats, cycles, strict=True), key=lambda pair: (pair[1] == "ready", pair[0].name))
    chosen = sorted(pairs[:MOST_SHOWN], key=lambda pair: (pair[0].name, pair[0].node_id))
    shown = tuple(_shown(seat, cycle) for seat, cycle in chosen)
    return Summary(status, lifecycle, cycles.count("ready"), len(seats), shown)


def _shown(seat: Seat, lifecycle: Lifecycle) -> NodeModelState:
    task = seat.task
    if task is None:
        # Every value was checked when it came in.
        return NodeModelState.model_construct(
            node_id=seat.node_id, name=seat.name, online=seat.online, lifecycle_status=lifecycle
        )
    return NodeModelState.model_construct(
        node_id=seat.node_id,
        name=seat.name,
        online=seat.online,
        lifecycle_status=lifecycle,
        task_id=f"{task.node_id}.{task.task_id}",
        percent=percent_of(task),
        downloaded_bytes=task.downloaded_bytes,
        total_bytes=task.total_bytes,
        speed_bps=task.speed_bps,
        eta_s=task.eta_s,
        note="the download was cancelled" if task.status == "cancelled" and not seat.has else task.note,
        error=None if task.error is None or seat.has else task.error.message,
    )


def percent_of(task: PullProgress) -> int | None:
    """Of its bytes, rounded down, so that 100 is said of nothing that is not whole."""
    if not task.total_bytes:
        return None
    return min(100, 100 * task.downloaded_bytes // task.total_bytes)


def why_not_ready(model: str, record: RegisteredModel, seats: Sequence[Seat]) -> LlmlbError:
    """What a request gets for a registered model that no node can be asked for."""
    if record.conversion_pending:
        return NoCapableNode(f"the model '{model}' waits for its conversion: no engine of the cluster runs its format")
    found = summed_up(record, seats)
    if found.lifecycle == "error":
        why = next((seat.task.error.message for seat in seats if seat.task and seat.task.error), "it is not known why")
        return NoCapableNode(f"the model '{model}' could not be downloaded: {why}")
    running = [seat.task for seat in seats if seat.task is not None and not is_over(seat.task)]
    if not running and found.lifecycle == "ready":
        return NoCapableNode(f"no node that has the model '{model}' can be reached at the moment")
    told = "it has not begun yet"
    if running:
        best = max(running, key=lambda task: percent_of(task) or 0)
        told = f"{percent_of(best) or 0}% of {best.total_bytes} bytes on the node that is furthest"
    error = ModelDownloading(f"the model '{model}' is being downloaded: {told}; GET /v0/tasks shows how far it is")
    left = [task.eta_s for task in running if task.eta_s is not None]
    if left:
        error.retry_after_s = max(RETRY_LEAST_S, min(RETRY_MOST_S, math.ceil(min(left))))
    return error
