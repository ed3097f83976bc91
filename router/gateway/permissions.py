"""Which route needs which permission: the one table. A route that is not in it is for admins only.

A test walks every route of every gateway and fails on one that is missing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sanic import Request


@dataclass(frozen=True, slots=True)
class Rule:
    """``permission``: what a key needs. ``viewer``: whether viewers may, beside admins."""

    permission: str
    viewer: bool = True
    public: bool = False
    """Everybody may, without credentials."""
    anyone: bool = False
    """Whoever has valid credentials may, whatever they allow."""


PUBLIC = Rule("", public=True)
ANYONE = Rule("", anyone=True)
ADMINS = Rule("users", viewer=False)
INFERENCE = Rule("inference")
MODELS = Rule("models.read")
LOGS = Rule("logs")
METRICS = Rule("metrics")
SEE_NODES = Rule("nodes")
CHANGE_NODES = Rule("nodes", viewer=False)
REGISTRY = Rule("registry", viewer=False)

RULES: dict[tuple[str, str], Rule] = {
    ("GET", ""): ANYONE,
    ("GET", "health"): PUBLIC,
    ("GET", "ready"): PUBLIC,
    ("GET", "metrics"): METRICS,
    ("GET", "openapi.json"): ANYONE,
    ("GET", "docs"): ANYONE,
    # OpenAI and Anthropic
    ("GET", "v1/models"): MODELS,
    ("GET", "v1/models/<model:path>"): MODELS,
    ("POST", "v1/chat/completions"): INFERENCE,
    ("POST", "v1/completions"): INFERENCE,
    ("POST", "v1/embeddings"): INFERENCE,
    ("POST", "v1/responses"): INFERENCE,
    ("GET", "v1/responses/<response_id:str>"): INFERENCE,
    ("DELETE", "v1/responses/<response_id:str>"): INFERENCE,
    ("POST", "v1/responses/input_tokens"): INFERENCE,
    ("POST", "v1/responses/<response_id:str>/cancel"): INFERENCE,
    ("GET", "v1/responses/<response_id:str>/input_items"): INFERENCE,
    ("POST", "v1/messages"): INFERENCE,
    ("POST", "v1/messages/count_tokens"): INFERENCE,
    # The cluster
    ("GET", "v0/status"): SEE_NODES,
    ("GET", "v0/nodes"): SEE_NODES,
    ("POST", "v0/nodes/<node:str>/approve"): CHANGE_NODES,
    ("POST", "v0/nodes/<node:str>/reject"): CHANGE_NODES,
    ("POST", "v0/nodes/<node:str>/drain"): CHANGE_NODES,
    ("POST", "v0/nodes/<node:str>/undrain"): CHANGE_NODES,
    ("PUT", "v0/nodes/<node:str>/labels"): CHANGE_NODES,
    ("DELETE", "v0/nodes/<node:str>"): CHANGE_NODES,
    ("POST", "v0/join-tokens"): CHANGE_NODES,
    ("GET", "v0/requests"): LOGS,
    ("GET", "v0/requests/<request_id:str>"): LOGS,
    # Models of the cluster, or of one node
    ("GET", "v0/models"): MODELS,
    ("GET", "v0/models/<model:path>"): MODELS,
    ("DELETE", "v0/models/<model:path>"): REGISTRY,
    ("GET", "v0/models/hub"): MODELS,
    ("GET", "v0/models/catalog"): MODELS,
    ("POST", "v0/models/register"): REGISTRY,
    ("POST", "v0/models/<model:path>/download"): REGISTRY,
    ("POST", "v0/models/pull"): REGISTRY,
    ("POST", "v0/models/stop"): REGISTRY,
    ("GET", "v0/ps"): MODELS,
    ("GET", "v0/tasks"): MODELS,
    ("GET", "v0/tasks/<task:path>"): MODELS,
    ("DELETE", "v0/tasks/<task:path>"): REGISTRY,
    # Events: which types depends on what the credentials allow
    ("GET", "v0/ws"): ANYONE,
    # Who may
    ("POST", "v0/auth/login"): PUBLIC,
    ("POST", "v0/auth/register"): PUBLIC,
    ("POST", "v0/auth/logout"): ANYONE,
    ("POST", "v0/auth/password"): ANYONE,
    ("GET", "v0/auth/me"): ANYONE,
    ("GET", "v0/users"): ADMINS,
    ("POST", "v0/users"): ADMINS,
    ("POST", "v0/users/invitations"): ADMINS,
    ("DELETE", "v0/users/<name:str>"): ADMINS,
    ("PUT", "v0/users/<name:str>/role"): ADMINS,
    ("PUT", "v0/users/<name:str>/password"): ADMINS,
    ("GET", "v0/keys"): ADMINS,
    ("POST", "v0/keys"): ADMINS,
    ("DELETE", "v0/keys/<key:str>"): ADMINS,
}


def rule_of(request: Request) -> Rule:
    """The rule of a request's route. Where there is no route, whoever is known may be told so."""
    route = request.route
    if route is None:
        return ANYONE
    return RULES.get((request.method, route.path), ADMINS)
