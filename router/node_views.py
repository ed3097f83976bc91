"""How a node is shown: over rpc, at ``/v0/nodes``, and in ``llmlb router nodes``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmlb.bus.messages.nodes import Heartbeat, NodeRecord
from llmlb.bus.messages.router import NodeView
from llmlb.router.members import Members

STALE_AFTER_S = 30.0


def live_view(members: Members, beat: Heartbeat, models: Sequence[str], age_s: float, now: float) -> NodeView:
    """A node that was heard ``age_s`` seconds ago. ``models``: names of what it has."""
    node_id = beat.node_id
    record = members.record(node_id)
    given = () if record is None else record.labels
    # Every value was checked when it came in; checking it again would take three times as long.
    return NodeView.model_construct(
        node_id=node_id,
        name=beat.name,
        gateway=beat.gateway,
        state=members.state(node_id),
        suspect=members.suspect(node_id, now),
        draining=beat.draining or members.drained(node_id),
        version=beat.version,
        models=tuple(sorted(models)),
        loaded_models=tuple(entry.name for entry in beat.loaded if entry.ready),
        models_ready=beat.models_ready,
        models_total=beat.models_total,
        running=beat.running,
        slots=sum(entry.slots for entry in beat.loaded),
        gpus=beat.gpus,
        cpu_percent=beat.cpu_percent,
        memory_total_bytes=beat.memory_total_bytes,
        memory_available_bytes=beat.memory_available_bytes,
        uptime_s=beat.uptime_s,
        last_heartbeat_age_s=age_s,
        metrics_stale=age_s > STALE_AFTER_S,
        labels=tuple(dict.fromkeys((*beat.labels, *given))),
        rejected=record is not None and record.rejected,
        problem=members.problem(node_id, now),
    )


def remembered_view(record: NodeRecord) -> NodeView:
    """A node that was not heard since this router began; when its record was written stands for when it was heard."""
    return NodeView(
        node_id=record.node_id,
        name=record.name,
        gateway=record.gateway,
        state="offline",
        suspect=False,
        draining=record.drained,
        version="",
        models=(),
        loaded_models=(),
        models_ready=0,
        models_total=0,
        running=0,
        slots=0,
        gpus=(),
        cpu_percent=None,
        memory_total_bytes=None,
        memory_available_bytes=None,
        uptime_s=0.0,
        last_heartbeat_age_s=max(0.0, time.time() - record.sent_at),
        metrics_stale=True,
        labels=record.labels,
        rejected=record.rejected,
        problem="an admin refused it" if record.rejected else None,
    )
