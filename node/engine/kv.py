"""What the KV cache of a sequence holds, how a prompt is cut into calls, and what of it can be reused. Pure.

Why the cuts are where they are (llama.cpp on the CPU, ``ggml/src/ggml-cpu/ops.cpp``, measured on SmolLM2 Q4_1, equal
to the last bit): attention over 64 rows and more takes a tiled kernel, fewer rows another one, and a single row that
looks back on 512 cells or more a third. Each position must therefore always be computed by the same of them:

- a prompt of 64 tokens and more in *large* calls, of 64 rows at least; where they begin and how long they are does not
  matter, so what a cache holds is used up to 64 tokens before the prompt's end;
- a shorter prompt, and everything after a prompt, in *small* calls of 1 to 48 rows;
- never a single row where the third kernel would take it: a second row goes along, whose result is thrown away
  or, when it was guessed right, used (see :class:`Guesser`).

Then an answer does not depend on what shares the batch, on how much was cached, or on where it was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 64
"""Rows of a large call at least. Source: ``GGML_FA_TILE_Q`` in ggml-cpu."""
SMALL = 48
"""Rows of a small call at most: below BLOCK, and the largest that was measured."""
LONE_MAX = 256
"""A single row is safe while the cache holds at most this many cells. llama.cpp pads to 256, the kernel takes 512."""


def large_part(tokens: int) -> int:
    """How many positions of a prompt of this many tokens are computed in large calls: all, or none."""
    return tokens if tokens >= BLOCK else 0


def large_call(left: int, room: int) -> int:
    """Rows of the next large call when so many are left, at least BLOCK: ``room`` at most, or less than 2 BLOCK.

    No rest is left that is too short for a large call.
    """
    size = min(left, max(room, BLOCK))
    if 0 < left - size < BLOCK:
        return left if left < 2 * BLOCK else left - BLOCK
    return size


@dataclass(slots=True)
class Held:
    """The tokens in the cache of one sequence. Those before ``large`` were computed in large calls."""

    tokens: list[int] = field(default_factory=list)
    large: int = 0

    def cut(self, size: int) -> Held:
        """The first ``size`` of it."""
        return Held(self.tokens[:size], min(self.large, size))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of what two token lists begin with alike."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def reusable(held: Held, prompt: Sequence[int]) -> int:
    """How many positions of ``prompt`` need no prefill, because the cache holds what prefill would compute.

    At most all but the last one, or a large call, whose logits are needed; 0 for an empty prompt.
    """
    same = max(0, min(common_prefix(held.tokens, prompt), len(prompt) - 1))
    if large_part(len(prompt)):
        return max(0, min(same, held.large, len(prompt) - BLOCK))
    return 0 if held.large else same


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a new prompt goes. ``copy_from``: the sequence whose cache is copied first, if not its own."""

    sequence: int
    reuse: int
    copy_from: int | None = None


COPY_MIN = 2 * BLOCK
"""A copy costs about as much as reading the cache of a sequence once; worth it from so many more tokens on."""


def choose(prompt: Sequence[int], free: Sequence[int], held: Sequence[Held], used_at: Sequence[float]) -> Choice:
    """A free sequence for a prompt, by what can be reused.

    ``held`` and ``used_at`` (when it was last used) are by sequence; ``free`` are the ones that can be taken, at least
    one. What would be lost of another conversation's cache counts: then its prefix is copied, not taken over. Without
    reuse: an empty sequence beside busy ones (llama.cpp computes neighbours in one go), or the least recently used.
    """
    reuse = [reusable(one, prompt) for one in held]
    inside = max(free, key=lambda one: (reuse[one], -one))
    anywhere = max(range(len(held)), key=lambda one: (reuse[one], -one))
    busy = [one for one in range(len(held)) if one not in free]

    def cost(one: int) -> tuple[bool, float, int, int]:
        apart = min((abs(one - other) for other in busy), default=0)
        return bool(held[one].tokens), used_at[one] if held[one].tokens else 0.0, apart, one

    cheapest = min(free, key=cost)
    if reuse[inside]:
        own = 2 * reuse[inside] >= len(held[inside].tokens) or inside == cheapest or reuse[inside] < COPY_MIN
        if reuse[anywhere] < reuse[inside] + COPY_MIN:
            if own or held[cheapest].tokens:
                return Choice(inside, reuse[inside])
            return Choice(cheapest, reuse[inside], copy_from=inside)
    if reuse[anywhere] >= COPY_MIN:
        return Choice(cheapest, reuse[anywhere], copy_from=anywhere)
    return Choice(cheapest, reuse[cheapest])


class Guesser:
    """Guesses the next token from what followed the same two tokens before: prompt lookup.

    Source of the idea: A. Saxena, "Prompt Lookup Decoding". The guess fills a row that has to be computed anyway.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._next = {(a, b): c for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)}
        self._last = (tokens[-2], tokens[-1]) if len(tokens) > 1 else (-1, tokens[-1] if tokens else -1)

    def add(self, token: int) -> None:
        """One more token."""
        self._next[self._last] = token
        self._last = (self._last[1], token)

    def guess(self) -> int:
        """What may come next; always some token."""
        return self._next.get(self._last, max(self._last[1], 0))


def runs(sequences: Sequence[int]) -> list[list[int]]:
    """Sorted sequence numbers in groups of neighbours: llama.cpp computes one group in one go."""
    groups: list[list[int]] = []
    for one in sequences:
        if groups and groups[-1][-1] + 1 == one:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
