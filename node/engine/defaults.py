"""What a model gives to requests that do not say it themselves. Pure."""

from __future__ import annotations

from llmlb.bus.messages.infer import ChatMessage, InferRequest
from llmlb.node.engine.interface import Defaults


def with_defaults(request: InferRequest, defaults: Defaults) -> InferRequest:
    """The request with the model's defaults where it has none of its own; an embedding stays as it is.

    A value that the client gave wins, also one that equals llmlb's own default (``Sampling.unset`` tells which were
    not given). The request's stop texts replace the model's; a system prompt goes before a conversation without one.
    """
    if request.kind == "embedding" or defaults == Defaults():
        return request
    sampling = request.sampling
    changes: dict[str, object] = {
        name: value
        for name, value in defaults.sampling.items()
        if getattr(sampling, name) is None or name in sampling.unset
    }
    if defaults.stop and not sampling.stop:
        changes["stop"] = defaults.stop
    update: dict[str, object] = {"sampling": sampling.model_copy(update=changes)} if changes else {}
    if defaults.system and request.kind == "chat" and not _has_system(request):
        update["messages"] = (ChatMessage(role="system", content=defaults.system), *request.messages)
    return request.model_copy(update=update) if update else request


def _has_system(request: InferRequest) -> bool:
    return any(message.role in ("system", "developer") for message in request.messages)
