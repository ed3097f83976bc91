from __future__ import annotations

import contextlib
import logging
import math
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from llmlb.bus import codec
from llmlb.bus.errors import BadMessage, MessageTooLarge
from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.infer import CancelRequest, ChatMessage, Delta, InferRequest, Sampling
from llmlb.bus.messages.models import ListModels, ShowModel

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""What UTF-8 can carry: no lone surrogates."""


def values(annotation: Any, least: float = -1e12, most: float = 1e12) -> st.SearchStrategy[Any]:
    """Values of a field of this type, numbers between the limits. A type that no message had before fails here."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        return st.integers(math.ceil(least), int(most)) if annotation is int else st.floats(least, most)
    if origin in (Union, types.UnionType):
        return st.one_of([values(arg, least, most) for arg in args])
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(values(args[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, TEXT, max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return messages(annotation)
    return {str: TEXT, bool: st.booleans(), types.NoneType: st.none()}[annotation]


def field_values(field: FieldInfo) -> st.SearchStrategy[Any]:
    limits = {
        name: getattr(item, name) for item in field.metadata for name in ("gt", "ge", "le") if hasattr(item, name)
    }
    least = limits["gt"] + 1e-3 if "gt" in limits else limits.get("ge", -1e12)
    return values(field.annotation, least, limits.get("le", 1e12))


def messages(cls: type[Part]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: field_values(field) for name, field in cls.model_fields.items()})


@pytest.mark.parametrize("name", sorted(Message.registry))
@settings(max_examples=20)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    message = data.draw(messages(Message.registry[name]))
    assert codec.decode(codec.encode(message)) == message


@given(st.text(max_size=200), st.lists(st.integers(0, 200_000), max_size=20), st.integers(0, 2**31))
def test_a_delta_comes_back_as_it_was(text: str, ids: list[int], seq: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    delta = Delta(request_id="r", seq=seq, text=text, token_ids=tuple(ids))
    assert codec.decode_reply(codec.encode(delta)) == delta
    assert codec.decode(codec.encode(delta)) == delta


@given(st.binary(max_size=200))
def test_random_bytes_are_a_bad_message_or_none(data: bytes) -> None:
    for decode in (codec.decode, codec.decode_reply, lambda raw: codec.decode_as(InferRequest, raw)):
        with contextlib.suppress(BadMessage):
            assert decode(data) is None


def test_a_field_of_a_newer_version_is_ignored() -> None:
    data = codec.encode(CancelRequest(request_id="r"))[:-1] + b',"new_in_v9":[1,2]}'
    assert codec.decode_as(CancelRequest, data).request_id == "r"


def test_an_unknown_type_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    before = codec.unknown_types["llmlb.weather.v1"]
    with caplog.at_level(logging.WARNING, "llmlb.bus.codec"):
        for _ in range(3):
            assert codec.decode(b'{"type": "llmlb.weather.v1"}') is None
    assert codec.unknown_types["llmlb.weather.v1"] == before + 3
    assert len([r for r in caplog.records if "unknown_message_type" in r.message]) == (1 if before == 0 else 0)


def test_a_message_of_another_type_is_refused() -> None:
    with pytest.raises(BadMessage):
        codec.decode_as(ShowModel, codec.encode(ListModels()))


def test_a_message_above_the_limit_is_refused_before_it_is_sent() -> None:
    request = InferRequest(
        request_id="r", model="m", kind="chat", messages=(ChatMessage(role="user", content="x" * (9 * 1024 * 1024)),)
    )
    with pytest.raises(MessageTooLarge):
        codec.encode(request)


def test_sampling_out_of_range_is_refused_at_the_boundary() -> None:
    data = codec.encode(InferRequest(request_id="r", model="m", kind="chat", sampling=Sampling(temperature=2)))
    with pytest.raises(BadMessage):
        codec.decode_as(InferRequest, data.replace(b'"temperature":2.0', b'"temperature":99.0'))
