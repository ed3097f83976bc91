"""What this machine has and how busy it is: bytes, °C, percent. A node without a GPU is a good node."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlb.bus.messages.nodes import GpuReading

log = logging.getLogger("llmlb.node.hardware")

NVML_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class HardwareReading:
    """One look. None: not known on this system."""

    cpu_percent: float | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory for models, in bytes."""

    total_bytes: int
    free_bytes: int


def spare_vram(gpus: Sequence[GpuReading]) -> Memory | None:
    """VRAM of all GPUs together; None without one."""
    if not gpus:
        return None
    total = sum(gpu.memory_total_bytes for gpu in gpus)
    return Memory(total, total - sum(gpu.memory_used_bytes for gpu in gpus))


@functools.cache
def built_for_gpu() -> bool:
    """Whether the installed llama.cpp was built with a GPU backend. Looks at its files; loads nothing."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [] if spec is None else spec.submodule_search_locations or []
    names = [path.name for folder in folders for path in Path(folder, "lib").glob("*ggml-*")]
    return any(backend in name for name in names for backend in ("cuda", "hip", "vulkan", "metal", "sycl"))


@functools.cache
def engines() -> tuple[str, ...]:
    """Those that are installed here. Looks at files; loads nothing."""
    found = {"llama.cpp": "llama_cpp", "vllm": "vllm"}
    return tuple(name for name, module in found.items() if importlib.util.find_spec(module) is not None)


def disk(folder: Path) -> tuple[int | None, int | None]:
    """Bytes that are free and in all, on the disk of a folder or of the first above it that exists."""
    for each in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(each)
        except OSError:
            continue
        return usage.free, usage.total
    return None, None


def spare_memory() -> Memory | None:
    """RAM that can be had now; None where the system does not say."""
    total, available = memory()
    return None if total is None or available is None else Memory(total, available)


def process_memory_bytes(pid: int) -> int | None:
    """Resident memory of a process, None when it is gone or the system does not say (not Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def own_memory_bytes() -> int | None:
    """Resident memory of this process; None where the system does not say."""
    return process_memory_bytes(os.getpid())


def _system(path: str) -> bytes:
    """The first 8 KiB of a file of the system's. Raises OSError. A quarter of what pathlib takes, at each heartbeat."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 8192)
    finally:
        os.close(file)


def memory() -> tuple[int | None, int | None]:
    """RAM in all and available, in bytes; of the control group when its limit is lower (containers)."""
    try:
        text = _system("/proc/meminfo")
        total = int(text.split(b"MemTotal:", 1)[1].split(None, 1)[0]) * 1024
        available = int(text.split(b"MemAvailable:", 1)[1].split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None, None
    try:
        limit = int(_system("/sys/fs/cgroup/memory.max"))
        used = int(_system("/sys/fs/cgroup/memory.current"))
    except (OSError, ValueError):  # no control group, or "max"
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def _cpu_ticks() -> tuple[int, int] | None:
    """Busy and all ticks since boot."""
    try:
        ticks = [int(number) for number in _system("/proc/stat").split(b"\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


class Hardware:
    """Reads the machine. :meth:`read` takes a few milliseconds and may block on the driver: call it in a thread."""

    has_driver = False
    """Whether a GPU's driver answered at the last look."""

    def __init__(self) -> None:
        self._ticks = _cpu_ticks()
        self._nvml: Any = None
        self._nvml_tried_at: float | None = None
        self._said = False

    def read(self) -> HardwareReading:
        total, available = memory()
        return HardwareReading(self._cpu_percent(), total, available, self._gpus())

    def light(self) -> HardwareReading:
        """As :meth:`read`, of a machine without a GPU: asks the system alone, and waits for nobody."""
        total, available = memory()
        return HardwareReading(self._cpu_percent(), total, available, ())

    def _cpu_percent(self) -> float | None:
        before, self._ticks = self._ticks, _cpu_ticks()
        if before is None or self._ticks is None or self._ticks[1] <= before[1]:
            return None
        return round(100 * (self._ticks[0] - before[0]) / (self._ticks[1] - before[1]), 1)

    def _gpus(self) -> tuple[GpuReading, ...]:
        nvml = self._open_nvml()
        if nvml is None:
            return ()
        try:
            return tuple(self._gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            log.warning("gpu_readings_failed error=%s", error)
            self.close()
            return ()

    def _open_nvml(self) -> Any:
        if self._nvml is not None:
            return self._nvml
        now = time.monotonic()
        if self._nvml_tried_at is not None and now - self._nvml_tried_at < NVML_RETRY_S:
            return None
        self._nvml_tried_at = now
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if not self._said:
                log.debug("no_gpu_driver error=%s", error)
                self._said = True
            return None
        self._nvml, self.has_driver = pynvml, True
        return pynvml

    @staticmethod
    def _gpu(nvml: Any, index: int) -> GpuReading:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)

        def optional(read: Any) -> float | None:
            try:
                return float(read())
            except nvml.NVMLError:
                return None

        return GpuReading(
            name=name.decode() if isinstance(name, bytes) else name,
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            temperature_c=optional(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            utilization_percent=optional(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        )

    def close(self) -> None:
        """Let go of the driver."""
        nvml, self._nvml, self.has_driver = self._nvml, None, False
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                log.debug("nvml_shutdown_failed error=%s", error)
