"""Golden messages: what version 1 looks like on the wire. A file is never edited once it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus import codec
from llmlb.bus.messages.base import Message

FOLDER = Path(__file__).parents[2] / "wire"
TYPES = sorted(Message.registry)


@pytest.mark.parametrize("name", TYPES)
def test_the_golden_message_is_read_and_written_the_same(name: str) -> None:
    path = FOLDER / f"{name}.json"
    assert path.exists(), f"{path.name} is missing: a new message type needs its golden file"
    golden: dict[str, Any] = json.loads(path.read_text())
    message = codec.decode(json.dumps(golden).encode())
    assert type(message) is Message.registry[name]
    written = json.loads(codec.encode(message))
    assert_within(golden, written)


def assert_within(golden: Any, written: Any) -> None:
    """A newer version may write more fields; those of the golden file keep name, place and meaning."""
    if isinstance(golden, dict):
        assert golden.keys() <= written.keys()
        for key, value in golden.items():
            assert_within(value, written[key])
    elif isinstance(golden, list):
        assert len(golden) == len(written)
        for one, other in zip(golden, written, strict=True):
            assert_within(one, other)
    else:
        assert written == golden


def test_there_is_no_golden_file_without_a_type() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} <= set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_every_field_is_documented(name: str) -> None:
    cls = Message.registry[name]
    assert cls.__doc__
    assert "→" in cls.__doc__, "who sends it to whom"
    undocumented = [key for key, field in cls.model_fields.items() if key != "type" and not field.description]
    assert not undocumented
