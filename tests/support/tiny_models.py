"""GGUF models of a few hundred kilobytes with random weights, with which llama.cpp does what it does with real ones.

Their answers mean nothing, but depend on every token and pixel before them. The same seed writes the same file.
Source of the names of keys and tensors: llama.cpp's gguf-py and ``tools/mtmd/clip-impl.h``.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

WIDTH = 64
LAYERS = 2
HEADS = 4
CONTEXT = 2048
IMAGE_WIDTH = 32
"""Width of the image encoder."""

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BEGIN, END = "<|im_start|>", "<|im_end|>"
CONTROLS = (BEGIN, END, "<s>", "<fake_token_around_image>", "<global-img>", "<|vision_start|>", "<|vision_end|>")

Architecture = Literal["llama", "qwen2vl"]
Projection = Literal["mlp", "idefics3", "gemma3", "qwen2vl_merger"]
IMAGE_TOKENS = {"mlp": 64, "gemma3": 64}
"""Tokens of an image, for the projectors that make the same number of each."""
TILE_TOKENS = 16
"""Tokens of each piece an image is cut into by idefics3."""
PATCH = 8
"""Pixels of a patch of qwen2vl_merger; a token is a square of 2 by 2 patches."""


class _Weights:
    """Adds random tensors to a file."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)

    def matrix(self, name: str, rows: int, *columns: int) -> None:
        """Keeps the size of what it is multiplied with."""
        size = float(np.prod(columns))
        self.add(name, self._random.normal(0, size**-0.5, (rows, *columns)))

    def table(self, name: str, rows: int, columns: int, *, scale: float = 1.0) -> None:
        self.add(name, self._random.normal(0, scale, (rows, columns)))

    def bias(self, name: str, size: int) -> None:
        self.add(name, self._random.normal(0, 0.1, size))

    def norm(self, name: str, size: int, *, bias: bool = False) -> None:
        self.add(f"{name}.weight", self._random.normal(1, 0.1, size))
        if bias:
            self.bias(f"{name}.bias", size)

    def add(self, name: str, values: np.ndarray) -> None:
        self._writer.add_tensor(name, values.astype(np.float32))

    def finish(self) -> None:
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()


def _byte_tokens() -> list[str]:
    """The 256 bytes as GPT-2 writes them: printable ones as themselves, the others from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def _add_bpe(writer: gguf.GGUFWriter, *, begin: bool) -> list[str]:
    """A tokenizer of single bytes and a few merges; its tokens. ``begin``: texts begin with ``<s>``."""
    merges = ["Ċ Ċ", "Ġ t", "h e", "Ġt he", "i n", "a n", "o r"]
    tokens = [*CONTROLS, *_byte_tokens(), *(merge.replace(" ", "") for merge in merges)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in CONTROLS else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_add_bos_token(begin)
    return tokens


def write_text_model(
    path: Path,
    *,
    architecture: Architecture = "llama",
    context: int = CONTEXT,
    begin: bool = False,
    seed: int = 1,
    template: str = TEMPLATE,
) -> Path:
    """A model that answers in printable ASCII and hardly ever ends before it has to."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny-{architecture}")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    if architecture == "qwen2vl":
        writer.add_rope_dimension_sections([2, 3, 3, 0])
    tokens = _add_bpe(writer, begin=begin)
    writer.add_chat_template(template)
    weights = _Weights(writer, seed)
    weights.table("token_embd.weight", len(tokens), WIDTH)
    output = np.random.default_rng(seed + 1000).normal(0, 1, (len(tokens), WIDTH))
    output[[not (len(token) == 1 and token in string.printable) for token in tokens]] = 0
    weights.add("output.weight", output)
    weights.norm("output_norm", WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        weights.norm(f"{block}.attn_norm", WIDTH)
        weights.norm(f"{block}.ffn_norm", WIDTH)
        for part, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH // 2, WIDTH),
            ("attn_v", WIDTH // 2, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", 2 * WIDTH, WIDTH),
            ("ffn_up", 2 * WIDTH, WIDTH),
            ("ffn_down", WIDTH, 2 * WIDTH),
        ):
            weights.matrix(f"{block}.{part}.weight", rows, columns)
            if architecture == "qwen2vl" and part in ("attn_q", "attn_k", "attn_v"):
                weights.bias(f"{block}.{part}.bias", rows)
    weights.finish()
    return path


def write_projector(
    path: Path, kind: Projection = "mlp", *, image_size: int | None = None, width: int = WIDTH, seed: int = 2
) -> Path:
    """An mmproj file for :func:`write_text_model`.

    ``mlp`` (LLaVA) scales an image to one square of 64 tokens, ``gemma3`` too, decoded without a causal mask;
    ``idefics3`` (SmolVLM) cuts it into tiles and an overview; ``qwen2vl_merger`` keeps its shape, with positions in
    two dimensions. ``width``: of the text model.
    """
    sizes = {"mlp": (32, 4), "idefics3": (64, 8), "gemma3": (128, 4), "qwen2vl_merger": (64, PATCH)}
    size, patch = sizes[kind]
    size = image_size or size
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(f"tiny-{kind}")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(kind)
    writer.add_vision_image_size(size)
    writer.add_vision_patch_size(patch)
    writer.add_vision_embedding_length(IMAGE_WIDTH)
    writer.add_vision_feed_forward_length(2 * IMAGE_WIDTH)
    writer.add_vision_block_count(LAYERS)
    writer.add_vision_head_count(2)
    writer.add_vision_projection_dim(width)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    writer.add_vision_use_gelu(True)
    if kind == "idefics3":
        writer.add_vision_projector_scale_factor(2)
        writer.add_vision_preproc_image_size(2 * size)
    weights = _Weights(writer, seed)
    _image_encoder(weights, kind, patch, (size // patch) ** 2)
    _projection(weights, kind, width)
    weights.finish()
    return path


def _image_encoder(weights: _Weights, kind: Projection, patch: int, patches: int) -> None:
    weights.matrix("v.patch_embd.weight", IMAGE_WIDTH, 3, patch, patch)
    if kind == "qwen2vl_merger":
        weights.matrix("v.patch_embd.weight.1", IMAGE_WIDTH, 3, patch, patch)
    else:
        weights.bias("v.patch_embd.bias", IMAGE_WIDTH)
        weights.table("v.position_embd.weight", patches, IMAGE_WIDTH, scale=0.1)
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        weights.norm(f"{block}.ln1", IMAGE_WIDTH, bias=True)
        weights.norm(f"{block}.ln2", IMAGE_WIDTH, bias=True)
        for part, rows, columns in (
            ("attn_q", IMAGE_WIDTH, IMAGE_WIDTH),
            ("attn_k", IMAGE_WIDTH, IMAGE_WIDTH),
            ("attn_v", IMAGE_WIDTH, IMAGE_WIDTH),
            ("attn_out", IMAGE_WIDTH, IMAGE_WIDTH),
            ("ffn_up", 2 * IMAGE_WIDTH, IMAGE_WIDTH),
            ("ffn_down", IMAGE_WIDTH, 2 * IMAGE_WIDTH),
        ):
            weights.matrix(f"{block}.{part}.weight", rows, columns)
            weights.bias(f"{block}.{part}.bias", rows)
    weights.norm("v.post_ln", IMAGE_WIDTH, bias=True)


def _projection(weights: _Weights, kind: Projection, width: int) -> None:
    if kind == "idefics3":
        weights.matrix("mm.model.fc.weight", width, 4 * IMAGE_WIDTH)
    elif kind == "gemma3":
        weights.norm("mm.soft_emb_norm", IMAGE_WIDTH)
        weights.matrix("mm.input_projection.weight", IMAGE_WIDTH, width)
    else:
        columns = 4 * IMAGE_WIDTH if kind == "qwen2vl_merger" else IMAGE_WIDTH
        weights.matrix("mm.0.weight", width, columns)
        weights.bias("mm.0.bias", width)
        weights.matrix("mm.2.weight", width, width)
        weights.bias("mm.2.bias", width)


BERT_WORDS = ("the", "a", "cat", "dog", "house", "runs", "sleeps", "and", "in", "of")


def write_bert(path: Path, *, context: int = 128, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> Path:
    """An embedding model: it keeps nothing between calls and can't answer. Knows BERT_WORDS and ASCII letters."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-bert")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *".,!?"]
    tokens = [*special, *(f"▁{word}" for word in dict.fromkeys((*BERT_WORDS, *letters))), *letters]
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in special else normal for token in tokens])
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    weights = _Weights(writer, 3)
    weights.table("token_embd.weight", len(tokens), WIDTH)
    weights.table("token_types.weight", 2, WIDTH, scale=0.1)
    weights.table("position_embd.weight", context, WIDTH, scale=0.3)
    weights.norm("token_embd_norm", WIDTH, bias=True)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for part, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH, WIDTH),
            ("attn_v", WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", 2 * WIDTH, WIDTH),
            ("ffn_down", WIDTH, 2 * WIDTH),
        ):
            weights.matrix(f"{block}.{part}.weight", rows, columns)
            weights.bias(f"{block}.{part}.bias", rows)
        weights.norm(f"{block}.attn_output_norm", WIDTH, bias=True)
        weights.norm(f"{block}.layer_output_norm", WIDTH, bias=True)
    weights.finish()
    return path


def truncated(source: Path, target: Path, size: float) -> Path:
    """The first ``size`` bytes of a file, or with a fraction that share of it; negative: so many less than it has."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * size) if 0 < size < 1 else int(size)])
    return target


Damage = Literal["magic", "version", "counts", "key", "tensor names", "tensor offsets"]


def corrupted(source: Path, target: Path, what: Damage) -> Path:
    """A copy with one part of its header destroyed."""
    data = bytearray(source.read_bytes())
    reader = gguf.GGUFReader(source)
    first = reader.tensors[0].field
    at = first.offset
    damage: dict[Damage, Callable[[], None]] = {
        "magic": lambda: _put(data, 0, b"GGML"),
        "version": lambda: _put(data, 4, b"\xff\xff\xff\x7f"),
        "counts": lambda: _put(data, 8, b"\xff" * 7 + b"\x7f"),
        "key": lambda: _put(data, 24, b"\xff" * 7 + b"\x7f"),
        "tensor names": lambda: _put(data, at + 8, b"x"),
        "tensor offsets": lambda: _put(data, at + sum(part.nbytes for part in first.parts) - 8, b"\xff" * 8),
    }
    damage[what]()
    target.write_bytes(data)
    return target


def _put(data: bytearray, at: int, new: bytes) -> None:
    data[at : at + len(new)] = new
