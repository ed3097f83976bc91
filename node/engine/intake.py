"""From a request to a job of the llama.cpp engine: its prompt as tokens, room for it, its sampler and grammar.

Long prompts are read in pieces, between which running answers take a step.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmlb.bus.errors import ContextOverflow, InvalidRequest
from llmlb.bus.messages.infer import InferRequest, Sampling
from llmlb.node.engine.grammars import grammar_for
from llmlb.node.engine.interface import Capabilities, Handle
from llmlb.node.engine.jobs import Job
from llmlb.node.engine.llama_grammar import SLICE_S, GrammarMask, schema_grammar
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.llama_vision import Projector
from llmlb.node.engine.marks import marks_of
from llmlb.node.engine.prompts import PromptMaker, RenderedPrompt, reader_for
from llmlb.node.engine.sampling import DEFAULT_TOP_K, Sampler

READ_CHARACTERS = 4096
"""Of a prompt are turned into tokens at once, some milliseconds; then running answers take a step."""
_WHOLE = object()


def marker_pieces(model: Model, template: str) -> dict[int, bytes]:
    """The marks that are tokens of this model, and their texts."""
    pieces = {}
    for text in marks_of(template):
        tokens = model.tokenize(text, add_special=False)
        if len(tokens) == 1:
            pieces[tokens[0]] = text.encode()
    return pieces


def candidates(sampling: Sampling) -> int:
    """How many of the likeliest tokens the sampler looks at; 0: at all."""
    if sampling.temperature == 0:
        return 1
    return DEFAULT_TOP_K if sampling.top_k is None else sampling.top_k


class Intake:
    """What reads requests to one model. ``context_length``: tokens of a slot."""

    def __init__(self, model: Model, prompts: PromptMaker, projector: Projector | None, context_length: int) -> None:
        self._model = model
        self._prompts = prompts
        self._projector = projector
        self._context_length = context_length

    def job(self, handle: Handle, request: InferRequest, capabilities: Capabilities) -> Job:
        """The job of a request, to be read with :meth:`read`. Raises InvalidRequest (template, images, capability)."""
        if not capabilities.chat:
            raise InvalidRequest(f"{self._model.name} is an embedding model; it can't answer", param="model")
        rendered = self._prompts.render(request)
        if rendered.images and not capabilities.vision:
            raise InvalidRequest(f"{self._model.name} takes text only: it has no vision capability", param="messages")
        job = Job(handle, request, rendered, [], reader_for(request, rendered))
        job.reading = self._read(job, rendered)
        return job

    def read(self, job: Job) -> bool:
        """Read its prompt, or some more of a long one. True: that was all of it.

        Raises InvalidRequest (images, schema, an empty prompt), ContextOverflow; the job is then closed.
        """
        assert job.reading is not None
        try:
            whole = next(job.reading, _WHOLE) is _WHOLE
        except Exception:  # whatever it was: what llama.cpp holds for the job is freed
            job.close()
            raise
        if whole:
            job.reading = None
        return whole

    def _read(self, job: Job, rendered: RenderedPrompt) -> Iterator[None]:
        """Tokens, room and grammar of a request; stops on the way where running answers may take a step.

        Reading takes milliseconds a message (llama.cpp compiles its regular expressions anew for each): what can't
        fit is not read to its end.
        """
        request = job.request
        param = "messages" if request.kind == "chat" else "prompt"
        if rendered.images and self._projector is not None:
            job.images = self._projector.prompt(rendered.pieces)
            job.parts += job.images.parts
        else:
            tokens: list[int] = []
            job.parts.append(tokens)
            begin = request.kind != "chat" or not self._model.begun(rendered.text)
            for number, part in enumerate(self._model.cut(rendered.text, READ_CHARACTERS)):
                if number:
                    if not request.count_only:
                        self._refuse_overflow(job, param, "more than ")
                    yield
                tokens += self._model.tokenize(part, add_special=begin and not number)
        if not job.prompt_tokens:
            raise InvalidRequest("the prompt is empty", param=param)
        if request.count_only:
            return
        if not isinstance(job.parts[-1], list):
            raise InvalidRequest("the prompt must not end with an image", param=param)
        self._refuse_overflow(job, param)
        grammar = grammar_for(request, rendered, schema_grammar)
        if grammar is not None:
            job.grammar = GrammarMask(self._model, grammar, wanted=candidates(request.sampling), slice_s=SLICE_S)
        job.sampler = Sampler(request.sampling, prompt=job.plain)

    def _refuse_overflow(self, job: Job, param: str, about: str = "") -> None:
        """Raises ContextOverflow when what was read of the prompt fills the context."""
        if job.prompt_tokens + len(job.request.continuation) >= self._context_length:
            raise ContextOverflow(
                f"the prompt has {about}{job.prompt_tokens} tokens; the context of {self._model.name} holds "
                f"{self._context_length}, and the answer needs at least one",
                param=param,
            )
