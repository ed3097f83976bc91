"""From a request to what the model reads: the rendered template, the images in it, and how to read the answer.

What all engines share; tokens are each engine's own business.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, InferRequest, Tool
from llmlb.node.engine import tools as toolkit
from llmlb.node.engine.answer import AnswerReader
from llmlb.node.engine.images import decode_image
from llmlb.node.engine.reasoning import Markers, opened_by
from llmlb.node.engine.templates import ChatTemplate
from llmlb.node.engine.tools import ToolFormat, ToolReader

Pixels = npt.NDArray[np.uint8]
"""RGB, shape (height, width, 3)."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt before it is tokenized. ``pieces``: texts and images in order; one text when there are no images."""

    pieces: tuple[str | Pixels, ...]
    opened: Markers | None
    """The thinking block that the template opened and left open."""
    tools: tuple[Tool, ...]
    """Tools the answer may call; none with tool_choice none."""
    format: ToolFormat

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    @property
    def images(self) -> bool:
        return any(not isinstance(piece, str) for piece in self.pieces)


class PromptMaker:
    """Makes the prompts of one model."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._format, self._knows_tools = toolkit.format_of(template.text)

    def render(self, request: InferRequest) -> RenderedPrompt:
        """The prompt of a chat or completion request. Raises InvalidRequest."""
        if request.kind == "completion":
            return RenderedPrompt((request.prompt or "",), None, (), self._format)
        tools = () if request.tool_choice == "none" else _chosen(request)
        mark = f"<image-{secrets.token_hex(8)}>"
        images: list[Pixels] = []
        turns = [self._turn(message, mark, images, index) for index, message in enumerate(request.messages)]
        shown = [toolkit.as_openai(tool) for tool in tools]
        if not self._knows_tools:
            turns = _without_tools(turns)
            if tools:
                turns = _with_instructions(turns, toolkit.instructions(tools))
                shown = []
        extra: dict[str, Any] = json.loads(request.template_kwargs)
        if request.think is not None:
            extra.setdefault("enable_thinking", request.think)
            extra.setdefault("thinking", request.think)
        text = self._template.render(turns, tools=shown, extra=extra)
        texts = text.split(mark)
        if len(texts) != len(images) + 1:
            raise InvalidRequest("the model's chat template does not take images where they are", param="messages")
        pieces: list[str | Pixels] = [texts[0]]
        for image, after in zip(images, texts[1:], strict=True):
            pieces += [image, after]
        kept = tuple(piece for piece in pieces if not (isinstance(piece, str) and not piece))
        format = toolkit.enforced(self._format) if request.tool_choice == "required" else self._format
        return RenderedPrompt(kept, opened_by(text), tools, format)

    @staticmethod
    def _turn(message: ChatMessage, mark: str, images: list[Pixels], index: int) -> dict[str, Any]:
        """One message as templates expect it; images are decoded into ``images`` and marked in the text."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.parts:
            texts = []
            for part in message.parts:
                if part.type == "text":
                    texts.append(part.text)
                    continue
                try:
                    data = base64.b64decode(part.data, validate=True)
                except binascii.Error:
                    raise InvalidRequest("the image is not valid base64", param=f"messages.{index}.content") from None
                images.append(decode_image(data, param=f"messages.{index}.content"))
                texts.append(mark)
            turn["content"] = "\n".join(texts)
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            turn["name"] = message.name
        return turn


def reader_for(request: InferRequest, prompt: RenderedPrompt) -> AnswerReader:
    """How to read the answer to a prompt."""
    return AnswerReader(
        stop=request.sampling.stop,
        chat=request.kind == "chat",
        opened=prompt.opened,
        tools=ToolReader(prompt.format, prompt.tools) if prompt.tools else None,
    )


def _chosen(request: InferRequest) -> tuple[Tool, ...]:
    """The tools that may be called. Raises InvalidRequest when the named one is not there."""
    if request.tool_name is None:
        return request.tools
    named = tuple(tool for tool in request.tools if tool.name == request.tool_name)
    if not named:
        raise InvalidRequest(f"tool_choice names '{request.tool_name}', which is not in tools", param="tool_choice")
    return named


def _arguments(text: str) -> Any:
    """Arguments as templates want them: an object, which they write as JSON themselves."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _without_tools(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls and their results as plain turns, for a template that knows none."""
    out: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool":
            out.append({"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"})
        elif calls := turn.get("tool_calls"):
            texts = [turn["content"]] if turn["content"] else []
            texts += [
                f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls
            ]
            out.append({"role": turn["role"], "content": "\n".join(texts)})
        else:
            out.append(turn)
    return out


def _with_instructions(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The conversation with the tools told in its system prompt."""
    if turns and turns[0]["role"] in ("system", "developer"):
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]
