"""What a name means, and which files of a repo make a model."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import InvalidRequest, LlmlbError, PullFailed
from llmlb.bus.hub_names import MAX_NAME, Wanted, parse_name
from llmlb.bus.hub_plan import ORDER, Plan, RepoFile, plan, quant_of
from llmlb.node.pull.trouble import Backoff, retry_after_s

WANTED = Wanted("owner", "model")


def listing(*paths: str) -> list[RepoFile]:
    return [RepoFile(path, 100 + number, f"{number:064x}") for number, path in enumerate(paths)]


def planned(*paths: str, wanted: Wanted = WANTED) -> Plan:
    return plan(wanted, listing(*paths), "c0ffee")


def chosen(*paths: str, quant: str | None = None, file: str | None = None) -> list[str]:
    made = planned(*paths, wanted=Wanted("owner", "model", quant, file))
    return [each.path for each in made.files]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/model", Wanted("owner", "model")),
        ("owner/model:Q8_0", Wanted("owner", "model", "Q8_0")),
        ("hf.co/owner/model:Q8_0", Wanted("owner", "model", "Q8_0")),
        ("hf://owner/model", Wanted("owner", "model")),
        ("huggingface.co/owner/model", Wanted("owner", "model")),
        ("https://huggingface.co/owner/model", Wanted("owner", "model")),
        ("https://huggingface.co/owner/model/", Wanted("owner", "model")),
        ("https://huggingface.co/owner/model?library=vllm#files", Wanted("owner", "model")),
        ("https://huggingface.co/owner/model/tree/dev", Wanted("owner", "model", revision="dev")),
        ("https://hf.co/owner/model/blob/main/a/b.gguf", Wanted("owner", "model", None, "a/b.gguf")),
        ("https://hf.co/owner/model/resolve/v1/b.gguf?download=true", Wanted("owner", "model", None, "b.gguf", "v1")),
        (
            "https://hf.co/owner/model/resolve/refs%2Fpr%2F3/b.gguf",
            Wanted("owner", "model", None, "b.gguf", "refs/pr/3"),
        ),
        ("http://127.0.0.1:8099/owner/model/blob/main/b.gguf", Wanted("owner", "model", None, "b.gguf")),
    ],
)
def test_names_and_addresses_are_understood(text: str, expected: Wanted) -> None:
    assert parse_name(text, "http://127.0.0.1:8099") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "a/b/c",
        "owner/",
        "/model",
        "owner/model:",
        "owner/model:Q4:Q5",
        "owner/../model",
        "owner/mo..del",
        "owner/mo--del",
        "owner/-model",
        "owner/mo del",
        "owner/modèl",
        "owner/model\n:Q4",
        "owner/" + "m" * MAX_NAME,
        "ftp://huggingface.co/owner/model",
        "https://evil.example/owner/model",
        "https://huggingface.co/datasets/owner/data",
        "https://huggingface.co/owner/model/blob/main",
        "https://huggingface.co/owner/model/discussions/3",
        "https://huggingface.co/owner/model/resolve/main/%2e%2e/secret.gguf",
        "https://huggingface.co",
    ],
)
def test_bad_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_name(text)
    assert raised.value.param == "model"
    assert "\n" not in raised.value.message


@given(st.text(max_size=300) | st.text(string.ascii_letters + "/.:-_%?#", max_size=60).map("https://hf.co/".__add__))
def test_no_name_leads_out_of_the_store(text: str) -> None:
    try:
        wanted = parse_name(text)
    except InvalidRequest:
        return
    for part in (wanted.owner, wanted.model):
        assert part not in {"", ".", ".."}
        assert set(part) <= set(string.ascii_letters + string.digits + "._-")
    assert ".." not in (wanted.file or "")


_WORD = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)


@given(_WORD, _WORD, st.sampled_from(ORDER))
def test_a_name_and_its_addresses_mean_the_same(owner: str, model: str, quant: str) -> None:
    short = parse_name(f"{owner}/{model}:{quant}")
    assert (short.owner, short.model, short.quant) == (owner, model, quant)
    assert parse_name(short.name) == short
    if owner not in {"datasets", "spaces", "api", "docs"}:
        assert parse_name(f"https://huggingface.co/{owner}/{model}").repo == short.repo


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("model-q4_k_m.gguf", "Q4_K_M"),
        ("model_Q8_0.gguf", "Q8_0"),
        ("Q4_K_M/model-Q4_K_M-00001-of-00003.gguf", "Q4_K_M"),
        ("UD-Q2_K_XL/model-UD-Q2_K_XL-00001-of-00002.gguf", "UD-Q2_K_XL"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("model-fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model-IQ3_XXS.gguf", "IQ3_XXS"),
        ("model.Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("model-Q4_K_M-imat.gguf", "Q4_K_M"),
        ("model.gguf", None),
    ],
)
def test_a_quantization_is_read_from_the_name(path: str, quant: str | None) -> None:
    assert quant_of(path) == quant


def test_without_a_name_q4_k_m_is_taken_and_else_the_next_in_order() -> None:
    assert chosen("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf", "README.md") == ["m-Q4_K_M.gguf"]
    assert chosen("m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-F16.gguf") == ["m-Q5_K_M.gguf"]
    assert chosen("m-Q8_0.gguf", "m-Q4_1.gguf", "m-Q4_K_S.gguf") == ["m-Q4_K_S.gguf"]
    assert chosen("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf") == ["m-Q4_K_M.gguf"]
    assert chosen("m-F16.gguf", "m-Q2_K.gguf") == ["m-F16.gguf"]
    assert chosen("other.gguf", "a.gguf") == ["other.gguf"], "the smallest of those without a label"
    assert chosen("old/m-Q4_K_M.gguf", "m-Q4_K_M.gguf", "model-long-Q4_K_M.gguf") == ["m-Q4_K_M.gguf"]


@given(st.lists(st.sampled_from(ORDER), min_size=1, unique=True), st.randoms())
def test_the_order_of_the_listing_does_not_matter(quants: list[str], random: object) -> None:
    paths = [f"m-{quant}.gguf" for quant in quants]
    random.shuffle(paths)  # type: ignore[attr-defined]
    assert planned(*paths).quantization == min(quants, key=ORDER.index)


def test_the_named_quantization_is_taken_whatever_its_case() -> None:
    assert chosen("m-Q8_0.gguf", "m-Q4_K_M.gguf", quant="q8_0") == ["m-Q8_0.gguf"]
    assert chosen("m-f16.gguf", "m-Q4_K_M.gguf", quant="FP16") == ["m-f16.gguf"]
    assert chosen("m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf", quant="Q4_K_XL") == ["m-UD-Q4_K_XL.gguf"]
    assert chosen("special.gguf", "m-Q4_K_M.gguf", quant="special.gguf") == ["special.gguf"]


def test_a_quantization_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PullFailed, match=r"owner/model has no Q6_K; it has Q4_K_M, Q8_0"):
        chosen("m-Q8_0.gguf", "m-Q4_K_M.gguf", quant="Q6_K")


def test_shards_are_one_model_and_none_may_be_missing() -> None:
    shards = [f"Q4_K_M/m-Q4_K_M-{number:05}-of-00003.gguf" for number in (2, 3, 1)]
    made = planned("m-Q8_0.gguf", *shards)
    assert [file.path for file in made.files] == sorted(shards)
    assert [file.local for file in made.files] == [f"m-Q4_K_M-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert made.total_bytes == sum(file.size for file in made.files)
    with pytest.raises(PullFailed, match="2 of the 3 files"):
        chosen(*shards[:2])


def test_an_address_of_a_file_takes_its_whole_model() -> None:
    shards = [f"big/m-Q8_0-{number:05}-of-00002.gguf" for number in (1, 2)]
    assert chosen("m-Q4_K_M.gguf", *shards, file=shards[1]) == shards
    for file, message in (("gone.gguf", "no file gone.gguf"), ("README.md", "no model file")):
        with pytest.raises(PullFailed, match=message):
            chosen("m-Q4_K_M.gguf", "README.md", file=file)


def test_one_projector_comes_along_under_a_name_that_says_so() -> None:
    made = planned("m-Q4_K_M.gguf", "mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf")
    assert [file.path for file in made.files] == ["m-Q4_K_M.gguf", "mmproj-F16.gguf"]
    made = planned("m-Q4_K_M.gguf", "m.mmproj-Q8_0.gguf")
    assert made.files[1].local == "mmproj-m.mmproj-Q8_0.gguf"
    assert (
        chosen("a/m-Q4_K_M.gguf", "a/mmproj-F32.gguf", "mmproj-F16.gguf", "b/mmproj-F16.gguf")[1] == "a/mmproj-F32.gguf"
    )
    with pytest.raises(PullFailed, match="projector"):
        chosen("m-Q4_K_M.gguf", "mmproj-F16.gguf", file="mmproj-F16.gguf")


def test_a_safetensors_repo_is_one_model_without_its_doubles() -> None:
    beside = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt"]
    doubles = [
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "tf_model.h5",
    ]
    made = planned(
        *beside, *doubles, "model.safetensors", "README.md", "modeling_evil.py", "original/consolidated.00.pth"
    )
    assert made.format == "Safetensors"
    assert {file.path for file in made.files} == {"model.safetensors", *beside}
    assert made.files[0].path == "model.safetensors"
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    assert chosen("config.json", *shards, "consolidated.safetensors", "model.safetensors.index.json") == [
        *shards,
        "model.safetensors.index.json",
        "config.json",
    ]
    with pytest.raises(PullFailed, match="1 of the 2 files"):
        chosen("config.json", shards[0])
    with pytest.raises(PullFailed, match=r"no config\.json"):
        chosen("model.safetensors")


def test_a_repo_without_a_model_says_so() -> None:
    with pytest.raises(PullFailed, match="neither GGUF nor Safetensors"):
        chosen("README.md", "pytorch_model.bin", "config.json")
    with pytest.raises(PullFailed, match="no Q4_0: there is no GGUF"):
        chosen("model.safetensors", "config.json", quant="Q4_0")
    with pytest.raises(PullFailed, match="neither"):
        chosen(
            "mmproj-F16.gguf", "../evil-Q4_K_M.gguf", "/etc/m-Q4_K_M.gguf", "a\\b-Q4_K_M.gguf", ".hidden-Q4_K_M.gguf"
        )


_PATHS = st.lists(
    st.tuples(
        st.sampled_from(["", "a/", "../", "b/c/"]),
        st.sampled_from(["m", "mmproj", "model", "m-00001-of-00002", "m-00002-of-00002", "x-imatrix", "config"]),
        st.sampled_from(["", *(f"-{quant}" for quant in ORDER[:6])]),
        st.sampled_from([".gguf", ".safetensors", ".json", ".bin"]),
    ).map("".join),
    max_size=12,
    unique=True,
)


@given(_PATHS, st.none() | st.sampled_from(ORDER[:6]))
def test_a_plan_is_whole_or_an_error(paths: list[str], quant: str | None) -> None:
    try:
        made = planned(*paths, wanted=Wanted("owner", "model", quant))
    except LlmlbError:
        return
    locals_ = [file.local for file in made.files]
    assert len(set(locals_)) == len(locals_) > 0
    assert all("/" not in name and not name.startswith(".") for name in locals_)
    assert {file.path for file in made.files} <= set(paths)
    if quant is not None:
        assert made.quantization == quant


def test_waiting_times_double_with_jitter_up_to_a_minute() -> None:
    now = [0.0]
    backoff = Backoff(now=lambda: now[0])
    for least in (1, 2, 4, 8, 16, 32, 60, 60):
        wait = backoff.failed(now[0])
        assert least / 2 <= wait <= least
        assert backoff.failed(now[0] - 1) == wait, "a try that failed together with it counts once"
        now[0] += wait
        assert backoff.wait_s() == 0
    backoff.progressed()
    assert backoff.failed(now[0]) <= 1
    assert 100 <= backoff.failed(now[0], 100.0) <= 100.2


def test_a_server_may_say_when_to_come_again() -> None:
    assert retry_after_s({"Retry-After": "7"}) == 7
    assert retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=lambda: 40.0) == 60
    assert retry_after_s({"Retry-After": "999999"}) == 3600
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"RateLimit": '"api";r=0;t=55'}) == 55
    assert retry_after_s({"RateLimit": '"api";r=3;t=55'}) is None
    assert retry_after_s({}) is None
