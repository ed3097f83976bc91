"""Secrets in long texts: what hyperscan points at leads to the same cuts as Python's own search."""

from __future__ import annotations

import json
import os
import platform
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlb.router import redaction
from llmlb.router.redaction import kept_body, kept_text, without_secrets
from llmlb.router.secret_marks import HITS_MAX, LEAST_BYTES, SecretMarks

ROOT = Path(__file__).parents[3]
PIECES = [
    *(
        "sk_",
        "sk-",
        "hf_",
        "ghp_",
        "github_pat_",
        "_pat_",
        "xoxb-",
        "glpat-",
        "invite-",
        "a" * 16,
        "A1_-" * 4,
        "Ab3" * 7,
    ),
    *("eyJ" + "h" * 9, ".", "x" * 9, "-----BEGIN ", "RSA ", "PRIVATE KEY", "-----END ", "-----", "PRIVATE K"),
    *(
        "password",
        "Password",
        "API_KEY",
        "apiKey",
        "api-key",
        "token",
        "access_token",
        "pwd",
        "pin",
        "cookie",
        "SECRET",
    ),
    *("authorization", "Authorization", "bearer ", "Basic ", "credentials", "x-api-key", "TOKEN", "?sig", "&key", "="),
    *(
        "X-Amz-Signature",
        "data:image/png;base64,",
        "base64",
        "data",
        ",",
        "://",
        "user",
        "hunter2",
        "@",
        ":",
        ": ",
        " : ",
    ),
    *(
        '"',
        '\\"',
        '\\\\"',
        "\\",
        "\\n",
        "\n",
        "\r",
        "\t",
        "\v",
        " ",
        "  ",
        "{",
        "}",
        "'",
        "/",
        "a",
        "0",
        "1",
        "é",
        "null",
    ),
]
"""What the patterns are made of, so that what is drawn comes near to a secret often."""
FILLING = "The quick brown fox has no secret to tell. " * (LEAST_BYTES // 40 + 1)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if (platform.system(), platform.machine()) not in {("Linux", "x86_64"), ("Darwin", "arm64")}:
        pytest.skip("there is no wheel of hyperscan for this platform: Python searches")
    if not redaction.marks.wait(60):
        pytest.fail("hyperscan is not installed, or can't run here")


def by_python(data: bytes) -> list[tuple[int, int]]:
    """The same search with no place known before."""
    nowhere = SecretMarks(())
    found, redaction.marks = redaction.marks, nowhere
    nowhere.find = lambda data: None  # type: ignore[method-assign]
    try:
        return sorted(redaction._secrets(data, None))
    finally:
        redaction.marks = found


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_the_cuts_are_those_of_a_search_without_it(text: str) -> None:
    data = (FILLING + text).encode()
    marks = redaction.marks.find(data)
    assert marks is not None
    assert sorted(redaction._secrets(data, marks)) == by_python(data)


def test_the_cuts_of_our_own_code_and_documents_are_the_same() -> None:
    looked_at = 0
    for path in [*ROOT.glob("docs/*.*"), *ROOT.glob("router/**/*.py"), *ROOT.glob("tests/unit/*/*.py")]:
        data = json.dumps({"content": path.read_text()}).encode()[: 64 * 1024]
        for form in (data, path.read_bytes()[: 64 * 1024]):
            if (marks := redaction.marks.find(form)) is not None:
                looked_at += 1
                assert sorted(redaction._secrets(form, marks)) == by_python(form), path
    assert looked_at > 50


def test_random_bytes_are_cut_the_same() -> None:
    draw = random.Random(os.environ.get("PYTEST_SEED", "1"))
    for _ in range(30):
        data = b"".join(draw.choice((draw.randbytes(5), draw.choice(PIECES).encode())) for _ in range(1000))
        marks = redaction.marks.find(data)
        assert marks is not None
        assert sorted(redaction._secrets(data, marks)) == by_python(data)


def test_a_long_body_and_a_long_answer_lose_their_secrets() -> None:
    secret = "sk_" + "q" * 30
    body = json.dumps({"password": "hunter2", "messages": [FILLING, secret], "url": "http://me:pw@host/"})
    kept = json.loads(kept_body(body.encode()))
    assert kept == {"password": "(cut)", "messages": [FILLING, "(cut)"], "url": "http://(cut)@host/"}
    assert kept_text(FILLING + secret) == FILLING + "(cut)"
    image = "data:image/png;base64," + "A" * 4000
    assert json.loads(kept_body(json.dumps({"url": image, "text": FILLING}).encode())) == {
        "url": "data:image/png;base64,(cut)",
        "text": FILLING,
    }


@pytest.mark.parametrize("piece", ["@", "sk_" + "a" * 8, '"password":', "://", "data:", '"token": 1, ', "PRIVATE K"])
def test_a_text_of_nothing_but_marks_is_left_to_the_other_search(piece: str) -> None:
    data = (piece * (2 * HITS_MAX)).encode()
    marks = redaction.marks.find(data)
    assert marks is None or piece == "@"
    assert b"".join(without_secrets(data).split()) == b"".join(
        redaction._without(data, iter(by_python(data)), len(data)).split()
    )


def test_short_texts_are_not_searched_with_it() -> None:
    assert redaction.marks.find(b"x" * (LEAST_BYTES - 1)) is None
    assert redaction.marks.find(b"x" * LEAST_BYTES) is not None


def test_two_threads_get_the_right_answer_or_none() -> None:
    data = (FILLING * 20 + "sk_" + "a" * 20).encode()
    right, wrong = [len(data) - 20 - 1], []

    def search() -> None:
        for _ in range(200):
            marks = redaction.marks.find(data)
            if marks is not None and marks[b"_"] != right:
                wrong.append(marks)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("llmlb.router.secret_marks.importlib.import_module", missing)
    marks = SecretMarks(((b"_", 1, b"_", True),))
    assert not marks.wait(10)
    assert marks.find(b"_" * LEAST_BYTES) is None


def test_patterns_that_do_not_compile_are_no_failure() -> None:
    marks = SecretMarks(((b"(", 1, b"(", True),))
    assert not marks.wait(10)
    assert marks.find(b"(" * LEAST_BYTES) is None
