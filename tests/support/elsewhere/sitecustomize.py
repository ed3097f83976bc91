"""Put on PYTHONPATH of an llmlb process: it takes itself for one of another machine, named by LLMLB_TEST_MACHINE."""

from __future__ import annotations

import hashlib
import os

from llmlb.bus import machine

machine.machine_digest = lambda: hashlib.sha256(os.environ["LLMLB_TEST_MACHINE"].encode()).hexdigest()[:32]  # type: ignore[assignment]
