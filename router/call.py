"""What a gateway knows of a request beyond what goes to a node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmlb.bus.messages.infer import Delta


class Direct:
    """A way for text from the bus to its client on which nobody has to be woken up.

    Whoever answers the client sets ``piece`` once it has begun. It is called inside the bus's own callback, and only
    while the reader of the answer waits for the next event, so nothing is overtaken. False: not now (the client is
    slow, or gone), and the piece takes the usual way.
    """

    __slots__ = ("piece", "tokens")

    def __init__(self) -> None:
        self.piece: Callable[[Delta], bool] | None = None
        self.tokens = 0
        """Of the answer, that went this way."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request as its client made it."""

    key: str = ""
    """Id of its API key; fairness is between keys. Empty: without one."""
    client_request_id: str | None = None
    """What the client sent as ``x-request-id``; None: nothing that is one."""
    path: str = ""
    """HTTP path."""
    streamed: bool = False
    no_retry: bool = False
    """The client asked for a single attempt (``x-llmlb-no-retry: 1``)."""
    bytes_in: int = 0
    body: str | bytes | None = None
    """JSON of the request for its record, images cut out; bytes: good JSON, with nothing cut out."""
    direct: Direct | None = None
    """None where several requests answer one client."""
    arrived: float = field(default_factory=time.monotonic)
    """Seconds of the monotonic clock."""
