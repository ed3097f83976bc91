"""The values of settings, from text. Each raises ValueError with what is wrong with it. Pure."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from llmlb.bus import labels

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds from ``90``, ``30s``, ``5m``, ``1h30m``, ``250ms``; ``-1`` stands for "never" and stays -1."""
    text = text.strip().lower()
    if re.fullmatch(r"-\d+(\.\d+)?(ms|s|m|h|d)?", text):
        return -1.0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d))+", text):
        raise ValueError("not a duration like 30s, 5m or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|s|m|h|d)", text))


def parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("not a boolean: use true or false")


def parse_port(text: str) -> int:
    """A TCP port; 0 lets the system choose one."""
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError("not a port: 0 to 65535")
    return port


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def parse_size(text: str) -> int:
    """Bytes from ``1048576``, ``7MiB``, ``20MB``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?", text.strip().lower())
    if match is None:
        raise ValueError("not a size like 7MiB or 20MB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** (" kmg".index(match[2]) if match[2] else 0))


def body_size(text: str) -> int:
    size = parse_size(text)
    if not 1024 <= size <= 100 * 1024 * 1024:
        raise ValueError("must be 1KB to 100MB")
    return size


def seconds(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("must be more than 0")
    return seconds


def origins(text: str) -> str:
    """Origins as browsers write them, in lower case, comma-separated; or ``*`` alone."""
    parts = [part.strip().lower().rstrip("/") for part in text.split(",") if part.strip()]
    if parts == ["*"]:
        return "*"
    for part in parts:
        if not re.fullmatch(
            r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]{1,5})?|[a-z]+://\[[0-9a-f:.]+\](:[0-9]{1,5})?", part
        ):
            raise ValueError("not origins like https://chat.example.com, comma-separated, or * alone")
    return ",".join(parts)


def on_or_off(text: str) -> str:
    if text not in {"on", "off"}:
        raise ValueError("use on or off")
    return text


def parse_log_format(text: str) -> str:
    if text not in {"text", "json"}:
        raise ValueError("use text or json")
    return text


def networks(text: str) -> str:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        ipaddress.ip_network(part, strict=False)
    return ",".join(parts)


def api_key(text: str) -> str:
    key = text.strip()
    if not re.fullmatch(r"[!-~]{1,512}", key):
        raise ValueError("not an API key: llmlb router key create makes one")
    return key


def image_urls(text: str) -> str:
    if text not in {"off", "public", "any"}:
        raise ValueError("use off, public or any")
    return text


def node_labels(text: str) -> str:
    return ",".join(labels.checked(text.split(",")))


def join_token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,256}", token):
        raise ValueError("not a join token: llmlb router join-token makes one")
    return token


def bus_url(text: str) -> str:
    for part in text.split(","):
        url = urlsplit(part.strip())
        if url.scheme not in {"nats", "tls", "ws", "wss"} or not url.hostname:
            raise ValueError("not a NATS address like nats://127.0.0.1:4222")
        _ = url.port
    return text


def endpoint(text: str) -> str:
    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme not in {"http", "https"} or not url.hostname or re.search(r"\s", text):
        raise ValueError("not an address like 127.0.0.1:32769 or http://host:port")
    try:
        _ = url.port
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    return text


def masked(text: str) -> str:
    """Text without the credentials of the addresses in it."""
    return re.sub(r"(^|://|,)[^@/,]*@", r"\1****@", text)


def hub_address(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("not an address like https://huggingface.co")
    _ = url.port
    return text.rstrip("/")


def hub_token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        # It would not go into a header, and the error of who tries shows it.
        raise ValueError("not a token: it has spaces, line ends or other characters that no token has")
    return token
