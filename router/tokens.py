"""Join tokens: made once, kept as digests in the bucket ``llmlb-settings``, spent by the nodes that come in with them.

Which uses are left is counted in the bucket, so that several routers that hear the same node spend one use together,
and never more than there are: a token with limited uses lists the nodes it let in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from llmlb.bus import codec, subjects
from llmlb.bus.connection import Bus
from llmlb.bus.errors import BadMessage, Conflict, RequestError
from llmlb.bus.join import digest_of, new_token, proves, token_id_of
from llmlb.bus.messages.router import JoinToken, JoinTokenMade, MakeJoinToken
from llmlb.router.mirror import Mirror

log = logging.getLogger("llmlb.router.tokens")

MOST_TOKENS = 200
MOST_USES = 10_000
"""A token with limited uses lists its nodes, 33 bytes each."""


class _SpentError(RequestError):
    """The token lets nobody in any more."""


class JoinTokens:
    """:meth:`start` once the bus is up. ``changed`` is called when there are others than before."""

    def __init__(
        self, bus: Bus, changed: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.time
    ) -> None:
        """``clock``: Unix seconds, of this router."""
        self._tokens: dict[str, JoinToken] = {}
        self._changed = changed
        self._clock = clock
        self._mirror = Mirror(bus, subjects.BUCKET_SETTINGS, self._on_change, keys=subjects.JOIN_TOKENS)
        self.version = 0
        """Another number whenever a token came, went or changed."""

    async def start(self) -> None:
        await self._mirror.start()

    async def close(self) -> None:
        await self._mirror.close()

    def _on_change(self, key: str, value: bytes | None) -> None:
        self.version += 1
        self._tokens.pop(key, None)
        if value is not None:
            try:
                self._tokens[key] = codec.decode_as(JoinToken, value)
            except BadMessage as error:
                log.warning("join_token_unreadable key=%s detail=%s", key, error.detail)
        self._changed()

    async def make(self, request: MakeJoinToken) -> JoinTokenMade:
        """A new token; it is shown this once. Raises RequestError, BusDown, Conflict (too many of them)."""
        if request.uses is not None and request.uses > MOST_USES:
            raise RequestError(f"a token has at most {MOST_USES} uses, or any number", param="uses")
        await self._make_room()
        token = new_token()
        digest = digest_of(token)
        kept = JoinToken(
            digest=digest,
            name=request.name,
            uses_left=request.uses,
            expires_at=None if request.expires_in_s is None else self._clock() + request.expires_in_s,
        )
        data = codec.encode(kept)
        await self._mirror.edit(subjects.join_token_key(token_id_of(digest)), lambda _: data)
        log.info("join_token_made token=%s name=%r uses=%s", token_id_of(digest), request.name, request.uses)
        return JoinTokenMade(token=token, token_id=token_id_of(digest))

    async def _make_room(self) -> None:
        """Forget tokens that let nobody in any more, once there are many."""
        if len(self._tokens) < MOST_TOKENS:
            return
        for key in [key for key, token in self._tokens.items() if self._trouble(token) is not None]:
            await self._mirror.edit(key, lambda _: None)
        if len(self._tokens) >= MOST_TOKENS:
            raise Conflict(f"there are {MOST_TOKENS} join tokens already; they end when they expire or are used up")

    def _trouble(self, token: JoinToken) -> str | None:
        if token.expires_at is not None and self._clock() >= token.expires_at:
            return "its join token has expired"
        return "its join token is used up" if token.uses_left == 0 else None

    def judge(self, node_id: str, proof: str) -> tuple[str | None, str | None]:
        """(key of the token that the proof is for, or None; why it does not let the node in, or None)."""
        for key, token in self._tokens.items():
            if proves(proof, token.digest, node_id):
                return key, None if node_id in token.nodes else self._trouble(token)
        return None, "its join token is unknown here"

    async def spend(self, key: str, node_id: str) -> bool:
        """Let a node in with a token: at most once a node, whichever router does it. False: it does not any more.

        Raises BusDown, DeadlineExceeded, Conflict.
        """

        def spent(value: bytes | None) -> bytes | None:
            token = None if value is None else codec.decode_as(JoinToken, value)
            if token is None or (node_id not in token.nodes and self._trouble(token) is not None):
                raise _SpentError("this join token lets nobody in any more")
            if token.uses_left is None or node_id in token.nodes:
                return value
            update = {"uses_left": token.uses_left - 1, "nodes": (*token.nodes, node_id)}
            return codec.encode(token.model_copy(update=update))

        try:
            await self._mirror.edit(key, spent)
        except _SpentError:
            return False
        return True
