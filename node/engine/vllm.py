"""Safetensors models on vLLM: its ``AsyncLLM``, in the worker process. Needs the extra: ``pip install llmlb[vllm]``.

One thread of this engine runs an asyncio loop with vLLM on it; the worker's main thread submits there and drains what
came out. vLLM batches and schedules by itself, in a child process of its own. Text is made here, token by token, from
the bytes of each token: so a stop text ends the answer at the very token that completes it, also when it began in a
continuation, and usage does not depend on how vLLM lumped its outputs together.

Defaults where a request says nothing are vLLM's own: the model's ``generation_config.json``, else temperature 1.0 and
no filter. Penalties look at this answer only; a continuation counts as prompt for them, and restarts the seed.

The only file that imports vllm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
import time
from collections.abc import Coroutine
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmlb.bus.errors import ContextOverflow, EngineCrashed, InvalidRequest, LlmlbError, ModelLoadFailed
from llmlb.bus.messages.infer import (
    FinishReason,
    InferRequest,
    Sampling,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from llmlb.node.engine.interface import Capabilities, Handle, LoadOptions, Piece, Sink
from llmlb.node.engine.prompts import PromptMaker, RenderedPrompt, reader_for
from llmlb.node.engine.reasoning import FAMILIES
from llmlb.node.engine.templates import ChatTemplate
from llmlb.node.engine.tools import calls_schema, format_of
from llmlb.node.engine.vllm_job import Job, Pulse
from llmlb.node.engine.vllm_setup import (
    end_children_when_this_process_dies,
    engine_arguments,
    prepare_environment,
    template_of,
)
from llmlb.node.engine.vllm_vocabulary import Vocabulary

log = logging.getLogger("llmlb.node.engine.vllm")

WAIT_S = 0.02
"""How long a step waits for vLLM; also how late a command is seen while requests run."""
PROGRESS_INTERVAL_S = 0.5
SHUTDOWN_TIMEOUT_S = 2.0
"""What vLLM's process gets to end by itself. This process needs time to end too, and the agent kills it after 5 s."""


_Outcome = Any
"""vLLM's RequestOutput; an LlmlbError: it failed; a finish reason: it was over before it began; ``counted``."""


class VllmEngine:
    """One Safetensors model: a folder with ``config.json``. Implements :class:`llmlb.node.engine.interface.Engine`.

    The queue between the threads holds at most the tokens of the requests that were let in: the agent bounds those.
    When vLLM's own process dies, every request gets EngineCrashed and the next step raises it, so that the worker
    ends and the agent loads the model anew.
    """

    def __init__(self, options: LoadOptions) -> None:
        """Load the model. Raises ModelLoadFailed, also when vLLM is not installed."""
        self._model_name = options.model
        self._jobs: dict[Handle, Job] = {}
        self._results: queue.SimpleQueue[tuple[Job, _Outcome]] = queue.SimpleQueue()
        self._pulse = Pulse()
        self._dead = False
        self._llm: Any = None
        prepare_environment()
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ModelLoadFailed(
                f"{options.model} is in Safetensors format, which needs vLLM: pip install llmlb[vllm] ({error})"
            ) from error
        self._vllm = vllm
        folder = Path(options.path)
        folder = folder if folder.is_dir() else folder.parent
        arguments = engine_arguments(folder, options, cpu=bool(current_platform.is_cpu()))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        end_children_when_this_process_dies()
        try:
            self._llm = self._call(self._load(arguments))
            self._read_model(folder, options.template)
        except LlmlbError:
            self.close()
            raise
        except Exception as error:  # vLLM raises whatever it stumbles over
            log.exception("vllm_load_failed model=%s", options.model)
            self.close()
            raise ModelLoadFailed(
                f"vLLM could not load {options.model}: {_line(error)}", detail=options.path
            ) from error

    def _read_model(self, folder: Path, template: str | None) -> None:
        """What requests need to know of a model that is loaded. Raises ModelLoadFailed."""
        config = self._llm.vllm_config
        self.slots = int(config.scheduler_config.max_num_seqs)
        self.context_length = int(config.model_config.max_model_len)
        self.capabilities = Capabilities(vision=False, embedding=False)
        self._vocabulary_size = int(config.model_config.get_vocab_size())
        self._defaults = dict(config.model_config.get_diff_sampling_param())
        # A copy, because vLLM's threads use theirs, and a tokenizer is for one thread at a time.
        tokenizer = deepcopy(self._llm.get_tokenizer())
        compiled = ChatTemplate(
            template or template_of(folder),
            bos=str(getattr(tokenizer, "bos_token", None) or ""),
            eos=str(getattr(tokenizer, "eos_token", None) or ""),
        )
        self._prompts = PromptMaker(compiled)
        calling, _ = format_of(compiled.text)
        thinking = [text for family in FAMILIES for text in (family.open, family.close)]
        self._vocabulary = Vocabulary(tokenizer, " ".join([*thinking, *calling.opens, calling.close]))

    async def _load(self, arguments: dict[str, Any]) -> Any:
        """On the loop, because vLLM binds its sockets and tasks to the one that runs."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[lambda *_: self._pulse])

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # Requests

    def submit(self, handle: Handle, request: InferRequest) -> None:
        """Take a request in. Raises InvalidRequest (also: what vLLM can't do here), ContextOverflow, EngineCrashed."""
        if self._dead:
            raise EngineCrashed("vLLM's engine process died")
        job, prompt, made = self._prepare(handle, request)
        if request.count_only:
            self._jobs[handle] = job
            self._results.put((job, "counted"))
            return
        for token in request.continuation:
            # What the client has already is not sent again; only the reader's held-back end matters.
            job.read(token, self._vocabulary.bytes_of(token, chat=job.chat))
        room = self.context_length - len(prompt)
        room = min(room, request.sampling.max_tokens or room) - len(request.continuation)
        if job.reader.stopped or room <= 0:
            self._jobs[handle] = job
            self._results.put((job, "stop" if job.reader.stopped else "length"))
            return
        params = self._params(request, room, self._structure(request, made))
        self._jobs[handle] = job
        job.work = asyncio.run_coroutine_threadsafe(
            self._generate(job, [*prompt, *request.continuation], params), self._loop
        )

    def _prepare(self, handle: Handle, request: InferRequest) -> tuple[Job, list[int], RenderedPrompt]:
        """The job, its prompt as tokens, and what that was made from. A call that is forced begins in the prompt."""
        self._refuse_what_is_missing(request)
        made = self._prompts.render(request)
        if made.images:
            raise InvalidRequest(f"{self._model_name} takes no images on the vLLM engine", param="messages")
        before = after = ""
        if _forced(request):
            if not (made.format.bare or made.format.before):
                raise InvalidRequest(f"{self._model_name} can't be made to call a tool", param="tool_choice")
            made = replace(made, opened=None)
            before, after = made.format.before, made.format.after
        prompt = self._vocabulary.encode(made.text + before, add_special=request.kind == "completion")
        if not request.count_only:
            self._refuse_what_does_not_fit(request, prompt)
        reader = reader_for(request, made)
        reader.feed(before.encode())
        now = time.monotonic()
        return Job(handle, request, len(prompt), reader, after.encode(), now, now), prompt, made

    def _refuse_what_is_missing(self, request: InferRequest) -> None:
        if request.kind == "embedding":
            raise InvalidRequest(f"{self._model_name} makes no embeddings: the vLLM engine only generates text")
        shaped = request.response_format.type != "text"
        if shaped and _forced(request):
            raise InvalidRequest("an answer can't be both a tool call and in a response format", param="tool_choice")
        if (shaped or _forced(request)) and request.continuation:
            # vLLM's grammar begins at the first token that it samples itself.
            raise InvalidRequest("the vLLM engine can't go on with an answer in a given form", param="response_format")

    def _refuse_what_does_not_fit(self, request: InferRequest, prompt: list[int]) -> None:
        param = "messages" if request.kind == "chat" else "prompt"
        if not prompt:
            raise InvalidRequest("the prompt is empty", param=param)
        if len(prompt) >= self.context_length:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens; the context of {self._model_name} holds "
                f"{self.context_length}, and the answer needs at least one",
                param=param,
            )
        if any(not 0 <= token < self._vocabulary_size for token in request.continuation):
            raise InvalidRequest(f"the continuation is not of {self._model_name}", param="continuation")

    def _params(self, request: InferRequest, max_tokens: int, structure: dict[str, Any]) -> Any:
        """vLLM's SamplingParams. Raises InvalidRequest."""
        sampling = request.sampling
        given = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        chosen = {name: self._defaults.get(name) if value is None else value for name, value in given.items()}
        try:
            return self._vllm.SamplingParams(
                **{name: value for name, value in chosen.items() if value is not None},
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                repetition_penalty=sampling.repeat_penalty,
                seed=None if sampling.seed is None else sampling.seed & 0xFFFFFFFF,
                max_tokens=max_tokens,
                logprobs=sampling.logprobs,
                logit_bias=self._logit_bias(sampling) or None,
                **structure,
                detokenize=False,
                output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            )
        except (TypeError, ValueError, self._client_error()) as error:
            raise InvalidRequest(f"vLLM does not take this request: {_line(error)}", param="sampling") from error

    def _logit_bias(self, sampling: Sampling) -> dict[int, float]:
        for item in sampling.logit_bias:
            if item.token_id >= self._vocabulary_size:
                raise InvalidRequest(f"{item.token_id} is no token id of {self._model_name}", param="logit_bias")
        return {item.token_id: item.bias for item in sampling.logit_bias}

    def _structure(self, request: InferRequest, made: RenderedPrompt) -> dict[str, Any]:
        """What SamplingParams gets so that the answer has its form: a forced call, or the response format."""
        form = request.response_format
        if not _forced(request) and form.type == "text":
            return {}
        make = getattr(self._vllm.sampling_params, "StructuredOutputsParams", None)
        if make is None:
            raise InvalidRequest("this vLLM has no StructuredOutputsParams; it is too old", param="response_format")
        if _forced(request):
            return {"structured_outputs": make(json=json.dumps(calls_schema(made.tools, made.format)))}
        if form.type == "json_object":
            return {"structured_outputs": make(json_object=True)}
        return {"structured_outputs": make(json=json.dumps(_object(form.json_schema or "{}", "response_format")))}

    def _client_error(self) -> type[Exception]:
        """What vLLM raises for a bad request; ValueError in versions that had no class for it."""
        import vllm.exceptions

        found: type[Exception] = getattr(vllm.exceptions, "VLLMClientError", ValueError)
        return found

    async def _generate(self, job: Job, tokens: list[int], params: Any) -> None:
        """On the loop: one request from begin to end. Cancelled: vLLM aborts it, and nothing more comes."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        outcome: _Outcome
        try:
            async for output in self._llm.generate(tokens_input(tokens), params, str(job.handle)):
                self._results.put((job, output))
            return
        except (ValueError, self._client_error()) as error:
            outcome = InvalidRequest(f"vLLM does not take this request: {_line(error)}")
        except EngineDeadError:
            self._dead = True
            outcome = EngineCrashed("vLLM's engine process died")
        except Exception as error:  # the top of a task: the request must end
            if isinstance(error.__cause__, ValueError):
                outcome = InvalidRequest(f"vLLM does not take this request: {_line(error.__cause__)}")
            else:
                log.exception("vllm_request_failed")
                outcome = EngineCrashed(f"vLLM failed: {_line(error)}")
        self._results.put((job, outcome))

    def cancel(self, handle: Handle) -> bool:
        job = self._jobs.pop(handle, None)
        if job is not None and job.work is not None:
            job.work.cancel()
        return job is not None

    def interrupt(self, handle: Handle) -> None:
        """Abort at once what :meth:`cancel` will forget; a future may be cancelled from any thread."""
        job = self._jobs.get(handle)
        if job is not None and job.work is not None:
            job.work.cancel()

    # Work

    def step(self, sink: Sink) -> bool:
        """Hand on what vLLM made; waits up to WAIT_S for it. Raises EngineCrashed: this engine is of no more use."""
        if not self._jobs:
            if self._dead:
                raise EngineCrashed("vLLM's engine process died")
            return False
        try:
            result = self._results.get(timeout=WAIT_S)
            while True:
                self._take(*result, sink)
                result = self._results.get_nowait()
        except queue.Empty:
            pass
        self._report_silent(sink)
        return True

    def _report_silent(self, sink: Sink) -> None:
        """A sign of life for each request that is silent, if vLLM itself showed one since the last."""
        now = time.monotonic()
        for place, job in enumerate(self._jobs.values()):
            if now - job.reported_at >= PROGRESS_INTERVAL_S and self._pulse.at > job.reported_at:
                job.reported_at = now
                sink.progress(job.handle, "prefill" if place < self.slots else "queued", 0, job.prompt_tokens)

    def _take(self, job: Job, outcome: _Outcome, sink: Sink) -> None:
        if self._jobs.get(job.handle) is not job:
            return  # It was cancelled, or met a stop text; this is what vLLM made before it knew.
        if isinstance(outcome, LlmlbError):
            del self._jobs[job.handle]
            sink.failed(job.handle, outcome)
        elif outcome == "counted":
            del self._jobs[job.handle]
            sink.end(job.handle, "stop", Usage(prompt_tokens=job.prompt_tokens, completion_tokens=0), Timings())
        elif isinstance(outcome, str):
            self._finish(job, "stop" if outcome == "stop" else "length", sink)
        else:
            self._take_output(job, outcome, sink)

    def _take_output(self, job: Job, output: Any, sink: Sink) -> None:
        made = output.outputs[0]
        reason: str | None = made.finish_reason
        self._note_times(job, output)
        last = len(made.token_ids) - 1
        for place, token in enumerate(made.token_ids):
            if reason == "stop" and place == last:
                job.sampled += 1
                break  # vLLM knows no stop texts here, so this is the end-of-turn token.
            logprobs = (self._logprob(token, made.logprobs[place], job),) if made.logprobs else ()
            job.add(job.read(token, self._vocabulary.bytes_of(token, chat=job.chat)), token, logprobs)
            if job.reader.stopped:
                self._finish(job, "stop", sink)
                return
        if reason is None:
            self._send(job, sink)
        elif reason in ("stop", "length"):
            self._finish(job, "stop" if reason == "stop" else "length", sink)
        else:
            del self._jobs[job.handle]
            sink.failed(job.handle, EngineCrashed(f"vLLM ended the request ({reason})"))

    def _note_times(self, job: Job, output: Any) -> None:
        job.cached = max(job.cached, min(output.num_cached_tokens or 0, job.prompt_tokens))
        if job.first_token_at == 0.0:
            job.first_token_at = time.monotonic()
            if output.metrics is not None:
                job.prefill_ms = max(0.0, output.metrics.first_token_ts - output.metrics.scheduled_ts) * 1000

    def _logprob(self, token: int, found: Any, job: Job) -> TokenLogprob:
        """``found``: vLLM's Logprob of the token and of the most likely ones, by token id."""
        wanted = job.request.sampling.logprobs or 0
        best = sorted(found.items(), key=lambda item: item[1].rank)[:wanted]
        data = self._vocabulary.bytes_of(token)
        return TokenLogprob(
            token=data.decode(errors="replace"),
            token_bytes=tuple(data),
            logprob=_finite(found[token].logprob),
            top=tuple(self._candidate(other, item.logprob) for other, item in best),
        )

    def _candidate(self, token: int, logprob: float) -> TopLogprob:
        data = self._vocabulary.bytes_of(token)
        return TopLogprob(token=data.decode(errors="replace"), token_bytes=tuple(data), logprob=_finite(logprob))

    def _send(self, job: Job, sink: Sink, *, all: bool = False) -> None:
        piece = job.unsent
        if piece.text or piece.reasoning or piece.tool_calls or (all and piece.token_ids):
            job.reported_at = time.monotonic()
            job.unsent = Piece()
            sink.delta(job.handle, piece)

    def _finish(self, job: Job, reason: FinishReason, sink: Sink) -> None:
        if not job.reader.stopped:
            if reason == "stop":
                job.add(job.reader.feed(job.after))
            job.add(job.reader.finish())
            if job.reader.stopped:
                reason = "stop"
        if reason == "stop" and job.reader.called:
            reason = "tool_calls"
        self._send(job, sink, all=True)
        self.cancel(job.handle)
        now = time.monotonic()
        first = job.first_token_at or now
        sink.end(
            job.handle,
            reason,
            Usage(
                prompt_tokens=job.prompt_tokens,
                completion_tokens=job.sampled,
                reasoning_tokens=job.thought,
                cached_tokens=job.cached,
            ),
            Timings(
                queue_ms=max(0.0, (first - job.queued_at) * 1000 - job.prefill_ms),
                prefill_ms=job.prefill_ms,
                decode_ms=(now - first) * 1000,
            ),
            job.reader.met,
        )

    def close(self) -> None:
        """End vLLM and its processes; requests still here are forgotten. May be called twice."""
        for handle in list(self._jobs):
            self.cancel(handle)
        if self._loop.is_closed():
            return
        if self._llm is not None:
            self._call(_shut_down(self._llm))
            self._llm = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _forced(request: InferRequest) -> bool:
    """Whether the answer must be a call of a tool."""
    return request.kind == "chat" and bool(request.tools) and request.tool_choice == "required"


async def _shut_down(llm: Any) -> None:
    """On the loop. The handler first, which takes the end of vLLM's process for a crash."""
    if (handler := getattr(llm, "output_handler", None)) is not None:
        handler.cancel()
    llm.shutdown(timeout=SHUTDOWN_TIMEOUT_S)


def _object(text: str, param: str) -> dict[str, Any]:
    """A JSON object out of a request. Raises InvalidRequest."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} has what is not JSON: {error}", param=param) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{param} has what is no JSON object", param=param)
    return found


def _finite(logprob: float) -> float:
    """JSON has no infinity; a token that was ruled out. Source: OpenAI's API, which says -9999 then."""
    return max(float(logprob), -9999.0)


def _line(error: BaseException) -> str:
    """The first line of an error, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
