"""POST /v1/messages and /v1/messages/count_tokens. Source: Anthropic's API reference, "Messages".

The header ``anthropic-version`` is taken and not looked at: there is one version. ``anthropic-beta`` neither.
"""

from __future__ import annotations

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.router.gateway.answers import respond
from llmlb.router.gateway.anthropic_schema import CountRequest, MessagesRequest
from llmlb.router.gateway.anthropic_stream import MessageShape
from llmlb.router.gateway.calls import inner_id
from llmlb.router.gateway.counting import count_tokens
from llmlb.router.gateway.image_fetch import with_images
from llmlb.router.gateway.openai_chat import choices_of
from llmlb.router.gateway.openai_schema import parse

routes = Blueprint("anthropic")


@routes.post("/v1/messages")
async def messages(request: Request) -> HTTPResponse | None:
    """Answer a conversation, in Anthropic's form.

    With `stream: true` as server-sent events with names.
    """
    body = parse(MessagesRequest, request.body)
    inner, images = body.request(inner_id(request))
    if images:
        inner = await with_images(request.app.ctx.gateway.settings, inner, images)
    shape = MessageShape(body.model, request.ctx.request_id, show_thinking=body.thinking_shown())
    return await respond(request, choices_of(inner, 1), shape, stream=bool(body.stream))


@routes.post("/v1/messages/count_tokens")
async def count(request: Request) -> HTTPResponse:
    """Count the tokens of a conversation, without an answer."""
    body = parse(CountRequest, request.body)
    inner, images = body.request(inner_id(request), count_only=True)
    if images:
        inner = await with_images(request.app.ctx.gateway.settings, inner, images)
    tokens = await count_tokens(request, inner)
    return raw(orjson.dumps({"input_tokens": tokens}), content_type="application/json")
