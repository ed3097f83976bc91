"""A model of llama.cpp and its vocabulary."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Callable
from typing import Any

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed
from llmlb.node.engine.llama_native import forget_errors, lib, log_callback, said

_PIECE_BYTES = 256


class Model:
    """A loaded model and its vocabulary."""

    def __init__(self, path: str, name: str, *, gpu_layers: int, progress: Callable[[float], None]) -> None:
        """Load. ``progress`` gets 0 to 1. Raises ModelLoadFailed with llama.cpp's last words."""
        forget_errors()
        lib.llama_log_set(log_callback, ctypes.c_void_p(0))
        lib.llama_backend_init()

        @lib.llama_progress_callback  # type: ignore[untyped-decorator]
        def report(share: float, _: Any) -> bool:
            progress(share)
            return True

        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.progress_callback = report
        self.name = name
        self.handle = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise ModelLoadFailed(f"llama.cpp could not load {name}: {said()}", detail=path)
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self.vocab))
        self.trained_context = int(lib.llama_model_n_ctx_train(self.handle))
        self.dimensions = int(lib.llama_model_n_embd_out(self.handle))
        self.removable = not (lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle))
        """False: a sequence can't be cut at a position, only forgotten as a whole."""
        self._bos = lib.llama_vocab_bos(self.vocab)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._specials: tuple[re.Pattern[str] | None, frozenset[str]] | None = None
        self._buffer = ctypes.create_string_buffer(_PIECE_BYTES)

    @property
    def bos(self) -> str:
        """The text of the begin token, "" where there is none."""
        return self.token_text(self._bos)

    @property
    def eos(self) -> str:
        """The text of the end token, "" where there is none."""
        return self.token_text(lib.llama_vocab_eos(self.vocab))

    def token_text(self, token: int) -> str:
        """A token as the vocabulary writes it; "" for a negative one."""
        text = lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """The tokens of a text. Raises InvalidRequest when it can't be tokenized."""
        data = text.encode("utf-8", "surrogatepass")
        size = len(data) + 8
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(self.vocab, data, len(data), buffer, size, add_special, parse_special)
        if count < 0:
            raise InvalidRequest("the prompt can't be turned into tokens")
        return list(buffer[:count])

    def cut(self, text: str, size: int) -> list[str]:
        """A rendered text in parts of ``size`` characters and more, whose tokens together are those of the whole.

        It is cut before control tokens only, where llama.cpp cuts it too before it looks at anything else; a token
        that takes the blanks before it is none of them. The first part alone is begun: the others get no begin token.
        """
        if len(text) < 2 * size or lib.llama_vocab_get_add_eos(self.vocab):
            return [text]
        if self._specials is None:
            self._specials = self._find_specials()
        pattern, cuts = self._specials
        starts = [0]
        for found in pattern.finditer(text) if pattern is not None else ():
            if found.start() - starts[-1] >= size and found.group() in cuts:
                starts.append(found.start())
        return [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]

    def _find_specials(self) -> tuple[re.Pattern[str] | None, frozenset[str]]:
        """What finds any special token in a text, the longest first; and those before which it may be cut."""
        texts, cuts = [], set()
        for token in range(self.vocabulary):
            kind = lib.llama_vocab_get_attr(self.vocab, token)
            if kind & (lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED) and self.token_text(token):
                texts.append(self.token_text(token))
                if kind & lib.LLAMA_TOKEN_ATTR_CONTROL and not kind & lib.LLAMA_TOKEN_ATTR_LSTRIP:
                    cuts.add(texts[-1])
        texts.sort(key=len, reverse=True)
        return (re.compile("|".join(map(re.escape, texts))) if texts else None), frozenset(cuts)

    def begun(self, text: str) -> bool:
        """Whether a chat template has written the begin token itself."""
        wants_bos = bool(lib.llama_vocab_get_add_bos(self.vocab)) and self._bos >= 0
        return wants_bos and text.startswith(self.bos)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; control tokens are empty unless ``special``."""
        key = ~token if special else token
        piece = self._pieces.get(key)
        if piece is None:
            count = lib.llama_token_to_piece(self.vocab, token, self._buffer, _PIECE_BYTES, 0, special)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = lib.llama_token_to_piece(self.vocab, token, buffer, -count, 0, special)
                piece = buffer.raw[:count]
            else:
                piece = self._buffer.raw[:count]
            self._pieces[key] = piece
        return piece

    def ends(self, token: int) -> bool:
        """Whether the token ends a turn."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self.vocab, token))
        return known

    def close(self) -> None:
        """Free it; no context may be left."""
        lib.llama_model_free(self.handle)
