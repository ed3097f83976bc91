"""What the OpenAPI document says of each route, beside its handler: the one table.

Keys are ``<blueprint>.<handler>``, as Sanic names the route. See :mod:`llmlb.router.gateway.openapi` for how to add
one. A test walks every route of both gateways and fails on one that is missing here, and on a line without a route.
"""

from __future__ import annotations

from llmlb.bus import errors
from llmlb.bus.messages import hub, models, pulls, router
from llmlb.router.gateway import identity, llmlb_node, llmlb_router, ws
from llmlb.router.gateway import openapi_anthropic as anthropic
from llmlb.router.gateway import openapi_llmlb as own
from llmlb.router.gateway import openapi_openai as openai
from llmlb.router.gateway import openapi_responses as responses
from llmlb.router.gateway.anthropic_schema import CountRequest, MessagesRequest
from llmlb.router.gateway.llmlb_models_schema import CatalogQuery, DownloadBody, RegisterBody
from llmlb.router.gateway.openai_embeddings_schema import EmbeddingRequest
from llmlb.router.gateway.openai_responses_schema import CountBody, ResponsesRequest
from llmlb.router.gateway.openai_schema import ChatRequest, CompletionRequest
from llmlb.router.gateway.openapi_entry import (
    ASKS_NODE,
    CHANGES_CLUSTER,
    CHANGES_USERS,
    DOWNLOADS,
    HISTORY,
    INFERS,
    LISTENS,
    PULLS,
    REGISTERS,
    SEARCHES_HUB,
    STORED,
    Entry,
)

METRICS = ("text/plain; version=0.0.4; charset=utf-8", "application/openmetrics-text; version=1.0.0; charset=utf-8")
COOKIES = ("Set-Cookie",)

ENTRIES: dict[str, Entry] = {
    # Operations
    "operations.root": Entry("Operations", own.About),
    "operations.health": Entry("Operations", own.Health),
    "operations.ready": Entry("Operations", own.Ready, errors=(errors.BusDown,)),
    "operations.metrics": Entry("Operations", errors=(errors.NotFound,), media=METRICS),
    "docs.document": Entry("Operations", own.OpenApi),
    "docs.page": Entry("Operations", media=("text/html; charset=utf-8",)),
    # OpenAI
    "openai_models.list_models": Entry(
        *("OpenAI", openai.OpenAIModelList | anthropic.AnthropicModelList),
        errors=(errors.InvalidRequest,),
        query=anthropic.ModelsQuery,
        headers=("request-id",),
    ),
    "openai_models.get_model": Entry(
        *("OpenAI", openai.OpenAIModel | anthropic.AnthropicModel),
        errors=(errors.ModelUnknown,),
        headers=("request-id",),
    ),
    "openai_chat.chat_completions": Entry(
        "OpenAI", openai.ChatCompletion, ChatRequest, INFERS, events=openai.ChatEvent
    ),
    "openai_chat.completions": Entry(
        "OpenAI", openai.Completion, CompletionRequest, INFERS, events=openai.CompletionEvent
    ),
    "openai_embeddings.embeddings": Entry("OpenAI", openai.Embeddings, EmbeddingRequest, INFERS),
    "openai_responses.create": Entry(
        *("OpenAI Responses", responses.Response, ResponsesRequest, (*INFERS, *STORED)),
        events=responses.ResponseStreamEvent,
    ),
    "openai_responses.input_tokens": Entry("OpenAI Responses", responses.InputTokens, CountBody, (*INFERS, *STORED)),
    "openai_responses.retrieve": Entry("OpenAI Responses", responses.Response, errors=STORED, query=own.RetrieveQuery),
    "openai_responses.delete": Entry("OpenAI Responses", responses.ResponseDeleted, errors=STORED),
    "openai_responses.cancel": Entry(
        "OpenAI Responses", responses.Response, errors=(*STORED, errors.InvalidRequest, errors.RateLimited)
    ),
    "openai_responses.input_items": Entry(
        "OpenAI Responses", responses.InputItems, errors=STORED, query=own.InputItemsQuery
    ),
    # Anthropic
    "anthropic.messages": Entry(
        "Anthropic", anthropic.AnthropicAnswer, MessagesRequest, INFERS, events=anthropic.AnthropicEvent
    ),
    "anthropic.count": Entry("Anthropic", anthropic.CountedTokens, CountRequest, INFERS),
    # A node's own gateway
    "llmlb_node.list_models": Entry("Models", models.ModelList, errors=ASKS_NODE),
    "llmlb_node.show": Entry("Models", models.ModelDetails, errors=ASKS_NODE),
    "llmlb_node.remove": Entry("Models", models.ModelRemoved, errors=(*ASKS_NODE, errors.Forbidden)),
    "llmlb_node.stop": Entry("Models", models.ModelStopped, llmlb_node.ModelBody, ASKS_NODE),
    "llmlb_node.ps": Entry("Models", models.RunningList, errors=ASKS_NODE),
    "llmlb_node.pull": Entry("Pulls", pulls.PullStarted, llmlb_node.PullBody, PULLS, status=202),
    "llmlb_node.tasks": Entry("Pulls", pulls.TaskList, errors=PULLS),
    "llmlb_node.task": Entry("Pulls", pulls.PullProgress, errors=PULLS),
    "llmlb_node.cancel_task": Entry("Pulls", pulls.TaskCancelled, errors=PULLS, query=own.CancelTaskQuery),
    "llmlb_node.status": Entry("Operations", own.NodeStatus),
    # The cluster
    "llmlb_router.models": Entry("Models", router.ClusterModelList),
    "llmlb_router.status": Entry("Cluster", router.ClusterStatus),
    "llmlb_router.nodes": Entry("Cluster", router.NodeList),
    "llmlb_router.approve": Entry("Cluster", router.NodeApproved, errors=CHANGES_CLUSTER),
    "llmlb_router.reject": Entry("Cluster", router.NodeChanged, errors=CHANGES_CLUSTER),
    "llmlb_router.drain": Entry("Cluster", router.NodeChanged, errors=CHANGES_CLUSTER),
    "llmlb_router.undrain": Entry("Cluster", router.NodeChanged, errors=CHANGES_CLUSTER),
    "llmlb_router.label": Entry("Cluster", router.NodeChanged, llmlb_router.LabelsBody, CHANGES_CLUSTER),
    "llmlb_router.remove": Entry("Cluster", router.NodeChanged, errors=CHANGES_CLUSTER),
    "llmlb_router.make_join_token": Entry(
        "Cluster", router.JoinTokenMade, llmlb_router.JoinTokenBody, CHANGES_CLUSTER, status=201
    ),
    "ws.events": Entry("Events", errors=LISTENS, status=101, query=ws.EventsQuery),
    # Past requests
    "requests.requests": Entry("Requests", own.RequestPage, errors=HISTORY, query=own.RequestQuery),
    "requests.one": Entry("Requests", own.RequestDetails, errors=(*HISTORY, errors.NotFound)),
    # Who may
    "identity.login": Entry(
        *("Login", own.LoggedIn, identity.LoginBody, (*CHANGES_USERS, errors.Unauthenticated, errors.Forbidden)),
        headers=COOKIES,
    ),
    "identity.register": Entry(
        "Login", own.UserView, identity.RegisterBody, (*CHANGES_USERS, errors.Forbidden), status=201
    ),
    "identity.logout": Entry("Login", own.LoggedOut, errors=CHANGES_USERS, headers=COOKIES),
    "identity.own_password": Entry("Login", own.UserView, identity.OwnPasswordBody, CHANGES_USERS, headers=COOKIES),
    "identity.me": Entry("Login", own.Me, errors=(errors.NotFound,)),
    "identity.users": Entry("Users", own.UserList, errors=(errors.NotFound,)),
    "identity.add_user": Entry("Users", own.UserView, identity.UserBody, CHANGES_USERS, status=201),
    "identity.invite": Entry("Users", own.InvitationMade, identity.InvitationBody, CHANGES_USERS, status=201),
    "identity.remove_user": Entry("Users", own.UserRemoved, errors=CHANGES_USERS),
    "identity.set_role": Entry("Users", own.UserView, identity.RoleBody, CHANGES_USERS),
    "identity.set_password": Entry("Users", own.UserView, identity.PasswordBody, CHANGES_USERS),
    "identity.keys": Entry("API keys", own.KeyList, errors=(errors.NotFound,)),
    "identity.make_key": Entry("API keys", own.KeyMade, identity.KeyBody, CHANGES_USERS, status=201),
    "identity.revoke_key": Entry("API keys", own.KeyView, errors=CHANGES_USERS),
    # Models of the cluster and the hub
    "llmlb_models.hub": Entry("Hub", hub.HubModelList, errors=(errors.MessageTooLarge,)),
    "llmlb_models.catalog": Entry("Hub", hub.CatalogPage, errors=SEARCHES_HUB, query=CatalogQuery),
    "llmlb_models.register": Entry("Hub", hub.ModelRegistered, RegisterBody, REGISTERS, status=201),
    "llmlb_models.download": Entry("Hub", hub.DownloadStarted, DownloadBody, DOWNLOADS, status=202),
    "llmlb_models.delete": Entry("Hub", hub.ModelDeleted, errors=DOWNLOADS),
    "llmlb_models.tasks": Entry("Hub", hub.ClusterTaskList, errors=(errors.MessageTooLarge,)),
    "llmlb_models.task": Entry("Hub", hub.ClusterTaskList, errors=(errors.NotFound, errors.MessageTooLarge)),
    "llmlb_models.cancel_task": Entry("Hub", hub.ClusterTasksCancelled, errors=DOWNLOADS, query=own.CancelTaskQuery),
}
