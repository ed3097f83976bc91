"""Where a request comes from: the socket's address, unless a trusted proxy says whose it passes on."""

from __future__ import annotations

import functools
import ipaddress
import socket
from urllib.parse import urlsplit

from sanic import Request

FORWARDED = "x-forwarded"
FORWARDING = frozenset(
    (
        *("forwarded", "via", "cdn-loop", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip"),
        *("x-original-host", "x-original-forwarded-for", "x-envoy-external-address", "fastly-client-ip"),
        *("cf-connecting-ip", "cf-ray", "tailscale-user-login"),
    )
)
"""What proxies add, beside all that begins as above. Who sends one of them is no program that asks for itself.

Sources: RFC 7239, 9110, 8586; the manuals of nginx, Apache, Traefik, Caddy, HAProxy, Envoy, Cloudflare (also of its
tunnels), Akamai, Fastly, and of Tailscale's serve, which connect from this very machine.
"""
UNKNOWN = "unknown"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> Address | None:
    """An address, an IPv4 one inside IPv6 as such. None for anything else."""
    text = text.strip().split("%", 1)[0]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


@functools.lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    """True for 127.0.0.0/8, ::1, and an IPv4 loopback address inside IPv6."""
    ip = _address(address)
    return ip is not None and ip.is_loopback


@functools.lru_cache(maxsize=8)
def _networks(trusted: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part, strict=False) for part in trusted.split(",") if part)


@functools.lru_cache(maxsize=1024)
def _is_trusted(address: str, trusted: str) -> bool:
    ip = _address(address)
    return ip is not None and any(ip.version == net.version and ip in net for net in _networks(trusted))


def socket_peer(request: Request) -> str:
    """The address at the other end of the connection."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if peer else UNKNOWN


def by_trusted_proxy(request: Request, trusted: str) -> bool:
    return bool(trusted) and _is_trusted(socket_peer(request), trusted)


def peer_of(request: Request, trusted: str) -> str:
    """Who asks. ``trusted``: the networks of proxies, comma-separated.

    Of ``X-Forwarded-For`` the last address that is no trusted proxy's counts: what stands before it is the client's own
    word. One that is no address makes the peer unknown.
    """
    peer = socket_peer(request)
    if not trusted or not _is_trusted(peer, trusted):
        return peer
    for part in reversed(",".join(request.headers.getall("x-forwarded-for", [])).split(",")):
        if not part.strip():
            continue
        ip = _address(part)
        if ip is None:
            return UNKNOWN
        peer = str(ip)
        if not _is_trusted(peer, trusted):
            return peer
    return peer


def is_forwarded(request: Request) -> bool:
    """Whether a proxy passed it on."""
    return _forwards(tuple(request.headers))


@functools.lru_cache(maxsize=512)
def _forwards(names: tuple[str, ...]) -> bool:
    """Kept, as a client mostly sends the same headers again."""
    return any(name.startswith(FORWARDED) or name in FORWARDING for name in map(str.lower, names))


@functools.lru_cache(maxsize=1)
def _own_name() -> str:
    return socket.gethostname().lower()


@functools.lru_cache(maxsize=256)
def _is_own_host(host: str) -> bool:
    name = (urlsplit(f"//{host}").hostname or "").lower().rstrip(".")
    return "." not in name or name == _own_name() or name.endswith(".localhost") or _address(name) is not None


def host_of(request: Request) -> str:
    """The host that the client asked: what a trusted proxy says it was, else the Host header."""
    trusted = request.app.ctx.gateway.settings.trusted_proxies
    if trusted and by_trusted_proxy(request, trusted) and (said := _last(request, "x-forwarded-host")):
        return said
    return str(request.headers.get("host", ""))


def is_https(request: Request) -> bool:
    """The client speaks HTTPS: to us, or to a trusted proxy that says so."""
    if request.scheme == "https":
        return True
    trusted = request.app.ctx.gateway.settings.trusted_proxies
    return by_trusted_proxy(request, trusted) and _first(request, "x-forwarded-proto").lower() == "https"


def _first(request: Request, name: str) -> str:
    """Of a header that each proxy of a chain adds to: what the one next to the client said."""
    return str(request.headers.get(name, "")).split(",", 1)[0].strip()


def _last(request: Request, name: str) -> str:
    """What the one next to us said: the only one whose word is certain."""
    return ",".join(request.headers.getall(name, [])).rsplit(",", 1)[-1].strip()


def is_own_page(request: Request, *, listed: bool = False) -> bool:
    """False when a page of another site makes a browser on this machine ask.

    The host must be an address, this machine's name, or a name without dots, which nobody can own (one that somebody
    owns may lead here: DNS rebinding); and a page's origin must be that same host, or ``listed``: one that the
    operator named. Source of the first rule: Ollama, ``server/routes.go``, ``allowedHostsMiddleware``.
    """
    host = host_of(request)
    try:
        if not _is_own_host(host):
            return False
        origin = request.headers.get("origin")
        return origin is None or listed or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def is_foreign_page(request: Request, *, listed: bool = False) -> bool:
    """True when a browser says that a page of another site asks. ``listed``: the operator named that page's origin.

    ``Sec-Fetch-Site`` counts first: no page can forge it, and no proxy changes it, while one that changes Host makes
    every origin look foreign. Source: W3C, "Fetch Metadata Request Headers".
    """
    origin = request.headers.get("origin")
    if origin is None or listed or request.headers.get("sec-fetch-site", "").lower() in ("same-origin", "none"):
        return False
    try:
        return str(urlsplit(origin).netloc).lower() != host_of(request).lower()
    except ValueError:
        return True
