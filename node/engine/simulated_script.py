"""What a simulated model answers: a pure function of prompt and seed."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from hashlib import sha256

from llmlb.bus.messages.infer import InferRequest

VOCABULARY = 32_000
VECTOR_SIZE = 8
COUNTED = 8192
"""Characters of a text whose words are counted."""


def token_text(token_id: int) -> str:
    """The text of a token."""
    return f"w{token_id} "


def prompt_text(request: InferRequest) -> str:
    """What an answer depends on, beside the seed."""
    if request.kind == "chat":
        return "\n".join(f"{message.role}: {message.content}" for message in request.messages)
    return request.prompt or ""


def _digest(text: str) -> int:
    # Processors have instructions for it: 64 KB take half as long as with blake2b.
    return int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def _mixed(number: int) -> int:
    """64 bits that look random. Source: splitmix64, Steele, Lea and Flood 2014."""
    number = (number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ (number >> 31)


@dataclass(frozen=True, slots=True)
class Script:
    """The endless answer to one prompt; how much of it is given is decided elsewhere."""

    key: int

    @classmethod
    def of(cls, request: InferRequest) -> Script:
        return cls(_digest(f"{request.sampling.seed or 0}\0{prompt_text(request)}"))

    def token(self, k: int) -> int:
        """Id of token ``k``, from 0."""
        return _mixed(self.key + k * 0x9E3779B97F4A7C15) % VOCABULARY

    def tokens(self, count: int) -> tuple[int, ...]:
        """Ids of the first tokens."""
        return tuple(self.token(k) for k in range(count))

    def text(self, count: int) -> str:
        """Text of the first tokens."""
        return "".join(map(token_text, self.tokens(count)))


def vector(text: str | tuple[int, ...]) -> bytes:
    """The embedding of an input: VECTOR_SIZE float32, little-endian, of length 1."""
    key = _digest(repr(text))
    raw = [_mixed(key + k) / 2**63 - 1 for k in range(VECTOR_SIZE)]
    size = math.hypot(*raw) or 1.0
    return struct.pack(f"<{VECTOR_SIZE}f", *(number / size for number in raw))


def size_of(text: str | tuple[int, ...]) -> int:
    """Tokens of an input: its words, at least one; of a long text as many as its beginning has in proportion.

    To count the words of 64 KB takes 0.3 ms, more than a gateway needs for them.
    """
    if not isinstance(text, str):
        return max(1, len(text))
    if len(text) <= COUNTED:
        return max(1, len(text.split()))
    return max(1, round(len(text[:COUNTED].split()) * len(text) / COUNTED))
