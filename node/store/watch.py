"""Notices what others change in a source of models: what Ollama pulled or removed, while the node runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llmlb.node.store.catalog import Catalog

EVERY_S = 5.0
LEAST_S = 2.0
"""Between two looks, however often somebody asks: one of some hundred models takes milliseconds."""


class SourceWatch:
    """Looks at the sources each 5 s, and when somebody asks, in a thread. ``changed``: the list is another one."""

    def __init__(self, catalog: Catalog, changed: Callable[[], None], *, every_s: float = EVERY_S) -> None:
        self._catalog, self._changed, self._every_s = catalog, changed, every_s
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.look()

    async def look(self) -> None:
        """The catalog is as the disk is now, or was less than 2 s ago."""
        async with self._looking:
            if time.monotonic() - self._looked_at < min(LEAST_S, self._every_s):
                return
            before = self._catalog.inventory
            await asyncio.to_thread(self._catalog.refresh)
            self._looked_at = time.monotonic()
        if self._catalog.inventory != before:
            self._changed()
