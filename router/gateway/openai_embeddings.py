"""POST /v1/embeddings. Source: OpenAI's API reference, "Embeddings"."""

from __future__ import annotations

import array
import base64
import contextlib
import sys
from typing import Any

import orjson
from sanic import Blueprint, Request
from sanic.response import HTTPResponse, raw

from llmlb.bus.errors import InvalidRequest, LlmlbError
from llmlb.bus.messages.infer import Embedded, End
from llmlb.router.gateway.calls import call_of, inner_id
from llmlb.router.gateway.openai_embeddings_schema import EmbeddingRequest
from llmlb.router.gateway.openai_schema import parse

routes = Blueprint("openai_embeddings")


def _floats(vector: str) -> list[float]:
    """The numbers of a vector as the bus carries it."""
    numbers = array.array("f", base64.b64decode(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _check_size(vector: str, wanted: int | None) -> None:
    """Raises InvalidRequest where the client wants another size than the model has: its tables would not take it."""
    if wanted is None:
        return
    size = len(base64.b64decode(vector)) // 4
    if size != wanted:
        raise InvalidRequest(
            f"dimensions: the vectors of this model have {size} numbers, and can't be made of other sizes",
            param="dimensions",
        )


@routes.post("/v1/embeddings")
async def embeddings(request: Request) -> HTTPResponse:
    """Turn texts into vectors."""
    body = parse(EmbeddingRequest, request.body)
    inner = body.request(inner_id(request))
    call = call_of(request, streamed=False)
    as_text = body.encoding_format == "base64"
    vectors: dict[int, Any] = {}
    end: End | None = None
    async with contextlib.aclosing(request.app.ctx.gateway.inference.stream(inner, call)) as events:
        async for event in events:
            if isinstance(event, Embedded):
                _check_size(event.vector, body.dimensions)
                vectors[event.index] = event.vector if as_text else _floats(event.vector)
            elif isinstance(event, End):
                end = event
    if end is None or sorted(vectors) != list(range(len(inner.inputs))):
        raise LlmlbError("the answer has no end")
    usage = {"prompt_tokens": end.usage.prompt_tokens, "total_tokens": end.usage.prompt_tokens}
    data = [{"object": "embedding", "index": index, "embedding": vectors[index]} for index in sorted(vectors)]
    answer = {"object": "list", "data": data, "model": body.model, "usage": usage}
    return raw(orjson.dumps(answer), content_type="application/json")
