"""What the document says of the parts that bodies are made of. They are validated by hand, for messages that name the
part at fault, so pydantic takes them for anything; and one bad part among thousands costs no more than the first.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import WithJsonSchema

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_NULL: Schema = {"type": "null"}
_BASE64 = r"^[A-Za-z0-9+/]*={0,2}$"


def _object(title: str, kinds: str | tuple[str, ...], needed: dict[str, Schema], /, **more: Schema) -> Schema:
    names = (kinds,) if isinstance(kinds, str) else kinds
    kind = {"const": names[0]} if len(names) == 1 else {"enum": list(names)}
    properties = {"type": {"type": "string", **kind}, **needed, **more}
    return {"type": "object", "title": title, "required": ["type", *needed], "properties": properties}


def _or_null(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas, _NULL]}


def _any(title: str, *schemas: Schema) -> Schema:
    return {"title": title, "anyOf": list(schemas)}


_URL: Schema = {**_TEXT, "description": "`data:image/png;base64,…`; http(s) where LLMLB_IMAGE_URLS allows it"}
_URL_OBJECT: Schema = {"type": "object", "required": ["url"], "properties": {"url": _URL}}
_ADDRESS: Schema = {"anyOf": [_URL_OBJECT, _URL]}
_SOURCES: Schema = {
    "anyOf": [
        _object(
            "Base64",
            "base64",
            {
                "media_type": {**_TEXT, "enum": ["image/jpeg", "image/png", "image/gif", "image/webp"]},
                "data": {**_TEXT, "pattern": _BASE64},
            },
        ),
        _object("Url", "url", {"url": _TEXT}),
    ]
}

_CHAT_PART = _any(
    "Part",
    _object("Text", "text", {"text": _TEXT}),
    _object("Refusal", "refusal", {"refusal": _TEXT}),
    _object("Image", "image_url", {"image_url": _ADDRESS}),
)
ChatPart = Annotated[Any, WithJsonSchema(_CHAT_PART)]
"""Of a message of /v1/chat/completions."""

_TEXT_BLOCK = _object("Text", "text", {"text": _TEXT})
_IMAGE_BLOCK = _object("Image", "image", {"source": _SOURCES})
_INNER: Schema = {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT_BLOCK, _IMAGE_BLOCK]}}]}
_CITATIONS: Schema = _or_null({"type": "object", "properties": {"enabled": {"enum": [False, None]}}})
_DOCUMENT_SOURCES: Schema = {
    "anyOf": [_object("Source", "text", {"data": _TEXT}), _object("Blocks", "content", {"content": _INNER})]
}
_SEEN = (
    _TEXT_BLOCK,
    _IMAGE_BLOCK,
    _object(
        *("Document", "document", {"source": _DOCUMENT_SOURCES}),
        title=_or_null(_TEXT),
        context=_or_null(_TEXT),
        citations=_CITATIONS,
    ),
    _object(
        *("SearchResult", "search_result", {"content": _INNER}),
        source=_or_null(_TEXT),
        title=_or_null(_TEXT),
        citations=_CITATIONS,
    ),
)
_BLOCK_IN = _any(
    "Block",
    *_SEEN,
    _object("Thinking", "thinking", {"thinking": _TEXT}, signature=_or_null(_TEXT)),
    _object("RedactedThinking", "redacted_thinking", {}),
    _object("ToolUse", "tool_use", {"id": _TEXT, "name": _TEXT, "input": {"type": "object"}}),
    _object(
        *("ToolResult", "tool_result", {"tool_use_id": _TEXT}),
        content=_or_null(_TEXT, {"type": "array", "items": {"anyOf": list(_SEEN)}}),
        is_error=_or_null({"type": "boolean"}),
    ),
)
TextBlock = Annotated[Any, WithJsonSchema(_TEXT_BLOCK)]
"""Of Anthropic's system prompt."""
BlockIn = Annotated[Any, WithJsonSchema(_BLOCK_IN)]
"""Of a turn of /v1/messages."""

_RESPONSE_PART = _any(
    "Part",
    _object("Text", ("input_text", "output_text", "text"), {"text": _TEXT}),
    _object("Refusal", "refusal", {"refusal": _TEXT}),
    _object("Image", "input_image", {"image_url": _ADDRESS}),
)
_ITEM_IN = _any(
    "Item",
    {
        "type": "object",
        "title": "Message",
        "required": ["role", "content"],
        "properties": {
            "type": _or_null({"type": "string", "const": "message"}),
            "role": {"type": "string", "enum": ["user", "assistant", "system", "developer"]},
            "content": {"anyOf": [_TEXT, {"type": "array", "items": _RESPONSE_PART}]},
        },
    },
    _object("FunctionCall", "function_call", {"call_id": _TEXT, "name": _TEXT, "arguments": _TEXT}),
    _object(
        *("FunctionCallOutput", "function_call_output"),
        {"call_id": _TEXT, "output": {"anyOf": [_TEXT, {"type": "array", "items": _RESPONSE_PART}]}},
    ),
    _object("Reasoning", "reasoning", {}, summary=_or_null({"type": "array"}), content=_or_null({"type": "array"})),
    {
        "type": "object",
        "title": "ItemReference",
        "required": ["id"],
        "properties": {"type": _or_null({"type": "string", "const": "item_reference"}), "id": _TEXT},
    },
)
ItemIn = Annotated[Any, WithJsonSchema(_ITEM_IN)]
"""Of the input of /v1/responses."""

_FUNCTION_TOOL = _object(
    *("Function", "function", {"name": {**_TEXT, "pattern": "^[A-Za-z0-9_.-]{1,64}$"}}),
    description=_or_null(_TEXT),
    parameters=_or_null({"type": "object"}),
    strict=_or_null({"type": "boolean"}),
)
FunctionTool = Annotated[Any, WithJsonSchema(_FUNCTION_TOOL)]
"""Of /v1/responses."""

_TOKENS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
_INPUTS = {"anyOf": [{**_TEXT, "minLength": 1}, {**_TOKENS, "minItems": 1}, _TOKENS["items"]]}
EmbeddingIn = Annotated[Any, WithJsonSchema(_INPUTS)]
"""Of a list of inputs of /v1/embeddings: a text or token ids; or, of one input, one of its token ids."""
