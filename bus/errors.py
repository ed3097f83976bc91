"""The one exception hierarchy, and its form on the wire.

::

    LlmlbError
    ├── RequestError          the request itself is at fault; another node would answer the same
    │   ├── InvalidRequest        a field is missing, of the wrong type, out of range, or not supported
    │   ├── ModelUnknown          no such model here
    │   ├── NodeUnknown           no such node
    │   ├── NotFound              nothing else of this name or id is here
    │   └── ContextOverflow       the prompt does not fit into the model's context
    ├── CapacityError         nothing is wrong, but there is no room
    │   ├── NoCapableNode         no node can take the model now
    │   ├── ModelDownloading      the model is on its way to a node
    │   ├── QueueFull             every waiting place is taken
    │   ├── NodeBusy              this node takes nothing more (another one may)
    │   ├── RateLimited           who asks has asked often enough for now
    │   ├── HubUnavailable        the model hub does not answer, or limits requests
    │   ├── OutOfMemory           the model does not fit into memory
    │   └── OutOfDisk             the file does not fit on the disk
    ├── NodeError             a node or its engine failed
    │   ├── NodeLost              the node went away, or left a gap in its answer
    │   ├── EngineCrashed         the worker process died
    │   ├── EngineStalled         no sign of life within the stall limit
    │   ├── ModelLoadFailed       the model could not be loaded
    │   └── PullFailed            a download ended for a lasting cause
    ├── BusError
    │   ├── BusDown               no connection to the bus
    │   ├── BadMessage            bytes that are not a message of the contract
    │   └── MessageTooLarge       more than the bus takes in one message
    ├── AccessError           who asks may not
    │   ├── Unauthenticated       no credentials, or bad ones
    │   └── Forbidden             known, but not allowed
    ├── DeadlineExceeded      the time allowed is over
    ├── Cancelled             the one who asked went away
    ├── Conflict              it exists already, or is in use
    ├── HistoryDown           the database of past requests can't be read now
    └── ConfigError           a setting or the machine is wrong; the process cannot start

An error says what failed, never what to do about it: whether to retry is decided in ``router/dispatch.py``, the HTTP
status in ``router/gateway/http_errors.py``, the exit code in ``cli/exit_codes.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LlmlbError(Exception):
    """Root of the hierarchy.

    ``message`` is for people (English, one line), ``param`` names the request field at fault, ``detail`` is a
    diagnostic for logs that a client never sees.
    """

    reason: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail


class RequestError(LlmlbError):
    reason = "invalid_request"


class InvalidRequest(RequestError):
    reason = "invalid_request"


class ModelUnknown(RequestError):
    reason = "model_not_found"


class NodeUnknown(RequestError):
    reason = "node_not_found"


class NotFound(RequestError):
    reason = "not_found"


class ContextOverflow(RequestError):
    reason = "context_length_exceeded"


class CapacityError(LlmlbError):
    reason = "no_capacity"


class NoCapableNode(CapacityError):
    reason = "no_capable_node"


class ModelDownloading(CapacityError):
    """``retry_after_s``: when it may be there, whole seconds."""

    reason = "model_downloading"
    retry_after_s = 5


class QueueFull(CapacityError):
    """``retry_after_s``: when it is worth another try, whole seconds."""

    reason = "queue_full"
    retry_after_s = 1


class NodeBusy(CapacityError):
    reason = "node_busy"


class RateLimited(CapacityError):
    """``retry_after_s``: when it is worth another try, whole seconds."""

    reason = "rate_limit_exceeded"
    retry_after_s = 1


class HubUnavailable(CapacityError):
    """``retry_after_s``: when it is worth another try, whole seconds."""

    reason = "hub_unavailable"
    retry_after_s = 5


class OutOfMemory(CapacityError):
    reason = "out_of_memory"


class OutOfDisk(CapacityError):
    reason = "out_of_disk"


class NodeError(LlmlbError):
    reason = "node_error"


class NodeLost(NodeError):
    reason = "node_lost"


class EngineCrashed(NodeError):
    reason = "engine_crashed"


class EngineStalled(NodeError):
    reason = "engine_stalled"


class ModelLoadFailed(NodeError):
    reason = "model_load_failed"


class PullFailed(NodeError):
    reason = "pull_failed"


class BusError(LlmlbError):
    reason = "bus_error"


class BusDown(BusError):
    reason = "bus_unavailable"


class BadMessage(BusError):
    reason = "bad_message"


class MessageTooLarge(BusError):
    reason = "message_too_large"


class AccessError(LlmlbError):
    reason = "access_denied"


class Unauthenticated(AccessError):
    reason = "unauthenticated"


class Forbidden(AccessError):
    reason = "forbidden"


class DeadlineExceeded(LlmlbError):
    reason = "deadline_exceeded"


class Cancelled(LlmlbError):
    reason = "cancelled"


class Conflict(LlmlbError):
    reason = "conflict"


class HistoryDown(LlmlbError):
    reason = "history_unavailable"


class ConfigError(LlmlbError):
    reason = "config_error"


def _tree(root: type[LlmlbError]) -> list[type[LlmlbError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


# A base and its first leaf may share a reason; the leaf, listed later, wins.
BY_REASON: dict[str, type[LlmlbError]] = {cls.reason: cls for cls in _tree(LlmlbError)}


def to_wire(error: BaseException) -> dict[str, Any]:
    """The fields of a wire error: ``reason``, ``message``, ``param``, ``detail``.

    An exception from outside the hierarchy becomes ``internal_error`` without its text, which may hold anything.
    """
    if isinstance(error, LlmlbError):
        return {"reason": error.reason, "message": error.message, "param": error.param, "detail": error.detail}
    return {"reason": LlmlbError.reason, "message": "internal error", "param": None, "detail": type(error).__name__}


def from_wire(reason: str, message: str, param: str | None = None, detail: str | None = None) -> LlmlbError:
    """The exception a wire error stands for; a reason from a newer version becomes a plain :class:`LlmlbError`."""
    return BY_REASON.get(reason, LlmlbError)(message, param=param, detail=detail)
