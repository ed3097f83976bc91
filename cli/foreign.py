"""What is at an address that is not a gateway, for who has written a wrong LLMLB_HOST. Only used after a failure."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import SplitResult

PROBE_S = 2.0
TLS_ALERT = "\x15\x03"
"""Begins what a TLS server says to a client that speaks no TLS. Source: RFC 8446, 5.1: alert, version 3.x."""


def tls_trouble(error: ssl.SSLError, address: str) -> str:
    """Why an https address can't be used."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {address} is not trusted: {error.verify_message}"
    return f"{address} does not speak HTTPS; write http://{address}"


def greeting_trouble(error: Exception, url: SplitResult, address: str) -> str | None:
    """Why the answer was no HTTP; None when nothing can be said."""
    said = str(getattr(error, "line", ""))
    if said.startswith("INFO {"):
        return f"{address} is a NATS server, the bus; LLMLB_HOST has to name a gateway, LLMLB_BUS_URL names the bus"
    if url.scheme == "http" and (said.startswith(TLS_ALERT) or _speaks_tls(url)):
        return f"{address} speaks HTTPS; write https://{address}"
    return None


def page_trouble(status: int, body: bytes, address: str) -> str:
    """What an answer is that is no JSON object."""
    if status == 400 and b"HTTPS port" in body:
        return f"{address} speaks HTTPS; write https://{address}"
    return f"{address} is not a llmlb gateway (status {status}, no JSON object); is LLMLB_HOST right?"


def _speaks_tls(url: SplitResult) -> bool:
    """Whether a handshake goes through. Nothing is sent over it, so nobody needs to be trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((url.hostname or "", url.port or 80), timeout=PROBE_S) as sock,
            context.wrap_socket(sock),
        ):
            return True
    except (OSError, ValueError):
        return False
