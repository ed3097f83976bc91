"""Images behind URLs: real servers on the loopback interface; names and certificates are made up."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import gzip
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.bus.settings import Settings
from llmlb.router.gateway import image_fetch
from llmlb.router.gateway.image_fetch import is_own, is_public, with_images
from llmlb.router.gateway.openai_schema import ChatRequest, parse
from tests.unit.gateway.scripted import Scripted, serving

Answer = Callable[[str, bytes, asyncio.StreamWriter], Awaitable[None]]
PICTURE = b"\x89PNG picture"


def answering(body: bytes, status: str = "200 OK", *headers: str) -> Answer:
    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return answer


@dataclasses.dataclass
class Site:
    """A web server, and what it was asked."""

    port: int = 0
    asked: list[bytes] = dataclasses.field(default_factory=list)
    left: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Set when a client has closed its connection."""

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def site(answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    made = Site()

    running: set[asyncio.Task[Any]] = set()

    async def watch(reader: asyncio.StreamReader, serving: asyncio.Task[Any]) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        made.left.set()
        serving.cancel()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            made.asked.append(head)
            running.add(asyncio.create_task(watch(reader, task)))
            await answer(head.split()[1].decode(), head, writer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            running.discard(task)

    try:
        server = await asyncio.start_server(serve, host, 0, ssl=tls)
    except OSError:
        assert host == "::1"
        pytest.skip("this machine has no IPv6")
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


def settings(tmp_path: Path, which: str) -> Settings:
    return Settings.load({}, home=tmp_path, image_urls=which)


def body_of(*urls: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, *parts]}]}


async def fetched(tmp_path: Path, *urls: str, which: str = "any") -> InferRequest:
    request, images = parse(ChatRequest, orjson.dumps(body_of(*urls))).request("r")
    return await with_images(settings(tmp_path, which), request, images)


def pictures(request: InferRequest) -> list[bytes]:
    return [base64.b64decode(part.data) for part in request.messages[0].parts if part.type == "image"]


async def refused(tmp_path: Path, *urls: str, which: str = "any") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await fetched(tmp_path, *urls, which=which)
    return caught.value


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses of made-up names. No name is really looked up; what is no address and not here is unknown."""
    known: dict[str, list[str]] = {}

    async def look_up(self: Any, host: str, port: int, **rest: Any) -> list[Any]:
        if host not in known:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in known[host]
        ]

    real = asyncio.get_event_loop_policy().new_event_loop()
    monkeypatch.setattr(type(real), "getaddrinfo", look_up)
    real.close()
    return known


async def test_off_is_a_bad_request_that_names_the_setting_and_the_part(tmp_path: Path) -> None:
    scripted = Scripted()
    async with site(answering(PICTURE)) as web, serving(tmp_path, scripted) as (client, _):
        response = await client.post("/v1/chat/completions", json=body_of(web.url()))
        assert response.status_code == 400
        error = response.json()["error"]
        assert "LLMLB_IMAGE_URLS" in error["message"]
        assert error["param"] == "messages.0.content.1"
        assert web.asked == []
    assert scripted.begun == []


async def test_any_fetches_from_this_machine_for_the_route_too(tmp_path: Path) -> None:
    scripted = Scripted()
    async with site(answering(PICTURE)) as web, serving(tmp_path, scripted, image_urls="any") as (client, _):
        response = await client.post("/v1/chat/completions", json=body_of(web.url("/a.png?x=1")))
        assert response.status_code == 200
    assert pictures(scripted.begun[0]) == [PICTURE]
    assert web.asked[0].startswith(b"GET /a.png?x=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:100.64.0.1]",
        "[::ffff:224.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::10.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00::1]",
        "[fec0::1]",
        "[ff02::1]",
    ],
)
async def test_public_refuses_addresses_that_are_not(
    tmp_path: Path, names: dict[str, list[str]], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx.AsyncClient, "send", None)  # nothing may be connected to
    error = await refused(tmp_path, f"http://{host}:9/x", which="public")
    assert error.param == "messages.0.content.1"
    # An octal number in dotted form is no address to httpx.
    assert "not public" in error.message or host == "0177.0.0.1"


@pytest.mark.parametrize(
    "found", [["127.0.0.1"], ["::1"], ["8.8.8.8", "10.0.0.1"], ["2606:4700::1111", "::ffff:192.168.0.1"]]
)
async def test_public_refuses_names_with_any_address_that_is_not(
    tmp_path: Path, names: dict[str, list[str]], found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpx.AsyncClient, "send", None)
    names["pictures.test"] = found
    assert "not public" in (await refused(tmp_path, "http://pictures.test/", which="public")).message


async def test_public_refuses_this_machines_own_public_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens there is behind a firewall, or trusts who asks from the same machine. Loopback stands for it."""
    monkeypatch.setattr(image_fetch, "is_public", lambda address: True)
    async with site(answering(PICTURE)) as web:
        assert "not public" in (await refused(tmp_path, web.url(), which="public")).message
    assert web.asked == []


@pytest.mark.parametrize(("address", "own"), [("127.0.0.1", True), ("::1", True), ("192.0.2.1", False)])
def test_a_machine_knows_its_own_addresses(address: str, own: bool) -> None:
    if ":" in address:
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                pytest.skip("this machine has no IPv6")
    assert is_own(ipaddress.ip_address(address)) is own


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def test_a_name_is_looked_up_once_and_connected_to_as_looked_up(
    tmp_path: Path, names: dict[str, list[str]]
) -> None:
    """A second look-up could give another address than the one that was judged."""
    async with site(answering(PICTURE)) as web:
        names["pictures.test"] = ["127.0.0.1"]
        looked_up = asyncio.get_running_loop().getaddrinfo
        hosts: list[str] = []

        async def counting(self: Any, host: Any, *rest: Any, **more: Any) -> Any:
            hosts.append(host)
            return await looked_up(host, *rest, **more)

        loop_class = type(asyncio.get_running_loop())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop_class, "getaddrinfo", counting)
            request = await fetched(tmp_path, web.url(host="pictures.test"))
    assert pictures(request) == [PICTURE]
    assert [host for host in hosts if host in ("pictures.test", b"pictures.test")] == ["pictures.test"]
    assert f"Host: pictures.test:{web.port}\r\n".encode() in web.asked[0]


async def test_the_host_header_is_as_http_wants_it(tmp_path: Path, names: dict[str, list[str]]) -> None:
    names["xn--bcher-kva.test"] = ["127.0.0.1"]
    async with site(answering(PICTURE)) as web:
        await fetched(tmp_path, web.url(host="Bücher.test"))
        assert f"host: xn--bcher-kva.test:{web.port}\r\n".encode() in web.asked[0].lower()
    async with site(answering(PICTURE), "::1") as web:
        await fetched(tmp_path, web.url(host="[::1]"))
        assert f"host: [::1]:{web.port}\r\n".encode() in web.asked[0].lower()


async def test_the_next_address_of_a_name_is_tried_when_one_is_deaf(
    tmp_path: Path, names: dict[str, list[str]]
) -> None:
    names["pictures.test"] = ["::1", "127.0.0.1"]
    async with site(answering(PICTURE)) as web:
        assert pictures(await fetched(tmp_path, web.url(host="pictures.test"))) == [PICTURE]


async def test_an_image_that_says_it_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetch, "MAX_IMAGE_BYTES", 1000)

    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
        await asyncio.sleep(30)

    async with asyncio.timeout(2):
        async with site(answer) as web:
            assert "more than 1000 bytes" in (await refused(tmp_path, web.url())).message


async def test_an_endless_image_is_read_up_to_the_limit(tmp_path: Path) -> None:
    sent = 0

    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await writer.drain()
            sent += 0x10000

    async with site(answer) as web:
        assert "more than 5242880 bytes" in (await refused(tmp_path, web.url())).message
    assert sent < 4 * image_fetch.MAX_IMAGE_BYTES


async def test_images_that_are_too_large_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetch, "MAX_IMAGE_BYTES", 1000)
    async with site(answering(bytes(400))) as web:
        assert len(pictures(await fetched(tmp_path, web.url(), web.url()))) == 2
        assert "more than 1000 bytes" in (await refused(tmp_path, web.url(), web.url(), web.url())).message


async def test_nothing_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a few kilobytes become gigabytes."""
    bomb = gzip.compress(bytes(10_000_000))
    async with site(answering(bomb, "200 OK", "Content-Encoding: gzip")) as web:
        assert pictures(await fetched(tmp_path, web.url())) == [bomb]
    assert b"accept-encoding: identity\r\n" in web.asked[0].lower()


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"])
async def test_a_server_that_is_too_slow_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr(image_fetch, "TIMEOUT_S", 0.1)

    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        while True:
            writer.write(b"x" if before else b"")  # a byte now and then is no excuse
            await asyncio.sleep(0.02)

    async with site(answer) as web:
        assert "did not come within" in (await refused(tmp_path, web.url())).message
        async with asyncio.timeout(1):
            await web.left.wait()


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    async with site(answer) as web:
        assert "answered 302" in (await refused(tmp_path, web.url())).message
    assert len(web.asked) == 1


async def test_answers_that_are_no_image_are_refused(tmp_path: Path) -> None:
    async with site(answering(b"no", "404 Not Found")) as web:
        assert "answered 404" in (await refused(tmp_path, web.url())).message
    async with site(answering(b"")) as web:
        assert "the image is empty" in (await refused(tmp_path, web.url())).message

    async def garbage(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n")

    async with site(garbage) as web:
        assert "can't be fetched" in (await refused(tmp_path, web.url())).message

    async def short(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")

    async with site(short) as web:
        assert "can't be fetched" in (await refused(tmp_path, web.url())).message
    assert "can't be fetched" in (await refused(tmp_path, web.url())).message, "nobody listens there any more"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://user@127.0.0.1:{port}/",
        "http://user:word@127.0.0.1:{port}/",
        "http://:@127.0.0.1:{port}/",
        "http://evil.test\\@127.0.0.1:{port}/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:-1/",
        "http://127.0.0.1:x/",
        "http://127.0.0.1:{port}{port}/",
        "http://[::1/",
        "http://[fe80::1%25lo]:{port}/",
        "http://127.0.0.1 /",
        "http://127.0.0.1:{port}/\r\nX: y",
        "http://127.0.0.1:{port}/\x00",
        "http://" + "a" * 300 + "/",
        "http://nowhere.test/",
        "http://..:{port}/",
        "http://\u2100.test/",
    ],
)
async def test_addresses_that_make_no_sense_are_refused(tmp_path: Path, names: dict[str, list[str]], url: str) -> None:
    async with site(answering(PICTURE)) as web:
        error = await refused(tmp_path, url.replace("{port}", str(web.port)))
    assert error.param == "messages.0.content.1"
    assert web.asked == []


async def test_several_images_land_in_their_own_parts(tmp_path: Path) -> None:
    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15 if path == "/0" else 0)  # the first one comes last
        await answering(path.encode())(path, head, writer)

    data = base64.b64encode(b"/data").decode()
    async with site(answer) as web:
        urls = [web.url("/0"), f"data:image/png;base64,{data}", web.url("/1"), web.url("/0").replace("http", "HTTP")]
        request = await fetched(tmp_path, *urls)
    assert [part.type for part in request.messages[0].parts] == ["text", "image", "image", "image", "image"]
    assert pictures(request) == [b"/0", b"/data", b"/1", b"/0"]


async def test_the_first_bad_image_is_named(tmp_path: Path) -> None:
    async with site(answering(PICTURE)) as web, site(answering(b"", "500 Oops")) as broken:
        error = await refused(tmp_path, web.url(), broken.url(), broken.url())
    assert error.param == "messages.0.content.2"


@pytest.mark.parametrize(
    "url",
    ["#0", "data:image/png;base64,#0", "data:,#0", "data:image/png;base64,IzA=#0", "data:image/png;base64,\u00e9"],
)
async def test_a_part_cannot_refer_to_another_image(tmp_path: Path, url: str) -> None:
    async with site(answering(PICTURE)) as web:
        assert (await refused(tmp_path, web.url(), url)).param == "messages.0.content.2"
    assert web.asked == []


async def test_a_client_that_goes_away_ends_the_fetching(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def answer(path: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await asyncio.sleep(30)

    async with site(answer) as web, asyncio.TaskGroup() as group:
        task = group.create_task(fetched(tmp_path, web.url()))
        await begun.wait()
        task.cancel()
        async with asyncio.timeout(1):
            await web.left.wait()


CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgeMlFiiumSl/ClhJt
ZECsSBiNkeAgThxiwngdCzeIvtGhRANCAAT0P5MKL1/WZh0Wo14PcLQCUbsWbqGZ
Cjam+NK+Uq+WNnAnshcGZVlP84Sl0eRu0VGTUxy2bnM1qzJ28jyoi9qe
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUHtmotOyYZPar+0OiQbrm8N6L9E0wCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAgFw0yNjExMjEwODU1NDVaGA8yMTI2MTAyODA4NTU0NVow
DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPQ/kwovX9Zm
HRajXg9wtAJRuxZuoZkKNqb40r5Sr5Y2cCeyFwZlWU/zhKXR5G7RUZNTHLZuczWr
MnbyPKiL2p6jbTBrMB0GA1UdDgQWBBSkyDe6XIYhFzrAo2ceF5QMUcbH2zAfBgNV
HSMEGDAWgBSkyDe6XIYhFzrAo2ceF5QMUcbH2zAPBgNVHRMBAf8EBTADAQH/MBgG
A1UdEQQRMA+CDXBpY3R1cmVzLnRlc3QwCgYIKoZIzj0EAwIDSAAwRQIhAIwRZ2mf
ggRiyO28Qcu8bm+tuF+pAkPAtu7ZH7n3uv2GAiBU3I4IcVf8SsSXl9EpiCbV5iQR
fQq7HEbVEBGY9FeMhQ==
-----END CERTIFICATE-----
"""
"""A certificate for pictures.test that vouches for itself, with its key. Made for this test, good until 2126."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    return path


async def test_tls_asks_for_the_name_and_checks_the_certificate_for_it(
    tmp_path: Path, names: dict[str, list[str]], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    asked: list[str | None] = []
    server.sni_callback = lambda connection, name, context: asked.append(name)
    names["pictures.test"] = names["other.test"] = ["127.0.0.1"]
    async with site(answering(PICTURE), tls=server) as web:
        url = f"https://pictures.test:{web.port}/"
        error = await refused(tmp_path, url)
        assert "can't be fetched" in error.message
        assert "self-signed" in (error.detail or "").replace("self signed", "self-signed")
        monkeypatch.setattr(image_fetch, "_trust", lambda: ssl.create_default_context(cafile=str(certificate)))
        assert pictures(await fetched(tmp_path, url)) == [PICTURE]
        assert "mismatch" in ((await refused(tmp_path, url.replace("pictures", "other"))).detail or "")
    assert asked == ["pictures.test", "pictures.test", "other.test"]
