"""The JetStream streams: what is kept of what crossed the bus, and for how long."""

from __future__ import annotations

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from llmlb.bus import subjects

DAY_S = 86400.0

STREAMS: dict[str, StreamConfig] = {
    subjects.STREAM_EVENTS: StreamConfig(
        name=subjects.STREAM_EVENTS,
        subjects=[subjects.all_events()],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=7 * DAY_S,
        max_bytes=256 * 1024 * 1024,
        allow_direct=True,
    ),
    subjects.STREAM_REQUESTS: StreamConfig(
        name=subjects.STREAM_REQUESTS,
        subjects=[subjects.all_request_records()],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=7 * DAY_S,
        max_bytes=2 * 1024 * 1024 * 1024,
        allow_direct=True,
    ),
    subjects.STREAM_PULLS: StreamConfig(
        name=subjects.STREAM_PULLS,
        subjects=[subjects.all_pulls()],
        # A task stays until its node acks it, however long the node is away.
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_msgs=100_000,
        max_bytes=256 * 1024 * 1024,
        duplicate_window=1.0,
        allow_direct=True,
    ),
    subjects.STREAM_PROGRESS: StreamConfig(
        name=subjects.STREAM_PROGRESS,
        subjects=[subjects.all_progress()],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_msgs_per_subject=1,
        max_age=7 * DAY_S,
        max_bytes=256 * 1024 * 1024,
        allow_direct=True,
    ),
}


async def ensure_streams(client: Client, *, replicas: int = 1) -> None:
    """Make the streams that are missing. One that exists is left as its operator set it. Raises nats.errors.Error."""
    js = client.jetstream()
    for name, config in STREAMS.items():
        try:
            await js.stream_info(name)
        except nats.js.errors.NotFoundError:
            try:
                await js.add_stream(config.evolve(num_replicas=replicas))
            except nats.js.errors.BadRequestError:
                await js.stream_info(name)  # made by somebody else meanwhile; any other cause shows again here
