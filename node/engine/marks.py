"""Control tokens whose text is part of an answer: marks of thinking, calls and channels. All others have none. Pure."""

from __future__ import annotations

from llmlb.node.engine.reasoning import FAMILIES
from llmlb.node.engine.tools import HERMES, LLAMA3, MISTRAL, format_of

_HARMONY_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>")
_MISTRAL_MARKS = ("[ARGS]", "[CALL_ID]")


def marks_of(template: str) -> set[str]:
    """What the reader of answers has to see, where a model with this chat template writes it as one token."""
    texts = {text for family in FAMILIES for text in (family.open, family.close)}
    for calling in (HERMES, LLAMA3, MISTRAL, format_of(template)[0]):
        texts.update((*calling.opens, calling.close))
    if "<|channel|>" in template:
        texts.update(_HARMONY_MARKS)
    if "[TOOL_CALLS]" in template:
        texts.update(_MISTRAL_MARKS)
    return texts - {""}
