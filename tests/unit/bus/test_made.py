"""A message that is made of checked values is the one that its class would have made."""

from __future__ import annotations

from llmlb.bus import codec
from llmlb.bus.messages.base import changed, made
from llmlb.bus.messages.infer import ChatMessage, InferRequest, Sampling


def test_a_made_message_equals_a_validated_one_and_is_written_like_it() -> None:
    message = {"role": "user", "content": "hi"}
    fields = {"sent_at": 1.5, "request_id": "r", "model": "m", "kind": "chat"}
    plain = InferRequest.model_validate({**fields, "messages": [message], "sampling": {"seed": 7}})
    quick = made(
        InferRequest, {**fields, "messages": (made(ChatMessage, message),), "sampling": made(Sampling, {"seed": 7})}
    )
    assert quick == plain
    assert codec.decode(codec.encode(quick)) == plain
    assert codec.decode(codec.encode_any(quick)) == plain
    assert quick.model_fields_set == plain.model_fields_set
    assert changed(quick, attempt=2) == plain.model_copy(update={"attempt": 2})
