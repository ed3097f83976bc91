"""Paths of images in a prompt: which are found, and what is said of those that can't be sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.cli.repl_images import begins_with_image, found, read_prompt
from llmlb.cli.repl_session import ImageData

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
MOST = 7 * 1024 * 1024


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder and the home, with some images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pics").mkdir()
    for name in ("cat.png", "my cat.png", "pics/dog.JPG", "it's.png", "a(1).png", "日本.webp"):
        data = b"RIFF\0\0\0\0WEBP" if name.endswith("webp") else b"\xff\xd8\xff" if name.endswith("JPG") else PNG
        (tmp_path / name).write_bytes(data)
    return tmp_path


def shape(text: str) -> list[str]:
    """The parts of a prompt, an image as its type."""
    return [part.media_type if isinstance(part, ImageData) else part for part in read_prompt(text, MOST).parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{here}/cat.png この画像について説明して", ["image/png", " この画像について説明して"]),
        ("what is cat.png", ["what is ", "image/png"]),
        ("what is ./pics/dog.JPG?", ["what is ", "image/jpeg", "?"]),
        ("pics/dog.JPG and cat.png", ["image/jpeg", " and ", "image/png"]),
        ("~/cat.png", ["image/png"]),
        ('"my cat.png" who?', ["image/png", " who?"]),
        ("'{here}/my cat.png' who?", ["image/png", " who?"]),
        ("{here}/my\\ cat.png who?", ["image/png", " who?"]),
        ("{here}/my cat.png who?", ["image/png", " who?"]),
        ("./my cat.png and ./cat.png", ["image/png", " and ", "image/png"]),
        ('"it\'s.png" (cat.png)', ["image/png", " (", "image/png", ")"]),
        ("{here}/a\\(1\\).png", ["image/png"]),
        ("日本.webp\nwhat?", ["image/webp", "\nwhat?"]),
        ("one line\ncat.png", ["one line\n", "image/png"]),
        ("a sentence that ends in cat.png.", ["a sentence that ends in ", "image/png", "."]),
    ],
)
def test_images_are_taken_out_of_the_text(here: Path, text: str, parts: list[str]) -> None:
    assert shape(text.format(here=here)) == parts


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "what is a .png file?",
        "https://example.org/cat.png",
        "use logo.png and icon.png there",
        'src="/cat.png"',
        "cat.png.txt",
        "cat.pngs",
        "a 'quoted' word and \"another",
        "",
    ],
)
def test_other_text_stays_text(here: Path, text: str) -> None:
    prompt = read_prompt(text, MOST)
    assert prompt.parts == ([text] if text else [])
    assert prompt.notes == []


def test_each_image_is_named(here: Path) -> None:
    assert read_prompt("cat.png ./pics/dog.JPG", MOST).notes == [
        "Added image 'cat.png'",
        "Added image './pics/dog.JPG'",
    ]


def test_a_path_that_is_not_there_is_said_and_sent_as_text(here: Path) -> None:
    prompt = read_prompt("/no/such.png what?", MOST)
    assert prompt.parts == ["/no/such.png what?"]
    assert prompt.notes == ["There is no file '/no/such.png': sent as text."]


def test_what_is_not_an_image_or_too_large_or_unreadable_is_one_line(here: Path) -> None:
    (here / "text.png").write_text("hello")
    (here / "empty.png").write_bytes(b"")
    (here / "large.png").write_bytes(PNG + bytes(3_000_000))
    (here / "folder.png").mkdir()
    os.mkfifo(here / "pipe.png")
    for name, says in (
        ("text.png", "'text.png' is not an image: PNG, JPEG, WebP and GIF are"),
        ("empty.png", "is not an image"),
        ("large.png", "the image 'large.png' is too large: 3 MB, and 1 MB is the most"),
        ("folder.png", "is not a file"),
        ("pipe.png", "is not a file"),
    ):
        with pytest.raises(InvalidRequest) as error:
            read_prompt(f"what is {name}?", 2_000_000)
        assert says in error.value.message
        assert "\n" not in error.value.message


def test_a_line_that_begins_with_an_image_is_no_command(here: Path) -> None:
    assert begins_with_image(f"{here}/my cat.png who?")
    assert not begins_with_image("/clear")
    assert not begins_with_image("/no such.png")


def test_strange_names_do_no_harm(here: Path) -> None:
    for text in ("a\0b.png", "/" + "x" * 10_000 + ".png", "~nobody-has-this-name/cat.png", "\udc80.png", "'" * 50):
        read_prompt(text, MOST)
    assert found("\\.png") == [] or read_prompt("\\.png", MOST).parts
