"""How many tokens a prompt has: asked of a node that has the model, with its own tokenizer and chat template."""

from __future__ import annotations

import contextlib

from sanic import Request

from llmlb.bus.errors import LlmlbError
from llmlb.bus.messages.infer import End, InferRequest
from llmlb.router.gateway.calls import call_of


async def count_tokens(request: Request, inner: InferRequest) -> int:
    """Tokens of the prompt of ``inner``, which has ``count_only``. Raises LlmlbError."""
    call = call_of(request, streamed=False)
    end: End | None = None
    async with contextlib.aclosing(request.app.ctx.gateway.inference.stream(inner, call)) as events:
        async for event in events:
            if isinstance(event, End):
                end = event
    if end is None:
        raise LlmlbError("the answer has no end")
    return end.usage.prompt_tokens
