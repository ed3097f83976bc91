"""The key-value buckets: durable state of the cluster."""

from __future__ import annotations

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue

from llmlb.bus.subjects import BUCKET_MODELS, BUCKET_NODES, BUCKET_SETTINGS

HISTORY = {BUCKET_NODES: 1, BUCKET_MODELS: 1, BUCKET_SETTINGS: 1}


async def open_bucket(client: Client, bucket: str, *, replicas: int = 1) -> KeyValue:
    """The bucket, made when it is missing; two that make it at once both succeed. Raises nats.errors.Error."""
    js = client.jetstream()
    try:
        return await js.key_value(bucket)
    except nats.js.errors.NotFoundError:
        config = KeyValueConfig(bucket=bucket, history=HISTORY[bucket], replicas=replicas)
        try:
            return await js.create_key_value(config)
        except nats.js.errors.BadRequestError:
            return await js.key_value(bucket)
