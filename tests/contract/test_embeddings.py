"""Vectors of the llama.cpp engine: equal to llama-cpp-python's own, and no burden on answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from llmlb.bus.errors import ContextOverflow, InvalidRequest
from llmlb.bus.messages.infer import InferRequest
from llmlb.node.engine.interface import LoadOptions
from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support import tiny_models
from tests.support.engine import Driver, Heard, chat, smollm2_options

TEXTS = ("The cat sleeps.", "A dog runs in the house and the cat runs too!", "Ünïcödé 日本語 🎉", "x")
WORDS = ("the cat sleeps", "a dog runs in the house", "zebra, 42!", "dog")
Floats = npt.NDArray[np.float32]


def embed(*inputs: str | tuple[int, ...], truncate: bool = False) -> InferRequest:
    fields = {"kind": "embedding", "messages": (), "inputs": inputs, "truncate": truncate}
    return chat("").model_copy(update=fields)


def vectors(heard: Heard) -> list[Floats]:
    assert heard.error is None
    assert sorted(heard.vectors) == list(range(len(heard.vectors)))
    return [np.frombuffer(heard.vectors[index], "<f4") for index in range(len(heard.vectors))]


def alike(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1e-5)


def reference(path: str, texts: tuple[str, ...], **options: Any) -> list[Floats]:
    """What llama-cpp-python makes of each text by itself."""
    model = llama_cpp.Llama(path, embedding=True, n_ctx=512, n_batch=512, n_threads=1, verbose=False, **options)
    made = [np.asarray(model.embed(text, normalize=True), dtype=np.float32) for text in texts]
    model.close()
    return made


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Driver]:
    engine = LlamaCppEngine(smollm2_options(slots=3, context=512))
    yield Driver(engine, tested=False)
    engine.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A model made to answer."""
    path = tiny_models.write_text_model(tmp_path_factory.mktemp("models") / "llama.gguf")
    template = tiny_models.TEMPLATE
    options = LoadOptions("tiny", str(path), template=template, slots=3, context_length=512, threads=1)
    engine = LlamaCppEngine(options)
    yield Driver(engine)
    engine.close()


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_bert(tmp_path_factory.mktemp("models") / "bert.gguf")


def bert_options(path: Path) -> LoadOptions:
    return LoadOptions(model="tiny-bert", path=str(path), template=None, slots=4, context_length=2048, threads=1)


@pytest.fixture(scope="module")
def bert(bert_path: Path) -> Iterator[Driver]:
    engine = LlamaCppEngine(bert_options(bert_path))
    yield Driver(engine)
    engine.close()


def tokens_of(driver: Driver, text: str) -> tuple[int, ...]:
    assert isinstance(driver.engine, LlamaCppEngine)
    return tuple(driver.engine.model.tokenize(text, add_special=True, parse_special=False))


@pytest.fixture(params=["driver", "bert"])
def either(request: pytest.FixtureRequest) -> tuple[Driver, tuple[str, ...]]:
    """A model made to answer and one made for vectors, with texts that they know."""
    return request.getfixturevalue(request.param), TEXTS if request.param == "driver" else WORDS


def test_vectors_of_a_chat_model_are_those_of_llama_cpp_python_by_mean(smollm2: Driver) -> None:
    path = smollm2_options().path
    expected = reference(path, TEXTS, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    for vector, other in zip(vectors(smollm2.one(embed(*TEXTS))), expected, strict=True):
        assert alike(vector, other)


@pytest.mark.parametrize("pooling", ["MEAN", "CLS", "LAST"])
def test_vectors_of_an_embedding_model_are_pooled_as_it_says(tmp_path: Path, pooling: str) -> None:
    path = tiny_models.write_bert(tmp_path / "bert.gguf", pooling=gguf.PoolingType[pooling])
    engine = LlamaCppEngine(bert_options(path))
    made = vectors(Driver(engine).one(embed(*WORDS)))
    engine.close()
    for vector, other in zip(made, reference(str(path), WORDS), strict=True):
        assert alike(vector, other)
    by_mean = reference(str(path), WORDS, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    assert alike(made[0], by_mean[0]) == (pooling == "MEAN")


def test_an_embedding_model_that_names_no_pooling_is_pooled_by_mean(tmp_path: Path) -> None:
    path = tiny_models.write_bert(tmp_path / "bert.gguf", pooling=gguf.PoolingType.NONE)
    engine = LlamaCppEngine(bert_options(path))
    made = vectors(Driver(engine).one(embed(*WORDS)))
    engine.close()
    expected = reference(str(path), WORDS, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    assert all(alike(vector, other) for vector, other in zip(made, expected, strict=True))


def test_a_batch_gives_the_same_vectors_as_one_by_one(either: tuple[Driver, tuple[str, ...]]) -> None:
    driver, texts = either
    together = driver.one(embed(*texts))
    singly = [vectors(driver.one(embed(text)))[0] for text in texts]
    for vector, other in zip(vectors(together), singly, strict=True):
        assert (vector == other).all()
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(len(tokens_of(driver, text)) for text in texts)
    assert together.usage.completion_tokens == 0
    assert together.reason == "stop"


def test_vectors_have_length_one_and_tell_texts_apart(either: tuple[Driver, tuple[str, ...]]) -> None:
    driver, texts = either
    made = vectors(driver.one(embed(*texts)))
    for vector in made:
        assert float((vector * vector).sum()) == pytest.approx(1, abs=1e-5)
        assert sum(alike(vector, other) for other in made) == 1


def test_token_ids_give_the_vector_of_their_text(either: tuple[Driver, tuple[str, ...]]) -> None:
    driver, texts = either
    by_text = vectors(driver.one(embed(*texts)))
    by_tokens = vectors(driver.one(embed(*(tokens_of(driver, text) for text in texts))))
    assert all((one == other).all() for one, other in zip(by_text, by_tokens, strict=True))


@pytest.mark.parametrize("model", ["driver", "bert"])
def test_an_input_that_is_too_long_is_a_context_overflow_or_cut_at_its_end(
    model: str, request: pytest.FixtureRequest
) -> None:
    driver = request.getfixturevalue(model)
    limit = 512 if model == "driver" else 128
    text = "the cat sleeps in the house " * 100
    tokens = tokens_of(driver, text)
    assert len(tokens) > limit
    for item in (text, tokens):
        with pytest.raises(ContextOverflow, match=f"input 1 has {len(tokens)} tokens; .* takes {limit}") as caught:
            driver.submit(embed("cat", item))
        assert caught.value.param == "input.1"
        cut, exact = driver.run([embed(item, truncate=True), embed(tokens[:limit])])
        assert (vectors(cut)[0] == vectors(exact)[0]).all()
        assert cut.usage is not None
        assert cut.usage.prompt_tokens == limit
    assert len(vectors(driver.one(embed("cat", truncate=True)))) == 1


def test_what_can_not_be_embedded_is_an_invalid_request(either: tuple[Driver, tuple[str, ...]]) -> None:
    driver, texts = either
    assert isinstance(driver.engine, LlamaCppEngine)
    vocabulary = driver.engine.model.vocabulary
    for item in ((), (vocabulary,), (1, -1), (2**31,)):
        with pytest.raises(InvalidRequest) as caught:
            driver.submit(embed(texts[0], item))
        assert caught.value.param == "input.1"
    assert len(vectors(driver.one(embed((vocabulary - 1,))))) == 1


def test_an_empty_text_is_refused_where_it_has_no_tokens(driver: Driver, bert: Driver) -> None:
    with pytest.raises(InvalidRequest, match="must not be empty"):
        driver.submit(embed("cat", ""))
    assert len(vectors(bert.one(embed("")))) == 1, "the marks around it are tokens"


def test_text_that_looks_like_a_control_token_is_text(driver: Driver) -> None:
    marked, control = vectors(driver.one(embed("<|im_start|>", (1,))))
    assert tokens_of(driver, "<|im_start|>") != (1,)
    assert not alike(marked, control)


def test_vectors_beside_an_answer_change_neither(smollm2: Driver) -> None:
    driver = smollm2
    question = chat("Write a long story about a fisherman and the sea.", max_tokens=30)
    alone = driver.one(question)
    quiet = vectors(driver.one(embed(*TEXTS)))
    answer = driver.submit(question)
    driver.until(lambda: len(driver.heard(answer).tokens) > 3)
    made = driver.submit(embed(*TEXTS))
    driver.until(lambda: driver.heard(made).over)
    assert not driver.heard(answer).over, "they were made in between"
    driver.until(lambda: driver.heard(answer).over)
    assert driver.heard(answer).tokens == alone.tokens
    assert all((one == other).all() for one, other in zip(vectors(driver.heard(made)), quiet, strict=True))


def test_an_answer_goes_on_while_a_large_batch_is_embedded(driver: Driver) -> None:
    answer = driver.submit(chat("Write a long story about a fisherman and the sea.", max_tokens=40))
    made = driver.submit(embed(*(TEXTS[0] for _ in range(200))))
    driver.until(lambda: driver.heard(answer).over)
    assert not driver.heard(made).over
    assert len(driver.heard(made).vectors) > 10
    assert driver.engine.cancel(made)


def test_a_cancelled_request_sends_nothing_more(either: tuple[Driver, tuple[str, ...]]) -> None:
    driver, texts = either
    first, second = driver.submit(embed(*texts)), driver.submit(embed(*texts))
    driver.until(lambda: len(driver.heard(first).vectors) == 2)
    assert driver.engine.cancel(first)
    assert not driver.engine.cancel(first)
    driver.until(lambda: driver.heard(second).over)
    assert len(driver.heard(first).vectors) == 2
    assert not driver.heard(first).over
    assert len(vectors(driver.heard(second))) == len(texts)
    third = driver.submit(embed(*texts))
    assert driver.engine.cancel(third), "before it began"
    assert not driver.step()


def test_requests_for_vectors_are_answered_in_the_order_they_came(bert: Driver) -> None:
    handles = [bert.submit(embed(*WORDS)) for _ in range(3)]
    for number, handle in enumerate(handles):
        bert.until(lambda handle=handle: bert.heard(handle).over)  # type: ignore[misc]
        assert [bert.heard(other).over for other in handles] == [True] * (number + 1) + [False] * (2 - number)


def test_a_model_that_ranks_says_that_it_makes_no_vectors(tmp_path: Path) -> None:
    path = tiny_models.write_bert(tmp_path / "bert.gguf", pooling=gguf.PoolingType.RANK)
    engine = LlamaCppEngine(bert_options(path))
    heard = Driver(engine).one(embed("the cat"))
    engine.close()
    assert isinstance(heard.error, InvalidRequest)
    assert heard.error.param == "model"


def test_an_embedding_model_says_that_it_can_not_answer(bert: Driver) -> None:
    capabilities = bert.engine.capabilities
    assert (capabilities.chat, capabilities.embedding, capabilities.tools) == (False, True, False)
    for request in (chat("Hello"), chat("Hello").model_copy(update={"kind": "completion", "prompt": "Hello"})):
        with pytest.raises(InvalidRequest, match="embedding model") as caught:
            bert.submit(request)
        assert caught.value.param == "model"
    assert len(vectors(bert.one(embed("the cat")))) == 1


def test_a_chat_model_does_both(driver: Driver) -> None:
    capabilities = driver.engine.capabilities
    assert (capabilities.chat, capabilities.embedding) == (True, True)


def test_the_context_of_an_embedding_model_is_what_it_was_trained_for(bert: Driver) -> None:
    assert bert.engine.context_length == 128
