"""What the gateway needs of its surroundings, so that it imports none of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llmlb.bus.messages.hub import (
    CancelClusterTask,
    CatalogPage,
    ClusterTaskList,
    ClusterTasksCancelled,
    DeleteModel,
    DownloadModel,
    DownloadStarted,
    HubModelList,
    ModelDeleted,
    ModelRegistered,
    RegisterModel,
    SearchCatalog,
)
from llmlb.bus.messages.infer import Delta, Embedded, End, InferRequest, Progress
from llmlb.bus.messages.models import ModelDetails, ModelList, ModelRemoved, ModelStopped, RunningList
from llmlb.bus.messages.pulls import PullStarted, TaskCancelled, TaskList
from llmlb.bus.messages.responses import StoredResponse
from llmlb.bus.messages.router import (
    ChangeNode,
    ClusterModel,
    ClusterModelList,
    ClusterStatus,
    JoinTokenMade,
    MakeJoinToken,
    NodeApproved,
    NodeChanged,
    NodeList,
)
from llmlb.bus.settings import Settings
from llmlb.router.call import Call
from llmlb.router.history_query import RequestFilter
from llmlb.router.identity.office import Office


class Inference(Protocol):
    """Answers requests. See ``llmlb.router.dispatch.Dispatcher.stream``."""

    def stream(
        self, request: InferRequest, call: Call | None = None
    ) -> AsyncGenerator[Progress | Delta | Embedded | End, None]: ...


class Models(Protocol):
    """The models that can be used now."""

    def list_models(self) -> tuple[ClusterModel, ...]: ...


class RouterOps(Protocol):
    """What a router answers about its cluster."""

    def nodes(self) -> NodeList: ...

    def models(self) -> ClusterModelList: ...

    def status(self) -> ClusterStatus: ...

    async def approve(self, node: str) -> NodeApproved: ...

    async def change(self, request: ChangeNode) -> NodeChanged: ...

    async def remove(self, node: str) -> NodeChanged: ...

    async def make_join_token(self, request: MakeJoinToken) -> JoinTokenMade: ...


class ModelOps(Protocol):
    """The models of the cluster. See ``llmlb.router.hub.hub.ModelHub``."""

    def models(self) -> HubModelList: ...

    async def search(self, request: SearchCatalog) -> CatalogPage: ...

    async def register(self, request: RegisterModel) -> ModelRegistered: ...

    async def delete(self, request: DeleteModel) -> ModelDeleted: ...

    async def download(self, request: DownloadModel) -> DownloadStarted: ...

    def tasks(self, wanted: str | None = None) -> ClusterTaskList: ...

    async def cancel(self, request: CancelClusterTask) -> ClusterTasksCancelled: ...


class NodeOps(Protocol):
    """What a node answers about itself."""

    async def list_models(self) -> ModelList: ...

    async def show(self, model: str) -> ModelDetails: ...

    async def ps(self) -> RunningList: ...

    async def stop(self, model: str) -> ModelStopped: ...

    async def remove(self, model: str) -> ModelRemoved: ...

    async def pull(self, model: str) -> PullStarted: ...

    async def tasks(self, task_id: str | None = None) -> TaskList: ...

    async def cancel_task(self, task: str, *, purge: bool) -> TaskCancelled: ...


class History(Protocol):
    """Past requests. See ``llmlb.router.history.History``."""

    async def find(self, wanted: RequestFilter) -> tuple[list[dict[str, Any]], bool]: ...

    async def get(self, request_id: str) -> dict[str, Any] | None: ...


class Responses(Protocol):
    """Stored answers. See ``llmlb.router.responses.ResponseStore``."""

    async def put(self, stored: StoredResponse) -> None: ...

    async def get(self, response_id: str) -> StoredResponse: ...

    async def delete(self, response_id: str) -> None: ...


class Feed(Protocol):
    """What one client is sent. See ``llmlb.router.live_feed.Feed``."""

    slow: asyncio.Event

    async def next(self) -> list[str]: ...

    def close(self) -> None: ...


class Live(Protocol):
    """Events as they happen. See ``llmlb.router.live.Live``."""

    ending: asyncio.Event

    @property
    def full(self) -> bool: ...

    def open(self, kinds: frozenset[str], after: int | None, stream: str | None) -> Feed: ...


class MetricsText(Protocol):
    """What /metrics answers. See ``llmlb.router.gateway.metrics.Exposition``."""

    async def render(self, accept: str) -> tuple[bytes, str]: ...


class Readiness(Protocol):
    """Green when requests can be served."""

    @property
    def ready(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Everything one gateway works with."""

    role: Literal["router", "node"]
    settings: Settings
    version: str
    inference: Inference
    models: Models
    readiness: Readiness
    router_ops: RouterOps | None
    node_ops: NodeOps | None
    node_id: str | None
    model_ops: ModelOps | None = None
    history: History | None = None
    metrics: MetricsText | None = None
    responses: Responses | None = None
    live: Live | None = None
    identity: Office | None = None
    """None: nobody but programs on the same machine may."""
    prompts_compared: Callable[[str], bool] | None = None
    """Whether prompts for this model are looked at to choose a node; None: never."""
