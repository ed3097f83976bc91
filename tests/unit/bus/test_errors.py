from __future__ import annotations

import inspect

import nats.errors
import nats.js.errors
import pytest

from llmlb.bus import errors
from llmlb.bus.connection import map_nats_error
from llmlb.bus.messages.errors import WireError

OURS = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.LlmlbError)]
FOREIGN = [
    cls
    for module in (nats.errors, nats.js.errors)
    for cls in vars(module).values()
    if inspect.isclass(cls) and issubclass(cls, Exception)
]


@pytest.mark.parametrize("cls", OURS)
def test_an_error_travels(cls: type[errors.LlmlbError]) -> None:
    back = WireError.of(cls("said so", param="model", detail="why")).exception()
    assert (back.message, back.param, back.detail) == ("said so", "model", "why")
    assert back.reason == cls.reason
    assert isinstance(back, cls) or cls in (errors.LlmlbError, errors.RequestError)


def test_a_foreign_exception_does_not_tell_its_text() -> None:
    wire = errors.to_wire(ValueError("secret"))
    assert "secret" not in str(wire)
    assert wire["reason"] == "internal_error"


def test_a_reason_of_a_newer_version_is_a_plain_error() -> None:
    assert type(errors.from_wire("quantum_flux", "x")) is errors.LlmlbError


@pytest.mark.parametrize("cls", OURS)
def test_every_error_stands_in_the_picture(cls: type[errors.LlmlbError]) -> None:
    assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("cls", FOREIGN)
def test_every_exception_of_nats_is_mapped(cls: type[Exception]) -> None:
    # A subclass, since some constructors need what only the library has at hand.
    shown = type("Shown", (cls,), {"__init__": lambda self: None, "__str__": lambda self: "x"})
    assert map_nats_error(shown()).message != "the bus failed", f"{cls.__name__} falls through the map"
