"""The list of supported models: valid, sensible, and how an operator's own file changes it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.errors import ConfigError
from llmlb.bus.hub_names import parse_name
from llmlb.bus.hub_plan import quant_of
from llmlb.bus.settings import Settings
from llmlb.router.hub import fit
from llmlb.router.hub.listing import id_of, shown
from llmlb.router.hub.supported import SupportedModel, load

MODELS = load()
FAMILIES = ("qwen2.5-", "qwen3-", "gemma-3-", "llama-3.", "gpt-oss-", "phi-")


def billions(model: SupportedModel) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([BM])", model.parameter_count).groups()  # type: ignore[union-attr]
    return float(number) * (1 if unit == "B" else 1e-3)


def test_there_are_enough_of_every_kind() -> None:
    assert len(MODELS) >= 25
    kinds = Counter(tag for model in MODELS for tag in model.tags)
    assert all(
        kinds[tag] >= 2 for tag in ("small", "medium", "large", "chat", "code", "reasoning", "vision", "embedding")
    )
    assert {model.format for model in MODELS} == {"gguf", "safetensors"}
    assert max(billions(model) for model in MODELS) >= 70


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_an_entry_makes_sense(model: SupportedModel) -> None:
    bits = model.size_bytes * 8 / (billions(model) * 1e9)
    # Small models keep large tables of words in more bits; a projector comes on top. BF16 has 16.
    assert (3.5 <= bits <= 11) if model.format == "gguf" else (15 <= bits <= 21), f"{bits:.1f} bits a weight"
    least = round(model.size_bytes * (1 + fit.OVERHEAD_SHARE)) + fit.OVERHEAD_BYTES
    kv = model.required_memory_bytes - least
    assert 0 <= kv <= 2 * 1024**3, "the rest is the KV cache of 4,096 tokens"
    assert parse_name(id_of(model)).repo == model.repo
    assert model.recommended_filename.endswith(f".{model.format}")
    assert model.engine == {"gguf": "llama.cpp", "safetensors": "vllm"}[model.format]
    assert (model.quantization is None) == (model.format == "safetensors")
    if model.quantization is not None:
        assert quant_of(model.recommended_filename) == model.quantization
    assert ("Embedding" in model.capabilities) == ("embedding" in model.tags)
    assert ("Vision" in model.capabilities) == ("vision" in model.tags)
    assert ("Reasoning" in model.capabilities) <= ("reasoning" in model.tags)
    sizes = {"small": (0, 5), "medium": (5, 25), "large": (25, 1000)}
    (size,) = [tag for tag in model.tags if tag in sizes]
    assert sizes[size][0] <= billions(model) <= sizes[size][1]


def test_no_number_was_copied_from_another_entry() -> None:
    for field in ("id", "size_bytes", "required_memory_bytes", "description", "recommended_filename"):
        values = Counter(getattr(model, field) for model in MODELS if field != "description" or model.format == "gguf")
        twice = [value for value, count in values.items() if count > 1 and value != "model.safetensors"]
        assert not twice, field


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sizes_of_a_family_grow_with_its_parameters(family: str) -> None:
    found = [m for m in MODELS if m.id.startswith(family) and (m.quantization or "").startswith(("Q4", "MXFP4"))]
    assert len(found) >= 2
    for smaller in found:
        for larger in found:
            if billions(larger) > 1.1 * billions(smaller):
                assert larger.size_bytes > smaller.size_bytes
                assert larger.required_memory_bytes > smaller.required_memory_bytes


def test_the_rule_for_a_layout_that_is_not_known_is_near_the_truth() -> None:
    for parameters, truth in ((8.03e9, 32 * 8 * 128 * 4), (70.6e9, 80 * 8 * 128 * 4), (1.24e9, 16 * 8 * 64 * 4)):
        guess = fit.kv_bytes_per_token(0, round(parameters))
        assert 0.5 <= guess / truth <= 2


def test_the_unregistered_are_shown_in_the_order_of_the_list() -> None:
    found = shown(
        MODELS, {}, "https://huggingface.co", lambda _: [], lambda repo: (5, 1) if "Qwen3-8B" in repo else None
    )
    assert [model.supported_id for model in found] == [model.id for model in MODELS]
    assert {(model.status, model.lifecycle_status) for model in found} == {("available", None)}
    assert {model.downloads for model in found} == {5, None}
    assert found[0].model_dump_json()


ENTRY: dict[str, Any] = {
    "id": "own-model",
    "name": "Our own",
    "description": "For tests.",
    "repo": "own/model",
    "recommended_filename": "model-Q4_0.gguf",
    "size_bytes": 10,
    "required_memory_bytes": 20,
    "tags": ["small"],
    "capabilities": ["TextGeneration"],
    "quantization": "Q4_0",
    "parameter_count": "1B",
    "format": "gguf",
    "engine": "llama.cpp",
    "platforms": ["linux-cpu"],
    "context_length": 2048,
}


def written(path: Path, body: Any) -> Path:
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def test_an_own_file_adds_to_the_list_and_changes_entries_of_the_same_id(tmp_path: Path) -> None:
    changed = {**ENTRY, "id": MODELS[3].id, "name": "Changed"}
    found = load(written(tmp_path / "own.json", [ENTRY, changed]))
    assert len(found) == len(MODELS) + 1
    assert found[3].name == "Changed"
    assert found[-1].id == "own-model"


def test_an_own_file_can_stand_in_place_of_the_list(tmp_path: Path) -> None:
    found = load(written(tmp_path / "own.json", {"mode": "replace", "models": [ENTRY]}))
    assert [model.id for model in found] == ["own-model"]
    assert load(written(tmp_path / "none.json", {"mode": "replace", "models": []})) == ()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{", "is not JSON"),
        ("5", "a list of models is needed"),
        ({"models": [], "other": 1}, "use a list of models"),
        ({"mode": "merge", "models": []}, "use a list of models"),
        ([ENTRY, ENTRY], "own-model is there twice"),
        ([{**ENTRY, "size_bytes": -1}], "own-model: size_bytes"),
        ([{**ENTRY, "colour": "red"}], "own-model: colour"),
        ([{**ENTRY, "repo": "no name"}], "own-model: repo"),
        ([{**ENTRY, "repo": "own/model:Q4_0"}], "own-model: repo"),
        ([3], "number 0: model"),
    ],
)
def test_an_own_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path: Path, body: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        load(written(tmp_path / "own.json", body))
    assert "own.json" in caught.value.message


def test_an_own_file_that_is_missing_is_an_error_at_the_start(tmp_path: Path) -> None:
    settings = Settings.load({"LLMLB_SUPPORTED_MODELS": str(tmp_path / "missing.json")})
    with pytest.raises(ConfigError, match=r"LLMLB_SUPPORTED_MODELS: .*missing\.json can't be read"):
        load(settings.supported_models)
