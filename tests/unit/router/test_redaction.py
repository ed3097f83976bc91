"""What a record keeps of bodies and answers: no images and no secrets, and everything else as it was."""

from __future__ import annotations

import base64
import json
import re
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.router import redaction
from llmlb.router.identity import signed
from llmlb.router.identity.book import new_code
from llmlb.router.redaction import BODY_MAX, kept_body, kept_text

IMAGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3).decode()
SMALL = base64.b64encode(b"GIF89a" + bytes(29)).decode()
JWT = signed.sign(
    signed.Claims(user_id="u" * 16, session_id="s" * 32, epoch=0, issued_at=1.0, expires_at=2.0), b"s" * 32
)


def php(body: Any) -> bytes:
    """JSON as PHP writes it: slashes escaped."""
    return json.dumps(body).replace("/", "\\/").encode()


def plain(body: Any) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize("written", [plain, php])
@pytest.mark.parametrize("data", [IMAGE, SMALL])
def test_images_are_cut_out_of_every_form(data: str, written: Any) -> None:
    url = f"data:image/png;base64,{data}"
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url.replace("png", "svg+xml;charset=utf-8")},
        {"type": "input_image", "image_url": url},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "image", "source": {"data": data, "media_type": "image/png", "type": "base64"}},
        {"type": "text", "text": f"What is ![this]({url}) and that?"},
        {"type": "text", "text": "after"},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "model": "m"}
    kept = kept_body(written(body))
    shown = json.loads(kept)["messages"][0]["content"]
    for piece in (data, data[:24], data[-24:]):
        assert piece not in kept.replace("\\/", "/")
    assert shown[3]["source"]["data"] == shown[4]["source"]["data"] == "(cut)"
    assert shown[0]["image_url"] == {"url": "data:image/png;base64,(cut)", "detail": "low"}
    assert shown[5]["text"].startswith("What is ![this](data:image/png;base64,(cut)")
    assert shown[6]["text"] == "after"


def test_what_is_no_image_stays() -> None:
    body = {
        "data": "a text",
        "metadata": {"data": "x" * 100},
        "document": {"type": "text", "data": "y" * 500, "media_type": "text/plain"},
        "text": 'data: 5, "data": [1], data:,short',
        "base64": "a word",
    }
    assert json.loads(kept_body(plain(body))) == body


def test_a_large_image_leaves_room_for_what_comes_after_it() -> None:
    image = "A" * (20 * 1024 * 1024)
    for part in ({"url": f"data:image/png;base64,{image}"}, {"type": "base64", "data": image}):
        kept = kept_body(plain([part, {"text": "the question"}]))
        assert "the question" in kept
        assert len(kept) < 200


SECRETS = [
    "sk_" + secrets.token_urlsafe(32),
    "sk-proj-" + "Ab3_" * 12,
    "sk-ant-api03-" + "x" * 40,
    new_code(),
    "hf_" + "a" * 34,
    "ghp_" + "A1" * 18,
    "github_pat_" + "B2" * 20,
    "xoxb-1234567890-abcdefghij",
    JWT,
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_keys_and_tokens_are_cut_out_of_any_text(secret: str) -> None:
    for text in (secret, f"Use {secret}, please", f"KEY={secret}\nx", f"({secret})", f"'{secret}'"):
        assert secret not in kept_text(text)
        assert secret[12:] not in kept_text(text)
        body = {"messages": [{"role": "user", "content": text}], "tool": json.dumps({"code": text})}
        kept = kept_body(plain(body))
        assert secret[12:].split("\n")[0] not in kept
        json.loads(kept)
    assert kept_text(f"before {secret} after") == "before (cut) after"


@pytest.mark.parametrize(
    "name", ["password", "Password", "db_password", "api_key", "apiKey", "x-api-key", "token", "access_token", "secret"]
)
@pytest.mark.parametrize("value", ["hunter2", 'quo"te', "back\\slash", "new\nline", "\\", "ünï", "{}"])
def test_fields_with_telling_names_lose_their_value(name: str, value: str) -> None:
    arguments = {name: value, "host": "db"}
    body = {"given": arguments, "arguments": json.dumps(arguments), "input": {"deep": [arguments]}, "last": "x"}
    kept = json.loads(kept_body(plain(body)))
    assert kept["given"] == {name: "(cut)", "host": "db"}
    assert json.loads(kept["arguments"]) == {name: "(cut)", "host": "db"}
    assert kept["input"]["deep"] == [{name: "(cut)", "host": "db"}]
    assert kept["last"] == "x"
    spaced = json.dumps(body, indent=2, ensure_ascii=False).encode()
    assert json.loads(kept_body(spaced)) == kept


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("curl -H 'Authorization: Bearer abcdefgh' x", "curl -H 'Authorization: Bearer (cut)' x"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic (cut)"),
        ("x-api-key: 0123456789", "x-api-key: (cut)"),
        ("Cookie: a=b; session=c", "Cookie: (cut)"),
        ("postgres://me:hunter2@db/x", "postgres://(cut)@db/x"),
        ("export DB_PASSWORD=hunter2 X=1", "export DB_PASSWORD=(cut) X=1"),
        ("AWS_SECRET_ACCESS_KEY='abc/def+1'", "AWS_SECRET_ACCESS_KEY='(cut)'"),
        ("https://h/a.png?x=1&sig=abcd%2F&y=2", "https://h/a.png?x=1&sig=(cut)&y=2"),
        ('{"password" : "hunter2"}', '{"password" : "(cut)"}'),
    ],
)
def test_headers_and_addresses_lose_their_secret(line: str, left: str) -> None:
    assert kept_text(line) == left


@pytest.mark.parametrize(
    "text",
    [
        "a task-oriented-risk-analysis-with-long-words, desk-bound-and-more-of-it",
        "The secret of a good cookie: butter. Authorization: ask first.",
        '{"max_tokens": 5, "token_count": 3, "eos_token": "</s>", "key": "value", "keyboard": "x", "password": null}',
        '{"properties": {"password": {"type": "string"}, "api_key": ["a"]}}',
        "me@example.com, http://host:80/a@b, sk_short, sk-1, eyJ.a.b",
        "token = tokens[0]; secret=compute(x); key=value; MAX_TOKENS=5; TOKEN=x",
        "",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert kept_text(text) == text
    assert kept_body(text.encode()) == text


def test_a_secret_across_the_end_of_what_is_kept_is_not_kept_in_part() -> None:
    for at in range(BODY_MAX - 40, BODY_MAX + 2):
        text = "x" * (at - 1) + " " + SECRETS[0]
        assert "sk_" + SECRETS[0][3:6] not in kept_text(text)
        assert len(kept_text(text)) <= BODY_MAX
        assert len(kept_body(text.encode())) <= BODY_MAX


@given(st.text(alphabet=st.sampled_from('"\\:,{}data;base64@/sk_-eyJ.Bearer pawod'), max_size=200))
def test_no_text_is_too_odd(text: str) -> None:
    kept_text(text)
    kept_body(text.encode())
    kept_body(json.dumps({"password": text, "data": text, "type": "base64"}).encode())


@given(st.text(min_size=1))
def test_any_password_is_cut_out_and_the_rest_can_still_be_read(password: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"password": password, "other": 1}, ensure_ascii=ascii_only).encode(errors="replace")
        assert json.loads(kept_body(body)) == {"password": "(cut)", "other": 1}


class Counted:
    """A pattern, and over how many bytes it was asked to go."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self.looks = 0

    def match(self, data: bytes, at: int) -> re.Match[bytes] | None:
        self.looks += 1
        return self._pattern.match(data, at)


@pytest.mark.parametrize("word", ["eyJ", "xeyJ", "eyJeyJeyJeyJ-", "xsk_", "_sk-", "xinvite-"])
@pytest.mark.parametrize("begins", ["", "x"])
def test_a_long_word_of_many_beginnings_is_gone_through_once(
    word: str, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each beginning looks to the end of the word: 64 KiB of them held a gateway for two seconds."""
    patterns = {name: Counted(getattr(redaction, name)) for name in ("_JWT", "_KEY_REST")}
    for name, pattern in patterns.items():
        monkeypatch.setattr(redaction, name, pattern)
    text = begins + word * 5000
    for kept in (kept_text(text), kept_body(f'{{"a": "{text}"}}'.encode())):
        assert "(cut)" not in kept
    assert sum(pattern.looks for pattern in patterns.values()) <= 4


def test_a_token_behind_a_word_that_is_none_is_cut_out() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlMTIz"
    assert kept_text(f"eyJeyJeyJeyJ {token}") == "eyJeyJeyJeyJ (cut)"
    assert kept_text(f"JJey eyJ. xeyJ {token}") == "JJey eyJ. xeyJ (cut)"
