"""Requests that are larger than a message of the bus: through an object store, and the message names the object.

The gateway puts the object and deletes it when the attempt is over; a gateway that dies leaves it to the bucket's age
limit. A node of an older version knows no such message and refuses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import uuid

import nats.errors
import nats.js.errors
from nats.js.api import ObjectMeta, ObjectMetaOptions, StorageType
from nats.js.object_store import ObjectStore

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus, map_nats_error
from llmlb.bus.errors import BadMessage, BusDown, LlmlbError, OutOfDisk
from llmlb.bus.messages.infer import BulkInferRequest, InferRequest
from llmlb.bus.tasks import Background

log = logging.getLogger("llmlb.bus.bulk")

AGE_S = 15 * 60.0
"""After this an object that nobody deleted goes. No request waits so long to be fetched."""
BUCKET_BYTES = 4 * 1024 * 1024 * 1024
PIECE_BYTES = 512 * 1024
"""Half of what any bus takes as a message (nats-server's default max_payload is 1 MiB)."""
BULK_MARK = b"llmlb.infer.bulk.v1"
BULK_STUB_BYTES = 16 * 1024
"""More than a message that names an object has."""
HEADROOM_BYTES = 1024
"""Of a message of the bus, for its subject and headers."""
CLOSE_S = 2.0
OBJECT_BYTES = 160 * 1024 * 1024
"""Largest object that is fetched; a body of 100 MB grows a little on its way."""


def read_request(data: bytes) -> InferRequest | BulkInferRequest:
    """What a node is asked. Raises BadMessage."""
    try:
        return codec.decode_as(InferRequest, data)
    except BadMessage:
        if len(data) > BULK_STUB_BYTES or BULK_MARK not in data:
            raise
        return codec.decode_as(BulkInferRequest, data)


class Bulk:
    """Both ends of the detour."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._background = Background("bulk")
        self.pending: dict[str, tuple[str, asyncio.Task[LlmlbError | None]]] = {}
        """Object of each large request under way, and its way there, by the request's reply subject."""

    async def publish(self, subject: str, request: InferRequest, *, reply: str) -> None:
        """Send a request of any size. Raises BusDown, OutOfDisk when the bucket is full, BusError.

        :meth:`ended` is to be called afterwards, also when this was cancelled.
        """
        pieces = codec.encode_request(request)
        most = min(codec.MAX_MESSAGE_BYTES, self._bus.client.max_payload) - HEADROOM_BYTES
        if sum(map(len, pieces)) <= most:
            if not self._bus.publish_now(subject, *pieces, reply=reply):
                await self._bus.publish_bytes(subject, b"".join(pieces), reply=reply)
            return
        data = b"".join(pieces)
        if not self._bus.connected:
            raise BusDown("the bus is away")
        name = uuid.uuid4().hex
        # A task of its own: one that is cancelled half-way could not be deleted, as nobody knew its pieces.
        put = self._background.start(self._put(name, data), f"put.{name}")
        self.pending[reply] = (name, put)
        if (failure := await asyncio.shield(put)) is not None:
            raise failure
        stub = BulkInferRequest(
            request_id=request.request_id,
            attempt=request.attempt,
            model=request.model,
            object=name,
            size_bytes=len(data),
        )
        await self._bus.publish(subject, stub, reply=reply)

    def ended(self, reply: str) -> None:
        """Nobody needs the object of this request any more. Does not wait."""
        if (pending := self.pending.pop(reply, None)) is not None:
            self._background.start(self._delete(*pending), f"delete.{pending[0]}")

    async def fetch(self, stub: BulkInferRequest) -> bytes:
        """The whole request, as bytes of an InferRequest. Raises BusError, BadMessage when it is not there any more."""
        if not 0 < stub.size_bytes <= OBJECT_BYTES:
            raise BadMessage("the request's object is too large")
        sink = io.BytesIO()
        try:
            store = await self._store()
            await store.get(stub.object, writeinto=sink)
        except (nats.js.errors.NotFoundError, nats.js.errors.ObjectNotFoundError) as error:
            raise BadMessage("the request's object is gone", detail=str(error)) from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise map_nats_error(error) from error
        return sink.getvalue()

    async def close(self) -> None:
        """Delete what is left, within CLOSE_S. Never raises."""
        for reply in list(self.pending):
            self.ended(reply)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._background.settle()
        await self._background.close()

    async def _put(self, name: str, data: bytes) -> LlmlbError | None:
        """What went wrong, as a value: who waits for it may be gone."""
        meta = ObjectMeta(name=name, options=ObjectMetaOptions(max_chunk_size=PIECE_BYTES))
        try:
            await (await self._store()).put(name, data, meta=meta)
        except nats.js.errors.APIError as error:
            return OutOfDisk("the bus has no room for a request of this size", detail=str(error))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            return map_nats_error(error)
        return None

    async def _delete(self, name: str, put: asyncio.Task[LlmlbError | None]) -> None:
        """What can't be deleted goes with its age."""
        try:
            await put
            await (await self._store()).delete(name)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            log.debug("object_not_deleted object=%s error=%r", name, error)

    async def _store(self) -> ObjectStore:
        """The bucket, made when it is missing."""
        js = self._bus.client.jetstream()
        try:
            return await js.object_store(subjects.BUCKET_BULK)
        except nats.js.errors.BucketNotFoundError:
            try:
                return await js.create_object_store(
                    subjects.BUCKET_BULK,
                    ttl=AGE_S,
                    max_bytes=BUCKET_BYTES,
                    storage=StorageType.FILE,
                    replicas=self._bus.settings.bus_replicas,
                )
            except nats.js.errors.BadRequestError:
                return await js.object_store(subjects.BUCKET_BULK)  # made by somebody else meanwhile
