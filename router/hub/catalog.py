"""The hub's GGUF models, searched: pages of repositories with their variants.

Three things are kept, in memory and on the disk: the results of a search (fresh for ten minutes, after that only when
the hub does not answer), and the sizes of a repository's files at a commit, which never change. So a page that was seen
costs nothing, and a new one costs one search and a request for each repository that is not known yet. What is not there
within the time of an answer comes with the next one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from llmlb.bus.errors import HubUnavailable, LlmlbError
from llmlb.bus.hub_names import Wanted
from llmlb.bus.hub_plan import quant_of
from llmlb.bus.messages.hub import CatalogModel, CatalogPage, SearchCatalog
from llmlb.bus.tasks import Background
from llmlb.router.hub.answers import Batch, Repository, as_json, repository_of
from llmlb.router.hub.cache import Cache, Kept
from llmlb.router.hub.client import HubClient
from llmlb.router.hub.fit import Room
from llmlb.router.hub.shown import catalog_model

FRESH_S = 600.0
FIRST_ANSWER_S = 8.0
"""Nothing was cached: so long a search may take."""
AGAIN_ANSWER_S = 2.0
"""Something older can be shown instead."""
SIZES_S = 2.0
"""To find out the sizes of what is new on a page."""
BATCH = 100
MOST_BATCHES = 20
"""Of one search: what is behind the first 2,000 is not listed."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Listing:
    models: tuple[Repository, ...]
    next: str | None
    batches: int

    @property
    def whole(self) -> bool:
        return self.next is None or self.batches >= MOST_BATCHES


class Catalog:
    """:meth:`page` answers; :meth:`close` ends what is under way."""

    def __init__(self, client: HubClient, cache: Cache) -> None:
        self._client, self._cache = client, cache
        self._background = Background("catalog")
        self._flights: dict[str, asyncio.Task[Any]] = {}
        """What is being asked: who asks the same waits for the same answer."""

    async def close(self) -> None:
        await self._background.close()

    async def page(
        self, ask: SearchCatalog, rooms: Sequence[Room], is_registered: Callable[[str], bool]
    ) -> CatalogPage:
        """A page of what is found. Raises HubUnavailable when the hub does not answer and nothing is kept."""
        query = " ".join(ask.query.split())
        first, last = (ask.page - 1) * ask.limit, ask.page * ask.limit
        kept, trouble = await self._listing(query, ask.quant, last + 1)
        listing = _listing_of(kept.value)
        found = _with_quant(listing.models, ask.quant)
        known, missing = await self._sizes(found[first:last])
        notes = [trouble] if trouble else []
        if missing:
            notes.append(f"the sizes of {missing} models are not known yet")
        return CatalogPage(
            models=tuple(self._shown(repo, ask.quant, rooms, is_registered) for repo in known),
            query=query,
            page=ask.page,
            limit=ask.limit,
            has_more=len(found) > last or not listing.whole,
            nodes_total=len(rooms),
            stale=trouble is not None,
            age_s=round(kept.age_s, 1),
            note="; ".join(notes) or None,
        )

    def _shown(
        self, repo: Repository, quant: str | None, rooms: Sequence[Room], is_registered: Callable[[str], bool]
    ) -> CatalogModel:
        return catalog_model(repo, self._client.endpoint, rooms, is_registered, quant=quant)

    # The results of a search

    async def _listing(self, query: str, quant: str | None, needed: int) -> tuple[Kept, str | None]:
        """What is known of a search, and why it is old, if it is. Raises HubUnavailable."""
        key, began = f"search {query.lower()}", time.monotonic()
        while True:
            kept = await self._cache.get(key)
            fresh = kept is not None and kept.age_s < FRESH_S
            if kept is not None and fresh and _enough(_listing_of(kept.value), quant, needed):
                return kept, None
            left_s = began + (FIRST_ANSWER_S if kept is None else AGAIN_ANSWER_S) - time.monotonic()
            error: LlmlbError | None = HubUnavailable(f"{self._client.host} does not answer in time; try again")
            if left_s > 0:
                start = _listing_of(kept.value) if kept is not None and fresh else None
                work = functools.partial(self._fetch, key, query, quant, needed, start)
                error = await self._flight(key, work, left_s)
            if error is None:
                continue
            if kept is None:
                raise error
            return kept, error.message

    async def _fetch(
        self, key: str, query: str, quant: str | None, needed: int, start: _Listing | None
    ) -> LlmlbError | None:
        """Read batches until there is enough, and keep what came."""
        listing = start or _Listing((), None, 0)
        try:
            while not listing.batches or not _enough(listing, quant, needed):
                batch = await self._client.search(query, limit=BATCH, cursor=listing.next)
                listing = _longer(listing, batch)
                await self._cache.put(key, _as_json(listing))
        except LlmlbError as error:
            return error
        return None

    async def _flight(
        self, key: str, work: Callable[[], Coroutine[Any, Any, LlmlbError | None]], wait_s: float
    ) -> LlmlbError | None:
        """Do it once, whoever asks; what it came to, or that it takes longer."""
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = self._background.start(work(), "ask")
            task.add_done_callback(lambda _: self._flights.pop(key, None))
        await asyncio.wait([task], timeout=wait_s)
        if not task.done():
            return HubUnavailable(f"{self._client.host} does not answer in time; try again")
        if task.cancelled() or task.exception() is not None:
            return HubUnavailable("the search failed; try again")
        outcome: LlmlbError | None = task.result()
        return outcome

    # The sizes of files

    async def _sizes(self, repos: Sequence[Repository]) -> tuple[list[Repository], int]:
        """With sizes where they are known within SIZES_S; and how many are not."""
        kept = await self._cache.get_many([_sizes_key(repo) for repo in repos])
        new = [repo for repo, each in zip(repos, kept, strict=True) if each is None and repo.commit is not None]
        if new:
            works = [(_sizes_key(repo), functools.partial(self._ask_sizes, repo)) for repo in new]
            await asyncio.gather(*(self._flight(key, work, SIZES_S) for key, work in works))
            kept = await self._cache.get_many([_sizes_key(repo) for repo in repos])
        found, missing = [], 0
        for repo, each in zip(repos, kept, strict=True):
            sized = None if each is None else repository_of(each.value)
            missing += sized is None
            found.append(repo if sized is None else dataclasses.replace(repo, files=sized.files))
        return found, missing

    async def _ask_sizes(self, repo: Repository) -> LlmlbError | None:
        owner, _, model = repo.id.partition("/")
        try:
            found = await self._client.repository(Wanted(owner, model, revision=repo.commit or "main"))
        except LlmlbError as error:
            return error
        await self._cache.put(_sizes_key(repo), as_json(_ggufs_only(found)))
        return None


def _sizes_key(repo: Repository) -> str:
    return f"sizes {repo.id} {repo.commit}"


def _ggufs_only(repo: Repository) -> Repository:
    return dataclasses.replace(repo, files=tuple(file for file in repo.files if file.path.lower().endswith(".gguf")))


def _longer(listing: _Listing, batch: Batch) -> _Listing:
    """Without what is there already: between two batches the order on the hub may have changed."""
    known = {repo.id for repo in listing.models}
    new = tuple(_ggufs_only(repo) for repo in batch.models if repo.id not in known)
    return _Listing((*listing.models, *new), batch.next, listing.batches + 1)


def _with_quant(repos: Sequence[Repository], quant: str | None) -> Sequence[Repository]:
    if quant is None:
        return repos
    asked = quant.upper()
    return [repo for repo in repos if any(_is_quant(file.path, asked) for file in repo.files)]


def _is_quant(path: str, asked: str) -> bool:
    return (quant_of(path) or "").removeprefix("UD-") == asked.removeprefix("UD-")


def _enough(listing: _Listing, quant: str | None, needed: int) -> bool:
    return listing.whole or len(_with_quant(listing.models, quant)) >= needed


def _as_json(listing: _Listing) -> dict[str, Any]:
    return {"models": [as_json(repo) for repo in listing.models], "next": listing.next, "batches": listing.batches}


def _listing_of(value: Any) -> _Listing:
    """What is kept; nothing when another version wrote it."""
    try:
        models = tuple(found for item in value["models"] if (found := repository_of(item)) is not None)
        return _Listing(models, value["next"], int(value["batches"]))
    except (KeyError, TypeError, ValueError):
        return _Listing((), None, 1)
