"""The contract between the processes of a cluster: subjects, messages, the connection, the embedded server.

Imported by router, node and cli; imports none of them. This module stays empty of imports because the command line
loads :mod:`llmlb.bus.settings` and :mod:`llmlb.bus.errors` at start-up and must not pay for NATS or pydantic.
"""
