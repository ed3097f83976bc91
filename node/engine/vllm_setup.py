"""How vLLM is started: its settings out of a model's folder, its environment, and the end of its processes."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmlb.bus.errors import ModelLoadFailed
from llmlb.node.engine.interface import LoadOptions

CPU_SLOTS, CPU_CONTEXT = 4, 4096
"""On a CPU, where nothing is said; on a GPU vLLM decides."""
CPU_KV_BYTES_MIN = 1 << 30
CPU_BATCH = 512
"""Tokens of a step, there: 2,048 or more would be vLLM's own. While one reads a prompt, nobody else's answer moves."""

_END_GROUP_AFTER = """
import os, select, signal, sys, time
worker = int(sys.argv[1])
if os.getppid() == worker:
    select.select([os.pidfd_open(worker)], [], [])
found = True
while found:
    found = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                tracker = b"resource_tracker" in file.read()
            with open(f"/proc/{pid}/stat", "rb") as file:
                ended = file.read().rpartition(b")")[2].split()[0] in b"ZX"
            if os.getpgid(int(pid)) == worker and not tracker and not ended:
                os.kill(int(pid), signal.SIGKILL)
                found = True
        except OSError:
            pass
    time.sleep(0.1)
"""


def prepare_environment() -> None:
    """What vLLM and its child processes read; written here, never read. An operator's own values win."""
    for name, value in {
        # A node says nothing to anybody but its bus.
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # This process has threads, and holds the agent's socket: a forked child would keep both half alive.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(name, value)  # noqa: TID251  # written for libraries, not read


def engine_arguments(folder: Path, options: LoadOptions, *, cpu: bool) -> dict[str, Any]:
    """What AsyncEngineArgs gets. On a GPU vLLM's defaults stay in force for all that the options leave open."""
    config = read_json(folder / "config.json")
    slots, context = options.slots, options.context_length
    trained = text_config(config).get("max_position_embeddings")
    if cpu:
        slots, context = slots or CPU_SLOTS, context or CPU_CONTEXT
    if context is not None and isinstance(trained, int) and not config.get("rope_scaling"):
        context = min(context, trained)
    arguments: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": options.model,
        # vLLM's own is always 0, and then requests without a seed are not random from one load to the next.
        "seed": random.getrandbits(31),
        "disable_log_stats": True,
    }
    if slots is not None:
        arguments["max_num_seqs"] = slots
    if context is not None:
        arguments["max_model_len"] = context
    if cpu:
        assert slots is not None
        assert context is not None
        arguments |= {
            # With bfloat16 oneDNN takes AMX, which virtual machines report but don't allow: SIGILL.
            "dtype": "float32",
            "enforce_eager": True,
            # Without it: 92 % of the machine's memory.
            "kv_cache_memory_bytes": max(CPU_KV_BYTES_MIN, kv_bytes(config, slots * context)),
        }
        if not platform.machine().startswith("riscv"):  # where vLLM can't read a prompt in pieces
            arguments["max_num_batched_tokens"] = max(CPU_BATCH, slots)
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")  # noqa: TID251  # written for a C library
        # enforce_eager leaves some functions of the sampler to the compiler: 15 s in the first request that asks for
        # log probabilities, and no answer at all where there is no C++ compiler.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # noqa: TID251  # written for torch, not read
        if options.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(options.threads)  # noqa: TID251  # written for a C library
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # noqa: TID251  # written for vLLM
    return arguments


def kv_bytes(config: dict[str, Any], tokens: int) -> int:
    """Bytes of keys and values of so many tokens in float32, 0 for a model that does not say."""
    text = text_config(config)
    try:
        heads = text["num_attention_heads"]
        size = text.get("head_dim") or text["hidden_size"] // heads
        return int(2 * 4 * text["num_hidden_layers"] * (text.get("num_key_value_heads") or heads) * size * tokens)
    except (KeyError, TypeError):
        return 0


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """A model that also sees keeps what concerns text in a part of its configuration."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def template_of(folder: Path) -> str | None:
    """The chat template of a model folder. Source: transformers, ``save_pretrained``."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        found = {item.get("name"): item.get("template") for item in found}.get("default")
    return found if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """A file of the model folder, {} when it has none. Raises ModelLoadFailed: it is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelLoadFailed(f"{path.name} can't be read: {error}", detail=str(path)) from error
    if not isinstance(found, dict):
        raise ModelLoadFailed(f"{path.name} is no JSON object", detail=str(path))
    return found


def end_children_when_this_process_dies() -> None:
    """Start a guard that ends what vLLM started once this process is gone, however it went.

    vLLM's engine process does not notice the death of its parent, and would keep its memory for ever. The guard kills
    this process's group, hence only where the process leads a session of its own, as the agent starts workers. It
    spares Python's resource tracker, which unlinks the shared memory of the others and then ends. Linux only.
    """
    if hasattr(os, "pidfd_open") and os.getsid(0) == os.getpid():
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _END_GROUP_AFTER, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
