"""The models that are registered in the cluster: the bucket ``llmlb-models``, mirrored, and changed by who is first."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, Conflict, ModelUnknown
from llmlb.bus.messages.models import RegisteredModel
from llmlb.router.mirror import Mirror

log = logging.getLogger("llmlb.router.hub.registry")

Changed = Callable[[str, RegisteredModel | None, RegisteredModel | None], None]
"""(name, before, after); None: not registered."""


class AlreadyRegistered(Conflict):
    """``existing``: the registration that was there first."""

    def __init__(self, message: str, existing: RegisteredModel) -> None:
        super().__init__(message, param="repo")
        self.existing = existing


class Registry:
    """:meth:`start` once the bus is up. ``on_change`` are called with each change, on the loop."""

    def __init__(self, bus: Bus) -> None:
        self._mirror = Mirror(bus, subjects.BUCKET_MODELS, self._on_value)
        self._records: dict[str, RegisteredModel] = {}
        self._names: dict[str, str] = {}
        """Name or alias, in lower case → name."""
        self.on_change: list[Changed] = []

    async def start(self) -> None:
        await self._mirror.start()

    async def close(self) -> None:
        await self._mirror.close()

    @property
    def loaded(self) -> bool:
        """True once the bucket was read."""
        return self._mirror.loaded

    def all(self) -> dict[str, RegisteredModel]:
        """By name."""
        return self._records

    def find(self, text: str) -> RegisteredModel | None:
        """By name or alias, whatever their case."""
        name = self._names.get(text.lower())
        return None if name is None else self._records.get(name)

    def named(self, text: str) -> RegisteredModel:
        """As :meth:`find`. Raises ModelUnknown."""
        found = self.find(text)
        if found is None:
            raise ModelUnknown(
                f"the model '{text[:256]}' is not registered; GET /v0/models/hub lists those that are", param="model"
            )
        return found

    def _on_value(self, key: str, value: bytes | None) -> None:
        name = subjects.model_name(key)
        before = self._records.get(name)
        try:
            after = None if value is None else codec.decode_as(RegisteredModel, value)
        except BadMessage as error:
            log.warning("registration_unreadable key=%s detail=%s", key, error.detail)
            after = None
        if after is None:
            self._records.pop(name, None)
        else:
            self._records[name] = after
        self._names = {
            each.lower(): record.name
            for record in self._records.values()
            for each in (*reversed(record.aliases), record.name)
        } | {known.lower(): known for known in self._records}
        log.info("registry_changed model=%s registered=%s", name, after is not None)
        for callback in self.on_change:
            callback(name, before, after)

    async def create(self, record: RegisteredModel) -> None:
        """Register a model. Raises AlreadyRegistered, Conflict (an alias is taken), BusDown, DeadlineExceeded."""
        for alias in record.aliases:
            other = self.find(alias)
            if other is not None and other.name != record.name:
                raise Conflict(f"the alias '{alias}' belongs to {other.name}", param="aliases")
        data, first = codec.encode(record), list[bytes]()

        def decide(old: bytes | None) -> bytes:
            first[:] = [] if old is None or old == data else [old]
            return old or data

        await self._mirror.edit(subjects.model_key(record.name), decide)
        if first:
            existing = codec.decode_as(RegisteredModel, first[0])
            raise AlreadyRegistered(f"the model '{record.name}' is registered already", existing)

    async def delete(self, name: str) -> RegisteredModel:
        """Take a registration out; what it was. Raises ModelUnknown, BusDown, DeadlineExceeded, Conflict."""
        gone: list[bytes] = []

        def decide(old: bytes | None) -> None:
            gone[:] = [] if old is None else [old]

        await self._mirror.edit(subjects.model_key(name), decide)
        if not gone:
            raise ModelUnknown(f"the model '{name[:256]}' is not registered any more", param="model")
        return codec.decode_as(RegisteredModel, gone[0])

    async def add_nodes(self, name: str, node_ids: set[str]) -> RegisteredModel:
        """Mean a model for further nodes; the registration now. Raises as :meth:`delete`."""

        def decide(old: bytes | None) -> bytes | None:
            if old is None:
                return None
            record = codec.decode_as(RegisteredModel, old)
            if record.nodes is None or node_ids <= set(record.nodes):
                return old
            return codec.encode(record.model_copy(update={"nodes": tuple(sorted({*record.nodes, *node_ids}))}))

        value = await self._mirror.edit(subjects.model_key(name), decide)
        if value is None:
            raise ModelUnknown(f"the model '{name[:256]}' is not registered any more", param="model")
        return codec.decode_as(RegisteredModel, value)
