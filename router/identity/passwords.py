"""Passwords, hashed with scrypt beside the event loop, a few at a time.

Source of the cost: OWASP, "Password Storage Cheat Sheet", scrypt with N=2^14, r=8, p=5: 16 MiB and some 0.1 to 0.4 s.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from llmlb.bus.errors import InvalidRequest, RateLimited

LOG2_N, R, P = 14, 8, 5
MAX_MEMORY_BYTES = 64 * 1024 * 1024
THREADS = 2
WAITING_MAX = 16
"""Passwords that are hashed or wait for it; more are refused."""
MIN_LENGTH, MAX_LENGTH = 8, 256


def checked(password: str) -> str:
    """The password, if it may be one. Raises InvalidRequest."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidRequest(f"password: must have {MIN_LENGTH} to {MAX_LENGTH} characters", param="password")
    return password


def _scrypt(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    data = password.encode(errors="surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=2**log2_n, r=r, p=p, maxmem=MAX_MEMORY_BYTES, dklen=32)


def make_hash(password: str) -> str:
    """``scrypt$log2(N)$r$p$salt$hash``. Slow on purpose."""
    salt = secrets.token_bytes(16)
    digest = _scrypt(password, salt, LOG2_N, R, P)
    return "$".join(["scrypt", str(LOG2_N), str(R), str(P), *(base64.b64encode(x).decode() for x in (salt, digest))])


def matches(password: str, hashed: str) -> bool:
    """Whether the hash is of this password; False for a hash of a kind that is unknown here. Slow on purpose."""
    try:
        kind, log2_n, r, p, salt, digest = hashed.split("$")
        if kind != "scrypt":
            return False
        found = _scrypt(password, base64.b64decode(salt), int(log2_n), int(r), int(p))
        return hmac.compare_digest(found, base64.b64decode(digest))
    except (ValueError, OverflowError, MemoryError):
        return False


_NOBODY = "$".join(["scrypt", str(LOG2_N), str(R), str(P), base64.b64encode(bytes(16)).decode(), "AAAA"])
"""Matches nothing, and takes as long as a real one."""


class Hasher:
    """Two threads of its own. Cancelled: the thread finishes, and its result is dropped."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="llmlb-password")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Raises RateLimited when too many wait."""
        with self._place():
            return await asyncio.get_running_loop().run_in_executor(self._threads, make_hash, password)

    async def matches(self, password: str, hashed: str | None) -> bool:
        """``hashed`` None or empty: no such user, which takes as long. Raises RateLimited when too many wait."""
        with self._place():
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(self._threads, matches, password, hashed or _NOBODY)
            return right and bool(hashed)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= WAITING_MAX:
            raise RateLimited("too many passwords are being checked at the moment; try again in a second")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """What waits is dropped; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
