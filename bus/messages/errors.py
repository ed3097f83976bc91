"""How an error travels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.errors import LlmlbError, from_wire, to_wire
from llmlb.bus.messages.base import Message, Part


class WireError(Part):
    """An error of ``llmlb.bus.errors`` as data."""

    reason: str = Field(description="the class, as its reason: model_not_found, engine_crashed …")
    message: str = Field(description="one English line for people")
    param: str | None = Field(default=None, description="the request field at fault")
    detail: str | None = Field(default=None, description="diagnostic for logs, never shown to a client")

    @classmethod
    def of(cls, error: BaseException) -> WireError:
        return cls(**to_wire(error))

    def exception(self) -> LlmlbError:
        return from_wire(self.reason, self.message, self.param, self.detail)


class RpcFailed(Message):
    """Any rpc handler → its caller, in place of the answer: the operation was refused or failed."""

    type: Literal["llmlb.rpc.failed.v1"] = "llmlb.rpc.failed.v1"
    error: WireError = Field(description="what failed")
