"""Stored responses in memory, for tests of the routes; the real ones are in tests/contract/test_responses_store.py."""

from __future__ import annotations

from llmlb.bus.errors import LlmlbError, NotFound
from llmlb.bus.messages.responses import StoredResponse


class MemoryResponses:
    """Keeps everything. ``trouble``: what storing raises instead."""

    def __init__(self) -> None:
        self.kept: dict[str, StoredResponse] = {}
        self.trouble: LlmlbError | None = None

    async def put(self, stored: StoredResponse) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.kept[stored.response_id] = stored

    async def get(self, response_id: str) -> StoredResponse:
        if response_id not in self.kept:
            raise NotFound(f"no response '{response_id}' is stored here")
        return self.kept[response_id]

    async def delete(self, response_id: str) -> None:
        del self.kept[response_id]
