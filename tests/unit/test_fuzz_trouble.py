"""What `make fuzz` takes for trouble in the output of the server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.fuzz.run import Target

FINE = [
    "2026-11-22T00:14:42.209Z INFO    router.tokens join_token_made token=1 name='ERROR ' uses=None",
    "2026-11-22T00:14:42.209Z WARNING router.gateway.http_errors request_failed reason=hub_unavailable",
    "Ctrl+C ends it.",
]


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-22T00:14:42.209Z ERROR   sanic.error <GatewayRequest: OPTIONS /v0/users> body not consumed.",
        "Traceback (most recent call last):",
        "node/engine/sampling.py:137: RuntimeWarning: divide by zero encountered in divide",
        "2026-11-22T00:14:42.209Z WARNING py.warnings app.py:12: RuntimeWarning: coroutine 'f' was never awaited",
    ],
)
def test_errors_tracebacks_and_warnings_of_python_are_trouble_and_refusals_are_not(line: str) -> None:
    process = SimpleNamespace(output=lambda: "\n".join([*FINE, line, *FINE]), log=Path("unused"))
    assert Target(cast(Any, process), "key").trouble() == [line]
