"""Which files of a repo make the model that was asked for. Pure; for nodes and routers.

Rules:

1. A named file wins: its model (all shards of it), or the repo's Safetensors model.
2. A repo with GGUF files is a GGUF model: the named quantization, else ``Q4_K_M``, else the first of `ORDER` that is
   there, else the smallest file. A ``UD-`` (dynamic) variant counts as its plain quantization, after it. Of several
   files of one quantization the one nearest to the root wins, then the shortest name, then the first by alphabet.
3. A sharded GGUF (``-00001-of-0000N``) is one model; a missing shard is an error.
4. One projector (``mmproj``) comes along: of the model's own folder if there is one, F16 before BF16, Q8_0 and F32.
5. Without GGUF files, ``config.json`` and the Safetensors weights with the files of the tokenizer are the model. The
   same weights in other forms (``pytorch_model.bin``, ``consolidated.safetensors``, ``*.fp16.safetensors``, ONNX …)
   stay where they are.

All files of a model lie in one folder here: `PlannedFile.local` is the name without folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llmlb.bus.errors import PullFailed
from llmlb.bus.hub_names import Wanted

ORDER = (
    *("Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K_XL", "Q4_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "MXFP4", "MXFP4_MOE"),
    *("Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_K_XL", "Q5_K", "Q5_0", "Q5_1"),
    *("Q6_K", "Q6_K_L", "Q6_K_XL", "Q8_0", "Q8_K_XL"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_XL", "IQ3_M", "Q3_K_S", "Q3_K", "IQ3_S", "IQ3_XS", "IQ3_XXS"),
    *("BF16", "F16", "F32"),
    *("Q2_K", "Q2_K_L", "Q2_K_XL", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
    *("TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S"),
)
"""What is taken when no quantization is named: four bits, then more bits, then three, then none, then fewer."""

PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
MAX_FILE_NAME = 200
MAX_FILES = 2_000
"""Of one model: more would not fit into a message of the bus."""
MAX_NAMED = 30
"""In an error: a repo may hold thousands."""

_QUANT = r"(?:UD-)?(?:I?Q\d(?:_(?:K|NL|XXS|XS|XL|S|M|L|P|\d{1,2}))*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4)"
_QUANT_AT_END = re.compile(rf"(?:^|[./_-])({_QUANT})$", re.IGNORECASE)
_QUANT_INSIDE = re.compile(rf"(?:^|[./_-])({_QUANT})(?=$|[./_-])", re.IGNORECASE)
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")

_BESIDE_WEIGHTS = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(?:json|txt)|merges\.txt|[\w.-]+\.model(?:\.v\d+)?|[\w.-]+\.tiktoken"
    r"|(?:pre)?processor_config\.json|video_preprocessor_config\.json|chat_template\.(?:json|jinja)|tekken\.json"
    r"|params\.json|modules\.json|sentence_\w+config\.json|quantize_config\.json|LICENSE(?:\.\w+)?",
    re.IGNORECASE,
)
"""Files of the tokenizer, the settings and the licence, in the root of a Safetensors repo."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file as a hub lists it. ``oid``: sha256 of an LFS file, else git's sha1 of it; ``size`` in bytes."""

    path: str
    size: int
    oid: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to fetch: ``path`` in the repo, ``local`` in the model's folder."""

    path: str
    local: str
    size: int
    oid: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The files of one model. ``revision`` is the commit they were listed at; the weights come first."""

    wanted: Wanted
    revision: str
    format: Literal["GGUF", "Safetensors"]
    quantization: str | None
    files: tuple[PlannedFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class _Gguf:
    """One model in GGUF: a file, or its shards in order."""

    stem: str
    label: str | None
    files: tuple[RepoFile, ...]
    shards: int

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def plan(wanted: Wanted, files: Iterable[RepoFile], revision: str) -> Plan:
    """What to fetch. Raises PullFailed: nothing usable inside, quantization or file not there, shards missing."""
    usable = [file for file in files if is_safe(file.path) and file.size >= 0]
    if wanted.file is not None and wanted.file not in {file.path for file in usable}:
        raise PullFailed(f"{wanted.repo} has no file {wanted.file}")
    ggufs, projectors = _ggufs(usable), [file for file in usable if _is_projector(file.path)]
    if wanted.file is not None and not wanted.file.lower().endswith((".gguf", ".safetensors")):
        raise PullFailed(f"{wanted.file} of {wanted.repo} is no model file: a .gguf or .safetensors file is needed")
    asks_safetensors = wanted.file is not None and wanted.file.lower().endswith(".safetensors")
    if ggufs and not asks_safetensors:
        return _plan_gguf(wanted, ggufs, projectors, revision)
    if wanted.quant is not None:
        raise PullFailed(f"{wanted.repo} has no {wanted.quant}: there is no GGUF file in it")
    chosen = _safetensors(wanted, usable)
    return Plan(wanted, revision, "Safetensors", None, tuple(_planned(file) for file in chosen))


@dataclass(frozen=True, slots=True)
class Variant:
    """One GGUF model of a repo. ``whole`` False: a shard is missing, so that it can't be fetched."""

    label: str | None
    stem: str
    files: tuple[RepoFile, ...]
    whole: bool

    @property
    def tag(self) -> str:
        """What follows the colon in its name: the quantization, else the file's name without its ending."""
        return self.label or self.stem.rpartition("/")[2]


def variants(files: Iterable[RepoFile]) -> tuple[Variant, ...]:
    """The GGUF models of a repo, the one that is taken without a name first. Projectors are none."""
    ggufs = sorted(_ggufs([file for file in files if is_safe(file.path)]), key=_rank)
    return tuple(Variant(gguf.label, gguf.stem, gguf.files, len(gguf.files) == gguf.shards) for gguf in ggufs)


def quant_of(path: str) -> str | None:
    """The quantization that a file's name tells, in capitals (``UD-`` kept), or None."""
    stem = _stem(path)
    match = _QUANT_AT_END.search(stem)
    if match is None:
        found = [*_QUANT_INSIDE.finditer(stem)] or [*_QUANT_INSIDE.finditer(path.rpartition("/")[0])]
        match = found[-1] if found else None
    return None if match is None else _label(match[1])


def is_beside_weights(name: str) -> bool:
    """Whether a file belongs to the weights of a Safetensors model: settings, tokenizer, licence."""
    return _BESIDE_WEIGHTS.fullmatch(name) is not None


def _label(quant: str) -> str:
    """One spelling of a quantization."""
    upper = quant.upper()
    return {"FP16": "F16", "FP32": "F32"}.get(upper, upper)


def _stem(path: str) -> str:
    name = path.rpartition("/")[2].rpartition(".")[0]
    match = _SHARD.match(name)
    return name if match is None else match["stem"]


def is_safe(path: str) -> bool:
    name = path.rpartition("/")[2]
    odd = path.startswith("/") or ".." in path.split("/") or _UNSAFE.search(path) is not None
    try:
        return not odd and bool(name) and not name.startswith(".") and len(name.encode()) <= MAX_FILE_NAME
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can hold and a file system can't
        return False


def _is_projector(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(".gguf") and "mmproj" in name


def _ggufs(files: list[RepoFile]) -> list[_Gguf]:
    """The GGUF models of a repo; projectors and importance matrices are none."""
    groups: dict[tuple[str, int], list[tuple[int, RepoFile]]] = {}
    for file in files:
        name = file.path.rpartition("/")[2]
        if not name.lower().endswith(".gguf") or _is_projector(file.path) or "imatrix" in name.lower():
            continue
        match = _SHARD.match(name[:-5])
        number, count = (int(match["number"]), int(match["count"])) if match else (1, 1)
        folder = file.path.rpartition("/")[0]
        groups.setdefault((f"{folder}/{_stem(file.path)}".lstrip("/"), count), []).append((number, file))
    found = []
    for (stem, count), members in groups.items():
        ordered = tuple(file for _, file in sorted(members, key=lambda member: member[0]))
        found.append(_Gguf(stem, quant_of(ordered[0].path), ordered, count))
    return found


def _plan_gguf(wanted: Wanted, ggufs: list[_Gguf], projectors: list[RepoFile], revision: str) -> Plan:
    if wanted.file is not None and _is_projector(wanted.file):
        raise PullFailed(f"{wanted.file} of {wanted.repo} is a projector: it comes along with the model's file")
    chosen = _choose(wanted, ggufs)
    if len(chosen.files) > MAX_FILES:
        raise PullFailed(f"{wanted.repo} has more than {MAX_FILES} files of {chosen.stem}")
    if len(chosen.files) != chosen.shards:
        raise PullFailed(f"{wanted.repo} has {len(chosen.files)} of the {chosen.shards} files of {chosen.stem}")
    files = [_planned(file) for file in chosen.files]
    projector = _projector(chosen, projectors)
    if projector is not None:
        name = projector.path.rpartition("/")[2]
        local = name if name.lower().startswith("mmproj") else f"mmproj-{name}"
        files.append(PlannedFile(projector.path, local, projector.size, projector.oid))
    return Plan(wanted, revision, "GGUF", chosen.label, tuple(files))


def _choose(wanted: Wanted, ggufs: list[_Gguf]) -> _Gguf:
    if wanted.file is not None:
        for gguf in ggufs:
            if wanted.file in {file.path for file in gguf.files}:
                return gguf
        raise PullFailed(f"{wanted.file} of {wanted.repo} is no model")
    if wanted.quant is None:
        return min(ggufs, key=_rank)
    asked = _label(wanted.quant)
    exact = [gguf for gguf in ggufs if (gguf.label or "") == asked]
    plain = [gguf for gguf in ggufs if (gguf.label or "").removeprefix("UD-") == asked]
    named = [gguf for gguf in ggufs if gguf.stem.rpartition("/")[2].upper() == asked.removesuffix(".GGUF")]
    found = exact or plain or named
    if not found:
        there = sorted({gguf.label or gguf.stem.rpartition("/")[2] for gguf in ggufs}, key=lambda text: text.upper())
        more = f" and {len(there) - MAX_NAMED} more" if len(there) > MAX_NAMED else ""
        raise PullFailed(f"{wanted.repo} has no {wanted.quant}; it has {', '.join(there[:MAX_NAMED])}{more}")
    return min(found, key=_rank)


def _rank(gguf: _Gguf) -> tuple[int, int, bool, int, int, str]:
    """The first of several: rule 2."""
    label = gguf.label or ""
    plain = label.removeprefix("UD-")
    known = plain in ORDER
    depth = gguf.stem.count("/")
    place = ORDER.index(plain) if known else len(ORDER)
    return (place, 0 if known else gguf.size, label != plain, depth, len(gguf.stem), gguf.stem)


def _projector(chosen: _Gguf, projectors: list[RepoFile]) -> RepoFile | None:
    """The projector of a model: from its own folder, or a folder above it."""
    folder = chosen.files[0].path.rpartition("/")[0]
    near = [file for file in projectors if _holds(file.path.rpartition("/")[0], folder)]

    def rank(file: RepoFile) -> tuple[int, int, str]:
        label = quant_of(file.path) or ""
        place = PROJECTORS.index(label) if label in PROJECTORS else len(PROJECTORS)
        return (-len(file.path.rpartition("/")[0]), place, file.path)

    return min(near, key=rank, default=None)


def _holds(above: str, folder: str) -> bool:
    return above in ("", folder) or folder.startswith(f"{above}/")


def _planned(file: RepoFile) -> PlannedFile:
    return PlannedFile(file.path, file.path.rpartition("/")[2], file.size, file.oid)


def _safetensors(wanted: Wanted, files: list[RepoFile]) -> list[RepoFile]:
    """The weights and what belongs to them, from the root of the repo."""
    root = {file.path: file for file in files if "/" not in file.path}
    weights = _weights(wanted, root)
    if not weights:
        raise PullFailed(f"{wanted.repo} has no model inside: neither GGUF nor Safetensors files")
    if "config.json" not in root:
        raise PullFailed(f"{wanted.repo} has Safetensors files but no config.json")
    stem = _stem(weights[0].path)
    index = root.get(f"{stem}.safetensors.index.json")
    if len(weights) > MAX_FILES:
        raise PullFailed(f"{wanted.repo} has more than {MAX_FILES} files of {stem}")
    beside = [file for path, file in sorted(root.items()) if _BESIDE_WEIGHTS.fullmatch(path)][:MAX_FILES]
    return [*weights, *([index] if index else []), *beside]


def _weights(wanted: Wanted, root: dict[str, RepoFile]) -> list[RepoFile]:
    """One set of weights: the named file's, else the one with an index, else ``model``, else the first by alphabet."""
    groups: dict[tuple[str, int], list[RepoFile]] = {}
    for path in sorted(root):
        if not path.endswith(".safetensors"):
            continue
        match = _SHARD.match(path.removesuffix(".safetensors"))
        groups.setdefault((_stem(path), int(match["count"]) if match else 1), []).append(root[path])
    if wanted.file is not None:
        groups = {key: group for key, group in groups.items() if wanted.file in {file.path for file in group}}
    else:
        whole = {key: group for key, group in groups.items() if not key[0].startswith(("consolidated", "adapter"))}
        groups = whole or {key: group for key, group in groups.items() if not key[0].startswith("adapter")}

    def rank(key: tuple[str, int]) -> tuple[bool, bool, int, str]:
        stem, count = key
        indexed = count > 1 and f"{stem}.safetensors.index.json" in root
        return (stem != "model", not indexed, len(stem), stem)

    if not groups:
        return []
    stem, count = min(groups, key=rank)
    chosen = groups[stem, count]
    if len(chosen) != count:
        raise PullFailed(f"{wanted.repo} has {len(chosen)} of the {count} files of {stem}.safetensors")
    return chosen
