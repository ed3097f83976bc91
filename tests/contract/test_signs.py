"""Nobody is silent for long: an answer held back, prompts side by side, vectors and images say that they go on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, ContentPart, InferRequest, ResponseFormat, Tool
from llmlb.node.engine import llama_cpp as engines
from llmlb.node.engine import signs
from llmlb.node.engine.interface import Handle, LoadOptions
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support import tiny_models
from tests.support.engine import Driver, chat, smollm2_options

WRITE = Tool(
    name="write",
    parameters=json.dumps(
        {"type": "object", "properties": {"s": {"type": "string", "minLength": 300}}, "required": ["s"]}
    ),
)


class Listening(Driver):
    """A driver that is told of what happens within calls, too."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        super().__init__(engine, tested=False)
        self.within: Callable[[], None] = lambda: None
        self.alives = 0
        self.handles: list[Handle] = []

    def alive(self) -> None:
        self.alives += 1
        self.within()

    def submit(self, request: InferRequest) -> Handle:
        handle = super().submit(request)
        self.handles.append(handle)
        return handle

    def cancel_all(self) -> None:
        for handle in self.handles:
            self.engine.cancel(handle)

    def told(self, handle: Handle) -> int:
        """How often it said anything."""
        heard = self.heard(handle)
        return len(heard.progress) + len(heard.pieces) + len(heard.vectors)


@pytest.fixture(scope="module")
def smollm2() -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine(smollm2_options(slots=2, context=512))
    yield engine
    engine.close()


@pytest.fixture
def driver(smollm2: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """Silence is not borne at all, and prompts are computed in the smallest pieces."""
    monkeypatch.setattr(engines, "BATCH", 64)
    monkeypatch.setattr(signs, "SILENT_S", 0.0)
    monkeypatch.setattr(signs, "LOOK_S", 0.0)
    driver = Listening(smollm2)
    yield driver
    driver.cancel_all()


def embedding(*inputs: str) -> InferRequest:
    return chat("").model_copy(update={"kind": "embedding", "messages": (), "inputs": inputs})


def test_a_call_that_is_held_back_until_it_is_whole_says_that_it_goes_on(driver: Listening) -> None:
    handle = driver.submit(chat("Write.", tools=(WRITE,), tool_choice="required", max_tokens=60))
    silent = 0
    while not driver.heard(handle).over:
        before = driver.told(handle)
        driver.step()
        silent += driver.told(handle) == before and not driver.heard(handle).over
    heard = driver.heard(handle)
    assert heard.error is None
    assert heard.reason == "length", "the call was not whole yet"
    assert not silent
    assert {(phase, done <= total) for phase, done, total in heard.progress} <= {("queued", True), ("prefill", True)}


def test_prompts_side_by_side_and_those_that_wait_all_say_so_at_each_step(driver: Listening) -> None:
    prompts = [chat(f"{number} " + "word " * 200, max_tokens=1) for number in range(3)]
    handles = [driver.submit(prompt) for prompt in prompts]
    for _ in range(3):
        before = [driver.told(handle) for handle in handles]
        driver.step()
        now = [driver.told(handle) for handle in handles]
        assert all(after > said for said, after in zip(before, now, strict=True)), (before, now)


def test_vectors_and_long_prompts_take_turns_and_neither_is_silent(driver: Listening) -> None:
    prompt = driver.submit(chat("other " * 300, max_tokens=1))
    driver.step()
    vectors = driver.submit(embedding("one", "two"))
    while not driver.heard(vectors).over:
        before = driver.told(prompt), driver.told(vectors)
        driver.step()
        assert driver.told(prompt) > before[0]
        assert driver.told(vectors) > before[1]
    assert not driver.heard(prompt).over, "the vectors did not wait for the prompt"


def test_others_hear_something_within_the_call_that_embeds_a_long_text(driver: Listening) -> None:
    answer = driver.submit(chat("Hello", max_tokens=200))
    driver.until(lambda: driver.heard(answer).tokens)
    vectors = driver.submit(embedding("word " * 150))
    said: list[int] = []
    driver.within = lambda: said.append(driver.told(answer))
    driver.until(lambda: driver.heard(vectors).over)
    assert len(set(said)) > 2, "again and again in one call"
    driver.engine.cancel(answer)


def test_a_cancelled_embedding_ends_within_its_call(driver: Listening) -> None:
    whole = driver.submit(embedding("word " * 150))
    driver.until(lambda: driver.heard(whole).over)
    vectors = driver.submit(embedding("word " * 150))
    driver.within = lambda: driver.engine.interrupt(vectors)
    driver.step()
    assert not driver.heard(vectors).vectors
    assert driver.engine.cancel(vectors)
    driver.within = lambda: None
    again = driver.submit(embedding("word " * 150))
    driver.until(lambda: driver.heard(again).over)
    assert driver.heard(again).vectors == driver.heard(whole).vectors


def test_a_schema_that_nothing_fulfils_ends_its_own_answer_only(driver: Listening) -> None:
    beside = driver.submit(chat("Hello", max_tokens=20))
    schema = json.dumps({"type": "string", "pattern": "^a[^\\x00-\\U0010FFFF]$"})
    stuck = driver.submit(chat("Hello", response_format=ResponseFormat(type="json_schema", json_schema=schema)))
    driver.until(lambda: driver.heard(stuck).over and driver.heard(beside).over)
    assert isinstance(driver.heard(stuck).error, InvalidRequest)
    assert driver.heard(beside).error is None


def test_an_image_says_that_it_goes_on_while_it_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.write_text_model(tmp_path / "llama.gguf")
    tiny_models.write_projector(tmp_path / "mmproj.gguf")
    options = LoadOptions(
        model="tiny",
        path=str(model),
        template=tiny_models.TEMPLATE,
        slots=1,
        context_length=512,
        threads=1,
        projector=str(tmp_path / "mmproj.gguf"),
    )
    monkeypatch.setattr(signs, "SILENT_S", 0.0)
    monkeypatch.setattr(signs, "LOOK_S", 0.0)
    engine = LlamaCppEngine(options)
    driver = Listening(engine)
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    part = ContentPart(type="image", data=base64.b64encode(file.getvalue()).decode())
    text = ContentPart(type="text", text="what is it")
    turn = ChatMessage(role="user", content="what is it", parts=(part, text))
    handle = driver.submit(chat("x", max_tokens=4).model_copy(update={"messages": (turn,)}))
    driver.until(lambda: driver.heard(handle).over)
    assert driver.heard(handle).error is None
    assert driver.alives
    engine.close()
