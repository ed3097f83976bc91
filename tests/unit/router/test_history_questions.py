"""Questions to the request history are bounded by the threads that work on them, not by the clients that wait."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from llmlb.bus.errors import QueueFull
from llmlb.router import history_query, history_questions
from llmlb.router.history_questions import Questions


async def test_a_question_whose_client_went_away_counts_until_its_thread_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def get(path: Path, request_id: str) -> None:
        go.wait(10)

    monkeypatch.setattr(history_query, "get", get)
    monkeypatch.setattr(history_questions, "QUESTIONS_MAX", 2)
    questions = Questions(tmp_path / "router.db", lambda error: None)
    asked = [asyncio.ensure_future(questions.get("x")) for _ in range(2)]
    await asyncio.sleep(0)
    for one in asked:
        one.cancel()
    await asyncio.wait(asked)
    with pytest.raises(QueueFull):
        await questions.get("x")
    go.set()
    async with asyncio.timeout(5):
        while questions._asked:
            await asyncio.sleep(0.01)
        assert await questions.get("x") is None
    questions.close()
