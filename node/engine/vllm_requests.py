"""From a request to a job of the vLLM engine, and to what vLLM is asked for it. Gets vllm; imports only its errors."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmlb.bus.errors import ContextOverflow, InvalidRequest
from llmlb.bus.messages.infer import InferRequest, Sampling
from llmlb.node.engine.interface import Capabilities, Handle
from llmlb.node.engine.prompts import PromptMaker, RenderedPrompt, reader_for
from llmlb.node.engine.sampling import LEAST_REPEAT
from llmlb.node.engine.tools import calls_schema
from llmlb.node.engine.vllm_job import Job
from llmlb.node.engine.vllm_vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What requests need to know of a model."""

    name: str
    context_length: int
    vocabulary_size: int
    defaults: Mapping[str, Any]
    """Of SamplingParams: the model's generation_config.json."""
    ends: frozenset[int]
    """Tokens that end a turn."""
    capabilities: Capabilities


class Requests:
    """What reads requests to one model. ``vllm``: the module."""

    def __init__(self, vllm: Any, model: LoadedModel, prompts: PromptMaker, vocabulary: Vocabulary) -> None:
        self._vllm = vllm
        self._model = model
        self._prompts = prompts
        self._vocabulary = vocabulary

    def job(self, handle: Handle, request: InferRequest) -> Job:
        """The job of a request, its continuation read. Raises InvalidRequest (also: what vLLM can't do here),
        ContextOverflow."""
        self._refuse_what_is_missing(request)
        made = self._prompts.render(request)
        if made.images:
            raise InvalidRequest(f"{self._model.name} takes no images on the vLLM engine", param="messages")
        job = self._begun(handle, request, made)
        if request.count_only:
            return job
        self._refuse_what_does_not_fit(job)
        job.form = self._structure(request, made)
        limit = request.sampling.max_tokens
        job.room = self._model.context_length - len(job.prompt) - len(job.lead)
        job.room = job.room if limit is None else min(job.room, limit)
        for token in request.continuation:
            # What the client has already is not sent again; only the reader's held-back end matters.
            self._bound_thinking(job)
            job.read(token, self._vocabulary.bytes_of(token, chat=job.chat))
        job.formed = not job.reader.thinking and not job.lead
        if job.form and request.continuation and not job.reader.thinking:
            # vLLM's grammar begins at the first token that it samples itself.
            raise InvalidRequest("the vLLM engine can't go on with an answer in a given form", param="response_format")
        return job

    def _begun(self, handle: Handle, request: InferRequest, made: RenderedPrompt) -> Job:
        """With its prompt. A forced call begins in it, or behind the thinking, if the template opens that."""
        before = after = ""
        if forced(request):
            if not (made.format.bare or made.format.before):
                raise InvalidRequest(f"{self._model.name} can't be made to call a tool", param="tool_choice")
            before, after = made.format.before, made.format.after
        later = before if made.opened is not None else ""
        text = made.text if later else made.text + before
        prompt = self._vocabulary.encode(text, add_special=request.kind == "completion")
        reader = reader_for(request, made)
        if not later:
            reader.feed(before.encode())
        now = time.monotonic()
        job = Job(handle, request, prompt, reader, now, now, before=later, after=after.encode())
        job.lead = self._vocabulary.encode(later, add_special=False) if later else []
        return job

    def _refuse_what_is_missing(self, request: InferRequest) -> None:
        name = self._model.name
        if request.kind == "embedding":
            raise InvalidRequest(f"{name} makes no embeddings: the vLLM engine only generates text")
        if not self._model.capabilities.chat:
            raise InvalidRequest(f"{name} is an embedding model; it can't answer", param="model")
        if request.response_format.type != "text" and forced(request):
            raise InvalidRequest("an answer can't be both a tool call and in a response format", param="tool_choice")
        if request.response_format.type != "text" and request.tools and request.tool_choice == "auto":
            raise InvalidRequest(
                f"{name}: the vLLM engine takes a response format only where no tool may be called",
                param="response_format",
            )

    def _refuse_what_does_not_fit(self, job: Job) -> None:
        request, size, room = job.request, len(job.prompt) + len(job.lead), self._model.context_length
        param = "messages" if request.kind == "chat" else "prompt"
        if not job.prompt:
            raise InvalidRequest("the prompt is empty", param=param)
        if size >= room:
            raise ContextOverflow(
                f"the prompt has {size} tokens; the context of {self._model.name} holds {room}, "
                "and the answer needs at least one",
                param=param,
            )
        if any(not 0 <= token < self._model.vocabulary_size for token in request.continuation):
            raise InvalidRequest(f"the continuation is not of {self._model.name}", param="continuation")

    # The thinking, and what comes behind it

    def _bound_thinking(self, job: Job) -> None:
        """Once the budget of the thinking is used up, what ends it comes next, whatever the model would say."""
        most = job.request.sampling.thinking_tokens
        if most is None or job.closing or job.thought < most or (text := job.reader.closing) is None:
            return
        tokens = self._vocabulary.encode(text, add_special=False)
        if not self._model.ends.intersection(tokens):  # else it would end the answer too
            job.closing = tokens

    def goes_on_elsewhere(self, job: Job) -> bool:
        """Whether vLLM has to be asked anew behind the last token; what comes before it asks is put into the job."""
        self._bound_thinking(job)
        closing, job.closing = job.closing, []
        for token in closing:
            if job.sampled < job.room:
                job.add(job.read(token, self._vocabulary.bytes_of(token, chat=job.chat)), token)
        behind = not job.formed and not job.reader.thinking
        if behind:
            job.formed = True
            job.reader.feed(job.before.encode())
        return bool(closing) or (behind and bool(job.form))

    # What vLLM is asked

    def params(self, job: Job) -> Any:
        """vLLM's SamplingParams for what is still to come. Raises InvalidRequest."""
        sampling = job.request.sampling
        given = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        chosen = {name: self._model.defaults.get(name) if value is None else value for name, value in given.items()}
        try:
            return self._vllm.SamplingParams(
                **{name: value for name, value in chosen.items() if value is not None},
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                repetition_penalty=max(sampling.repeat_penalty, LEAST_REPEAT),
                seed=None if sampling.seed is None else sampling.seed & 0xFFFFFFFF,
                max_tokens=job.room - job.sampled,
                logprobs=sampling.logprobs,
                logit_bias=self._logit_bias(sampling) or None,
                **(job.form if job.formed else {}),
                detokenize=False,
                output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            )
        except (TypeError, ValueError, client_error()) as error:
            raise InvalidRequest(f"vLLM does not take this request: {line(error)}", param="sampling") from error

    def _logit_bias(self, sampling: Sampling) -> dict[int, float]:
        for item in sampling.logit_bias:
            if item.token_id >= self._model.vocabulary_size:
                raise InvalidRequest(f"{item.token_id} is no token id of {self._model.name}", param="logit_bias")
        return {item.token_id: item.bias for item in sampling.logit_bias}

    def _structure(self, request: InferRequest, made: RenderedPrompt) -> dict[str, Any]:
        """What SamplingParams gets so that the answer has its form: a forced call, or the response format."""
        form = request.response_format
        if not forced(request) and form.type == "text":
            return {}
        make = getattr(self._vllm.sampling_params, "StructuredOutputsParams", None)
        if make is None:
            raise InvalidRequest("this vLLM has no StructuredOutputsParams; it is too old", param="response_format")
        if forced(request):
            return {"structured_outputs": make(json=json.dumps(calls_schema(made.tools, made.format)))}
        if form.type == "json_object":
            return {"structured_outputs": make(json_object=True)}
        return {"structured_outputs": make(json=json.dumps(_object(form.json_schema or "{}", "response_format")))}


def forced(request: InferRequest) -> bool:
    """Whether the answer must be a call of a tool."""
    return request.kind == "chat" and bool(request.tools) and request.tool_choice == "required"


def _object(text: str, param: str) -> dict[str, Any]:
    """A JSON object out of a request. Raises InvalidRequest."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} has what is not JSON: {error}", param=param) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{param} has what is no JSON object", param=param)
    return found


def client_error() -> type[Exception]:
    """What vLLM raises for a bad request; ValueError in versions that had no class for it."""
    import vllm.exceptions

    found: type[Exception] = getattr(vllm.exceptions, "VLLMClientError", ValueError)
    return found


def line(error: BaseException) -> str:
    """The first line of an error, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
