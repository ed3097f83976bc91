"""The key-value buckets: durable state of the cluster."""

from __future__ import annotations

import asyncio
import contextlib

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.kv import KV_OP, KeyValue

from llmlb.bus.subjects import BUCKET_IDENTITY, BUCKET_MODELS, BUCKET_NODES, BUCKET_SETTINGS

READ_S = 10.0
HISTORY = {BUCKET_NODES: 1, BUCKET_MODELS: 1, BUCKET_SETTINGS: 1, BUCKET_IDENTITY: 1}


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


def changes_of(bucket: str, key: str = ">") -> str:
    """The subject on which every change of a bucket (or of a key) crosses the bus, for who compares anew at each.

    What changes while one is away is seen only in the bucket. Source: NATS ADR-8, `$KV.<bucket>.<key>`.
    """
    return f"$KV.{bucket}.{key}"


async def read_bucket(client: Client, bucket: str, key: str | None = None) -> dict[str, bytes | None]:
    """Everything in a bucket, or one key of it: None for one that was deleted, whose mark the bucket keeps.

    Empty when there is no such bucket. Raises nats.errors.Error, TimeoutError after 10 s.
    """
    js = client.jetstream()
    stream, prefix = f"KV_{bucket}", f"$KV.{bucket}."
    found: dict[str, bytes | None] = {}
    try:
        async with asyncio.timeout(READ_S):
            info = await js.stream_info(stream, subjects_filter=f"{prefix}{key or '>'}")
            for subject in info.state.subjects or {}:
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    msg = await js.get_last_msg(stream, subject, direct=bool(info.config.allow_direct))
                    deleted = bool(msg.headers and msg.headers.get(KV_OP) in ("DEL", "PURGE"))
                    found[subject.removeprefix(prefix)] = None if deleted else msg.data or b""
    except nats.js.errors.NotFoundError:
        return {}
    return found
