"""What every message has: a type with a version, and the time it was made."""

from __future__ import annotations

import functools
import time
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

P = TypeVar("P", bound="Part")

_new = object.__new__
_set_dict, _set_names, _set_extra, _set_private = (
    BaseModel.__dict__[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
"""All that an object of pydantic's has. Parts are frozen for everybody else."""


class Part(BaseModel):
    """A piece of a message that never travels alone. Frozen; unknown fields of a newer version are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def changed(part: P, **fields: Any) -> P:
    """A copy with other values for these fields, which are not validated. As ``model_copy``, at a fifth of its cost."""
    twin = _new(type(part))
    _set_dict(twin, {**part.__dict__, **fields})
    _set_names(twin, {*part.__pydantic_fields_set__, *fields})
    _set_extra(twin, None)
    _set_private(twin, None)
    return twin


def made(cls: type[P], fields: dict[str, Any]) -> P:
    """A part or message of values that were validated already; what is not among them has its default.

    For the path of a request: validating 50 fields that a body's schema has just validated costs 30 µs. ``fields``
    becomes the object's own. Every field without a plain default is to be among them.
    """
    twin = _new(cls)
    _set_dict(twin, {**_defaults(cls), **fields})
    _set_names(twin, {*fields})
    _set_extra(twin, None)
    _set_private(twin, None)
    return twin


@functools.cache
def _defaults(cls: type[Part]) -> dict[str, Any]:
    """The plain defaults of a class; they are immutable, as every part is frozen."""
    return {
        name: field.default
        for name, field in cls.model_fields.items()
        if not field.is_required() and field.default_factory is None
    }


class Message(Part):
    """Root of everything that crosses the bus.

    A subclass gives ``type`` as ``Literal["llmlb.<topic>.<name>.v1"]`` with that default. A new optional field keeps
    the version; a removal or a new meaning is a new type beside the old one.
    """

    registry: ClassVar[dict[str, type[Message]]] = {}

    sent_at: float = Field(
        default_factory=time.time, description="when it was made, Unix seconds of the sender's clock"
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        field = cls.model_fields.get("type")
        if field is not None:
            other = Message.registry.setdefault(field.default, cls)
            if other.__qualname__ != cls.__qualname__:
                raise TypeError(f"message type {field.default} is defined twice")
