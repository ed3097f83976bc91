"""Safetensors models on vLLM: its ``AsyncLLM``, in the worker process. Needs the extra: ``pip install llmlb[vllm]``.

One thread of this engine runs an asyncio loop with vLLM on it; the worker's main thread submits there and drains what
came out. vLLM batches and schedules by itself, in a child process of its own. Text is made here, token by token, from
the bytes of each token: so a stop text ends the answer at the very token that completes it, also when it began in a
continuation, and usage does not depend on how vLLM lumped its outputs together.

Defaults where a request says nothing are vLLM's own: the model's ``generation_config.json``, else temperature 1.0 and
no filter. Penalties look at this answer only; a continuation counts as prompt for them, and restarts the seed. So does
what vLLM is asked anew: an answer in a given form, or one that had to be ended, behind its thinking.

With ``vllm_requests`` the only file that imports vllm.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Coroutine
from copy import deepcopy
from pathlib import Path
from typing import Any

from llmlb.bus.errors import EngineCrashed, InvalidRequest, LlmlbError, ModelLoadFailed
from llmlb.bus.messages.infer import FinishReason, InferRequest, Timings, Usage
from llmlb.node.engine.interface import Capabilities, Handle, LoadOptions, Piece, Sink
from llmlb.node.engine.marks import marks_of
from llmlb.node.engine.prompts import PromptMaker
from llmlb.node.engine.refusals import refusal
from llmlb.node.engine.templates import ChatTemplate
from llmlb.node.engine.vllm_job import Job
from llmlb.node.engine.vllm_pulse import Pulse
from llmlb.node.engine.vllm_requests import LoadedModel, Requests, client_error, line
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
SILENT_S = 5.0
"""vLLM says something after each of its steps: who showed no life for so long, and has work, may hang."""
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
        self._results: queue.SimpleQueue[tuple[Job, int, _Outcome]] = queue.SimpleQueue()
        """With the number of the call that it is of."""
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
        folder = Path(options.path)
        folder = folder if folder.is_dir() else folder.parent
        cpu = bool(current_platform.is_cpu())
        arguments = engine_arguments(folder, options, cpu=cpu)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        end_children_when_this_process_dies()
        try:
            self._llm = self._call(self._load(arguments))
            self._read_model(vllm, folder, options.template)
            if cpu:
                self._pulse.watch(child.pid for child in multiprocessing.active_children() if child.pid is not None)
        except LlmlbError:
            self.close()
            raise
        except Exception as error:  # vLLM raises whatever it stumbles over
            log.exception("vllm_load_failed model=%s", options.model)
            self.close()
            raise ModelLoadFailed(f"vLLM could not load {options.model}: {line(error)}", detail=options.path) from error

    def _read_model(self, vllm: Any, folder: Path, template: str | None) -> None:
        """What requests need to know of a model that is loaded. Raises ModelLoadFailed."""
        config = self._llm.vllm_config
        self.slots = int(config.scheduler_config.max_num_seqs)
        self.context_length = int(config.model_config.max_model_len)
        answers = getattr(config.model_config, "runner_type", "generate") == "generate"
        self.capabilities = Capabilities(chat=answers, vision=False, embedding=False, tools=answers)
        # A copy, because vLLM's threads use theirs, and a tokenizer is for one thread at a time.
        tokenizer = deepcopy(self._llm.get_tokenizer())
        compiled = ChatTemplate(
            template or template_of(folder),
            bos=str(getattr(tokenizer, "bos_token", None) or ""),
            eos=str(getattr(tokenizer, "eos_token", None) or ""),
        )
        ends = (config.model_config.try_get_generation_config() or {}).get("eos_token_id")
        ends = ends if isinstance(ends, list) else [ends]
        model = LoadedModel(
            self._model_name,
            self.context_length,
            int(config.model_config.get_vocab_size()),
            dict(config.model_config.get_diff_sampling_param()),
            frozenset(token for token in [*ends, getattr(tokenizer, "eos_token_id", None)] if token is not None),
            self.capabilities,
        )
        self._vocabulary = Vocabulary(tokenizer, marks_of(compiled.text))
        self._requests = Requests(vllm, model, PromptMaker(compiled), self._vocabulary)

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
        job = self._requests.job(handle, request)
        outcome: _Outcome = "counted" if request.count_only else job.over()
        if outcome is None and self._requests.goes_on_elsewhere(job):
            outcome = job.over()
        if outcome is None:
            self._start(job)
        else:
            self._results.put((job, job.calls, outcome))
        if not self._jobs:
            self._pulse.begin()
        self._jobs[handle] = job

    def _start(self, job: Job) -> None:
        """Ask vLLM for what is still to come. Raises InvalidRequest."""
        params = self._requests.params(job)
        work = self._generate(job, job.calls, job.tokens, params)
        job.work = asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _generate(self, job: Job, call: int, tokens: list[int], params: Any) -> None:
        """On the loop: one call of vLLM from begin to end. Cancelled: vLLM aborts it, and nothing more comes."""
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        outcome: _Outcome
        try:
            async for output in self._llm.generate(tokens_input(tokens), params, f"{job.handle}-{call}"):
                self._results.put((job, call, output))
            return
        except (ValueError, client_error()) as error:
            outcome = InvalidRequest(f"vLLM does not take this request: {line(error)}")
        except EngineDeadError:
            self._dead = True
            outcome = EngineCrashed("vLLM's engine process died")
        except Exception as error:  # noqa: BLE001  # the top of a task: the request must end
            cause = error.__cause__
            if isinstance(cause, EngineDeadError):
                self._dead = True
                outcome = EngineCrashed("vLLM's engine process died")
            elif isinstance(cause, ValueError):
                outcome = InvalidRequest(f"vLLM does not take this request: {line(cause)}")
            else:
                outcome = refusal(cause if isinstance(cause, Exception) else error)
        self._results.put((job, call, outcome))

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
        self._pulse.look()
        self._report_silent(sink)
        return True

    def going_on(self) -> bool:
        """False while vLLM has work and shows no life."""
        return not self._jobs or time.monotonic() - self._pulse.at < SILENT_S

    def _report_silent(self, sink: Sink) -> None:
        """A sign of life for each request that is silent, if vLLM itself showed one since the last."""
        now = time.monotonic()
        for place, job in enumerate(self._jobs.values()):
            if now - job.reported_at >= PROGRESS_INTERVAL_S and self._pulse.at > job.reported_at:
                job.reported_at = now
                sink.progress(job.handle, "prefill" if place < self.slots else "queued", 0, job.prompt_tokens)

    def _take(self, job: Job, call: int, outcome: _Outcome, sink: Sink) -> None:
        if self._jobs.get(job.handle) is not job or job.calls != call:
            return  # It was cancelled, met a stop text, or goes on elsewhere; this is what vLLM made before it knew.
        try:
            if isinstance(outcome, LlmlbError):
                raise outcome
            if outcome == "counted":
                del self._jobs[job.handle]
                sink.end(job.handle, "stop", Usage(prompt_tokens=job.prompt_tokens, completion_tokens=0), Timings())
            elif isinstance(outcome, str):
                self._finish(job, "stop" if outcome == "stop" else "length", sink)
            else:
                self._take_output(job, outcome, sink)
        except Exception as error:  # noqa: BLE001  # the top of a request: it fails alone
            self.cancel(job.handle)
            sink.failed(job.handle, refusal(error))

    def _take_output(self, job: Job, output: Any, sink: Sink) -> None:
        made = output.outputs[0]
        reason: str | None = made.finish_reason
        self._note_times(job, output)
        last = len(made.token_ids) - 1
        for place, token in enumerate(made.token_ids):
            if reason == "stop" and place == last:
                job.count()
                break  # vLLM knows no stop texts here, so this is the end-of-turn token.
            found = made.logprobs[place] if made.logprobs else None
            logprobs = () if found is None else (self._vocabulary.logprob(token, found, job.request.sampling.logprobs),)
            job.add(job.read(token, self._vocabulary.bytes_of(token, chat=job.chat)), token, logprobs)
            over = job.over()
            if over is None and self._requests.goes_on_elsewhere(job):
                over = job.over()
                if over is None:
                    self._ask_anew(job, sink)
                    return
            if over is not None:
                self._finish(job, over, sink)
                return
        if reason is None:
            self._send(job, sink)
        elif reason in ("stop", "length"):
            self._finish(job, "stop" if reason == "stop" else "length", sink)
        elif job.form and job.formed:
            raise InvalidRequest("vLLM can't keep the answer in the form that is asked for", param="response_format")
        else:
            raise EngineCrashed(f"vLLM ended the request ({reason})")

    def _ask_anew(self, job: Job, sink: Sink) -> None:
        """What vLLM says next begins elsewhere than it thinks: call it again, with all that there is."""
        self._send(job, sink)
        if job.work is not None:
            job.work.cancel()
        job.calls += 1
        self._start(job)

    def _note_times(self, job: Job, output: Any) -> None:
        if job.calls == 0:  # later ones find in the cache what the first one computed
            job.cached = max(job.cached, min(output.num_cached_tokens or 0, job.prompt_tokens))
        if job.first_token_at == 0.0:
            job.first_token_at = time.monotonic()
            if output.metrics is not None:
                job.prefill_ms = max(0.0, output.metrics.first_token_ts - output.metrics.scheduled_ts) * 1000

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
        sink.end(job.handle, reason, job.usage(), job.timings(time.monotonic()), job.reader.met)

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


async def _shut_down(llm: Any) -> None:
    """On the loop. The handler first, which takes the end of vLLM's process for a crash."""
    if (handler := getattr(llm, "output_handler", None)) is not None:
        handler.cancel()
    llm.shutdown(timeout=SHUTDOWN_TIMEOUT_S)
