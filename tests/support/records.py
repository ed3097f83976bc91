"""Request records for tests."""

from __future__ import annotations

import itertools
from typing import Any

from llmlb.bus import codec
from llmlb.bus.messages.infer import Usage
from llmlb.bus.messages.requests import RequestAttempt, RequestRecord
from llmlb.bus.stream_reader import StoredMessage
from llmlb.router.store import Position, RequestStore

NODE = "0123456789abcdef" * 2
_numbers = itertools.count(1)


def record(**fields: Any) -> RequestRecord:
    """One that went well; its id counts up."""
    number = next(_numbers)
    plain: dict[str, Any] = {
        "request_id": f"r{number}",
        "sent_at": 1_800_000_000.0 + number,
        "started_at": 1_799_999_999.0 + number,
        "model": "owner/model",
        "node_id": NODE,
        "attempts": 1,
        "placement": "loaded, 0 of 4 slots busy",
        "status": "ok",
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=30, completion_tokens=8, cached_tokens=16),
        "path": "/v1/chat/completions",
        "tried": (RequestAttempt(node_id=NODE, placement="loaded", tokens=8, ms=900.0),),
        "request_body": '{"messages": []}',
        "answer": "Tokyo",
        "first_token_ms": 120.0,
        "inter_token_ms": 15.0,
        "total_ms": 1000.0,
    }
    return RequestRecord(**{**plain, **fields})


def stored(*records: RequestRecord | bytes, first: int = 1, at: float = 1_800_000_100.0) -> list[StoredMessage]:
    """As the stream gives them."""
    return [
        StoredMessage(first + number, at, one if isinstance(one, bytes) else codec.encode(one))
        for number, one in enumerate(records)
    ]


def put(store: RequestStore, *records: Any, first: int = 1, at: float = 1_800_000_100.0) -> int:
    """Write them as one batch; how many rows that made."""
    batch = stored(*records, first=first, at=at)
    return store.write(batch, Position("s", batch[-1].sequence)).rows
