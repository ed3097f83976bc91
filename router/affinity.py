"""Where a prompt's beginning was computed lately, so that a conversation goes back to its cache.

A prompt is hashed from its start, and the hash so far is noted at cuts: at the end of messages and every kilobyte or
more inside long ones. A cut covers all that comes before it, so the longest cut two prompts have in common is what they
share. Cuts depend on nothing behind them; a longer prompt with the same beginning has the same ones.

The hash is Python's own: keyed anew in each process, so that no client can make collisions, and three times as fast as
blake2b (47 to 158 µs for 64 KB in pieces of 1 KiB, CPython 3.11). It never leaves the process. A collision would be a
wrong guess about a cache, no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

CHARACTERS_PER_TOKEN = 4
MOST_NODES = 8
"""Nodes that :meth:`PrefixMap.lookup` names."""
NODES_A_CUT = 4
"""The last nodes that computed it; what many nodes have is worth little."""
AGE_S = 900.0
"""What was computed longer ago is not counted on: caches are small, and an idle model is unloaded after 5 minutes."""
_STEPS = 32 * ((128, 1024),) + 16 * ((256, 4096),) + 16 * ((1024, 16384),)
"""Characters from one cut to the next: (at the least, at the end of a message; at the most). At most 64 cuts, which
reach over 350,000 characters; messages shorter than the least have no cut of their own."""

_Found = tuple[tuple[int, float], ...]
"""(tag of a node, when), newest first."""


def estimate_tokens(characters: int) -> int:
    """Tokens of a text of so many characters, rounded up: about 4 characters a token.

    Right within a third for English and for code; Chinese and Japanese have one to two characters a token, so there it
    is too low. Good enough to compare nodes, not to count with.
    Source: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them
    """
    return -(-max(0, characters) // CHARACTERS_PER_TOKEN)


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

    def remember(self, model: str, prompt_parts: Sequence[str | bytes], node_id: str, now: float) -> None:
        """The node has just computed this prompt (with its answer as the last part, if that is known)."""
        self._latest = max(self._latest, now)
        mark = (self._tag(model, node_id), now)
        cuts = [cut for cut, _ in _walk(model, prompt_parts)]
        # The shortest last: a long cut without the short ones before it can't be found, the reverse is of use.
        for cut in reversed(cuts):
            others = tuple(other for other in self._cuts.get(cut, ()) if other[0] != mark[0])
            self._cuts[cut] = (mark, *others[: NODES_A_CUT - 1])
            self._cuts.move_to_end(cut)
        while len(self._cuts) > self._most:
            self._cuts.popitem(last=False)

    def lookup(self, model: str, prompt_parts: Sequence[str | bytes]) -> dict[str, int]:
        """Characters at the beginning of this prompt that nodes computed lately, by node id; the most first."""
        hits: list[tuple[_Found, int]] = []
        for cut, characters in _walk(model, prompt_parts):
            found = self._cuts.get(cut)
            if found is None:
                break
            hits.append((found, characters))
        shared: dict[str, int] = {}
        for found, characters in reversed(hits):
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


def _walk(model: str, parts: Sequence[str | bytes]) -> list[tuple[int, int]]:
    """(hash of all up to here, characters up to here) at each cut."""
    cuts: list[tuple[int, int]] = []
    pieces: list[str | bytes] = []
    """What came since the last cut."""
    so_far, characters, since = hash(model), 0, 0
    least, largest = _STEPS[0]
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
                cuts.append((so_far, characters))
                if len(cuts) == len(_STEPS):
                    return cuts
                pieces.clear()
                since = 0
                least, largest = _STEPS[len(cuts)]
            if start == length:
                break
    return cuts
