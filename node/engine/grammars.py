"""The grammar that an answer must follow: a JSON schema, any JSON object, or calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from llmlb.bus.messages.infer import InferRequest
from llmlb.node.engine.prompts import RenderedPrompt
from llmlb.node.engine.tools import calls_schema

_ROOT = re.compile(r"^root ::=", re.MULTILINE)


def grammar_for(request: InferRequest, prompt: RenderedPrompt, of_schema: Callable[[str], str]) -> str | None:
    """The GBNF with rule ``root``, or None when the answer is free. ``of_schema`` makes that of a JSON schema.

    Raises InvalidRequest when it can't be enforced.
    """
    if prompt.tools and request.tool_choice == "required":
        format = prompt.format
        rules = _ROOT.sub("call ::=", of_schema(json.dumps(calls_schema(prompt.tools, format))))
        before, after = json.dumps(format.before), json.dumps(format.after)
        if format.before.endswith("["):
            root = f'{before} call ("," call)* {after}' if request.parallel_tool_calls else f"{before} call {after}"
        elif format.before:
            root = f"{before} call {after}"
            if request.parallel_tool_calls:
                root += f' ("\\n" {root})*'
        else:
            root = "call"
        return f"root ::= {root}\n{rules}"
    if request.response_format.type == "json_object":
        return of_schema('{"type": "object"}')
    if request.response_format.type == "json_schema":
        return of_schema(request.response_format.json_schema or "{}")
    return None
