"""Images behind http(s) URLs, fetched by the gateway. Off unless the operator allows it (``LLMLB_IMAGE_URLS``).

A URL in a request makes this machine open a connection on somebody else's word. So: only addresses that are public,
looked up once and connected to as looked up (a name that changes its mind between the two gets nowhere); no
redirects; a limit on bytes and on time.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ContentPart, InferRequest
from llmlb.bus.settings import Settings
from llmlb.router.gateway.openai_messages import ImageAddress

TIMEOUT_S = 10.0
MAX_IMAGE_BYTES = 5 * 1024 * 1024


async def with_images(settings: Settings, request: InferRequest, images: Sequence[ImageAddress]) -> InferRequest:
    """The request with its images in place of their addresses. Raises InvalidRequest."""
    if settings.image_urls == "off":
        raise InvalidRequest(
            "images behind http URLs are not fetched here (LLMLB_IMAGE_URLS is off): send a data: URL",
            param=images[0].param,
        )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_guarded(image, private=settings.image_urls == "any")) for image in images]
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


async def _guarded(image: ImageAddress, *, private: bool) -> str | InvalidRequest:
    """What :func:`fetch` gives or raises, as a value: a task group would wrap it."""
    try:
        return await fetch(image, private=private)
    except InvalidRequest as error:
        return error


async def fetch(image: ImageAddress, *, private: bool) -> str:
    """The image in base64. ``private``: addresses that are not public are allowed too. Raises InvalidRequest."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _fetch(image, private=private)
    except TimeoutError:
        raise InvalidRequest(f"the image did not come within {TIMEOUT_S:.0f} s", param=image.param) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise InvalidRequest("the image can't be fetched", param=image.param, detail=repr(error)) from error


async def _fetch(image: ImageAddress, *, private: bool) -> str:
    parts = urlsplit(image.url)
    host = parts.hostname
    if not host or parts.username or parts.password:
        raise InvalidRequest("the image's URL is not one that can be fetched", param=image.param)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(info[4][0]) for info in found]
    if not private and not all(address.is_global and not address.is_multicast for address in addresses):
        raise InvalidRequest("the image's address is not public; it is not fetched", param=image.param)
    address = addresses[0]
    shown = f"[{address}]" if address.version == 6 else str(address)
    url = httpx.URL(image.url).copy_with(host=shown, port=port)
    name = host if parts.port is None else f"{host}:{parts.port}"
    async with (
        httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=TIMEOUT_S) as client,
        client.stream("GET", url, headers={"Host": name}, extensions={"sni_hostname": host}) as response,
    ):
        if response.status_code != 200:
            raise InvalidRequest(f"the image's server answered {response.status_code}", param=image.param)
        data = b""
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > MAX_IMAGE_BYTES:
                raise InvalidRequest(f"the image has more than {MAX_IMAGE_BYTES} bytes", param=image.param)
    if not data:
        raise InvalidRequest("the image is empty", param=image.param)
    return base64.b64encode(data).decode()
