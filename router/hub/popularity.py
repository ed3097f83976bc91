"""Downloads and likes of the listed models, as the hub counts them: shown when known, never waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from llmlb.bus.errors import HubUnavailable, LlmlbError
from llmlb.bus.hub_names import Wanted
from llmlb.bus.tasks import Background
from llmlb.router.hub.cache import Cache
from llmlb.router.hub.client import HubClient

log = logging.getLogger("llmlb.router.hub.popularity")

FRESH_S = 600.0
"""Source: supported-models.md, NFR-1."""
AT_ONCE = 8
MOST = 1_000
"""Repositories that are asked for."""


class Popularity:
    """Asking for a repository that is not known, or known for long, starts one round for all of them behind it."""

    def __init__(self, client: HubClient, cache: Cache) -> None:
        self._client, self._cache = client, cache
        self._known: dict[str, tuple[int, int]] = {}
        self._tried: dict[str, float] = {}
        """When it was asked for last, of time.monotonic."""
        self._round: asyncio.Task[None] | None = None
        self._background = Background("popularity")

    async def close(self) -> None:
        await self._background.close()

    def get(self, repo: str) -> tuple[int, int] | None:
        """(downloads, likes), as last known."""
        return self._known.get(repo)

    def want(self, repos: Iterable[str]) -> None:
        """These are shown: find out what is not known or old, unless that is being done."""
        if self._round is not None and not self._round.done():
            return
        now = time.monotonic()
        due = [repo for repo in dict.fromkeys(repos) if now - self._tried.get(repo, -FRESH_S) >= FRESH_S][:MOST]
        if due:
            self._round = self._background.start(self._ask_all(due), "round")

    async def _ask_all(self, repos: list[str]) -> None:
        waiting = iter(repos)

        async def some() -> None:
            for repo in waiting:
                await self._ask(repo)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())
        if len(self._tried) > 2 * MOST:
            self._tried.clear()
            self._known.clear()

    async def _ask(self, repo: str) -> None:
        self._tried[repo] = time.monotonic()
        kept = await self._cache.get(f"counts {repo}")
        if kept is not None and isinstance(kept.value, list) and len(kept.value) == 2:
            self._known[repo] = (int(kept.value[0]), int(kept.value[1]))
            if kept.age_s < FRESH_S:
                return
        owner, _, model = repo.partition("/")
        try:
            self._known[repo] = await self._client.counts(Wanted(owner, model))
        except HubUnavailable as error:
            # Soon again, but not with the next request.
            self._tried[repo] += min(0.0, error.retry_after_s - FRESH_S)
        except LlmlbError as error:
            log.debug("popularity_unknown repo=%s error=%s", repo, error.message)
        else:
            await self._cache.put(f"counts {repo}", list(self._known[repo]))
