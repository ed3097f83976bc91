from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.node.store.aliases import MAX_ALIAS, alias_for, short_name
from llmlb.node.store.catalog import check_name


@pytest.mark.parametrize(
    ("repo", "alias"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", "llama3.2-3b"),
        ("bartowski/Llama-3.2-3B-Instruct-GGUF", "llama3.2-3b"),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "llama3.1-8b"),
        ("bartowski/google_gemma-3-4b-it-GGUF", "gemma3-4b"),
        ("google/gemma-7b-it", "gemma-7b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Qwen/Qwen3-4B-GGUF", "qwen3-4b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2-7b"),
        ("microsoft/phi-4", "phi4"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1-0528"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("x/Model-Q4_K_M-GGUF", "model"),
        ("x/GGUF", "model"),
    ],
)
def test_the_alias_of_a_repo(repo: str, alias: str) -> None:
    assert short_name(repo) == alias


def test_a_taken_alias_gets_the_quantization_and_then_a_number() -> None:
    repo, taken = "o/Llama-3.2-3B", ["Llama3.2-3B"]
    assert alias_for(repo, "Q8_0", taken) == "llama3.2-3b-q8_0"
    taken += ["llama3.2-3b-q8_0", "llama3.2-3b-q8_0-2"]
    assert alias_for(repo, "Q8_0", taken) == "llama3.2-3b-q8_0-3"
    assert alias_for(repo, None, taken) == "llama3.2-3b-2"


PART = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,90}[A-Za-z0-9_])?", fullmatch=True).filter(lambda p: ".." not in p)


@given(owner=PART, model=PART, quant=st.sampled_from([None, "Q4_K_M", "UD-IQ1_S"]), count=st.integers(0, 4))
def test_whatever_the_repo_its_aliases_are_names_and_differ(
    owner: str, model: str, quant: str | None, count: int
) -> None:
    taken: list[str] = []
    for _ in range(count):
        alias = alias_for(f"{owner}/{model}", quant, taken)
        check_name(alias)
        assert alias == alias.lower()
        assert alias not in taken
        assert "/" not in alias
        assert len(alias) <= MAX_ALIAS + 20
        taken.append(alias)
