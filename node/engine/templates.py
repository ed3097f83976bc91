"""Chat templates: a model's own Jinja template, rendered in a sandbox.

The template comes out of a file that somebody put on the internet. It can't reach files or Python's insides (the
sandbox), and can't take the worker down: texts, ranges, widths and what is written out are limited one by one, and a
clock looks every few milliseconds whether the whole has taken too long or too much memory (:func:`_bounded`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any, Literal, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed
from llmlb.node.engine import template_limits as limits
from llmlb.node.engine import template_sizes as sizes
from llmlb.node.engine.template_limits import MAX_RENDERED_CHARS, MAX_WIDTH
from llmlb.node.hardware import own_memory_bytes

DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, for a model whose file has no template. Source: llama.cpp falls back to the same."""

MAX_RENDER_S = 2.0
MAX_RENDER_BYTES = 256 * 1024 * 1024
_LOOK_S = 0.02
_WIDE = re.compile(r"\d{6,}")


class _TooMuch(Exception):
    """The template takes too long, or too much memory."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Ends what runs inside after MAX_RENDER_S, or when the process has grown by MAX_RENDER_BYTES, with _TooMuch.

    Only in the main thread, where Python runs signal handlers; elsewhere there is no bound. The clock goes on until
    the end: a template can't swallow it for good.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deadline = time.monotonic() + MAX_RENDER_S
    before = own_memory_bytes()

    def look(_: int, __: FrameType | None) -> None:
        if time.monotonic() > deadline:
            raise _TooMuch(f"it takes longer than {MAX_RENDER_S:.0f} s")
        if before is not None and (own_memory_bytes() or 0) - before > MAX_RENDER_BYTES:
            raise _TooMuch("it takes too much memory")

    old = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


class _TemplateRefuses(Exception):
    """The template called raise_exception."""


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefuses(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    """As transformers has it: no HTML escaping."""
    if isinstance(value, Iterator):
        value = list(value)
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])
    code_generator_class = sizes.Generator
    small = staticmethod(sizes.small)
    """For what the generator makes."""

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

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """As the sandbox, without methods that make a text of any width at once (ljust, zfill, format …)."""
        args, kwargs = sizes.small_call(obj, args, kwargs)
        return super().call(context, obj, *limits.checked(obj, args, kwargs), **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As the sandbox; a key is hashed, and written out where there is none."""
        return super().getitem(obj, sizes.small(argument))

    def wrap_str_format(self, value: Any) -> Any:
        """As the sandbox, without widths that no prompt needs."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def narrow(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            if _WIDE.search(value.__self__) or any(isinstance(one, int) and one > MAX_WIDTH for one in given):
                raise SecurityError("a text this wide is not allowed")
            return wrapped(*args, **kwargs)

        return narrow


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    """Jinja's filter of this name, bounded."""
    limits.check_replacement(str(text), str(old), str(new))
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _narrow(filter: Any) -> Any:
    """A filter of Jinja's that takes a width, with a limit to it."""

    def narrow(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, int) and value > MAX_WIDTH for value in [*args, *kwargs.values()]):
            raise SecurityError("a text this wide is not allowed")
        return filter(*args, **kwargs)

    return functools.wraps(filter)(narrow)  # keeps Jinja's marks, which say what else the filter wants to be given


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}``, which marks an assistant's text for training: here just its text."""

    tags = {"generation"}  # as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Sandbox:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag], autoescape=False)
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    env.filters["tojson"] = _narrow(_tojson)
    for name in ("center", "indent", "wordwrap", "truncate", "batch", "slice"):
        env.filters[name] = _narrow(env.filters[name])
    env.filters["replace"] = _replace
    env.filters["join"], env.filters["sum"] = limits.join, limits.total
    for name in sizes.WRITING:
        env.filters[name] = sizes.small_arguments(env.filters[name])
    for name in sizes.COMPARING:
        env.tests[name] = sizes.small_arguments(env.tests[name])
    env.finalize = sizes.small
    env.filters.pop("format")
    env.globals.pop("lipsum")
    return env


class ChatTemplate:
    """A compiled template. ``bos`` and ``eos`` are the texts of those tokens, "" where the model has none."""

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        """Compile. Raises ModelLoadFailed when the template is not valid Jinja."""
        self.origin: Literal["model", "default"] = "model" if source else "default"
        self.text = source or DEFAULT_TEMPLATE
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            with _bounded():
                self._template = _environment().from_string(self.text)
        except Exception as error:  # of whatever Python can raise: constants are computed here
            raise ModelLoadFailed(f"the model's chat template is not valid: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a conversation in OpenAI's form, contents as texts.

        ``extra``: further variables (``enable_thinking`` …), which can't replace the template's own. Raises
        InvalidRequest when the template refuses the conversation. A template that knows no ``developer`` role gets it
        as ``system``.
        """
        variables = {
            **(extra or {}),
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            **self._special,
        }
        try:
            return self._render(variables)
        except _TemplateRefuses as error:
            if not any(turn["role"] == "developer" for turn in messages):
                raise InvalidRequest(f"the model's chat template refuses this: {error}", param="messages") from error
        roles = {"developer": "system"}
        variables["messages"] = [{**turn, "role": roles.get(turn["role"], turn["role"])} for turn in messages]
        try:
            return self._render(variables)
        except _TemplateRefuses as error:
            raise InvalidRequest(f"the model's chat template refuses this: {error}", param="messages") from error

    def _render(self, variables: dict[str, Any]) -> str:
        out: list[str] = []
        size = 0
        try:
            with _bounded():
                for piece in self._template.generate(variables):
                    size += len(piece)
                    if size > MAX_RENDERED_CHARS:
                        raise _TooMuch("it makes a prompt without end")
                    out.append(piece)
        except _TemplateRefuses:
            raise
        except Exception as error:  # a template can raise whatever Python can
            raise InvalidRequest(f"the model's chat template failed: {error}", param="messages") from error
        return "".join(out)
