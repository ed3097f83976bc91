"""Chat templates: a model's own Jinja template, rendered in a sandbox.

The template comes out of a file that somebody put on the internet. It can't reach files or Python's insides (the
sandbox), and can't make huge strings or ranges (the limits below). What it can still do is loop for long inside those
limits; it runs in the worker, whose hanging takes only the requests of its own model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed
from llmlb.bus.messages.infer import ChatMessage

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, for a model whose file has no template. Source: llama.cpp falls back to the same."""

MAX_RENDERED_CHARS = 16 * 1024 * 1024


class _TemplateRefuses(Exception):
    """The template called raise_exception."""


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefuses(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    """As transformers has it: no HTML escaping."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > 1_000_000 or abs(right) > 64):
            raise SecurityError("a power this large is not allowed")
        if operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and len(sized) * int(times) > MAX_RENDERED_CHARS:
                raise SecurityError("a repetition this long is not allowed")
        if operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("%-formatting is not allowed")
        return super().call_binop(context, operator, left, right)


def _environment() -> _Sandbox:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False)
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    env.filters["tojson"] = _tojson
    return env


class ChatTemplate:
    """A compiled template. ``bos`` and ``eos`` are the texts of those tokens, "" where the model has none."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        """Compile. Raises ModelLoadFailed when the template is not valid Jinja."""
        self.origin: Literal["model", "default"] = "model" if source else "default"
        self.text = source or DEFAULT_TEMPLATE
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = _environment().from_string(self.text)
        except jinja2.TemplateError as error:
            raise ModelLoadFailed(f"the model's chat template is not valid: {error}") from error

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> str:
        """The prompt. Raises InvalidRequest when the template refuses the conversation.

        A template that knows no ``developer`` role gets it as ``system``.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._render(turns, add_generation_prompt)
        except _TemplateRefuses as error:
            if not any(turn["role"] == "developer" for turn in turns):
                raise InvalidRequest(f"the model's chat template refuses this: {error}", param="messages") from error
        turns = [{**turn, "role": "system" if turn["role"] == "developer" else turn["role"]} for turn in turns]
        try:
            return self._render(turns, add_generation_prompt)
        except _TemplateRefuses as error:
            raise InvalidRequest(f"the model's chat template refuses this: {error}", param="messages") from error

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        out: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=turns, add_generation_prompt=add_generation_prompt, tools=None, **self._special
            ):
                size += len(piece)
                if size > MAX_RENDERED_CHARS:
                    raise InvalidRequest("the model's chat template makes a prompt without end", param="messages")
                out.append(piece)
        except (_TemplateRefuses, InvalidRequest):
            raise
        except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidRequest(f"the model's chat template failed: {error}", param="messages") from error
        return "".join(out)
