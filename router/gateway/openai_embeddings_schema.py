"""The body of ``POST /v1/embeddings``. As :mod:`llmlb.router.gateway.openai_schema`: what is unknown is ignored, what
is known and not supported is refused by name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.router.gateway.openai_messages import Body
from llmlb.router.gateway.openai_schema import MAX_MODEL_NAME
from llmlb.router.gateway.parts_schema import EmbeddingIn

MAX_INPUTS = 2048
MAX_TOKENS = 2**20
"""Token ids of all inputs together: more than any context, and each is an object at every stop of its way."""


_EXAMPLE = {"model": "smollm2", "input": ["Why is the sky blue?"]}


class EmbeddingRequest(Body, json_schema_extra={"examples": [_EXAMPLE]}):
    """POST /v1/embeddings."""

    model: StrictStr = Field(
        min_length=1, max_length=MAX_MODEL_NAME, description="a model of `/v1/models`, or an alias"
    )
    input: StrictStr | list[EmbeddingIn] = Field(
        description="a text, a list of texts, token ids, or a list of lists of them"
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64: little-endian float32"
    )
    dimensions: StrictInt | None = Field(
        default=None, ge=1, description="the model's own size; all else is refused once that is known"
    )
    truncate: StrictBool | None = Field(default=None, description="true: what is too long is cut, and not refused")

    def request(self, request_id: str) -> InferRequest:
        """As the bus carries it. Raises InvalidRequest."""
        inputs = self._inputs()
        if not inputs:
            raise InvalidRequest("input: must not be empty", param="input")
        for index, one in enumerate(inputs):
            if not one:
                raise InvalidRequest(f"input.{index}: must not be empty", param=f"input.{index}")
        return InferRequest(
            request_id=request_id,
            model=self.model,
            kind="embedding",
            inputs=tuple(inputs),
            truncate=bool(self.truncate),
        )

    def _inputs(self) -> list[str | tuple[int, ...]]:
        if isinstance(self.input, str):
            return [self.input]
        if len(self.input) + sum([len(one) for one in self.input[:MAX_INPUTS] if type(one) is list]) > MAX_TOKENS:
            raise InvalidRequest(f"input: at most {MAX_TOKENS} token ids", param="input")
        if self.input and all(_is_token(one) for one in self.input):
            return [tuple(self.input)]
        if len(self.input) > MAX_INPUTS:
            raise InvalidRequest(f"input: at most {MAX_INPUTS} inputs", param="input")
        inputs: list[str | tuple[int, ...]] = []
        for index, one in enumerate(self.input):
            if isinstance(one, str):
                inputs.append(one)
            elif isinstance(one, list) and all(_is_token(token) for token in one):
                inputs.append(tuple(one))
            else:
                raise InvalidRequest(f"input.{index}: must be a text or a list of token ids", param=f"input.{index}")
        return inputs


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
