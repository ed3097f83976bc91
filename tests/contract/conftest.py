"""Fixtures of several modules here; a test module that has its own of the same name uses that."""

from tests.support.history_rig import bus, server
from tests.support.loops import own_server, run
from tests.support.model_rig import bus_server, hub, node, router, url

__all__ = ["bus", "bus_server", "hub", "node", "own_server", "router", "run", "server", "url"]
