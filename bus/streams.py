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


RESPONSES = StreamConfig(
    name=subjects.STREAM_RESPONSES,
    subjects=[subjects.all_responses()],
    retention=RetentionPolicy.LIMITS,
    storage=StorageType.FILE,
    # The oldest go when it is full: a bucket would refuse the newest.
    discard=DiscardPolicy.OLD,
    max_msgs_per_subject=1,
    max_age=30 * DAY_S,
    max_bytes=1024 * 1024 * 1024,
    allow_direct=True,
)
"""Made by the first gateway that stores an answer, and not with the others: the server sets its space aside."""


async def ensure_streams(client: Client, *, replicas: int = 1) -> None:
    """Make the streams that are missing. One that exists is left as its operator set it. Raises nats.errors.Error."""
    for config in STREAMS.values():
        await ensure_stream(client, config, replicas=replicas)


async def ensure_stream(client: Client, config: StreamConfig, *, replicas: int = 1) -> None:
    """As :func:`ensure_streams`, for one of them."""
    js, name = client.jetstream(), config.name or ""
    try:
        await js.stream_info(name)
    except nats.js.errors.NotFoundError:
        try:
            await js.add_stream(config.evolve(num_replicas=replicas))
        except nats.js.errors.BadRequestError:
            await js.stream_info(name)  # made by somebody else meanwhile; any other cause shows again here
