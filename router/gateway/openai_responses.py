"""``/v1/responses``. Source: OpenAI's API reference, "Responses".

Answers are stored unless ``store`` is false; see :mod:`llmlb.router.responses` for where and how long.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import ContextOverflow, InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.call import Call
from llmlb.router.gateway.answers import Answer, Event, Run, respond
from llmlb.router.gateway.calls import inner_id, key_of
from llmlb.router.gateway.counting import count_tokens
from llmlb.router.gateway.image_fetch import with_images
from llmlb.router.gateway.openai_chat import choices_of
from llmlb.router.gateway.openai_responses_items import items_of, without_oldest
from llmlb.router.gateway.openai_responses_schema import CountBody, ResponsesRequest
from llmlb.router.gateway.openai_responses_stored import Stored, as_bytes
from llmlb.router.gateway.openai_responses_stream import ResponseShape
from llmlb.router.gateway.openai_schema import parse
from llmlb.router.gateway.ports import Gateway
from llmlb.router.gateway.query_schema import page_limit

routes = Blueprint("openai_responses")

PAGE = 20
PAGE_MAX = 100


def _json(body: Any) -> HTTPResponse:
    return raw(orjson.dumps(body), content_type="application/json")


def _stored(request: Request) -> Stored:
    gateway: Gateway = request.app.ctx.gateway
    return Stored(gateway.responses, key_of(request))


@routes.post("/v1/responses")
async def create(request: Request) -> HTTPResponse | None:
    """Answer items with items.

    The answer is stored for 30 days unless `store` is false, and `previous_response_id` goes on from it.
    """
    body = parse(ResponsesRequest, request.body)
    gateway: Gateway = request.app.ctx.gateway
    stored = _stored(request)
    body.check()
    items = await stored.resolved(items_of(body.input))
    kept, head = as_bytes(items, "input"), body.head()
    as_bytes(head, "tools")
    before = await stored.before(body.previous_response_id)
    inner, images = body.request(inner_id(request), before, items)
    if images:
        inner = await with_images(gateway.settings, inner, images)
    shape = ResponseShape(head, summarized=body.summarized(), store=body.stored())

    async def keep(answer: Answer) -> None:
        shape.settle(answer)
        if body.stored() and not await stored.put(shape.body, kept):
            shape.not_stored()

    run = _shortening(gateway.inference.stream) if body.truncation == "auto" else None
    return await respond(request, choices_of(inner, 1), shape, stream=bool(body.stream), run=run, before_end=keep)


def _shortening(run: Run) -> Run:
    """For ``truncation: auto``: a conversation that does not fit is tried again without its oldest turns."""

    async def shortened(request: InferRequest, call: Call) -> AsyncGenerator[Event, None]:
        while True:
            try:
                async with contextlib.aclosing(run(request, call)) as events:
                    async for event in events:
                        yield event
                return
            except ContextOverflow:
                messages = without_oldest(request.messages)
                if messages is None:
                    raise
                request = request.model_copy(update={"messages": messages, "request_id": uuid.uuid4().hex})

    return shortened


@routes.post("/v1/responses/input_tokens")
async def input_tokens(request: Request) -> HTTPResponse:
    """Count the tokens of an input, without an answer."""
    body = parse(CountBody, request.body)
    stored = _stored(request)
    items = await stored.resolved(items_of(body.input))
    before = await stored.before(body.previous_response_id)
    inner, images = body.request(inner_id(request), before, items, count_only=True)
    if images:
        inner = await with_images(request.app.ctx.gateway.settings, inner, images)
    tokens = await count_tokens(request, inner)
    return _json({"object": "response.input_tokens", "input_tokens": tokens})


@routes.get("/v1/responses/<response_id:str>")
async def retrieve(request: Request, response_id: str) -> HTTPResponse:
    """A stored response.

    Only the API key or user that made it sees it.
    """
    if request.args.get("stream", "") in ("true", "1"):
        raise InvalidRequest("stream is not supported here: it is when a response is made", param="stream")
    found = await _stored(request).find(response_id)
    return raw(found.response.encode(), content_type="application/json")


@routes.delete("/v1/responses/<response_id:str>")
async def delete(request: Request, response_id: str) -> HTTPResponse:
    """Delete a stored response.

    Conversations that go on from it can't be gone on with.
    """
    await _stored(request).delete(response_id)
    return _json({"id": response_id, "object": "response", "deleted": True})


@routes.post("/v1/responses/<response_id:str>/cancel")
async def cancel(request: Request, response_id: str) -> HTTPResponse:
    """Cancel a response that runs in the background.

    None does: this is always refused.
    """
    await _stored(request).find(response_id)
    raise InvalidRequest("only a response in the background can be cancelled", param="response_id")


@routes.get("/v1/responses/<response_id:str>/input_items")
async def input_items(request: Request, response_id: str) -> HTTPResponse:
    """The items that the model was given: those of earlier answers too. Newest first unless ``order=asc``."""
    stored = _stored(request)
    found = await stored.find(response_id)
    items = [*await stored.before(found.previous), *orjson.loads(found.input)]
    order, after = request.args.get("order", "desc"), request.args.get("after")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order: must be asc or desc", param="order")
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [at for at, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest("after: no item of this response", param="after")
        items = items[places[0] + 1 :]
    limit = page_limit(request.args.get("limit"), PAGE, PAGE_MAX)
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return _json({"object": "list", "data": page, **ends, "has_more": len(items) > limit})
