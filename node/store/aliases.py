"""The short name that a model gets when it is pulled. Pure.

Rules, for ``meta-llama/Llama-3.2-3B-Instruct`` → ``llama3.2-3b``:

1. The model's part of the name, in lower case; a vendor before ``_`` and ``meta-`` before ``llama`` are dropped.
2. The words ``gguf``, ``instruct``, ``it``, ``chat`` and ``hf`` are dropped, and a quantization at the end.
3. A version right behind the family joins it: ``llama-3.2`` → ``llama3.2``, ``gemma-3`` → ``gemma3``.
4. Taken: with the quantization (``llama3.2-3b-q8_0``); taken too: with ``-2``, ``-3`` …

An alias is unique among the names and aliases of the node, whatever their case, and stays with its model.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from llmlb.bus.hub_plan import quant_of

MAX_ALIAS = 64
_DROPPED = frozenset({"gguf", "instruct", "it", "chat", "hf"})
_FAMILY_AND_VERSION = re.compile(r"^([a-z]+)-(\d{1,2}(?:\.\d+)*)(?=-|$)")
_ODD = re.compile(r"[^a-z0-9._-]+")


def short_name(repo: str) -> str:
    """The alias of a repo when nothing is taken."""
    name = repo.rpartition("/")[2].lower()
    vendor, mark, rest = name.partition("_")
    if mark and rest and "-" not in vendor:
        name = rest
    name = name.removeprefix("meta-") if name.startswith("meta-llama") else name
    words = [word for word in _ODD.sub("-", name).split("-") if word and word not in _DROPPED]
    if len(words) > 1 and quant_of(f"-{words[-1]}.gguf") is not None:
        words.pop()
    joined = "-".join(words).strip("._-") or "model"
    return _FAMILY_AND_VERSION.sub(r"\1\2", joined)[:MAX_ALIAS].rstrip("._-")


def alias_for(repo: str, label: str | None, taken: Collection[str]) -> str:
    """The first free variant. ``label``: the quantization, where there is one."""
    lowered = {name.lower() for name in taken}
    base = short_name(repo)
    variants = [base] if label is None else [base, f"{base}-{label.lower()}"]
    for variant in variants:
        if variant not in lowered:
            return variant
    number = 2
    while f"{variants[-1]}-{number}" in lowered:
        number += 1
    return f"{variants[-1]}-{number}"
