"""Stored responses as the routes use them: a conversation out of its links, and who may see it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import orjson

from llmlb.bus.errors import Conflict, InvalidRequest, LlmlbError, NotFound
from llmlb.bus.messages.responses import StoredResponse
from llmlb.router.gateway.openai_responses_items import REFERENCE, Item, response_of
from llmlb.router.gateway.ports import Responses

log = logging.getLogger("llmlb.router.gateway.openai_responses_stored")

CHAIN_MAX = 1000
"""Answers that one may go back over."""
CHAIN_BYTES_MAX = 64 * 1024 * 1024
"""Of all of them together; far more than any model reads."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored responses, as the owner of one API key sees them. ``store`` None: this gateway has none."""

    store: Responses | None
    key: str

    async def find(self, response_id: str) -> StoredResponse:
        """Raises NotFound, BusError, DeadlineExceeded."""
        found = None if self.store is None else await self.store.get(response_id)
        if found is None or found.key != self.key:
            raise NotFound(f"no response '{response_id[:80]}' is stored here", param="response_id")
        return found

    async def delete(self, response_id: str) -> None:
        """As :meth:`find`."""
        await self.find(response_id)
        if self.store is not None:
            await self.store.delete(response_id)

    async def before(self, response_id: str | None) -> list[Item]:
        """All items up to and with an answer, oldest first: what came in, and what came of it.

        Raises NotFound (a link is missing), Conflict (too long), BusError, DeadlineExceeded.
        """
        links: list[list[Item]] = []
        size = 0
        while response_id is not None:
            try:
                found = await self.find(response_id)
            except NotFound as error:
                raise NotFound(error.message, param="previous_response_id") from None
            size += len(found.input) + len(found.response)
            if len(links) >= CHAIN_MAX or size > CHAIN_BYTES_MAX:
                raise Conflict("the conversation is too long to be gone on with", param="previous_response_id")
            links.append([*orjson.loads(found.input), *orjson.loads(found.response)["output"]])
            response_id = found.previous
        return [item for link in reversed(links) for item in link]

    async def resolved(self, items: list[Item]) -> list[Item]:
        """The items, each reference replaced by the item of an earlier answer that it names.

        Raises NotFound (there is none, or it is another's), Conflict (too many, or too much), BusError,
        DeadlineExceeded.
        """
        read: dict[str, dict[str, bytes]] = {}
        out: list[Item] = []
        size = 0
        for index, item in enumerate(items):
            if item["type"] != REFERENCE:
                out.append(item)
                continue
            response_id = response_of(item["id"])
            if response_id is not None and response_id not in read:
                read[response_id] = await self._output(response_id)
                size += sum(map(len, read[response_id].values()))
            found = None if response_id is None else read[response_id].get(item["id"])
            if found is None:
                raise NotFound(f"no item '{item['id'][:80]}' is stored here", param=f"input.{index}.id")
            size += len(found)
            if len(read) > CHAIN_MAX or size > CHAIN_BYTES_MAX:
                raise Conflict("the items that are referred to are too many", param=f"input.{index}.id")
            out.append(orjson.loads(found))
        return out

    async def _output(self, response_id: str) -> dict[str, bytes]:
        """The items of an answer as JSON, by id; none where it is not stored. Raises BusError, DeadlineExceeded."""
        try:
            found = await self.find(response_id)
        except NotFound:
            return {}
        return {item["id"]: orjson.dumps(item) for item in orjson.loads(found.response)["output"]}

    async def put(self, body: dict[str, Any], items: bytes) -> bool:
        """Keep an answer. False: it could not be kept, which is logged; the answer itself is none the worse."""
        if self.store is None:
            return False
        stored = StoredResponse(
            response_id=body["id"],
            key=self.key,
            previous=body["previous_response_id"],
            input=items.decode(),
            response=orjson.dumps(body).decode(),
        )
        try:
            await self.store.put(stored)
        except LlmlbError as error:
            log.warning("response_not_stored id=%s error=%r detail=%s", body["id"], error.message, error.detail)
            return False
        return True


def as_bytes(value: Any, param: str) -> bytes:
    """JSON of what came as JSON. Raises InvalidRequest for numbers of more than 64 bits."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise InvalidRequest(f"{param}: {error}"[:200], param=param) from error
