"""Which machine is this? Two processes of one machine get the same answer, on two machines a different one."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path


@functools.cache
def machine_digest() -> str:
    """32 hex digits, equal for processes that share a running kernel, containers included; new after a reboot.

    A digest, so that the machine's own id does not travel. Source: Linux's ``/proc/sys/kernel/random/boot_id``;
    elsewhere the host name stands in for it.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    seed = boot_id.read_text() if boot_id.exists() else f"{platform.node()}-{platform.machine()}"
    return hashlib.sha256(b"llmlb machine " + seed.strip().encode()).hexdigest()[:32]
