"""What every route does alike: HEAD, OPTIONS, pages of other origins, packed lists; over a real connection."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmlb.bus.errors import ConfigError
from llmlb.bus.messages.router import ClusterModel
from llmlb.bus.settings import Settings
from llmlb.router.gateway.compression import LEAST, wants_gzip
from llmlb.router.gateway.entry import STRANGERS_BODY_MAX
from tests.unit.gateway.auth_rig import far, rig_of
from tests.unit.gateway.scripted import Scripted, delta, end, serving

CHAT = "/v1/chat/completions"
GOOD = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
PAGE = "https://chat.example.com"
OWN = {"Host": "127.0.0.1"}


class Many(Scripted):
    """With models to list."""

    def __init__(self, count: int) -> None:
        super().__init__(lambda request: [delta("a" * 2000), end()])
        self._models = tuple(
            ClusterModel(name=f"owner/model-{at}", nodes=1, loaded=0, status="available", created_at=0)
            for at in range(count)
        )

    def list_models(self) -> tuple[ClusterModel, ...]:
        return self._models


async def test_head_is_get_without_its_body(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(50)) as (http, _):
        for path, status in (("/v1/models", 200), ("/health", 200), ("/v1/models/nobody/has", 404), ("/nowhere", 404)):
            got, head = await http.get(path), await http.head(path)
            assert (got.status_code, head.status_code) == (status, status)
            assert head.content == b""
            assert head.headers["content-length"] == got.headers["content-length"]
            assert head.headers["content-type"] == got.headers["content-type"]
        refused = await http.head(CHAT)
        assert (refused.status_code, refused.headers["allow"]) == (405, "OPTIONS, POST")


async def test_options_says_what_every_route_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials, as browsers ask before they send any."""
    far(monkeypatch)
    async with rig_of(tmp_path) as (rig, http):
        for route in rig.app.router.routes:
            path = "/" + route.path.replace("<", "").replace(">", "").replace(":", "-")
            answer = await http.options(path)
            assert answer.status_code == 204, path
            assert answer.content == b""
            assert route.methods <= set(answer.headers["allow"].split(", "))
            assert "OPTIONS" in answer.headers["allow"]
            assert answer.headers["x-request-id"]
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await http.options("/nowhere")).status_code == 404


async def raw_answer(reader: asyncio.StreamReader) -> str:
    """The head of an answer."""
    async with asyncio.timeout(10):
        return (await reader.readuntil(b"\r\n\r\n")).decode()


@pytest.mark.parametrize("chunked", [False, True])
async def test_options_with_a_body_is_no_error_and_the_next_request_on_the_connection_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, chunked: bool
) -> None:
    length = b"transfer-encoding: chunked" if chunked else b"content-length: 5"
    body = b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"
    async with serving(tmp_path, Scripted()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = b"OPTIONS /v1/models HTTP/1.1\r\nhost: a\r\n" + length + b"\r\n\r\n" + body
        writer.write(asked + b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        head = await raw_answer(reader)
        assert head.startswith("HTTP/1.1 204 ")
        if chunked:  # it would have to be read first: the connection ends instead
            assert "connection: close" in head.lower()
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        else:
            assert (await raw_answer(reader)).startswith("HTTP/1.1 200 ")
        writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("more", [b"", b"expect: 100-continue\r\n"])
async def test_options_is_answered_before_its_body_has_come_and_ends_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, more: bytes
) -> None:
    async with serving(tmp_path, Scripted()) as (http, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"OPTIONS /v1/models HTTP/1.1\r\nhost: a\r\n" + more + b"content-length: 5000\r\n\r\nhel")
        head = await raw_answer(reader)
        assert head.startswith("HTTP/1.1 204 ")
        assert "connection: close" in head.lower()
        writer.write(b"lo")
        async with asyncio.timeout(10):
            assert await reader.read() == b"", "no second answer"
        writer.close()
        assert (await http.get("/health")).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_method_that_a_route_does_not_take_is_told_which_it_does(tmp_path: Path) -> None:
    async with serving(tmp_path, Scripted()) as (http, _):
        answer = await http.delete("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


def cors(answer: httpx.Response) -> dict[str, str]:
    """Its CORS headers, without the prefix."""
    return {
        name.removeprefix("access-control-"): value
        for name, value in answer.headers.items()
        if name.startswith("access-control")
    }


async def test_nothing_is_said_to_other_origins_unless_configured(tmp_path: Path) -> None:
    async with serving(tmp_path, Scripted(), auth="off") as (http, _):
        answer = await http.get("/v1/models", headers={"Origin": PAGE})
        assert cors(answer) == {}
        assert "vary" not in answer.headers


async def test_pages_of_named_origins_may_ask_and_read(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(1), auth="off", cors_origins=f"{PAGE},http://localhost:3000") as (http, _):
        for origin in (PAGE, "http://localhost:3000"):
            answer = await http.get("/v1/models", headers={"Origin": origin})
            told = cors(answer)
            assert told["allow-origin"] == origin
            assert told["allow-credentials"] == "true"
            assert {"x-request-id", "retry-after", "x-ratelimit-limit-requests"} <= set(
                told["expose-headers"].split(", ")
            )
            assert answer.headers["vary"] == "Origin"
        for origin in ("https://evil.example.com", PAGE + ".evil.com", "null", "http://chat.example.com", PAGE + ":1"):
            answer = await http.get("/v1/models", headers={"Origin": origin})
            assert cors(answer) == {}
            assert answer.headers["vary"] == "Origin", "a cache must not give one origin's answer to another"
        assert (await http.get("/health")).headers["vary"] == "Origin"


async def test_errors_and_streams_are_readable_for_named_origins_too(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(1), auth="off", cors_origins=PAGE) as (http, _):
        for path, body in (("/nowhere", None), (CHAT, {}), (CHAT, {**GOOD, "stream": True}), (CHAT, GOOD)):
            answer = await http.request(
                "POST" if body is not None else "GET", path, json=body, headers={"Origin": PAGE}
            )
            assert cors(answer)["allow-origin"] == PAGE


async def test_a_browser_asks_first_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far(monkeypatch)
    async with rig_of(tmp_path, cors_origins=PAGE) as (_, http):
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
        }
        answer = await http.options(CHAT, headers=asked)
        assert answer.status_code == 204
        assert cors(answer) | {"expose-headers": ""} == {
            "allow-origin": PAGE,
            "allow-credentials": "true",
            "allow-methods": "OPTIONS, POST",
            "allow-headers": "authorization, content-type, x-stainless-os",
            "max-age": "600",
            "expose-headers": "",
        }
        assert set(answer.headers["vary"].split(", ")) == {"Origin", "Access-Control-Request-Headers"}
        refused = await http.post(CHAT, json=GOOD, headers={"Origin": PAGE})
        assert refused.status_code == 401, "asking first opens nothing"
        assert cors(refused)["allow-origin"] == PAGE, "and the page can read why"
        assert cors(await http.options(CHAT, headers={**asked, "Origin": "https://evil.example.com"})) == {}
        odd = await http.options(CHAT, headers={**asked, "Access-Control-Request-Headers": "a\tb"})
        assert "allow-headers" not in cors(odd)


async def test_every_origin_may_ask_but_without_cookies(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(1), auth="off", cors_origins="*") as (http, _):
        told = cors(await http.get("/v1/models", headers={"Origin": "https://anybody.example"}))
        assert told["allow-origin"] == "*"
        assert "allow-credentials" not in told


async def test_without_users_only_named_origins_may_use_this_machines_gateway(tmp_path: Path) -> None:
    """``*`` must not let every page that is open in a browser here use a gateway that asks nobody for a key."""
    for allowed, status in (("", 403), ("*", 403), (PAGE, 200), ("https://other.example.com", 403)):
        async with rig_of(tmp_path, cors_origins=allowed) as (_, http):
            assert (await http.get("/v1/models", headers={"Origin": PAGE})).status_code == status
            evil = {"Origin": PAGE, "Host": "rebound.example.com"}
            assert (await http.get("/v1/models", headers=evil)).status_code == 403


@pytest.mark.parametrize(
    "text",
    ["*,https://a.example", "chat.example.com", "https://a/path", "https://a b", "null", "https://*.example.com"],
)
def test_origins_that_are_none_are_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="LLMLB_CORS_ORIGINS"):
        Settings.load({"LLMLB_CORS_ORIGINS": text})


def test_origins_are_read_as_browsers_write_them() -> None:
    given = "https://Chat.Example.com/ , http://localhost:3000,http://[::1]:80"
    read = Settings.load({"LLMLB_CORS_ORIGINS": given})
    assert read.cors_origins == "https://chat.example.com,http://localhost:3000,http://[::1]:80"
    assert Settings.load({"LLMLB_CORS_ORIGINS": "*"}).cors_origins == "*"


@pytest.mark.parametrize("text", ["0", "200MB", "5GB", "x"])
def test_limits_of_bodies_that_make_no_sense_are_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="LLMLB_MAX_BODY"):
        Settings.load({"LLMLB_MAX_BODY": text})
    assert Settings.load({"LLMLB_MAX_BODY": "100MB"}).max_body_bytes == 100_000_000
    assert Settings.load({}).max_body_bytes == 20_000_000


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("gzip;q=0.5", True),
        ("*", True),
        ("deflate, *;q=0.1", True),
        ("identity;q=0.5, gzip", True),
        ("", False),
        ("deflate, br", False),
        ("gzip;q=0", False),
        ("gzip ; q=0.000", False),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=x", False),
        ("gzipped", False),
    ],
)
def test_who_takes_gzip(accepted: str, wanted: bool) -> None:
    assert wants_gzip(accepted) is wanted


async def raw_get(http: httpx.AsyncClient, path: str, accepted: str, **more: Any) -> tuple[httpx.Response, bytes]:
    async with http.stream("GET", path, headers={"Accept-Encoding": accepted}, **more) as answer:
        return answer, b"".join([chunk async for chunk in answer.aiter_raw()])


async def test_long_lists_are_packed_for_who_takes_it(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(500)) as (http, _):
        plain, whole = await raw_get(http, "/v1/models", "identity")
        assert "content-encoding" not in plain.headers
        assert len(json.loads(whole)["data"]) == 500
        packed, data = await raw_get(http, "/v1/models", "gzip;q=0.8, br")
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) == len(data) < len(whole) / 5
        assert gzip.decompress(data) == whole
        assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
        head = await http.head("/v1/models", headers={"Accept-Encoding": "gzip"})
        assert head.headers["content-length"] == str(len(data))


async def test_short_answers_and_streams_are_not_packed(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(3)) as (http, _):
        short, data = await raw_get(http, "/v1/models", "gzip")
        assert len(data) < LEAST
        assert "content-encoding" not in short.headers
        for stream in (True, False):
            answer = await http.post(CHAT, json={**GOOD, "stream": stream}, headers={"Accept-Encoding": "gzip"})
            assert "content-encoding" not in answer.headers
        assert answer.json()["choices"][0]["message"]["content"] == "a" * 2000


async def test_strangers_are_refused_before_their_body_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far(monkeypatch)
    async with rig_of(tmp_path) as (_, http):
        answer = await http.post(CHAT, content=b" " * 5_000_000)
        assert (answer.status_code, answer.headers["connection"]) == (401, "close")
        login = await http.post("/v0/auth/login", content=b" " * (STRANGERS_BODY_MAX + 1))
        assert login.status_code == 413


async def test_a_limit_that_counts_requests_counts_one_with_a_body_once(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as (rig, http):
        text = rig.directory.put_key("inference", requests_per_minute=10)
        left = [
            (await http.post(CHAT, json=GOOD, headers={"Authorization": f"Bearer {text}"})).headers[
                "x-ratelimit-remaining-requests"
            ]
            for _ in range(3)
        ]
        assert left == ["9", "8", "7"]


async def test_an_event_stream_asks_proxies_not_to_hold_it_back(tmp_path: Path) -> None:
    async with serving(tmp_path, Many(0)) as (http, _):
        answer = await http.post(CHAT, json={**GOOD, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
