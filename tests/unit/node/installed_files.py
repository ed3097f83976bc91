"""Models to install, as the hub would have them."""

from __future__ import annotations

from pathlib import Path

from llmlb.node.store.catalog import Catalog
from llmlb.node.store.local import LocalSource
from tests.unit.node.store_files import gguf, safetensors

REPO = "meta-llama/Llama-3.2-3B-Instruct"
ONE = {"Llama-3.2-3B-Instruct-Q4_K_M.gguf": gguf()}
TWO = {**ONE, "Llama-3.2-3B-Instruct-Q8_0.gguf": gguf(file_type=7)}
SHARDS = {f"big-Q4_K_M-{n:05}-of-00003.gguf": gguf(tensors=((n, 10),)) for n in (1, 2, 3)}
SEEING = {"m-Q4_K_M.gguf": gguf(), "m-Q8_0.gguf": gguf(file_type=7), "mmproj-F16.gguf": gguf(salt="eye")}
TENSORS = {
    "config.json": b'{"model_type": "llama", "torch_dtype": "bfloat16", "max_position_embeddings": 4096}',
    "model-00001-of-00002.safetensors": safetensors(a=("BF16", [10, 10])),
    "model-00002-of-00002.safetensors": safetensors(b=("BF16", [7])),
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "LICENSE": b"\n   Apache License\nVersion 2.0",
}


def catalog(root: Path) -> Catalog:
    return Catalog([LocalSource(root)])


def names(root: Path) -> list[str]:
    return [model.name for model in catalog(root).models()]
