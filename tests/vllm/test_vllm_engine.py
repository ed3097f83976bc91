"""The vLLM engine on a tiny model, on the CPU: as an object, and in the real worker process. ``make test-vllm``."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmlb.bus.errors import ContextOverflow, InvalidRequest, ModelLoadFailed
from llmlb.bus.messages.infer import (
    ChatMessage,
    ContentPart,
    LogitBias,
    ResponseFormat,
    Tool,
)
from llmlb.node.engine.interface import Capabilities, LoadOptions
from llmlb.node.engine.vllm import VllmEngine
from llmlb.node.engine.vllm_setup import engine_arguments
from llmlb.node.engine.vllm_vocabulary import Vocabulary
from tests.vllm.rig import ANSWER_S, CONTEXT, END, ENDLESS, SLOTS, Rig, chat, options

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    # vLLM and torch warn of themselves on import.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(options(checkpoint))
    yield engine
    engine.close()


@pytest.fixture
def rig(engine: VllmEngine) -> Rig:
    return Rig(engine)


def count(checkpoint: Path, text: str, *, add_special: bool) -> int:
    """Tokens of a text, by the tokenizer itself."""
    from tokenizers import Tokenizer

    return len(Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=add_special))


def test_it_says_how_many_slots_and_how_much_context_it_has(engine: VllmEngine) -> None:
    assert (engine.slots, engine.context_length) == (SLOTS, CONTEXT)
    assert engine.capabilities.chat
    assert not engine.capabilities.vision
    assert not engine.capabilities.embedding


def test_tokens_of_a_prompt_are_counted_without_an_answer(rig: Rig, checkpoint: Path) -> None:
    request = chat("hello", max_tokens=1)
    answered = rig.ask(request)
    counted = rig.ask(request.model_copy(update={"count_only": True}))
    assert answered.usage is not None
    assert counted.usage is not None
    assert (counted.usage.prompt_tokens, counted.usage.completion_tokens) == (answered.usage.prompt_tokens, 0)
    assert not counted.tokens
    long = rig.ask(chat("hello " * 5 * CONTEXT).model_copy(update={"count_only": True}))
    assert long.usage is not None
    assert long.usage.prompt_tokens > CONTEXT


def test_nothing_to_do_is_said_at_once(rig: Rig) -> None:
    began = time.monotonic()
    assert rig.engine.step(rig) is False
    assert time.monotonic() - began < 0.01


def test_an_answer_comes_in_pieces(rig: Rig) -> None:
    answer = rig.ask(chat())
    assert len(answer.pieces) > 5
    assert answer.reason == "length"
    assert answer.text
    assert answer.timings.prefill_ms > 0
    assert answer.timings.decode_ms > 0


def test_usage_is_what_was_used(rig: Rig, checkpoint: Path) -> None:
    answer = rig.ask(chat("how are you?"))
    rendered = "<|user|>how are you?<|end|><|assistant|>"
    assert answer.usage.prompt_tokens == count(checkpoint, rendered, add_special=False)
    assert answer.usage.completion_tokens == len(answer.tokens) == 24


def test_a_completion_goes_on_from_its_prompt(rig: Rig, checkpoint: Path) -> None:
    request = chat(sampling={"max_tokens": 5}).model_copy(
        update={"kind": "completion", "messages": (), "prompt": "The quick brown"}
    )
    answer = rig.ask(request)
    assert answer.usage.prompt_tokens == count(checkpoint, "The quick brown", add_special=True)
    assert answer.usage.completion_tokens == 5


def test_a_greedy_answer_is_the_same_each_time(rig: Rig) -> None:
    first, second = rig.ask(chat()), rig.ask(chat())
    assert first.tokens == second.tokens
    assert first.text == second.text


def test_the_same_seed_gives_the_same_answer_and_another_one_another(rig: Rig) -> None:
    hot = {"temperature": 1.5, "seed": 42}
    first, second = rig.ask(chat(sampling=hot)), rig.ask(chat(sampling=hot))
    other = rig.ask(chat(sampling={**hot, "seed": 43}))
    assert first.tokens == second.tokens
    assert first.tokens != other.tokens


def test_without_a_seed_answers_differ(rig: Rig) -> None:
    assert len({rig.ask(chat(sampling={"temperature": 2.0})).tokens for _ in range(3)}) > 1


def test_filters_keep_the_best_token_only(rig: Rig) -> None:
    greedy = rig.ask(chat()).tokens
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert rig.ask(chat(sampling={"temperature": 1.0, **narrow})).tokens == greedy


def test_a_penalty_changes_the_answer(rig: Rig) -> None:
    again = {"logit_bias": (LogitBias(token_id=70, bias=8.0),)}
    plain = rig.ask(chat(sampling=again)).tokens
    punished = rig.ask(chat(sampling={**again, "frequency_penalty": 2.0})).tokens
    assert punished.count(70) < plain.count(70)


def test_max_tokens_is_kept_exactly(rig: Rig) -> None:
    for limit in (1, 7):
        answer = rig.ask(chat(sampling={"max_tokens": limit}))
        assert (answer.reason, answer.usage.completion_tokens, len(answer.tokens)) == ("length", limit, limit)


def test_a_stop_text_ends_the_answer_before_it(rig: Rig) -> None:
    whole = rig.ask(chat())
    at = len(whole.text) // 2
    stop = whole.text[at : at + 3]
    answer = rig.ask(chat(sampling={"stop": (stop,)}))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.reason == "stop"
    assert answer.tokens == whole.tokens[: len(answer.tokens)]
    assert answer.usage.completion_tokens == len(answer.tokens) < 24


def test_the_end_of_turn_token_is_counted_but_not_sent(rig: Rig) -> None:
    answer = rig.ask(chat(sampling={"logit_bias": (LogitBias(token_id=END, bias=100.0),)}))
    assert (answer.reason, answer.text, answer.tokens) == ("stop", "", ())
    assert answer.usage.completion_tokens == 1


def test_a_logit_bias_bans_a_token(rig: Rig) -> None:
    first = rig.ask(chat()).tokens[0]
    assert first not in rig.ask(chat(sampling={"logit_bias": (LogitBias(token_id=first, bias=-100.0),)})).tokens


def test_a_logit_bias_for_no_token_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="no token id"):
        rig.ask(chat(sampling={"logit_bias": (LogitBias(token_id=1_000_000, bias=1.0),)}))


def test_log_probabilities_come_for_each_token(rig: Rig) -> None:
    answer = rig.ask(chat(sampling={"logprobs": 3, "max_tokens": 6}))
    found = [item for piece in answer.pieces for item in piece.logprobs]
    assert len(found) == len(answer.tokens) == 6
    for item in found:
        assert len(item.top) == 3
        assert item.top[0].logprob == item.logprob, "greedy takes the most likely one"
        assert item.top[0].logprob >= item.top[1].logprob >= item.top[2].logprob
        assert item.token == bytes(item.token_bytes).decode(errors="replace")
    assert b"".join(bytes(item.token_bytes) for item in found).decode(errors="replace") == answer.text


def test_log_probabilities_without_alternatives(rig: Rig) -> None:
    answer = rig.ask(chat(sampling={"logprobs": 0, "max_tokens": 2}))
    found = [item for piece in answer.pieces for item in piece.logprobs]
    assert [item.top for item in found] == [(), ()]


@pytest.mark.parametrize("cut", [1, 3, 8, 15, 23])
def test_a_continued_answer_is_the_uninterrupted_one(rig: Rig, cut: int) -> None:
    whole = rig.ask(chat())
    ends = itertools.accumulate(len(piece.token_ids) for piece in whole.pieces)
    had = "".join(piece.text for piece, end in zip(whole.pieces, ends, strict=True) if end <= cut)
    answer = rig.ask(chat(continuation=whole.tokens[:cut]))
    assert whole.tokens[:cut] + answer.tokens == whole.tokens
    assert answer.usage.prompt_tokens == whole.usage.prompt_tokens
    assert answer.usage.completion_tokens == 24
    assert answer.usage.cached_tokens <= answer.usage.prompt_tokens
    assert had + answer.text == whole.text


def test_a_stop_text_that_began_in_the_continuation_ends_the_answer(rig: Rig) -> None:
    whole = rig.ask(chat(sampling={"logit_bias": (LogitBias(token_id=70, bias=100.0),)}))
    assert whole.text == "a" * 24
    answer = rig.ask(
        chat(
            sampling={"logit_bias": (LogitBias(token_id=70, bias=100.0),), "stop": ("aaaaa",)},
            continuation=whole.tokens[:3],
        )
    )
    assert (answer.text, answer.reason, answer.usage.completion_tokens) == ("", "stop", 5)


def test_a_continuation_that_is_the_whole_answer_ends_at_once(rig: Rig) -> None:
    whole = rig.ask(chat())
    answer = rig.ask(chat(continuation=whole.tokens))
    assert (answer.reason, answer.tokens, answer.usage.completion_tokens) == ("length", (), 24)


def test_eight_answers_at_once_are_those_of_one_alone(rig: Rig) -> None:
    requests = [chat(f"question number {i}, please answer", sampling={"max_tokens": 16 + i}) for i in range(8)]
    alone = [rig.ask(request).tokens for request in requests]
    together = rig.finish(*[rig.submit(request) for request in requests])
    assert [answer.tokens for answer in together] == alone
    assert [answer.usage.completion_tokens for answer in together] == [16 + i for i in range(8)]


def test_cancelling_frees_the_slots_at_once(rig: Rig) -> None:
    long = [rig.submit(chat(f"{i}", sampling=ENDLESS)) for i in range(SLOTS + 2)]
    while not rig.answers[long[0]].pieces:
        rig.engine.step(rig)
    assert all(rig.engine.cancel(handle) for handle in long)
    assert not rig.engine.cancel(long[0]), "it is gone already"
    assert rig.engine.step(rig) is False
    before = [len(rig.answers[handle].tokens) for handle in long]
    assert max(before) < CONTEXT / 4, "they were still at work"
    rig.ask(chat())
    assert rig.engine._llm.output_processor.get_num_unfinished_requests() == 0
    assert [len(rig.answers[handle].tokens) for handle in long] == before
    assert not any(rig.answers[handle].over for handle in long)


def test_a_request_that_waits_for_a_slot_shows_signs_of_life(rig: Rig) -> None:
    handles = [rig.submit(chat(sampling=ENDLESS)) for _ in range(SLOTS + 1)]
    waiting = rig.answers[handles[-1]]
    deadline = time.monotonic() + ANSWER_S
    while not waiting.progress:
        assert time.monotonic() < deadline
        rig.engine.step(rig)
    assert not waiting.pieces
    assert all(rig.engine.cancel(handle) for handle in handles)


def test_a_request_that_is_not_of_this_model_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="continuation"):
        rig.ask(chat(continuation=(5, 1 << 40)))


def test_an_answer_goes_to_the_end_of_the_context(rig: Rig) -> None:
    answer = rig.ask(chat(sampling=ENDLESS))
    assert answer.reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == CONTEXT


def test_a_prompt_beyond_the_context_is_refused(rig: Rig) -> None:
    with pytest.raises(ContextOverflow, match=str(CONTEXT)):
        rig.ask(chat("word and " * CONTEXT))


def test_a_prompt_seen_before_is_not_read_again(rig: Rig) -> None:
    text = "word and " * 70
    assert rig.ask(chat(text)).usage.cached_tokens == 0
    again = rig.ask(chat(text)).usage
    assert 0 < again.cached_tokens < again.prompt_tokens


def test_an_answer_has_the_form_of_the_schema(rig: Rig) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["yes", "kind"],
        "additionalProperties": False,
    }
    form = ResponseFormat(type="json_schema", json_schema=json.dumps(schema))
    answer = rig.ask(chat(response_format=form, sampling={"max_tokens": 200}))
    found = json.loads(answer.text)
    assert set(found) == {"yes", "kind"}
    assert answer.reason == "stop"


def test_an_answer_is_a_json_object(rig: Rig) -> None:
    answer = rig.ask(chat(response_format=ResponseFormat(type="json_object"), sampling={"max_tokens": 8}))
    assert answer.text.lstrip().startswith("{")


@pytest.mark.parametrize("schema", ['{"type": "nothing that there is"}', "[]", "{"])
def test_a_bad_schema_is_refused(rig: Rig, schema: str) -> None:
    with pytest.raises(InvalidRequest):
        rig.ask(chat(response_format=ResponseFormat(type="json_schema", json_schema=schema)))
    assert rig.ask(chat()).reason == "length", "the engine goes on"


def test_a_tool_that_must_be_called_is_called(rig: Rig) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    schema["additionalProperties"] = False
    answer = rig.ask(
        chat(
            tools=(Tool(name="switch", description="Turns the light on.", parameters=json.dumps(schema)),),
            tool_choice="required",
            sampling={"max_tokens": 200},
        )
    )
    (call,) = answer.calls
    assert (answer.reason, answer.text, call.name) == ("tool_calls", "", "switch")
    assert set(json.loads(call.arguments)) == {"on"}


@pytest.mark.parametrize("parallel", [True, False])
def test_one_call_ends_the_answer_where_no_more_are_wanted(rig: Rig, parallel: bool) -> None:
    called = rig.engine._vocabulary.encode(
        '<tool_call>{"name": "switch", "arguments": {}}</tool_call>', add_special=False
    )
    answer = rig.ask(
        chat(
            tools=(Tool(name="switch"),),
            parallel_tool_calls=parallel,
            continuation=tuple(called[:-1]),
            sampling={"max_tokens": len(called) + 4, "logit_bias": (LogitBias(token_id=called[-1], bias=100.0),)},
        )
    )
    assert [call.name for call in answer.calls] == ["switch"]
    assert answer.usage.completion_tokens == len(called) + 4 * parallel
    assert answer.reason == ("length" if parallel else "tool_calls")


def test_special_tokens_have_their_names_among_the_likely_ones(engine: VllmEngine) -> None:
    found = {70: SimpleNamespace(logprob=-1.0, rank=2), END: SimpleNamespace(logprob=float("-inf"), rank=1)}
    named = engine._vocabulary.logprob(70, found, 1)
    assert (named.token, named.logprob) == ("a", -1.0)
    assert [(one.token, one.logprob) for one in named.top] == [("<|end|>", -9999.0)]


def test_a_form_that_no_answer_can_have_is_the_requests_fault(rig: Rig) -> None:
    form = ResponseFormat(type="json_schema", json_schema='{"$ref": "#"}')
    with pytest.raises(InvalidRequest, match="form"):
        rig.ask(chat(response_format=form))
    assert rig.ask(chat()).reason == "length", "the engine goes on"


def test_a_form_is_refused_where_a_tool_may_be_called_and_taken_where_none_may(rig: Rig) -> None:
    form = ResponseFormat(type="json_schema", json_schema='{"enum": ["a"]}')
    with pytest.raises(InvalidRequest, match="no tool may be called") as caught:
        rig.ask(chat(response_format=form, tools=(Tool(name="switch"),)))
    assert caught.value.param == "response_format"
    answer = rig.ask(chat(response_format=form, tools=(Tool(name="switch"),), tool_choice="none"))
    assert json.loads(answer.text) == "a"


def test_what_nobody_foresaw_fails_one_request_and_is_not_logged_with_its_text(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError("about the prompt")

    other = rig.submit(chat(sampling=ENDLESS))
    rig.until(lambda: rig.answers[other].pieces)
    with monkeypatch.context() as patch:
        patch.setattr(rig.engine._llm, "generate", stumble)
        with pytest.raises(InvalidRequest, match="RuntimeError"):
            rig.ask(chat())
    assert "request_refused" in caplog.text
    assert "about the prompt" not in caplog.text
    assert not rig.answers[other].error
    rig.engine.cancel(other)


def test_what_nobody_foresaw_in_an_answer_fails_one_request(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> bytes:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "bytes_of", stumble)
        with pytest.raises(InvalidRequest, match="RuntimeError"):
            rig.ask(chat())
    assert rig.engine.step(rig) is False, "it is forgotten"
    assert rig.ask(chat()).reason == "length"


def test_what_it_can_not_do_is_refused_by_name(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="embeddings"):
        rig.ask(chat().model_copy(update={"kind": "embedding", "inputs": ("hi",)}))
    picture = ContentPart(type="image", data=_pixel())
    with pytest.raises(InvalidRequest, match="images"):
        rig.ask(chat().model_copy(update={"messages": (ChatMessage(role="user", content="", parts=(picture,)),)}))


def test_a_model_that_only_makes_vectors_is_asked_for_no_answer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = rig.engine._requests
    vectors = replace(requests._model, capabilities=Capabilities(chat=False, tools=False))
    monkeypatch.setattr(requests, "_model", vectors)
    with pytest.raises(InvalidRequest, match="embedding model"):
        rig.ask(chat())


def _pixel() -> str:
    import base64
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_without_the_extra_the_error_names_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelLoadFailed, match=r"pip install llmlb\[vllm\]"):
        VllmEngine(options(checkpoint))


def test_a_folder_without_a_model_is_a_failed_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="tiny"):
        VllmEngine(options(tmp_path))


def test_on_a_gpu_vllms_own_defaults_stay_in_force(checkpoint: Path) -> None:
    unsaid = LoadOptions("tiny", str(checkpoint), None, None, None, None)
    assert set(engine_arguments(checkpoint, unsaid, cpu=False)) == {
        "model",
        "served_model_name",
        "seed",
        "disable_log_stats",
    }
    said = LoadOptions("tiny", str(checkpoint), None, 8, 1_000_000, None)
    arguments = engine_arguments(checkpoint, said, cpu=False)
    assert (arguments["max_num_seqs"], arguments["max_model_len"]) == (8, 2048), "no more than it was trained for"


def test_tokens_of_a_sentencepiece_vocabulary_have_their_bytes() -> None:
    pieces = {5: "\u2581Hello", 6: "<0xE6>", 7: "<0x97>", 8: "<0xA5>", 9: None}
    vocabulary = Vocabulary(SimpleNamespace(convert_ids_to_tokens=pieces.get), frozenset())
    assert b"".join(map(vocabulary.bytes_of, pieces)).decode() == " Hello日"
