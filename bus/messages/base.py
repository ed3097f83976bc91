"""What every message has: a type with a version, and the time it was made."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A piece of a message that never travels alone. Frozen; unknown fields of a newer version are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


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
