"""Fixtures of the tests of models of a cluster; a test module that has its own of the same name uses that."""

from tests.support.model_rig import bus_server, hub, node, router, url

__all__ = ["bus_server", "hub", "node", "router", "url"]
