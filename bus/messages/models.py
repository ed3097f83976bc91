"""Models on a node: listing, details, what is loaded, unloading."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmlb.bus.messages.base import Message, Part


class ModelInfo(Part):
    """One model on a node's disk. Follows ``cli-data-model.md``, entity Model."""

    name: str = Field(description="owner/model, owner/model:QUANT, or a bundled model's name")
    aliases: tuple[str, ...] = Field(default=(), description="short names")
    also: tuple[str, ...] = Field(default=(), description="further names it answers to: with its quantization …")
    format: Literal["GGUF", "Safetensors"] = Field(description="file format; decides the engine")
    size_bytes: int = Field(gt=0, description="bytes of all its files")
    architecture: str = Field(description="llama, qwen2 …")
    quantization: str | None = Field(default=None, description="Q4_K_M …")
    parameters: int | None = Field(default=None, description="number of weights")
    context_length: int | None = Field(default=None, description="tokens the model was trained for")
    source: Literal["Local", "Ollama", "HuggingFace", "Bundled"] = Field(description="where it came from")
    readonly: bool = Field(default=False, description="True: llmlb never changes or removes it")
    created_at: float = Field(description="when its files were made, Unix seconds")
    last_used_at: float | None = Field(default=None, description="when it was last asked, Unix seconds")


class ListModels(Message):
    """Anybody → a node: which models have you?"""

    type: Literal["llmlb.models.list.v1"] = "llmlb.models.list.v1"


class ModelList(Message):
    """Node → caller: all its models, by name."""

    type: Literal["llmlb.models.listed.v1"] = "llmlb.models.listed.v1"
    models: tuple[ModelInfo, ...] = Field(description="by name")
    inventory: int = Field(default=0, description="revision of the list; heartbeats carry the current one")


class ShowModel(Message):
    """Anybody → a node: everything about one model."""

    type: Literal["llmlb.models.show.v1"] = "llmlb.models.show.v1"
    model: str = Field(description="name or alias")


class ModelDetails(Message):
    """Node → caller: the model and what its files say of it."""

    type: Literal["llmlb.models.details.v1"] = "llmlb.models.details.v1"
    model: ModelInfo = Field(description="the model")
    path: str = Field(description="its file on the node")
    license: str | None = Field(default=None, description="licence, as the file names it")
    template: str = Field(description="the chat template in use")
    template_source: Literal["model", "default"] = Field(description="out of the file, or llmlb's default")
    system: str | None = Field(default=None, description="default system prompt, where there is one")
    parameters: dict[str, str] = Field(default_factory=dict, description="metadata of the file, as text")
    problem: str | None = Field(default=None, description="why it can't be loaded at the moment")


class RemoveModel(Message):
    """Anybody → a node: unload this model and delete its files. Running requests finish first."""

    type: Literal["llmlb.models.remove.v1"] = "llmlb.models.remove.v1"
    model: str = Field(description="name or alias")


class ModelRemoved(Message):
    """Node → caller: its files are gone."""

    type: Literal["llmlb.models.removed.v1"] = "llmlb.models.removed.v1"
    model: str = Field(description="its name")
    freed_bytes: int = Field(ge=0, description="bytes that are free again")


class ManifestFile(Part):
    """One file of a model as the hub listed it at a commit."""

    path: str = Field(description="its path in the repository")
    local: str = Field(description="its name in the model's folder on a node")
    size_bytes: int = Field(ge=0, description="its size")
    oid: str | None = Field(default=None, description="sha256 of an LFS file, else git's sha1 of it, hex")


class ModelManifest(Part):
    """What a model consists of, pinned to a commit: enough to fetch it while the hub's metadata API is down."""

    repo: str = Field(description="owner/model, as the hub spells it")
    revision: str = Field(description="commit of the files")
    format: Literal["GGUF", "Safetensors"] = Field(description="decides the engine")
    quantization: str | None = Field(default=None, description="Q4_K_M …")
    files: tuple[ManifestFile, ...] = Field(description="the weights come first")

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


class RegisteredModel(Message):
    """Router → bucket llmlb-models, key = ``subjects.model_key(name)``: this model shall be on nodes.

    The desired state: an approved node that it is meant for pulls it, and removes it when the key is deleted, unless
    its own user pulled it too. One that waits for its conversion is meant for no node: ``nodes`` is empty.
    """

    type: Literal["llmlb.models.registered.v1"] = "llmlb.models.registered.v1"
    name: str = Field(description="owner/model or owner/model:QUANT, as for a pull")
    file: str | None = Field(default=None, description="a file of the repo, when one was chosen")
    nodes: tuple[str, ...] | None = Field(default=None, description="ids of the nodes it is meant for; None: every one")
    registered_at: float = Field(description="Unix seconds")
    registered_by: str | None = Field(default=None, description="who")
    manifest: ModelManifest | None = Field(default=None, description="its files; None: each node asks the hub")
    display_name: str | None = Field(default=None, description="what people call it")
    aliases: tuple[str, ...] = Field(default=(), description="further names that requests may use")
    chat_template: str | None = Field(default=None, description="Jinja, in place of the one in its files")
    context_length: int | None = Field(default=None, ge=1, description="tokens it was trained for, as the hub tells")
    required_memory_bytes: int | None = Field(default=None, ge=0, description="estimate: weights, KV cache, overhead")
    conversion_pending: bool = Field(default=False, description="True: no engine runs its format; it is only listed")
    warnings: tuple[str, ...] = Field(default=(), description="what was said about it when it was registered")


class ListRunning(Message):
    """Anybody → a node: which models are loaded?"""

    type: Literal["llmlb.models.ps.v1"] = "llmlb.models.ps.v1"


class RunningModel(Part):
    """One loaded model."""

    name: str = Field(description="the model's name")
    instance: str = Field(description="id of the loaded instance, 12 hex digits")
    state: Literal["loading", "ready", "stopping", "failed"] = Field(description="where it is in its life")
    size_bytes: int = Field(ge=0, description="memory in use by it, weights and KV cache")
    processor: str = Field(description="100% CPU, 100% GPU, 48%/52% CPU/GPU")
    slots: int = Field(ge=0, description="requests it can run at once")
    running: int = Field(ge=0, description="requests running now")
    queued: int = Field(ge=0, description="requests waiting inside the node")
    context_length: int = Field(ge=0, description="tokens of one slot")
    expires_in_s: float | None = Field(
        default=None, description="seconds to its unloading when nobody asks; None: never"
    )
    vram_percent: float | None = Field(
        default=None, description="VRAM in use on its GPUs, 0 to 100; None without a GPU"
    )
    gpu_temperature_c: float | None = Field(default=None, description="GPU temperature in °C; None without a GPU")
    percent: int = Field(default=100, ge=0, le=100, description="how far loading is")
    same_answer: bool = Field(
        default=False, description="True: found out that load, cache and migration do not change an answer"
    )
    problem: str | None = Field(default=None, description="why it is failed")

    @classmethod
    def of_failed(cls, name: str, problem: str) -> RunningModel:
        """The row of a model that crashed too often."""
        return cls(
            name=name,
            instance="",
            state="failed",
            size_bytes=0,
            processor="-",
            slots=0,
            running=0,
            queued=0,
            context_length=0,
            problem=problem,
        )


class RunningList(Message):
    """Node → caller: what is loaded."""

    type: Literal["llmlb.models.running.v1"] = "llmlb.models.running.v1"
    models: tuple[RunningModel, ...] = Field(description="by name")


class StopModel(Message):
    """Anybody → a node: unload this model. Running requests finish first."""

    type: Literal["llmlb.models.stop.v1"] = "llmlb.models.stop.v1"
    model: str = Field(description="name or alias")


class ModelStopped(Message):
    """Node → caller: it is unloaded."""

    type: Literal["llmlb.models.stopped.v1"] = "llmlb.models.stopped.v1"
    model: str = Field(description="its name")
