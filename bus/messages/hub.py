"""Models of the cluster as people handle them: found on the hub, registered, fetched by nodes, deleted.

Asked of routers over ``router.rpc.<op>``; the routes below ``/v0/models`` and ``/v0/tasks`` answer with the same
messages. Names of models are those of the registry: ``owner/model`` or ``owner/model:QUANT``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part
from llmlb.bus.messages.models import RegisteredModel
from llmlb.bus.messages.pulls import PullProgress

Status = Literal["available", "downloading", "downloaded"]
Lifecycle = Literal["pending", "registered", "ready", "error", "conversion_pending"]
"""pending: on its way; registered: wanted, nothing under way yet; ready: whole, can be asked; error: a pull failed."""
ModelSource = Literal["supported", "hub"]
"""Where the cluster knows a model from: the list of supported ones, or a registration by address."""


class NodeModelState(Part):
    """One model on one node that it is meant for."""

    node_id: str = Field(description="the node")
    name: str = Field(description="its host name")
    online: bool = Field(description="False: nothing is heard of it now")
    lifecycle_status: Lifecycle = Field(description="where the model is there")
    task_id: str | None = Field(default=None, description="the pull, as at /v0/tasks; None: there was none")
    percent: int | None = Field(default=None, ge=0, le=100, description="of its bytes; None: no pull, or size unknown")
    downloaded_bytes: int = Field(default=0, ge=0, description="bytes on the node's disk")
    total_bytes: int = Field(default=0, ge=0, description="bytes in all, 0 while unknown")
    speed_bps: int = Field(default=0, ge=0, description="bytes a second")
    eta_s: float | None = Field(default=None, description="seconds left; None while unknown")
    note: str | None = Field(default=None, description="what the pull waits for")
    error: str | None = Field(default=None, description="why the last pull failed")


class HubModel(Part):
    """A supported or registered model with its state over the cluster."""

    id: str = Field(description="the model's name in the cluster, for every route: owner/model or owner/model:QUANT")
    supported_id: str | None = Field(default=None, description="its id in the list of supported models")
    source: ModelSource = Field(description="supported: it is in the list of supported models")
    name: str = Field(description="for people")
    description: str = Field(default="", description="one or two sentences")
    repo: str = Field(description="owner/model on the hub")
    filename: str | None = Field(default=None, description="its (first) file in the repository")
    url: str = Field(description="its page on the hub")
    size_bytes: int | None = Field(default=None, ge=0, description="bytes of all its files")
    required_memory_bytes: int | None = Field(default=None, ge=0, description="estimate: weights, KV cache, overhead")
    quantization: str | None = Field(default=None, description="Q4_K_M …; None for Safetensors")
    parameter_count: str | None = Field(default=None, description="such as 7.6B")
    context_length: int | None = Field(default=None, ge=1, description="tokens it was trained for")
    format: Literal["gguf", "safetensors"] = Field(description="of its files")
    engine: str = Field(description="what runs it: llama.cpp or vllm")
    platforms: tuple[str, ...] = Field(default=(), description="where that engine runs")
    tags: tuple[str, ...] = Field(default=(), description="for filters: small, chat, code …")
    capabilities: tuple[str, ...] = Field(default=(), description="TextGeneration, Vision, Embedding …")
    status: Status = Field(description="downloading: on its way to a node; downloaded: whole on one; else available")
    lifecycle_status: Lifecycle | None = Field(default=None, description="summed up over its nodes; None: unregistered")
    nodes: tuple[NodeModelState, ...] = Field(default=(), description="those it is meant for, by name")
    nodes_ready: int = Field(default=0, ge=0, description="nodes on which it is whole")
    nodes_total: int = Field(default=0, ge=0, description="nodes it is meant for")
    aliases: tuple[str, ...] = Field(default=(), description="further names that requests may use")
    warnings: tuple[str, ...] = Field(default=(), description="what was said when it was registered")
    revision: str | None = Field(default=None, description="commit that it is pinned to, once registered")
    registered_at: float | None = Field(default=None, description="Unix seconds; None: it is not registered")
    registered_by: str | None = Field(default=None, description="who registered it")
    downloads: int | None = Field(default=None, ge=0, description="on the hub in the last month; None: not known")
    likes: int | None = Field(default=None, ge=0, description="on the hub; None: not known")


class ListHubModels(Message):
    """Anybody → routers: which models are supported or registered, and where are they?"""

    type: Literal["llmlb.hub.list.v1"] = "llmlb.hub.list.v1"


class HubModelList(Message):
    """Router → caller: the supported models in the order of their list, then the other registered ones by name."""

    type: Literal["llmlb.hub.listed.v1"] = "llmlb.hub.listed.v1"
    models: tuple[HubModel, ...] = Field(description="always in the same order")


class RegisterModel(Message):
    """Admin → routers: this model shall be on the nodes. Nothing is downloaded by the router."""

    type: Literal["llmlb.hub.register.v1"] = "llmlb.hub.register.v1"
    repo: str = Field(description="owner/model, owner/model:QUANT or an address on the hub")
    filename: str | None = Field(default=None, description="a file of the repository")
    display_name: str | None = Field(default=None, description="for people")
    aliases: tuple[str, ...] = Field(default=(), description="further names that requests may use")
    chat_template: str | None = Field(default=None, description="Jinja, in place of the one in its files")
    nodes: tuple[str, ...] | None = Field(default=None, description="node ids or unique prefixes; None: every node")
    registered_by: str | None = Field(default=None, description="who asks")


class ModelRegistered(Message):
    """Router → caller: it is stored, and the nodes begin."""

    type: Literal["llmlb.hub.registered.v1"] = "llmlb.hub.registered.v1"
    model: HubModel = Field(description="as GET /v0/models/hub shows it now")
    record: RegisteredModel = Field(description="what is stored, with its manifest")
    warnings: tuple[str, ...] = Field(default=(), description="what may go wrong, in words")


class DeleteModel(Message):
    """Admin → routers: this model shall not be on the nodes any more."""

    type: Literal["llmlb.hub.delete.v1"] = "llmlb.hub.delete.v1"
    model: str = Field(description="name or alias of a registered model")


class ModelDeleted(Message):
    """Router → caller: the registration is gone; nodes remove the files, those that are away when they return."""

    type: Literal["llmlb.hub.deleted.v1"] = "llmlb.hub.deleted.v1"
    model: str = Field(description="its name")
    nodes: tuple[str, ...] = Field(default=(), description="ids of the nodes that had it, or were fetching it")


class SearchCatalog(Message):
    """Anybody → routers: which GGUF models are on the hub?"""

    type: Literal["llmlb.hub.search.v1"] = "llmlb.hub.search.v1"
    query: str = Field(default="", description="words to look for; empty: the most downloaded ones")
    page: int = Field(default=1, ge=1, description="which page, from 1")
    limit: int = Field(default=50, ge=1, le=100, description="models a page")
    quant: str | None = Field(default=None, description="only variants with this quantization")


class CatalogVariant(Part):
    """One quantization of a repository: a model of its own."""

    id: str = Field(description="the name it is registered under: owner/model:QUANT")
    files: tuple[str, ...] = Field(description="paths in the repository, shards in order")
    quantization: str | None = Field(default=None, description="as the file's name tells; None: it tells none")
    size_bytes: int | None = Field(default=None, ge=0, description="all shards together; None: not known yet")
    url: str = Field(description="direct link to the (first) file")
    required_memory_bytes: int | None = Field(default=None, ge=0, description="estimate; None: size not known yet")
    registered: bool = Field(default=False, description="True: it is registered in the cluster")
    fits_count: int | None = Field(default=None, ge=0, description="approved nodes it fits on; None: not known yet")
    fits_nodes: tuple[str, ...] = Field(default=(), description="ids of the first 8 of them")


class CatalogModel(Part):
    """A repository of the hub with GGUF files."""

    id: str = Field(description="owner/model")
    last_modified: str | None = Field(default=None, description="ISO 8601, as the hub tells")
    downloads: int = Field(default=0, ge=0, description="in the last month")
    likes: int = Field(default=0, ge=0, description="on the hub")
    gated: bool = Field(default=False, description="True: the hub gives it only to accounts that accepted its terms")
    tags: tuple[str, ...] = Field(default=(), description="the hub's tags")
    context_length: int | None = Field(default=None, description="tokens, as the hub tells")
    url: str = Field(description="its page on the hub")
    variants: tuple[CatalogVariant, ...] = Field(default=(), description="by size")


class CatalogPage(Message):
    """Router → caller: a page of the hub's GGUF models, most downloaded first."""

    type: Literal["llmlb.hub.catalog.v1"] = "llmlb.hub.catalog.v1"
    models: tuple[CatalogModel, ...] = Field(description="at most `limit`")
    query: str = Field(description="what was looked for")
    page: int = Field(ge=1, description="this page, from 1")
    limit: int = Field(ge=1, description="models a page")
    has_more: bool = Field(description="True: there is a next page")
    nodes_total: int = Field(default=0, ge=0, description="approved nodes, for comparing with fits_count")
    stale: bool = Field(default=False, description="True: the hub does not answer now; this is what it said before")
    age_s: float = Field(default=0.0, ge=0, description="seconds since the hub said so")
    note: str | None = Field(default=None, description="why it is stale, or what is missing")


class DownloadModel(Message):
    """Admin → routers: nodes shall fetch this registered model now."""

    type: Literal["llmlb.hub.download.v1"] = "llmlb.hub.download.v1"
    model: str = Field(description="name or alias of a registered model")
    all: bool = Field(default=False, description="True: every approved node it is meant for")
    nodes: tuple[str, ...] = Field(default=(), description="node ids or unique prefixes, when not all")


class ClusterTask(Part):
    """One pull on one node."""

    id: str = Field(description="<node id>.<task id>, for /v0/tasks/<id>")
    node_id: str = Field(description="where")
    node_name: str = Field(description="its host name")
    online: bool = Field(description="False: it goes on when the node is back")
    task: PullProgress = Field(description="how far it is, as the node told last")


class DownloadStarted(Message):
    """Router → caller: the pull tasks are on the bus."""

    type: Literal["llmlb.hub.download_started.v1"] = "llmlb.hub.download_started.v1"
    model: str = Field(description="its name")
    tasks: tuple[ClusterTask, ...] = Field(description="one a node, by node name")
    attached: tuple[str, ...] = Field(default=(), description="ids of those tasks that ran already")


class ListClusterTasks(Message):
    """Anybody → routers: which pulls are under way, or were lately, on all nodes?"""

    type: Literal["llmlb.hub.list_tasks.v1"] = "llmlb.hub.list_tasks.v1"
    task: str | None = Field(default=None, description="id, or a task id without its node; NotFound when there is none")


class ClusterTaskList(Message):
    """Router → caller: tasks of all nodes."""

    type: Literal["llmlb.hub.tasks.v1"] = "llmlb.hub.tasks.v1"
    tasks: tuple[ClusterTask, ...] = Field(description="newest first")


class CancelClusterTask(Message):
    """Admin → routers: give this pull up, on its node or, by a task id without a node, on all of them."""

    type: Literal["llmlb.hub.cancel_task.v1"] = "llmlb.hub.cancel_task.v1"
    task: str = Field(description="id, or a task id without its node")
    purge: bool = Field(default=False, description="True: drop the partial files too")


class ClusterTasksCancelled(Message):
    """Router → caller: those are over."""

    type: Literal["llmlb.hub.tasks_cancelled.v1"] = "llmlb.hub.tasks_cancelled.v1"
    tasks: tuple[ClusterTask, ...] = Field(description="their last state")
