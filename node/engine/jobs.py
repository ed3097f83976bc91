"""One generating request inside the llama.cpp engine: its prompt, where it stands, and how its answer is made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmlb.bus.messages.infer import InferRequest, Timings, TokenLogprob, TopLogprob, Usage
from llmlb.node.engine import kv
from llmlb.node.engine.answer import AnswerReader
from llmlb.node.engine.interface import Handle, Piece
from llmlb.node.engine.llama_grammar import GrammarMask, Unfinished
from llmlb.node.engine.llama_model import Model
from llmlb.node.engine.llama_vision import ImageChunk, Prompt
from llmlb.node.engine.prompts import RenderedPrompt
from llmlb.node.engine.sampling import Logits, Sampler, log_probabilities

Part = list[int] | ImageChunk


@dataclass(slots=True)
class Job:
    """One request, waiting (``seq`` -1) or at work in a sequence."""

    handle: Handle
    request: InferRequest
    rendered: RenderedPrompt
    parts: list[Part]
    reader: AnswerReader
    reading: Iterator[None] | None = None
    """What turns the prompt into tokens, until it has."""
    images: Prompt | None = None
    grammar: GrammarMask | None = None
    sampler: Sampler | None = None
    seq: int = -1
    past: int = 0
    """Where the next token goes."""
    folded: int = 0
    """Cells of the KV cache that images take beyond their positions: with M-RoPE (Qwen-VL) their tokens share some."""
    part: int = 0
    offset: int = 0
    """Where prefill stands: a part, and tokens of it."""
    replayed: int = 0
    """Tokens of the continuation that are in the KV cache."""
    cached: int = 0
    sampled: int = 0
    """Tokens of the answer, those of the continuation included."""
    thought: int = 0
    closing: list[int] = field(default_factory=list)
    """Tokens still to come of what ends the thinking, whose budget is used up."""
    next_token: int = -1
    undecided: Logits | None = None
    """What the next token is to be sampled from, while its grammar takes longer over it than others can wait."""
    kept: Piece = field(default_factory=Piece)
    """Text that waits to be sent together with what comes next."""
    begun: bool = False
    """True once something of the answer was sent."""
    unsent: list[int] = field(default_factory=list)
    unsent_logprobs: list[TokenLogprob] = field(default_factory=list)
    guesser: kv.Guesser | None = None
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    first_token_at: float = 0.0
    reported_at: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, those of images included."""
        return sum(len(part) if isinstance(part, list) else part.tokens for part in self.parts)

    @property
    def done_tokens(self) -> int:
        """Tokens of the prompt that are computed, or were; more once it answers."""
        return self.cells if self.seq >= 0 else 0

    @property
    def cells(self) -> int:
        """Cells of the KV cache in use."""
        return self.past + self.folded

    @property
    def plain(self) -> list[int]:
        """The tokens before the first image: what a cache of tokens can know."""
        first = self.parts[0]
        return first if isinstance(first, list) else []

    @property
    def text_only(self) -> bool:
        return len(self.parts) == 1 and isinstance(self.parts[0], list)

    @property
    def prefilled(self) -> bool:
        """True when prompt and continuation are in the cache."""
        return self.part == len(self.parts) and self.replayed == len(self.request.continuation)

    def begin(self, seq: int, reuse: int) -> None:
        """Take a sequence whose cache holds the first ``reuse`` tokens of the prompt."""
        self.seq, self.past, self.offset, self.cached = seq, reuse, reuse, reuse
        if self.text_only and reuse == len(self.plain):
            self.part, self.offset = 1, 0
        self.started_at = time.monotonic()

    def next_call(self, room: int) -> tuple[ImageChunk | list[int], bool]:
        """What prefill computes next, and whether that is the last of it. ``room``: tokens of a large call at most."""
        if self.part == len(self.parts):
            tokens = list(self.request.continuation[self.replayed : self.replayed + kv.SMALL])
            return tokens, self.replayed + len(tokens) == len(self.request.continuation)
        part = self.parts[self.part]
        last_part = self.part + 1 == len(self.parts) and not self.request.continuation
        if not isinstance(part, list):
            return part, last_part
        large = kv.large_part(len(part))
        if large:
            stop = self.offset + kv.large_call(large - self.offset, room)
        else:
            stop = min(self.offset + kv.SMALL, len(part))
        return part[self.offset : stop], last_part and stop == len(part)

    def advance(self, done: ImageChunk | list[int]) -> None:
        """That call was made."""
        if isinstance(done, ImageChunk):
            self.past += done.positions
            self.folded += done.tokens - done.positions
            self.part, self.offset = self.part + 1, 0
            return
        self.past += len(done)
        if self.part == len(self.parts):
            self.replayed += len(done)
            return
        self.offset += len(done)
        part = self.parts[self.part]
        if isinstance(part, list) and self.offset == len(part):
            self.part, self.offset = self.part + 1, 0

    def held(self) -> kv.Held:
        """What of the cache a later prompt can use: its text up to the first image, and after a text the answer."""
        if not self.text_only:
            done = self.offset if self.part == 0 else len(self.plain)
            return kv.Held(self.plain[:done], min(done, kv.large_part(len(self.plain))))
        known = [*self.plain, *self.request.continuation]
        tokens = known[: self.past] if self.past <= len(known) else known + self._answer[: self.past - len(known)]
        return kv.Held(tokens, min(len(tokens), kv.large_part(len(self.plain))))

    _answer: list[int] = field(default_factory=list)
    """Tokens sampled here, without those of the continuation."""

    def resume(self, model: Model, pieces: dict[int, bytes]) -> None:
        """Bring sampler and reader to where the continuation ends. What the client has is not sent again."""
        for token in self.request.continuation:
            self._bound_thinking(model)
            self._account(token)
            self.reader.feed(pieces.get(token) or model.piece(token))

    def _bound_thinking(self, model: Model) -> None:
        """Once the budget of the thinking is used up, what ends it comes next, whatever the model would say."""
        most = self.request.sampling.thinking_tokens
        if most is None or self.closing or self.thought < most or (text := self.reader.closing) is None:
            return
        tokens = model.tokenize(text, add_special=False)
        if not any(model.ends(token) for token in tokens):  # else it would end the answer too
            self.closing = tokens

    def _account(self, token: int) -> None:
        assert self.sampler is not None
        if self.grammar is not None and self.sampler.grammar is None and not self.reader.thinking:
            self.sampler.grammar = self.grammar
        self.sampler.accept(token)
        self.sampled += 1
        self.thought += self.reader.thinking
        if self.closing:
            self.closing = self.closing[1:] if token == self.closing[0] else []

    def sample(self, model: Model, logits: Logits) -> int:
        """The next token, taken into account. Raises Unfinished: to be asked again, with :attr:`undecided`."""
        assert self.sampler is not None
        if self.grammar is not None and self.sampler.grammar is None and not self.reader.thinking:
            self.sampler.grammar = self.grammar
        self._bound_thinking(model)
        try:
            token = self.closing[0] if self.closing else self.sampler.sample(logits)
        except Unfinished:
            if self.undecided is None:
                self.undecided = logits.copy()
            raise
        self.undecided = None
        if self.first_token_at == 0.0:
            self.first_token_at = time.monotonic()
        wanted = self.request.sampling.logprobs
        if wanted is not None:
            self.unsent_logprobs.append(_logprob(model, logits, token, wanted))
        self._account(token)
        self.next_token = token
        self._answer.append(token)
        if self.guesser is not None:
            self.guesser.add(token)
        return token

    def guess(self) -> int:
        """A token that may come after ``next_token``."""
        if self.guesser is None:
            self.guesser = kv.Guesser([*self.plain, *self.request.continuation, *self._answer])
        return self.guesser.guess()

    def pack(self, piece: Piece, *, wait: bool = False) -> Piece | None:
        """The piece with what was held back, or None when nothing is to be sent yet.

        ``wait``: keep it for the next round, unless the answer begins with it. Tokens whose text is still held back are
        held back too: a continuation elsewhere begins with them.
        """
        held = self.kept
        held.text += piece.text
        held.reasoning += piece.reasoning
        held.tool_calls += piece.tool_calls
        if not (held.text or held.reasoning or held.tool_calls) or (wait and self.begun):
            return None
        piece, self.kept, self.begun = held, Piece(), True
        piece.token_ids = tuple(self.unsent)
        piece.logprobs = tuple(self.unsent_logprobs)
        self.unsent.clear()
        self.unsent_logprobs.clear()
        return piece

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.sampled,
            cached_tokens=self.cached,
            reasoning_tokens=self.thought,
        )

    def timings(self) -> Timings:
        now = time.monotonic()
        first = self.first_token_at or now
        return Timings(
            queue_ms=(self.started_at - self.queued_at) * 1000,
            prefill_ms=(first - self.started_at) * 1000,
            decode_ms=(now - first) * 1000,
        )

    def close(self) -> None:
        """Free what llama.cpp holds for it; may be called twice."""
        if self.grammar is not None:
            self.grammar.close()
        if self.images is not None:
            self.images.close()


def second_rows(jobs: Sequence[Job], context_length: int) -> dict[Handle, int]:
    """Guesses for the jobs, ordered by sequence, whose single row would take another kernel than a row among others."""
    guesses = {}
    by_seq = {job.seq: job for job in jobs}
    for run in kv.runs(list(by_seq)):
        job = by_seq[run[0]]
        if len(run) == 1 and job.cells + 1 > kv.LONE_MAX and job.cells + 2 <= context_length:
            guesses[job.handle] = job.guess()
    return guesses


def _logprob(model: Model, logits: Logits, token: int, top: int) -> TokenLogprob:
    own, leaders = log_probabilities(logits, token, top)

    def named() -> Iterator[TopLogprob]:
        for leader, value in leaders:
            data = model.piece(leader, special=True)
            yield TopLogprob(token=data.decode(errors="replace"), token_bytes=tuple(data), logprob=value)

    data = model.piece(token, special=True)
    return TokenLogprob(token=data.decode(errors="replace"), token_bytes=tuple(data), logprob=own, top=tuple(named()))
