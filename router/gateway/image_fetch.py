"""Images behind http(s) URLs, fetched by the gateway. Off unless the operator allows it (``LLMLB_IMAGE_URLS``).

A URL in a request makes this machine open a connection on somebody else's word. So: only addresses that are public,
and not this machine's own (what listens there may trust who asks from here, or stand behind a firewall); looked up once
and connected to as looked up (a name that changes its mind between the two gets nowhere); no redirects; nothing
unpacked; a limit on bytes and on time.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import ipaddress
import socket
import ssl
from collections.abc import Sequence

import httpx

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ContentPart, InferRequest
from llmlb.bus.settings import Settings
from llmlb.router.gateway.openai_messages import ImageAddress

TIMEOUT_S = 10.0
MAX_IMAGE_BYTES = 5 * 1024 * 1024
"""Of all images of a request together: in base64, and with the rest, they must fit into one message of the bus."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


async def with_images(settings: Settings, request: InferRequest, images: Sequence[ImageAddress]) -> InferRequest:
    """The request with its images in place of their addresses. Raises InvalidRequest."""
    if settings.image_urls == "off":
        raise InvalidRequest(
            "images behind http URLs are not fetched here (LLMLB_IMAGE_URLS is off): send a data: URL",
            param=images[0].param,
        )
    room = _Room(MAX_IMAGE_BYTES)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_guarded(image, room, private=settings.image_urls == "any")) for image in images]
    data = [task.result() for task in tasks]
    for got in data:
        if isinstance(got, InvalidRequest):
            raise got
    fetched = [one for one in data if isinstance(one, str)]

    def filled(part: ContentPart) -> ContentPart:
        if part.type == "image" and part.data.startswith("#"):
            return part.model_copy(update={"data": fetched[int(part.data[1:])]})
        return part

    messages = tuple(
        message.model_copy(update={"parts": tuple(filled(part) for part in message.parts)})
        for message in request.messages
    )
    return request.model_copy(update={"messages": messages})


class _Room:
    """Bytes that the images of one request may still have."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int, image: ImageAddress) -> None:
        """Raises InvalidRequest."""
        self.left -= count
        self.check(0, image)

    def check(self, count: int, image: ImageAddress) -> None:
        """Raises InvalidRequest when so many more would be too many."""
        if count > self.left:
            raise InvalidRequest(f"the images have more than {MAX_IMAGE_BYTES} bytes", param=image.param)


async def _guarded(image: ImageAddress, room: _Room, *, private: bool) -> str | InvalidRequest:
    """What :func:`_fetch` gives or raises, as a value: a task group would wrap it."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _fetch(image, room, private=private)
    except InvalidRequest as error:
        return error
    except TimeoutError:
        return InvalidRequest(f"the image did not come within {TIMEOUT_S:.0f} s", param=image.param)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return InvalidRequest("the image can't be fetched", param=image.param, detail=repr(error))


async def _fetch(image: ImageAddress, room: _Room, *, private: bool) -> str:
    """The image in base64. ``private``: addresses that are not public are allowed too."""
    url = httpx.URL(image.url)
    host = url.raw_host.decode("ascii")
    port = (443 if url.scheme == "https" else 80) if url.port is None else url.port
    if not host or url.userinfo or not 0 < port < 65536:
        raise InvalidRequest("the image's URL is not one that can be fetched", param=image.param)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(info[4][0]) for info in found]
    if not private and not all(is_public(address) and not is_own(address) for address in addresses):
        raise InvalidRequest("the image's address is not public; it is not fetched", param=image.param)
    trust = await asyncio.to_thread(_trust)
    # The connection goes to the address that was looked up; the Host header and TLS's check of the certificate go by
    # the name.
    async with httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=None, verify=trust) as client:
        for at, address in enumerate(addresses):
            request = client.build_request(
                "GET",
                url.copy_with(host=str(address)),
                headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
                extensions={"sni_hostname": host},
            )
            try:
                response = await client.send(request, stream=True)
            except httpx.ConnectError:
                if at + 1 == len(addresses):
                    raise
                continue
            try:
                return await _body(response, image, room)
            finally:
                await response.aclose()
    raise InvalidRequest("the image's address is unknown", param=image.param)


async def _body(response: httpx.Response, image: ImageAddress, room: _Room) -> str:
    """The body in base64, read no further than there is room."""
    if response.status_code != 200:
        raise InvalidRequest(f"the image's server answered {response.status_code}", param=image.param)
    length = response.headers.get("content-length", "")
    if length.isdecimal():
        room.check(int(length), image)
    data = bytearray()
    # Raw: a packed body of a few kilobytes may unpack to gigabytes. What a server packs unasked is no image.
    async for chunk in response.aiter_raw():
        room.take(len(chunk), image)
        data += chunk
    if not data:
        raise InvalidRequest("the image is empty", param=image.param)
    return base64.b64encode(data).decode()


@functools.cache
def _trust() -> ssl.SSLContext:
    """The authorities to trust; reading them takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


def is_own(address: Address) -> bool:
    """True for an address of this machine: what it sends there comes from there. Nothing is sent to find out."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:  # no way leads there
        return False


def is_public(address: Address) -> bool:
    """True for what the whole Internet can reach. An IPv4 address inside an IPv6 one counts as itself.

    Source: IANA's IPv6 Address Space registry (2000::/3 is all of global unicast); RFC 6052 for 64:ff9b::/96, 3056
    for 2002::/16.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        return address in _UNICAST and address.is_global
    return address.is_global and not address.is_multicast
