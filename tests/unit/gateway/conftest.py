"""Every answer that a test of a gateway gets is held against the OpenAPI document: its status, media type and body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmlb.router.gateway import app
from tests.unit.gateway.documented import Documented


@pytest.fixture(autouse=True)
def every_answer_is_documented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    seen = Documented()
    inner = app._on_response

    async def on_response(request: Any, response: Any) -> None:
        seen.note(request, response)  # before it is compressed
        await inner(request, response)

    monkeypatch.setattr(app, "_on_response", on_response)
    yield
    assert not seen.wrong, "not as the OpenAPI document says: see router/gateway/openapi.py"
