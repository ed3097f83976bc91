"""Where a prompt's beginning was computed lately, so that a conversation goes back to its cache.

A prompt is hashed from its start, and the hash so far is noted at cuts: at the end of messages and every kilobyte or
more inside long ones. A cut covers all that comes before it, so the longest cut two prompts have in common is what they
share. Cuts depend on nothing behind them; a longer prompt with the same beginning has the same ones. They are computed
once a prompt, and no further than somebody asks: of one whose beginning nobody knows, one cut before it is placed.

The hash is Python's own: keyed anew in each process, so that no client can make collisions, and three times as fast as
blake2b (47 to 158 µs for 64 KB in pieces of 1 KiB, CPython 3.11). It never leaves the process. A collision would be a
wrong guess about a cache, no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

CHARACTERS_PER_TOKEN = 4
MOST_NODES = 8
"""Nodes that :meth:`PrefixMap.lookup` names."""
NODES_A_CUT = 4
"""The last nodes that computed it; what many nodes have is worth little."""
AGE_S = 900.0
"""What was computed longer ago is not counted on: caches are small, and an idle model is unloaded after 5 minutes."""
CUTS_MAX = 64
"""Of one prompt: short messages are noted up to 37,000 characters, a long text further than any context."""
_LEAST, _LEAST_SHARE = 128, 16
_LARGEST, _LARGEST_SHARE = 1024, 8
"""Characters from one cut to the next, at the least (at the end of a message) and at the most, or that part of all
before it if that is more: a node that has an eighth more of a prompt is not much better off. Shorter messages have no
cut of their own."""

_Found = tuple[tuple[int, float], ...]
"""(tag of a node, when), newest first."""


def estimate_tokens(characters: int) -> int:
    """Tokens of a text of so many characters, rounded up: about 4 characters a token.

    Right within a third for English and for code; Chinese and Japanese have one to two characters a token, so there it
    is too low. Good enough to compare nodes, not to count with.
    Source: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them
    """
    return -(-max(0, characters) // CHARACTERS_PER_TOKEN)


class Cuts:
    """The cuts of one prompt: pairs of the hash of all up to there, and the characters up to there."""

    __slots__ = ("_found", "_more", "model")

    def __init__(self, model: str, parts: Iterable[str | bytes]) -> None:
        """``parts``: the texts that the prompt is made of, in order; where one ends and the next begins counts."""
        self.model = model
        self._found: list[tuple[int, int]] = []
        self._more = _walk(model, parts)

    def finish(self) -> None:
        """Compute all that are left; the texts are not needed any more."""
        self._found += self._more

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """From the beginning of the prompt. One at a time may go over it."""
        yield from self._found
        for cut in self._more:
            self._found.append(cut)
            yield cut


class PrefixMap:
    """Bounded to ``most`` cuts of some 300 bytes: those not noted for longest go, of one prompt the longest first."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._cuts: OrderedDict[int, _Found] = OrderedDict()
        self._tags: dict[str, dict[str, int]] = {}
        """Tag by node id and model."""
        self._nodes: dict[int, str] = {}
        """Node id by tag. What a tag that is gone computed is forgotten."""
        self._next_tag = 0
        self._latest = 0.0

    def __len__(self) -> int:
        return len(self._cuts)

    def remember(self, prompt: Cuts, node_id: str, now: float) -> None:
        """The node has just computed this prompt."""
        self._latest = max(self._latest, now)
        tag, cuts = self._tag(prompt.model, node_id), self._cuts
        mark = (tag, now)
        # The shortest last: a long cut without the short ones before it can't be found, the reverse is of use.
        for cut, _ in reversed(list(prompt)):
            known = cuts.pop(cut, None)
            if known is None:
                cuts[cut] = (mark,)
            elif known[0][0] == tag:
                cuts[cut] = (mark, *known[1:])
            else:
                cuts[cut] = (mark, *[other for other in known if other[0] != tag][: NODES_A_CUT - 1])
        while len(cuts) > self._most:
            cuts.popitem(last=False)

    def lookup(self, prompt: Cuts) -> dict[str, int]:
        """Characters at the beginning of this prompt that nodes computed lately, by node id; the most first."""
        hits: list[tuple[_Found, int]] = []
        for cut, characters in prompt:
            found = self._cuts.get(cut)
            if found is None:
                break
            hits.append((found, characters))
        shared: dict[str, int] = {}
        last: _Found = ()
        for found, characters in reversed(hits):
            if found == last:
                continue  # as mostly: one prompt left all of them
            last = found
            for tag, when in found:
                node_id = self._nodes.get(tag)
                if node_id is not None and node_id not in shared and self._latest - when <= AGE_S:
                    shared[node_id] = characters
            if len(shared) >= MOST_NODES:
                break
        return shared

    def forget_node(self, node_id: str, model: str | None = None) -> None:
        """The node is gone or was started anew; with ``model``: it does not have that in memory any more."""
        tags = self._tags.get(node_id, {})
        for name in list(tags) if model is None else [model]:
            if (tag := tags.pop(name, None)) is not None:
                del self._nodes[tag]
        if not tags:
            self._tags.pop(node_id, None)

    def _tag(self, model: str, node_id: str) -> int:
        tags = self._tags.setdefault(node_id, {})
        tag = tags.get(model)
        if tag is None:
            tag = tags[model] = self._next_tag
            self._nodes[tag] = node_id
            self._next_tag += 1
        return tag


def _walk(model: str, parts: Iterable[str | bytes]) -> Iterator[tuple[int, int]]:
    """(hash of all up to here, characters up to here) at each cut."""
    pieces: list[str | bytes] = []
    """What came since the last cut."""
    so_far, characters, since, count = hash(model), 0, 0, 0
    least, largest = _LEAST, _LARGEST
    for part in parts:
        start, length = 0, len(part)
        if since + length < least:
            pieces.append(part)
            since += length
            continue
        while True:
            end = min(length, start + largest - since)
            pieces.append(part if end - start == length else part[start:end])
            since += end - start
            start = end
            if since >= largest or (start == length and since >= least):
                so_far = hash((so_far, *pieces))
                characters += since
                yield so_far, characters
                count += 1
                if count == CUTS_MAX:
                    return
                pieces.clear()
                since = 0
                least, largest = max(_LEAST, characters // _LEAST_SHARE), max(_LARGEST, characters // _LARGEST_SHARE)
            if start == length:
                break
