"""Which token comes next: the filters of llama.cpp's sampler chain, in its order, on numpy.

Order: logit bias → penalties → grammar → top_k → top_p → min_p → temperature → draw. A draw depends only on the
seed and on the token's place in the answer, so neither neighbours in the batch nor a continuation on another node
change it. Source of order and formulas: llama.cpp, ``src/llama-sampler.cpp``; defaults: ``common/common.h``.

Cheap for large vocabularies: the best k of 49,000 logits cost about 40 µs here, where building llama.cpp's candidate
array alone takes several times that; greedy is one argmax.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmlb.bus.messages.infer import Sampling

Logits = npt.NDArray[np.float32]

REPEAT_WINDOW = 64
"""Tokens of prompt and answer that ``repeat_penalty`` looks back on. Source: llama.cpp, ``penalty_last_n``."""
LEAST_REPEAT = 0.01
"""Least ``repeat_penalty`` that is applied: at 0.01 a token that came has a hundred times its logit already, and
nothing else is drawn. Below it only logits leave the range of float32, down to 0/0."""
DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_TOP_P, DEFAULT_MIN_P = 0.8, 40, 0.95, 0.05
_BLOCK = 64
_DRAW = struct.Struct("<QQ")


class Grammar(Protocol):
    """What the tokens so far allow next."""

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""

    def mask(self, logits: Logits) -> None:
        """Set the logits of what may not come next to -inf, in place."""

    def accept(self, token: int) -> None:
        """It came."""


def best(logits: Logits, k: int) -> npt.NDArray[np.intp]:
    """The indices of the ``k`` largest logits, best first; of equal ones the lower index first.

    Exact: the k largest lie in the k blocks with the largest maxima (or tie with them).
    """
    size = logits.size
    if k <= 0 or k >= size:
        return _ordered(logits, np.arange(size))
    if k * _BLOCK * 4 >= size:
        found = np.argpartition(-logits, k - 1)[:k]
        found = np.flatnonzero(logits >= logits[found].min())
    else:
        whole = size // _BLOCK * _BLOCK
        maxima = logits[:whole].reshape(-1, _BLOCK).max(axis=1)
        edge = np.partition(maxima, maxima.size - k)[maxima.size - k]
        blocks = np.flatnonzero(maxima >= edge)
        near = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        if whole < size:
            near = np.concatenate([near, np.arange(whole, size)])
        if edge == -np.inf:  # a grammar leaves little: not the whole vocabulary has to be sorted
            near = np.flatnonzero(logits > edge)
            near = np.concatenate([near, np.flatnonzero(logits == edge)[: max(0, k - near.size)]])
        found = near[logits[near] >= edge]
    return _ordered(logits, found)[:k]


def _ordered(logits: Logits, found: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """These indices, largest logit first, of equal ones the lower index: by one sort of (logit, index) in 64 bits.

    A fifth of the time that sorting by two keys takes.
    """
    bits = (logits[found] + np.float32(0)).view(np.uint32)  # -0.0 is 0.0
    falling = np.where(bits >> 31, bits, ~bits & 0x7FFFFFFF)
    keys = falling.astype(np.uint64) << np.uint64(32) | found.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


class Sampler:
    """The sampling of one request. Not shared; :meth:`sample`, then :meth:`accept` of what was taken."""

    def __init__(self, sampling: Sampling, *, prompt: Iterable[int] = (), grammar: Grammar | None = None) -> None:
        self.temperature = DEFAULT_TEMPERATURE if sampling.temperature is None else sampling.temperature
        self._top_k = DEFAULT_TOP_K if sampling.top_k is None else sampling.top_k
        self._top_p = DEFAULT_TOP_P if sampling.top_p is None else sampling.top_p
        self._min_p = DEFAULT_MIN_P if sampling.min_p is None else sampling.min_p
        self._seed = (random.getrandbits(64) if sampling.seed is None else sampling.seed) & (2**64 - 1)
        self._repeat = max(sampling.repeat_penalty, LEAST_REPEAT)
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._bias = [(item.token_id, item.bias) for item in sampling.logit_bias]
        self._recent: deque[int] = deque(maxlen=REPEAT_WINDOW)
        if self._repeat != 1.0:
            self._recent.extend(prompt)
        self._counts: Counter[int] = Counter()
        self._position = 0
        self.grammar = grammar

    def sample(self, logits: Logits) -> int:
        """The next token. ``logits``, float32 of shape (vocabulary,), stay as they are."""
        logits = self._adjusted(logits)
        token = self._choose(logits)
        if self.grammar is not None and not self.grammar.allows(token):
            logits = logits.copy()
            self.grammar.mask(logits)
            # Drawn anew: the first draw is one of those that led to what is not allowed.
            token = self._choose(logits, again=True)
        return token

    def accept(self, token: int) -> None:
        """The token became part of the answer."""
        self._position += 1
        if self._repeat != 1.0:
            self._recent.append(token)
        if self._presence or self._frequency:
            self._counts[token] += 1
        if self.grammar is not None:
            self.grammar.accept(token)

    def _adjusted(self, logits: Logits) -> Logits:
        """Bias and penalties applied, on a copy if there are any."""
        penalised = self._repeat != 1.0 or self._presence or self._frequency
        if not self._bias and not penalised:
            return logits
        logits = logits.copy()
        for token, bias in self._bias:
            if token < logits.size:
                logits[token] += bias
        if self._repeat != 1.0 and self._recent:
            seen = np.fromiter(set(self._recent), dtype=np.intp)
            values = logits[seen]
            logits[seen] = np.where(values <= 0, values * self._repeat, values / self._repeat)
        if self._counts:
            tokens = np.fromiter(self._counts, dtype=np.intp)
            counts = np.fromiter(self._counts.values(), dtype=np.float32)
            logits[tokens] -= counts * self._frequency + self._presence
        return logits

    def _choose(self, logits: Logits, *, again: bool = False) -> int:
        if self.temperature == 0.0:
            return int(logits.argmax())
        found = best(logits, self._top_k)
        values = logits[found].astype(np.float64)
        possible = max(1, int(np.count_nonzero(values > -np.inf)))
        found, values = found[:possible], values[:possible]
        if values[0] == -np.inf:
            return int(found[0])
        odds = np.exp(values - values[0])
        if self._top_p < 1.0:
            share = np.cumsum(odds / odds.sum())
            keep = int(np.searchsorted(share, self._top_p)) + 1
            found, values, odds = found[:keep], values[:keep], odds[:keep]
        if self._min_p > 0.0:
            keep = int(np.count_nonzero(odds >= self._min_p))
            found, values = found[: max(1, keep)], values[: max(1, keep)]
        with np.errstate(over="ignore"):  # a tiny temperature: odds of 0
            odds = np.exp((values - values[0]) / self.temperature)
        share = np.cumsum(odds)
        at = int(np.searchsorted(share, self._draw(again) * share[-1], side="right"))
        return int(found[min(at, found.size - 1)])

    def _draw(self, again: bool) -> float:
        """Uniform in [0, 1), from the seed and the place in the answer alone; ``again``: another one."""
        data = _DRAW.pack(self._seed, self._position)
        digest = hashlib.blake2b(data, digest_size=8, person=b"again" if again else b"").digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def log_probabilities(logits: Logits, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log probability of ``token``, and the ``top`` best (token, log probability), before any filter."""
    values: Any = logits.astype(np.float64)
    peak = values.max()
    total = peak + math.log(np.exp(values - peak).sum())
    leaders = best(logits, top) if top else np.empty(0, dtype=np.intp)
    return float(values[token] - total), [(int(i), float(values[i] - total)) for i in leaders]
