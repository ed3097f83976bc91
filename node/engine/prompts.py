"""From a request to what the model reads: the rendered template, the images in it, and how to read the answer.

What all engines share; tokens are each engine's own business.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable
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
from llmlb.node.engine.tool_reader import ToolReader
from llmlb.node.engine.tools import ToolFormat

Pixels = npt.NDArray[np.uint8]
"""RGB, shape (height, width, 3)."""
Turn = dict[str, Any]
"""A message as templates expect it."""
Change = Callable[[list[Turn]], list[Turn]]


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
        try:
            return self._made(request)
        except RecursionError:  # arguments and variables are read and written again as JSON, and compared
            raise InvalidRequest("the conversation is nested too deeply", param="messages") from None

    def _made(self, request: InferRequest) -> RenderedPrompt:
        if request.kind == "completion":
            return RenderedPrompt((request.prompt or "",), None, (), self._format)
        tools = () if request.tool_choice == "none" else _chosen(request)
        mark = f"<image-{secrets.token_hex(8)}>"
        images: list[Pixels] = []
        turns = [self._turn(message, mark, images, index) for index, message in enumerate(request.messages)]
        shown = [toolkit.as_openai(tool) for tool in tools]
        changes: list[Change] = [_arguments_as_text, _one_call_a_turn]
        if not self._knows_tools:
            turns, changes = _without_tools(turns), []
            if tools:
                turns = _with_instructions(turns, toolkit.instructions(tools))
                shown, changes = [], [_system_in_user]
        elif self._format == toolkit.MISTRAL:
            turns = _short_ids(turns)
        extra = _extra(request.template_kwargs)
        if request.think is not None:
            extra.setdefault("enable_thinking", request.think)
            extra.setdefault("thinking", request.think)
        text = self._rendered(turns, shown, extra, changes)
        texts = text.split(mark)
        if len(texts) != len(images) + 1:
            raise InvalidRequest("the model's chat template does not take images where they are", param="messages")
        pieces: list[str | Pixels] = [texts[0]]
        for image, after in zip(images, texts[1:], strict=True):
            pieces += [image, after]
        kept = tuple(piece for piece in pieces if not (isinstance(piece, str) and not piece))
        by_grammar = request.tool_choice == "required" or request.response_format.type != "text"
        format = toolkit.enforced(self._format) if by_grammar else self._format
        return RenderedPrompt(kept, opened_by(text), tools, format)

    def _rendered(
        self, turns: list[Turn], tools: list[dict[str, Any]], extra: dict[str, Any], changes: list[Change]
    ) -> str:
        """The conversation through the template. What it refuses is tried as other templates want it."""
        try:
            return self._template.render(turns, tools=tools, extra=extra)
        except InvalidRequest:
            for change in changes:
                changed = change(turns)
                if changed != turns:
                    with contextlib.suppress(InvalidRequest):
                        return self._template.render(changed, tools=tools, extra=extra)
            raise

    @staticmethod
    def _turn(message: ChatMessage, mark: str, images: list[Pixels], index: int) -> Turn:
        """One message as templates expect it; images are decoded into ``images`` and marked in the text."""
        turn: Turn = {"role": message.role, "content": message.content}
        if message.parts:
            texts = []
            for part in message.parts:
                if part.type == "text":
                    texts.append(part.text)
                    continue
                try:
                    data = base64.b64decode(part.data, validate=True)
                except ValueError:
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
    chat = request.kind == "chat"
    addressed = chat and prompt.format == toolkit.FUNCTIONARY_RECIPIENT  # names who gets it, with tools or without
    return AnswerReader(
        stop=request.sampling.stop,
        chat=chat,
        opened=prompt.opened,
        tools=ToolReader(prompt.format, prompt.tools) if prompt.tools or addressed else None,
    )


def _extra(text: str) -> dict[str, Any]:
    """The variables that the request has for the template. Raises InvalidRequest."""
    try:
        extra = json.loads(text)
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise InvalidRequest("the variables for the chat template are not a JSON object", param="chat_template_kwargs")
    return extra


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
    except (ValueError, RecursionError):
        return text


def _without_tools(turns: list[Turn]) -> list[Turn]:
    """Calls and their results as plain turns, for a template that knows none.

    Results and what the user says next are one turn: many templates want user and assistant to alternate.
    """
    out: list[Turn] = []
    answering = False
    for turn in turns:
        text = turn["content"]
        if turn["role"] == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
        if turn["role"] == "tool" or (answering and turn["role"] == "user"):
            if answering:
                out[-1] = {"role": "user", "content": f"{out[-1]['content']}\n{text}"}
            else:
                out.append({"role": "user", "content": text})
            answering = turn["role"] == "tool"
            continue
        answering = False
        if calls := turn.get("tool_calls"):
            called = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
            texts = [text] if text else []
            texts += [f"<tool_call>\n{call}\n</tool_call>" for call in called]
            turn = {key: value for key, value in turn.items() if key != "tool_calls"} | {"content": "\n".join(texts)}
        out.append(turn)
    return out


def _with_instructions(turns: list[Turn], text: str) -> list[Turn]:
    """The conversation with the tools told in its system prompt."""
    if turns and turns[0]["role"] in ("system", "developer"):
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _system_in_user(turns: list[Turn]) -> list[Turn]:
    """The system prompt at the beginning of what the user says: Gemma's template knows no system role."""
    if len(turns) < 2 or turns[1]["role"] != "user":
        return turns
    return [{**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def _short_ids(turns: list[Turn]) -> list[Turn]:
    """Ids of calls as Mistral's templates insist on them: nine letters and digits. Other ones are replaced."""

    def short(identifier: str) -> str:
        if len(identifier) == 9 and identifier.isalnum() and identifier.isascii():
            return identifier
        return hashlib.blake2b(identifier.encode("utf-8", "replace"), digest_size=5).hexdigest()[:9]

    out = []
    for turn in turns:
        changed = dict(turn)
        if "tool_call_id" in turn:
            changed["tool_call_id"] = short(turn["tool_call_id"])
        if "tool_calls" in turn:
            changed["tool_calls"] = [{**call, "id": short(call["id"])} for call in turn["tool_calls"]]
        out.append(changed)
    return out


def _arguments_as_text(turns: list[Turn]) -> list[Turn]:
    """Arguments as texts, which Functionary's template puts behind the function's name."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**turn, "tool_calls": [as_text(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in turns
    ]


def _one_call_a_turn(turns: list[Turn]) -> list[Turn]:
    """Several calls as one after the other, each with its result: Llama 3's template takes one at once."""
    results = {turn["tool_call_id"]: turn for turn in turns if turn.get("tool_call_id")}
    out: list[Turn] = []
    moved: set[str] = set()
    for turn in turns:
        calls = turn.get("tool_calls", ())
        if len(calls) < 2 or any(call["id"] not in results for call in calls):
            if turn.get("tool_call_id") not in moved:
                out.append(turn)
            continue
        for number, call in enumerate(calls):
            out.append({**turn, "content": turn["content"] if number == 0 else "", "tool_calls": [call]})
            out.append(results[call["id"]])
            moved.add(call["id"])
    return out
