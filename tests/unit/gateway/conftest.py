"""Every answer that a test of a gateway gets is held against the OpenAPI document: its status, media type and body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sanic.response import raw

from llmlb.router.gateway import answers, app
from tests.unit.gateway.documented import Documented


@pytest.fixture(autouse=True)
def every_answer_is_documented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    seen = Documented()
    inner = app._on_response

    async def on_response(request: Any, response: Any) -> None:
        seen.note(request, response)  # before it is compressed
        await inner(request, response)

    send_json = answers.send_json

    async def on_json(request: Any, body: bytes) -> Any:
        answer = await send_json(request, body)
        if answer is None:
            seen.note(request, raw(body, content_type="application/json"))
        return answer

    monkeypatch.setattr(app, "_on_response", on_response)
    monkeypatch.setattr(answers, "send_json", on_json)
    yield
    assert not seen.wrong, "not as the OpenAPI document says: see router/gateway/openapi.py"
