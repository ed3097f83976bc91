"""What the processes of one gateway (``llmlb router serve --workers N``) tell each other."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message


class GatewayProcess(Message):
    """Process of a gateway → the other processes of it: each second; and to the one of them that asks."""

    type: Literal["llmlb.gateway.process.v1"] = "llmlb.gateway.process.v1"
    process: int = Field(ge=0, description="which one it is; 0 is the first, which also has the request history")
    requests_waiting: int = Field(default=0, ge=0, description="requests in its queue")
    longest_wait_s: float = Field(default=0.0, ge=0, description="how long the first of them has waited, in seconds")
    requests_last_hour: int | None = Field(default=None, description="of the cluster; None: it does not count them")
    metrics: str | None = Field(
        default=None,
        description="for the one that asks: families of metrics as JSON, with zlib, in base64. All processes of a "
        "gateway are of one version, so that its form is theirs alone",
    )


class AskGatewayProcess(Message):
    """Process of a gateway → the other processes of it: say how you are, metrics included."""

    type: Literal["llmlb.gateway.ask_process.v1"] = "llmlb.gateway.ask_process.v1"
