"""A tiny Llama checkpoint with random weights and a real tokenizer: what a Safetensors model folder looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
TEXTS = [
    "The quick brown fox jumps over the lazy dog and runs away from the old house by the river.",
    "A language model answers with words that it has seen before, one after the other, until it stops.",
    '{"name": "value", "numbers": [1, 2, 3], "true": false}',
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 日本語のテキスト。",
]
LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, CONTEXT = 2, 256, 4, 2, 512, 2048


def make_checkpoint(folder: Path, *, seed: int = 7) -> Path:
    """Write the model into ``folder``; the same seed makes the same model. On a CPU vLLM has no heads below 64."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    _write_weights(folder, vocabulary, seed)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 5,
        "torch_dtype": "float32",
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    return folder


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_tokenizer(folder: Path) -> int:
    """A byte-level BPE trained on TEXTS; how many tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin|>",
            "eos_token": "<|end|>",
            "pad_token": "<|pad|>",
            "chat_template": TEMPLATE,
            "model_max_length": CONTEXT,
        },
    )
    return int(tokenizer.get_vocab_size())


def _write_weights(folder: Path, vocabulary: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, scale: float) -> Any:
        return torch.randn(rows, columns, generator=random) * scale

    size = HIDDEN // HEADS
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, HIDDEN, 1.0),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": matrix(vocabulary, HIDDEN, 0.2),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        weights |= {
            name + "input_layernorm.weight": torch.ones(HIDDEN),
            name + "post_attention_layernorm.weight": torch.ones(HIDDEN),
            name + "self_attn.q_proj.weight": matrix(HEADS * size, HIDDEN, 0.1),
            name + "self_attn.k_proj.weight": matrix(KV_HEADS * size, HIDDEN, 0.1),
            name + "self_attn.v_proj.weight": matrix(KV_HEADS * size, HIDDEN, 0.1),
            name + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * size, 0.1),
            name + "mlp.gate_proj.weight": matrix(INNER, HIDDEN, 0.1),
            name + "mlp.up_proj.weight": matrix(INNER, HIDDEN, 0.1),
            name + "mlp.down_proj.weight": matrix(HIDDEN, INNER, 0.1),
        }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
