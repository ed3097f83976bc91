"""Who may: peers on this machine. Any other peer needs credentials, which this version can't issue yet.

The address is the socket's own; a forwarded-for header is never believed. No CORS headers are sent.
"""

from __future__ import annotations

import ipaddress

from sanic import Request

from llmlb.bus.errors import Unauthenticated

OPEN_PATHS = frozenset({"/health", "/ready"})


def is_loopback(address: str) -> bool:
    """True for 127.0.0.0/8, ::1, and an IPv4 loopback address inside IPv6."""
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def check(request: Request) -> None:
    """Raises Unauthenticated for a peer that may not."""
    if request.path in OPEN_PATHS or request.app.ctx.gateway.settings.auth == "off":
        return
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if peer and is_loopback(str(peer[0])):
        return
    raise Unauthenticated(
        "only programs on the same machine may use this gateway; "
        "LLMLB_AUTH=off opens it to every peer of a trusted network"
    )
