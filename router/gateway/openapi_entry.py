"""What the table of routes says of one route, and the groups of errors that many of them share. Pure data.

Statuses are not named here: an error's status is the one of :data:`llmlb.router.gateway.http_errors.ANSWERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from llmlb.bus import errors

Errors = tuple[type[errors.LlmlbError], ...]

COMMON: Errors = (errors.LlmlbError,)
"""Every route: what nobody expected. What Sanic refuses by itself is added by the document."""
PROTECTED: Errors = (errors.Unauthenticated, errors.Forbidden, errors.BusDown)
"""Every route that is not for everybody. BusDown: it is not known yet who may."""
READS_BUS: Errors = (errors.BusDown, errors.BadMessage, errors.DeadlineExceeded)
"""What asks something of the bus and changes nothing."""
INFERS: Errors = (
    *(errors.InvalidRequest, errors.ContextOverflow, errors.ModelUnknown, errors.MessageTooLarge),
    *(errors.QueueFull, errors.NodeBusy, errors.RateLimited),
    *(errors.NoCapableNode, errors.ModelDownloading, errors.OutOfMemory, errors.NodeLost),
    *(errors.EngineCrashed, errors.ModelLoadFailed, errors.EngineStalled, errors.Cancelled),
    *READS_BUS,
)
"""What runs a model. Once a stream has begun they are events in it."""
STORED: Errors = (errors.NotFound, errors.Conflict, *READS_BUS)
"""What reads stored responses."""
ASKS_NODE: Errors = (errors.ModelUnknown, errors.Conflict, errors.NodeBusy, errors.NodeLost, *READS_BUS)
"""What a node is asked about its models."""
PULLS: Errors = (*ASKS_NODE, errors.InvalidRequest, errors.NotFound, errors.OutOfDisk, errors.PullFailed)
"""What has to do with downloads of models."""
CHANGES_CLUSTER: Errors = (errors.InvalidRequest, errors.NodeUnknown, errors.Conflict, *READS_BUS)
"""What admins do with nodes."""
CHANGES_USERS: Errors = (errors.InvalidRequest, errors.NotFound, errors.Conflict, errors.RateLimited, *READS_BUS)
"""What is done with users, invitations, sessions and API keys."""
SEARCHES_HUB: Errors = (errors.InvalidRequest, errors.HubUnavailable, errors.MessageTooLarge)
"""What is asked of the hub."""
REGISTERS: Errors = (
    *(errors.InvalidRequest, errors.ModelUnknown, errors.NotFound, errors.NodeUnknown, errors.Conflict),
    *(errors.Unauthenticated, errors.Forbidden, errors.HubUnavailable, errors.BusError, errors.MessageTooLarge),
    *READS_BUS,
)
"""What registers a model."""
DOWNLOADS: Errors = (
    *(errors.InvalidRequest, errors.ModelUnknown, errors.NotFound, errors.NodeUnknown, errors.Conflict),
    *(errors.NodeError, errors.NodeLost, errors.OutOfDisk, errors.PullFailed, errors.BusError, errors.MessageTooLarge),
    *READS_BUS,
)
"""What is done with a registered model and its downloads."""
LISTENS: Errors = (errors.InvalidRequest, errors.NodeBusy, errors.BusDown)
"""What opens a WebSocket."""
HISTORY: Errors = (errors.InvalidRequest, errors.QueueFull, errors.HistoryDown, errors.DeadlineExceeded)
"""What asks the database of past requests."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One route. Its text is the docstring of its handler, its credentials are those of its rule in permissions."""

    tag: str
    answer: Any = None
    """Type of the JSON body: a pydantic model, or any type that pydantic has a schema for."""
    body: type[BaseModel] | None = None
    """Of the request."""
    errors: Errors = ()
    status: int = 200
    """Of the answer that is none of an error."""
    query: type[BaseModel] | None = None
    """A model whose fields are the parameters of the query string."""
    events: Any = None
    """Type of one event, where the answer may be a stream of them."""
    media: tuple[str, ...] = ()
    """Media types of answers that are no JSON."""
    headers: tuple[str, ...] = ()
    """Headers of its answer, beside those of all: names out of ``openapi_headers.RESPONSE``."""


UNDOCUMENTED = Entry("Undocumented")
"""Of a route that is not in the table. A test finds it; the document is there all the same."""

TAGS: dict[str, str] = {
    "OpenAI": "OpenAI's API. Base URL of a client: `http://<gateway>/v1`.",
    "OpenAI Responses": "OpenAI's newer API, with items in place of messages, and stored answers.",
    "Anthropic": "Anthropic's API. Base URL of a client: `http://<gateway>`. Its errors have a shape of their own.",
    "Models": "The models of the cluster, or of one node, as llmlb tells them.",
    "Pulls": "Downloads of models to a node.",
    "Hub": "The models that the cluster shall have: found on the hub, registered, fetched by the nodes, deleted.",
    "Events": "What happens, as it happens.",
    "Cluster": "The nodes, and who may join.",
    "Requests": "Past requests.",
    "Login": "Sessions of browsers: a cookie, and a token against forged requests.",
    "Users": "Who may use this cluster.",
    "API keys": "Keys of programs.",
    "Operations": "For those who run it.",
    "Undocumented": "What the document says nothing of yet.",
}
"""In the order of the document."""
