"""The messages of the bus, one file a topic. Importing the package registers every type with the codec."""

from llmlb.bus.messages import (
    base,
    errors,
    events,
    gateways,
    hub,
    identity,
    infer,
    models,
    nodes,
    pulls,
    requests,
    responses,
    router,
)

__all__ = [
    "base",
    "errors",
    "events",
    "gateways",
    "hub",
    "identity",
    "infer",
    "models",
    "nodes",
    "pulls",
    "requests",
    "responses",
    "router",
]
