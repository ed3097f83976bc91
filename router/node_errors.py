"""What a node says that it failed with, as what the dispatcher decides on."""

from __future__ import annotations

from llmlb.bus.errors import (
    Cancelled,
    CapacityError,
    DeadlineExceeded,
    EngineCrashed,
    LlmlbError,
    MessageTooLarge,
    NodeError,
    RequestError,
)


class Unforeseen(EngineCrashed):
    """A node failed with what no node should answer with.

    As a crash: it is tried elsewhere, but not everywhere, since the request may be the cause.
    """

    reason = NodeError.reason


def by_node(error: LlmlbError, *, timed: bool) -> LlmlbError:
    """What only a defect or a node of a newer version sends is a failure of the node; the rest stays what it is.

    That is: the request is at fault (also by the size of its answer), there is no room, the time that the request was
    given (``timed``) is over, or it was cancelled.
    """
    if isinstance(error, RequestError | CapacityError | NodeError | MessageTooLarge | Cancelled):
        return error
    if timed and isinstance(error, DeadlineExceeded):
        return error
    return Unforeseen(error.message, detail=f"{error.reason}: {error.detail}")


def unexpected(error: Exception) -> LlmlbError:
    """For the record of a request that ended with an exception of no kind of ours."""
    return LlmlbError("internal error", detail=type(error).__name__)
