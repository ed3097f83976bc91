from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmlb.bus.errors import Forbidden, ModelUnknown
from llmlb.node.engine.templates import ChatTemplate
from llmlb.node.store.catalog import Catalog, StoredModel
from llmlb.node.store.go_templates import FAMILIES, recognised
from llmlb.node.store.installed import Store
from llmlb.node.store.ollama import OllamaSource
from llmlb.node.store.ollama_params import read_params
from llmlb.node.store.watch import SourceWatch
from tests.support.ollama import Layer, OllamaStore
from tests.unit.node.store_files import gguf

CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>"
)
OWN = "{{ messages[0].content }}"


@pytest.fixture
def store(tmp_path: Path) -> OllamaStore:
    return OllamaStore(tmp_path / "ollama")


def scan(store: OllamaStore) -> dict[str, StoredModel]:
    return {model.info.name: model for model in OllamaSource(store.root).scan()}


def model(store: OllamaStore, **of: Any) -> Layer:
    return store.blob("model", gguf(**of))


def test_the_names_are_those_that_ollama_shows(store: OllamaStore) -> None:
    layer = model(store)
    for name in ("llama3.2", "llama3.2:3b", "me/mine", "me/mine:q8"):
        store.add(name, layer)
    store.add("bartowski/Llama-GGUF:Q4_K_M", layer, host="hf.co")
    store.add("inner/m", layer, host="registry.example:5000")
    assert sorted(scan(store)) == [
        "ollama:hf.co/bartowski/Llama-GGUF:Q4_K_M",
        "ollama:llama3.2",
        "ollama:llama3.2:3b",
        "ollama:me/mine",
        "ollama:me/mine:q8",
        "ollama:registry.example:5000/inner/m",
    ]
    catalog = Catalog([OllamaSource(store.root)])
    assert catalog.resolve("ollama:llama3.2:latest").info.name == "ollama:llama3.2"
    assert catalog.resolve("ollama:LLAMA3.2").info.name == "ollama:llama3.2"
    with pytest.raises(ModelUnknown, match="did you mean"):
        catalog.resolve("ollama:llama3.3")


def test_a_model_is_described_and_its_blob_is_used_in_place(store: OllamaStore) -> None:
    layer, eye = model(store, license=None), store.blob("projector", gguf(salt="eye"))
    licence = store.blob("license", "LLAMA COMMUNITY LICENSE\nline two")
    store.add("seer", layer, eye, licence, store.blob("system", "You see."))
    (found,) = scan(store).values()
    info = found.info
    assert (info.source, info.readonly, info.format, info.architecture) == ("Ollama", True, "GGUF", "llama")
    assert (info.quantization, info.parameters, info.context_length) == ("Q4_K_M", 12, 2048)
    assert info.size_bytes == layer["size"] + eye["size"]
    assert (found.path, found.projector) == (store.path_of(layer), store.path_of(eye))
    assert (found.license, found.system) == ("LLAMA COMMUNITY LICENSE\nline two", "You see.")
    assert found.defaults.system == "You see."


def test_the_old_form_of_blob_names(tmp_path: Path) -> None:
    store = OllamaStore(tmp_path, separator=":")
    store.add("old", model(store))
    (found,) = scan(store).values()
    assert ":" in found.path.name


def test_the_models_own_template_goes_before_ollamas(store: OllamaStore) -> None:
    store.add("own", model(store, template=OWN), store.blob("template", CHATML))
    (found,) = scan(store).values()
    assert found.template == OWN
    assert found.notes == ()


def test_a_known_go_template_is_put_into_jinja(store: OllamaStore, caplog: pytest.LogCaptureFixture) -> None:
    store.add("chatml", model(store), store.blob("template", CHATML))
    source = OllamaSource(store.root)
    (found,) = source.scan()
    text = ChatTemplate(found.template).render([{"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert "family chatml" in caplog.text
    list(source.scan())
    assert caplog.text.count("family chatml") == 1, "said once"


def test_an_unknown_go_template_is_replaced_by_the_default_which_is_said(
    store: OllamaStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.add("odd", model(store), store.blob("template", "{{ .Prompt }}"))
    details = Catalog([OllamaSource(store.root)]).details("ollama:odd")
    assert details.template_source == "default"
    assert "default template (ChatML) is used" in details.parameters["llmlb.notes"]
    assert "default template (ChatML) is used" in caplog.text


RENDERED = {
    "phi4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>V<|im_end|><|im_start|>assistant<|im_sep|>",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>"
    "\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
    "llama2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A</s>[INST] V [/INST]",
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n",
    "deepseek": "<s>S<\uff5cUser\uff5c>U<\uff5cAssistant\uff5c>A</s><\uff5cUser\uff5c>V<\uff5cAssistant\uff5c>",
    "alpaca": "<s>S\n\n### Instruction:\nU\n\n### Response:\nA\n\n### Instruction:\nV\n\n### Response:\n",
    "vicuna": "<s>S\n\nUSER: U\nASSISTANT: A</s>\nUSER: V\nASSISTANT:",
}


@pytest.mark.parametrize(("family", "marks", "jinja"), FAMILIES, ids=[family for family, _, _ in FAMILIES])
def test_the_form_of_each_family(family: str, marks: tuple[str, ...], jinja: str) -> None:
    assert recognised(" ".join(marks)) == (family, jinja)
    turns = [
        {"role": "system", "content": "\u00a7"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "V"},
    ]
    template = ChatTemplate(jinja, bos="<s>", eos="</s>")
    assert template.render(turns).replace("\u00a7", "S") == RENDERED[family]
    without = template.render(turns[1:])
    assert "system" not in without
    assert "SYS" not in without


def test_parameters_become_defaults(store: OllamaStore) -> None:
    params = {"stop": ["<|eot|>", "User:"], "temperature": 0.2, "top_k": 5, "num_ctx": 512, "num_gpu": 1, "num_keep": 4}
    store.add("tuned", model(store), store.blob("params", params))
    (found,) = scan(store).values()
    assert found.defaults.sampling == {"temperature": 0.2, "top_k": 5}
    assert (found.defaults.stop, found.defaults.context_length) == (("<|eot|>", "User:"), 512)
    assert found.notes == ("the parameter 'num_keep' is not used",)
    shown = Catalog([OllamaSource(store.root)]).details("ollama:tuned").parameters
    assert (shown["temperature"], shown["stop"], shown["num_ctx"]) == ("0.2", "'<|eot|>' 'User:'", "512")


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": "hot"},
        {"temperature": 99},
        {"temperature": True},
        {"top_p": 0},
        {"top_k": -5},
        {"repeat_penalty": None},
        {"stop": 7},
        {"stop": ["", 5, None, "x" * 5000]},
        {"num_ctx": -1},
        {"num_predict": -1},
        {"seed": "x"},
    ],
)
def test_parameters_that_can_not_be_are_not_used(params: dict[str, Any]) -> None:
    sampling, stop, context, _ = read_params(params)
    assert (sampling, stop, context) == ({}, (), None)


def test_how_much_to_answer_is_a_default_too() -> None:
    assert read_params({"num_predict": 20, "stop": "END", "seed": 7})[:2] == ({"max_tokens": 20, "seed": 7}, ("END",))


# What is wrong with it


def spoil_nothing(store: OllamaStore) -> None:
    store.add("good", model(store, salt="good"))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("missing blob", "is missing"),
        ("short blob", "bytes instead of"),
        ("adapter", "adapter"),
        ("pieces", "several pieces"),
        ("tensors", "Safetensors"),
        ("no model", "no model"),
        ("no gguf", "does not begin with GGUF"),
        ("bad digest", "sha256 digest"),
        ("traversal", "sha256 digest"),
        ("not json", "unexpected"),
        ("deep json", "depth|limit"),
        ("no object", "not a JSON object"),
        ("huge manifest", "larger than"),
        ("layers", "no layers"),
        ("link out", "leads out of the store"),
    ],
)
def test_what_can_not_be_used_is_reported_once_and_the_rest_is_there(
    store: OllamaStore, tmp_path: Path, what: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_nothing(store)
    layer = model(store)
    blob = store.path_of(layer)
    layers = [layer]
    if what == "adapter":
        layers.append(store.blob("adapter", b"x"))
    elif what == "pieces":
        layers.append(model(store, salt="2"))
    elif what == "tensors":
        layers.append(store.blob("tensor", b"x"))
    elif what == "no model":
        layers = [store.blob("template", "x")]
    elif what == "no gguf":
        layers = [store.blob("model", b"<html>")]
    elif what in ("bad digest", "traversal"):
        layers = [{**layer, "digest": "md5:00" if what == "bad digest" else "sha256:../../../../etc/passwd"}]
    path = store.add("bad", *layers)
    if what == "missing blob":
        blob.unlink()
    elif what == "short blob":
        blob.write_bytes(b"GGUF")
    elif what == "link out":
        outside = tmp_path / "outside"
        blob.rename(outside)
        blob.symlink_to(outside)
    texts = {"not json": "{x", "deep json": "[" * 90_000, "no object": "[]", "layers": '{"layers": 7}'}
    if what in texts:
        path.write_text(texts[what])
    elif what == "huge manifest":
        path.write_text(" " * 2**21)
    source = OllamaSource(store.root)
    catalog = Catalog([source])
    assert [found.name for found in catalog.models()] == ["ollama:good"]
    catalog.rescan()
    lines = [line for line in caplog.messages if "ollama:bad" in line]
    assert len(lines) == 1
    if what not in ("not json", "deep json"):
        assert why in lines[0]
    with pytest.raises(ModelUnknown, match="ollama:bad"):
        catalog.resolve("ollama:bad")


def test_a_small_layer_that_is_missing_or_strange_costs_a_note_only(store: OllamaStore) -> None:
    gone = store.blob("template", CHATML)
    store.path_of(gone).unlink()
    odd = store.blob("params", b"\xff{")
    messages = store.blob("messages", '[{"role": "user", "content": "x"}]')
    store.add("noted", model(store), gone, odd, messages, store.blob("somethingnew", b"x"))
    (found,) = scan(store).values()
    assert len(found.notes) == 4
    assert "its template can't be used" in found.notes[0]
    assert "somethingnew" in found.notes[2] + found.notes[1]
    assert found.template is None


def test_links_and_strange_folders_do_no_harm(store: OllamaStore, tmp_path: Path) -> None:
    spoil_nothing(store)
    manifests = store.root / "manifests"
    outside = tmp_path / "outside/ns/m"
    outside.mkdir(parents=True)
    (outside / "latest").write_text("{}")
    (manifests / "out").symlink_to(tmp_path / "outside")
    (manifests / "loop").symlink_to(manifests)
    (manifests / "registry.ollama.ai/library/.hidden").mkdir()
    (manifests / "file").write_text("x")
    (manifests / "registry.ollama.ai/library/good/über tag").write_text("{}")
    (manifests / "registry.ollama.ai/library/good/deeper").mkdir()
    assert list(scan(store)) == ["ollama:good"]


@pytest.mark.parametrize("make", [lambda root: None, lambda root: root.mkdir(), lambda root: root.write_text("x")])
def test_no_store_is_no_models(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "there")
    assert list(OllamaSource(tmp_path / "there").scan()) == []


def test_a_store_behind_a_link_is_a_store(store: OllamaStore, tmp_path: Path) -> None:
    spoil_nothing(store)
    (tmp_path / "link").symlink_to(store.root)
    assert [found.info.name for found in OllamaSource(tmp_path / "link").scan()] == ["ollama:good"]


def test_nothing_is_ever_written_there(store: OllamaStore, tmp_path: Path) -> None:
    spoil_nothing(store)
    before = store.fingerprint()
    catalog = Catalog([OllamaSource(store.root)])
    found = catalog.resolve("ollama:good")
    with pytest.raises(Forbidden, match="'ollama:good' is read-only: it belongs to Ollama"):
        Store(tmp_path / "models").remove(found)
    catalog.touch("ollama:good")
    catalog.close()
    catalog.rescan()
    catalog.details("ollama:good")
    assert store.fingerprint() == before


def test_a_changed_store_is_seen_by_the_next_scan(store: OllamaStore) -> None:
    spoil_nothing(store)
    catalog = Catalog([OllamaSource(store.root)])
    path = store.add("second", model(store, salt="2"))
    catalog.rescan()
    assert len(catalog.models()) == 2
    os.unlink(path)
    catalog.rescan()
    assert len(catalog.models()) == 1


def test_what_the_manifest_has_more_is_ignored(store: OllamaStore) -> None:
    path = store.add("m", model(store))
    value = json.loads(path.read_text())
    value["new"] = value["layers"][0]["from"] = "x"
    path.write_text(json.dumps(value))
    assert list(scan(store)) == ["ollama:m"]


async def test_what_ollama_pulls_and_removes_is_noticed(store: OllamaStore) -> None:
    store.add("first", model(store))
    catalog, changes = Catalog([OllamaSource(store.root)]), asyncio.Queue[int]()
    watch = SourceWatch(catalog, lambda: changes.put_nowait(catalog.inventory), every_s=0.01)
    running = asyncio.create_task(watch.run())  # cancelled right below
    try:
        manifest = store.add("me/second:q8", model(store, salt="second"))
        async with asyncio.timeout(10):
            await changes.get()
        assert sorted(model.name for model in catalog.models()) == ["ollama:first", "ollama:me/second:q8"]
        manifest.unlink()
        async with asyncio.timeout(10):
            await changes.get()
        assert [model.name for model in catalog.models()] == ["ollama:first"]
    finally:
        running.cancel()


async def test_a_store_that_stays_as_it_is_is_not_read_again(
    store: OllamaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("first", model(store))
    source = OllamaSource(store.root)
    catalog, read = Catalog([source]), list[str]()
    monkeypatch.setattr(source, "scan", lambda: read.append("scan") or ())
    for _ in range(3):
        catalog.refresh()
    assert read == []
    (store.root / "blobs/sha256-of-a-pull-that-runs-partial").write_bytes(b"x")
    catalog.refresh()
    assert read == []
    store.add("first", model(store, salt="newer"))
    catalog.refresh()
    assert read == ["scan"]


async def test_somebody_who_asks_sees_what_was_pulled_meanwhile(store: OllamaStore) -> None:
    catalog = Catalog([OllamaSource(store.root)])
    watch = SourceWatch(catalog, lambda: None)
    store.add("first", model(store))
    await asyncio.gather(*(watch.look() for _ in range(5)))
    assert catalog.resolve("ollama:first")
    store.add("second", model(store))
    await watch.look()
    assert len(catalog.models()) == 1, "looked at a moment ago"
