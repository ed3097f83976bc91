"""The bytes of a tokenizer's tokens: what vLLM gives is text, and a token may be part of a code point. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import TokenLogprob, TopLogprob


class Vocabulary:
    """A Hugging Face tokenizer: text to token ids, and token ids to bytes. For one thread."""

    def __init__(self, tokenizer: Any, marks: Set[str]) -> None:
        """``marks``: special tokens that are text in the answers of a chat."""
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}
        self._marks: dict[int, bytes] = {}
        self._special: dict[int, bytes] = {}
        self._byte_level: dict[str, int] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            for token, added in backend.get_added_tokens_decoder().items():
                self._bytes[token] = b"" if added.special else added.content.encode()
                if added.special:
                    self._special[token] = added.content.encode()
                if added.special and added.content in marks:
                    self._marks[token] = added.content.encode()
            if backend.decoder is not None and b'"ByteLevel"' in backend.decoder.__getstate__():
                self._byte_level = _byte_alphabet()

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Raises InvalidRequest: text that is not valid Unicode."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special))
        except (TypeError, ValueError) as error:
            raise InvalidRequest("the prompt can't be turned into tokens", param="messages") from error

    def bytes_of(self, token: int, *, chat: bool = False) -> bytes:
        """What a token adds to the text; nothing for a special one, unless it marks thinking or a call in a chat."""
        data = self._bytes.get(token)
        if chat and not data and token in self._marks:
            return self._marks[token]
        if data is None:
            data = self._bytes[token] = self._decode(self._tokenizer.convert_ids_to_tokens(token))
        return data

    def logprob(self, token: int, found: Mapping[int, Any], top: int | None) -> TokenLogprob:
        """``found``: vLLM's Logprob of the token and of the most likely ones, by token id. ``top``: how many of those.

        Here special tokens have their text.
        """
        best = sorted(found.items(), key=lambda item: item[1].rank)[: top or 0]
        own = self._named(token, found[token].logprob)
        return TokenLogprob(
            token=own.token,
            token_bytes=own.token_bytes,
            logprob=own.logprob,
            top=tuple(self._named(other, item.logprob) for other, item in best),
        )

    def _named(self, token: int, logprob: float) -> TopLogprob:
        data = self._special.get(token) or self.bytes_of(token)
        # JSON has no infinity; a token that was ruled out. Source: OpenAI's API, which says -9999 then.
        value = max(float(logprob), -9999.0)
        return TopLogprob(token=data.decode(errors="replace"), token_bytes=tuple(data), logprob=value)

    def _decode(self, piece: str | None) -> bytes:
        if not piece:
            return b""  # Models have ids beyond their tokenizer's, to fill up the matrix.
        if self._byte_level:
            return b"".join(
                bytes([self._byte_level[c]]) if c in self._byte_level else c.encode("utf-8", "replace") for c in piece
            )
        if single := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return bytes.fromhex(single[1])
        return piece.replace("\u2581", " ").encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary. Source: GPT-2, ``bytes_to_unicode``."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
