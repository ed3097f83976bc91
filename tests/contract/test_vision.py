"""Images on the llama.cpp engine, with every way it knows to put them into a prompt: design.md, "Images"."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from llmlb.bus.errors import ContextOverflow, InvalidRequest, ModelLoadFailed
from llmlb.bus.messages.infer import ChatMessage, ContentPart, InferRequest
from llmlb.node.engine.interface import LoadOptions
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support import tiny_models
from tests.support.engine import Driver, Heard, chat
from tests.support.tiny_models import IMAGE_TOKENS, Damage, Projection

KINDS = get_args(Projection)
FORMATS = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "GIF": {}}
LONG = "These are my notes of the day. " * 12
"""With an image, more than the 256 cells after which llama.cpp has a kernel for a single row."""


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Coarse squares of colours that even the smallest encoder tells apart."""
    squares = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def part(content: Image.Image | bytes | str) -> ContentPart:
    if isinstance(content, str):
        return ContentPart(type="text", text=content)
    data = content if isinstance(content, bytes) else saved(content)
    return ContentPart(type="image", data=base64.b64encode(data).decode())


def show(*contents: Image.Image | bytes | str, more: tuple[str, ...] = (), **options: Any) -> InferRequest:
    """A request whose first message is made of images and texts; ``more``: the turns after it."""
    text = "\n".join(content for content in contents if isinstance(content, str))
    request = chat(text, *more, **options)
    shown = ChatMessage(role="user", content=text, parts=tuple(map(part, contents)))
    messages = tuple(
        shown if message == ChatMessage(role="user", content=text) else message for message in request.messages
    )
    return request.model_copy(update={"messages": messages})


def options(model: Path, projector: Path | None, *, context: int = 2048, template: str = "") -> LoadOptions:
    return LoadOptions(
        model="tiny",
        path=str(model),
        template=template or tiny_models.TEMPLATE,
        slots=4,
        context_length=context,
        threads=1,
        projector=None if projector is None else str(projector),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write_text_model(folder / "llama.gguf")
    tiny_models.write_text_model(folder / "qwen2vl.gguf", architecture="qwen2vl")
    for kind in KINDS:
        tiny_models.write_projector(folder / f"{kind}.gguf", kind)
    return folder


def files(folder: Path, kind: str) -> tuple[Path, Path]:
    return folder / ("qwen2vl.gguf" if kind == "qwen2vl_merger" else "llama.gguf"), folder / f"{kind}.gguf"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def driver(folder: Path, kind: str) -> Iterator[Driver]:
    engine = LlamaCppEngine(options(*files(folder, kind)))
    yield Driver(engine)
    engine.close()


@pytest.fixture(scope="module")
def llava(folder: Path) -> Iterator[Driver]:
    engine = LlamaCppEngine(options(*files(folder, "mlp")))
    yield Driver(engine)
    engine.close()


def forget(driver: Driver) -> None:
    """As if nothing had ever been asked."""
    assert isinstance(driver.engine, LlamaCppEngine)
    driver.engine._slots.forget()


def prompt_tokens(answer: Heard) -> int:
    assert answer.usage is not None, answer.error
    return answer.usage.prompt_tokens


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_of_each_format_is_answered(driver: Driver, format: str) -> None:
    answer = driver.one(show(saved(picture(), format, **FORMATS[format]), "What is it?", max_tokens=20))
    assert answer.reason == "length"
    assert len(answer.tokens) == 20
    assert answer.text


def test_the_engine_says_that_it_sees_and_keeps_its_promise(driver: Driver) -> None:
    assert driver.engine.capabilities.vision
    assert driver.engine.capabilities.same_answer


def test_lossless_files_of_the_same_picture_get_the_same_answer(driver: Driver) -> None:
    png, webp = (driver.one(show(saved(picture(), name, **FORMATS[name]), "What is it?")) for name in ("PNG", "WEBP"))
    assert png.tokens == webp.tokens


def test_the_answer_depends_on_the_image_and_on_its_place(driver: Driver) -> None:
    one, other = picture(0), picture(1)
    answers = [
        driver.one(show(*contents)).tokens
        for contents in ((one, "What?"), (other, "What?"), ("What?", one), (one, other, "What?"), (other, one, "What?"))
    ]
    assert len(set(map(tuple, answers))) == len(answers)


def test_the_tokens_of_an_image_are_counted(driver: Driver, kind: str) -> None:
    text = prompt_tokens(driver.one(chat("What is it?", max_tokens=1)))
    one = prompt_tokens(driver.one(show(picture(), "What is it?", max_tokens=1))) - text
    two = prompt_tokens(driver.one(show(picture(), picture(1), "What is it?", max_tokens=1))) - text
    assert two == 2 * one
    if kind == "mlp":
        assert one == IMAGE_TOKENS["mlp"] + 1, "and the line break after it"
    elif kind == "gemma3":
        assert one > IMAGE_TOKENS["gemma3"]
    elif kind == "idefics3":
        assert one > 5 * tiny_models.TILE_TOKENS, "four tiles and the overview"
    else:
        assert one == (64 // 16) * (48 // 16) + 2 + 1, "and two marks around it"


def test_an_image_of_another_shape_takes_other_tokens_where_the_model_keeps_shapes(folder: Path) -> None:
    engine = LlamaCppEngine(options(*files(folder, "qwen2vl_merger")))
    driver = Driver(engine)
    sizes = [prompt_tokens(driver.one(show(picture(size=size), "?", max_tokens=1))) for size in ((64, 64), (320, 160))]
    engine.close()
    assert sizes[1] - sizes[0] == 20 * 10 - 4 * 4


@pytest.mark.parametrize("text", ["What is it?", LONG], ids=["short", "long"])
def test_neighbours_do_not_change_an_answer(driver: Driver, text: str) -> None:
    requests = [show(picture(), text, max_tokens=30), show(text, picture(1, (200, 120)), text, max_tokens=40)]
    alone = [driver.one(request).tokens for request in requests]
    together = driver.run([chat("Hello there", max_tokens=60), *requests])
    assert [answer.tokens for answer in together[1:]] == alone
    running = driver.submit(requests[1])
    driver.until(lambda: len(driver.heard(running).tokens) > 5)
    late = driver.submit(requests[0])
    driver.until(lambda: driver.heard(running).over and driver.heard(late).over)
    assert [driver.heard(late).tokens, driver.heard(running).tokens] == alone


@pytest.mark.parametrize("text", ["What is it?", LONG], ids=["short", "long"])
@pytest.mark.parametrize("after", [1, 50])
def test_an_answer_that_is_resumed_is_the_same(driver: Driver, text: str, after: int) -> None:
    contents = (picture(1, (300, 300)), text)
    whole = driver.one(show(*contents))
    forget(driver)
    rest = driver.one(show(*contents, continuation=tuple(whole.tokens[:after])))
    assert [*whole.tokens[:after], *rest.tokens] == whole.tokens
    assert whole.text.endswith(rest.text)
    assert prompt_tokens(rest) == prompt_tokens(whole)
    assert rest.usage is not None
    assert rest.usage.completion_tokens == 64


def test_the_turn_after_an_image_reuses_the_text_before_it(driver: Driver) -> None:
    system = "You are a patient teacher. " * 8
    first = driver.one(show(picture(), "What is it?", system=system))
    turns = (first.text, "And then?")
    second = driver.one(show(picture(), "What is it?", more=turns, system=system))
    forget(driver)
    fresh = driver.one(show(picture(), "What is it?", more=turns, system=system))
    assert second.usage is not None
    assert fresh.usage is not None
    assert second.usage.cached_tokens >= 128
    assert fresh.usage.cached_tokens == 0
    assert prompt_tokens(second) > prompt_tokens(first)
    assert second.tokens == fresh.tokens


def test_an_image_in_a_later_turn_is_seen(driver: Driver) -> None:
    def later(image: Image.Image) -> list[int]:
        request = chat("Hello", "Good day", "What is it?")
        last = ChatMessage(role="user", content="What is it?", parts=(part("What is it?"), part(image)))
        return driver.one(request.model_copy(update={"messages": (*request.messages[:2], last)})).tokens

    assert later(picture()) == later(picture())
    assert later(picture()) != later(picture(1))


def test_more_images_than_slots_are_all_answered(driver: Driver) -> None:
    requests = [show(picture(seed), "What is it?", max_tokens=12) for seed in range(6)]
    alone = [driver.one(request).tokens for request in requests]
    assert [answer.tokens for answer in driver.run(requests)] == alone


def test_a_request_that_is_cancelled_among_its_images_frees_its_slot(driver: Driver) -> None:
    request = show(LONG, picture(), "and", picture(1), "What is it?")
    whole = driver.one(request).tokens
    for steps in (0, 1, 3, 4, 6):
        handle = driver.submit(request)
        for _ in range(steps):
            driver.step()
        assert driver.engine.cancel(handle)
        assert not driver.engine.cancel(handle)
    assert isinstance(driver.engine, LlamaCppEngine)
    assert len(driver.engine._slots.free) == driver.engine.slots
    assert driver.one(request).tokens == whole


def test_nothing_of_a_prompt_is_written_to_the_error_output(driver: Driver, capfd: pytest.CaptureFixture[str]) -> None:
    driver.one(show(picture(), "my secret"))
    assert capfd.readouterr() == ("", "")


def test_a_model_without_a_projector_says_that_it_has_no_vision(folder: Path) -> None:
    engine = LlamaCppEngine(options(folder / "llama.gguf", None))
    driver = Driver(engine)
    assert not engine.capabilities.vision
    with pytest.raises(InvalidRequest, match="vision") as caught:
        driver.submit(show(picture(), "What is it?"))
    assert caught.value.param == "messages"
    assert driver.one(chat("What is it?")).reason == "length"
    engine.close()


def test_an_image_that_is_none_is_an_invalid_request_and_harms_nobody(llava: Driver) -> None:
    good = llava.one(show(picture(), "What is it?")).tokens
    bad = {
        "a text": b"This is a text.",
        "empty": b"",
        "half": saved(picture(size=(300, 300)), "JPEG")[:500],
        "corrupt": saved(picture())[:60] + bytes(100) + saved(picture())[160:],
        "a bomb": saved(Image.new("1", (10_000, 10_000))),
        "another format": saved(picture(), "BMP"),
    }
    for name, data in bad.items():
        with pytest.raises(InvalidRequest) as caught:
            llava.submit(show(picture(), data, "What is it?"))
        assert caught.value.param == "messages.0.content", name
    request = show(picture(), "What is it?")
    broken = ChatMessage(role="user", content="", parts=(ContentPart(type="image", data="%%%"),))
    with pytest.raises(InvalidRequest, match="base64"):
        llava.submit(request.model_copy(update={"messages": (broken,)}))
    assert llava.one(request).tokens == good


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 700), (9000, 2)])
def test_an_image_of_an_odd_shape_is_answered_or_refused(driver: Driver, kind: str, size: tuple[int, int]) -> None:
    request = show(Image.new("RGB", size, "green"), "What is it?", max_tokens=4)
    if kind == "idefics3" and size != (1, 1):  # its tiles would have no width
        with pytest.raises(InvalidRequest, match="can't be prepared"):
            driver.submit(request)
    else:
        assert len(driver.one(request).tokens) == 4


@pytest.mark.parametrize("template", [tiny_models.TEMPLATE, "<s>" + tiny_models.TEMPLATE], ids=["without", "with"])
def test_the_begin_token_stands_once_at_the_start(folder: Path, tmp_path: Path, template: str) -> None:
    model = tiny_models.write_text_model(tmp_path / "begin.gguf", begin=True)
    engine = LlamaCppEngine(options(model, folder / "mlp.gguf", template=template))
    assert engine._projector is not None
    prompt = engine._projector.prompt(engine._prompts.render(show(picture(), "What is it?")).pieces)
    first = prompt.parts[0]
    prompt.close()
    begin = tiny_models.CONTROLS.index("<s>")
    assert isinstance(first, list)
    assert first[0] == begin
    assert first.count(begin) == 1
    driver = Driver(engine)
    text = prompt_tokens(driver.one(chat("What is it?", max_tokens=1)))
    seen = prompt_tokens(driver.one(show(picture(), "What is it?", max_tokens=1)))
    engine.close()
    assert seen == text + IMAGE_TOKENS["mlp"] + 1


def test_images_that_do_not_fit_are_a_context_overflow(folder: Path, kind: str) -> None:
    """With M-RoPE too, where an image takes few positions but as many cells as it has tokens."""
    engine = LlamaCppEngine(options(*files(folder, kind), context=512))
    driver = Driver(engine)
    images = [picture(seed, (256, 256)) for seed in range(9)]
    with pytest.raises(ContextOverflow, match="512") as caught:
        driver.submit(show(*images, "What is it?"))
    assert caught.value.param == "messages"
    fits = driver.one(show(picture(0, (272, 272)), LONG[:150], max_tokens=None))
    assert fits.error is None
    assert fits.reason == "length"
    assert fits.usage is not None
    assert fits.usage.prompt_tokens + fits.usage.completion_tokens == 512
    engine.close()


def test_an_image_too_large_for_a_model_that_reads_it_in_one_call_is_refused(folder: Path, tmp_path: Path) -> None:
    """Not so llama.cpp: it ends the process."""
    projector = tiny_models.write_projector(tmp_path / "large.gguf", "gemma3", image_size=512)
    engine = LlamaCppEngine(options(folder / "llama.gguf", projector))
    driver = Driver(engine)
    with pytest.raises(InvalidRequest, match="1024 tokens is too large"):
        driver.submit(show(picture(), "What is it?"))
    assert driver.one(chat("What is it?")).reason == "length"
    engine.close()


def test_a_projector_whose_marks_the_model_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    data = (folder / "llama.gguf").read_bytes().replace(b"<global-img>", b"<another-im>")
    (tmp_path / "other.gguf").write_bytes(data)
    engine = LlamaCppEngine(options(tmp_path / "other.gguf", folder / "idefics3.gguf"))
    with pytest.raises(InvalidRequest, match="does not know"):
        Driver(engine).submit(show(picture(), "What is it?"))
    engine.close()


def refused(folder: Path, projector: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="projector of tiny") as caught:
        LlamaCppEngine(options(folder / "llama.gguf", projector))
    assert caught.value.detail == str(projector)


@pytest.mark.parametrize("size", [0, 3, 20, 100, 0.05, 0.5, 0.99, -40, -1])
def test_a_projector_that_is_cut_off_fails_to_load(folder: Path, tmp_path: Path, size: float) -> None:
    refused(folder, tiny_models.truncated(folder / "mlp.gguf", tmp_path / "cut.gguf", size))


@pytest.mark.parametrize("what", ["magic", "version", "counts", "key", "tensor offsets"])
def test_a_projector_that_is_damaged_fails_to_load(folder: Path, tmp_path: Path, what: Damage) -> None:
    refused(folder, tiny_models.corrupted(folder / "idefics3.gguf", tmp_path / "bad.gguf", what))


def test_a_projector_of_another_model_fails_to_load(folder: Path, tmp_path: Path) -> None:
    refused(folder, tiny_models.write_projector(tmp_path / "wide.gguf", "mlp", width=96))
    refused(folder, folder / "llama.gguf")
    refused(folder, tmp_path / "missing.gguf")
    refused(folder, tmp_path)


@pytest.mark.parametrize("size", [0, 3, 100, 0.05, 0.5, -1])
def test_a_model_that_is_cut_off_fails_to_load(folder: Path, tmp_path: Path, size: float) -> None:
    cut = tiny_models.truncated(folder / "llama.gguf", tmp_path / "cut.gguf", size)
    with pytest.raises(ModelLoadFailed, match="could not load tiny"):
        LlamaCppEngine(options(cut, None))


@pytest.mark.parametrize("what", get_args(Damage))
def test_a_model_that_is_damaged_fails_to_load(folder: Path, tmp_path: Path, what: Damage) -> None:
    bad = tiny_models.corrupted(folder / "llama.gguf", tmp_path / "bad.gguf", what)
    with pytest.raises(ModelLoadFailed, match="could not load tiny"):
        LlamaCppEngine(options(bad, None))
