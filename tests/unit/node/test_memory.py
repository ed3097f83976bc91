from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import OutOfMemory
from llmlb.node.memory import COMPUTE_BYTES, CONTEXTS, GIB, KV_SHARE, SLOTS, Plan, kv_bytes_per_token, plan

PER_TOKEN = 128 * 1024
LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": "32",
    "llama.attention.head_count": "32",
    "llama.attention.head_count_kv": "8",
    "llama.embedding_length": "4096",
}


def make(
    free: int | None,
    *,
    weights: int = 4 * GIB,
    per_token: int = PER_TOKEN,
    trained: int | None = 32768,
    slots: int | None = None,
    context: int | None = None,
) -> Plan:
    return plan(
        "m",
        weight_bytes=weights,
        kv_bytes_per_token=per_token,
        trained_context=trained,
        free_bytes=free,
        slots=slots,
        context_length=context,
    )


def test_the_cache_of_a_token_is_keys_and_values_of_all_layers_in_two_bytes() -> None:
    assert kv_bytes_per_token(LLAMA) == 32 * 8 * (128 + 128) * 2
    assert kv_bytes_per_token({**LLAMA, "llama.attention.key_length": "64"}) == 32 * 8 * (64 + 128) * 2
    without = {key: value for key, value in LLAMA.items() if not key.endswith("head_count_kv")}
    assert kv_bytes_per_token(without) == 32 * 32 * 256 * 2, "every head has its own"


@pytest.mark.parametrize("metadata", [{}, {"general.architecture": "x"}, {**LLAMA, "llama.block_count": "many"}])
def test_a_header_that_does_not_say_counts_as_no_cache(metadata: dict[str, str]) -> None:
    assert kv_bytes_per_token(metadata) == 0


def test_an_encoder_has_no_cache() -> None:
    bert = {key.replace("llama", "nomic-bert"): value.replace("llama", "nomic-bert") for key, value in LLAMA.items()}
    assert kv_bytes_per_token(bert) == 0


def test_more_memory_means_more_context_before_it_means_less_slots() -> None:
    plans = [make(size * GIB) for size in (6, 8, 16, 64, 512)]
    assert plans == sorted(plans, key=lambda one: one.slots * one.context_length)
    assert (plans[-1].slots, plans[-1].context_length) == (4, 32768)


@pytest.mark.parametrize("per_token", [PER_TOKEN, 0])
@pytest.mark.parametrize("free", [0, 1, GIB, 4 * GIB])
def test_what_cannot_fit_is_refused_with_the_bytes_it_needs_and_those_that_are_free(free: int, per_token: int) -> None:
    with pytest.raises(OutOfMemory) as error:
        make(free, per_token=per_token)
    needed = 4 * GIB + COMPUTE_BYTES + 256 * per_token
    if per_token:
        assert f"({needed} bytes)" in error.value.message
    assert f"({free} bytes) are free" in error.value.message


def test_what_is_asked_for_is_kept_or_refused_never_made_smaller() -> None:
    assert make(64 * GIB, slots=3, context=5000) == Plan(3, 5000, 4 * GIB + COMPUTE_BYTES + 15000 * PER_TOKEN)
    with pytest.raises(OutOfMemory, match="3 slots of 5000 tokens"):
        make(5 * GIB, slots=3, context=5000)
    tight = 4 * GIB + COMPUTE_BYTES + 15000 * PER_TOKEN
    assert make(tight, slots=3, context=5000).needed_bytes == tight
    with pytest.raises(OutOfMemory):
        make(tight - 1, slots=3, context=5000)


def test_a_context_is_never_longer_than_trained_when_that_is_known() -> None:
    assert make(512 * GIB, trained=2048).context_length == 2048
    assert make(512 * GIB, trained=100).context_length == 100
    assert make(512 * GIB, trained=2048, context=8192).context_length == 2048
    assert make(512 * GIB, trained=None, context=8192).context_length == 8192
    assert make(512 * GIB, trained=None).context_length == 4096


def test_without_knowing_what_is_free_everything_fits() -> None:
    assert (make(None).slots, make(None).context_length) == (4, 4096)
    assert make(None, slots=2, context=16384).context_length == 16384
    assert make(None, trained=1024).context_length == 1024


@given(
    st.integers(0, 200 * GIB),
    st.integers(0, 50 * GIB),
    st.integers(0, 10**7),
    st.one_of(st.none(), st.integers(1, 200_000)),
    st.one_of(st.none(), st.integers(1, 48)),
    st.one_of(st.none(), st.integers(1, 200_000)),
)
def test_a_plan_fits_and_is_refused_only_when_the_smallest_does_not(
    free: int, weights: int, per_token: int, trained: int | None, slots: int | None, context: int | None
) -> None:
    base = weights + COMPUTE_BYTES
    least = (slots or SLOTS[-1]) * min(context or CONTEXTS[-1], trained or 2**40)
    try:
        found = make(free, weights=weights, per_token=per_token, trained=trained, slots=slots, context=context)
    except OutOfMemory:
        assert base + least * per_token > free
        return
    assert found.needed_bytes == base + found.slots * found.context_length * per_token <= free
    assert found.slots == slots or slots is None
    assert found.context_length <= (trained or 2**40)
    automatic = slots is None and context is None
    if automatic and found.slots * found.context_length > least:
        assert found.slots * found.context_length * per_token <= KV_SHARE * free
