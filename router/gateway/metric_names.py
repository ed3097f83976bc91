"""Every metric of /metrics: name, type, labels and help. ``docs/metrics.md`` has a row for each; a test compares.

The names of a counter are given as they are scraped, with ``_total``. process_* comes from prometheus-client itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """One metric."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


_NODE = ("node", "name")
_GPU = ("node", "name", "gpu")

BUILD = Family("llmlb_build_info", "gauge", "1; the version is in the labels", ("role", "version"))

REQUESTS = Family(
    "llmlb_requests_total",
    "counter",
    "requests that ended, by how they ended",
    ("model", "kind", "status", "reason"),
)
RUNNING = Family(
    "llmlb_requests_running", "gauge", "requests under way in this gateway, waiting ones included", ("model",)
)
WAITING = Family("llmlb_requests_waiting", "gauge", "requests in the queue of this gateway", ("model",))
FIRST_TOKEN = Family(
    "llmlb_time_to_first_token_seconds", "histogram", "from arrival at the gateway to the first text", ("model",)
)
INTER_TOKEN = Family(
    "llmlb_inter_token_latency_seconds", "histogram", "mean time between the tokens of one answer", ("model",)
)
DURATION = Family(
    "llmlb_request_duration_seconds",
    "histogram",
    "from arrival at the gateway to the end, of requests that were answered",
    ("model",),
)
QUEUE_TIME = Family("llmlb_queue_time_seconds", "histogram", "time in the queue of the gateway", ("model",))
PROMPT_TOKENS = Family("llmlb_prompt_tokens_total", "counter", "tokens of prompts", ("model",))
GENERATION_TOKENS = Family("llmlb_generation_tokens_total", "counter", "tokens generated", ("model",))
CACHED_TOKENS = Family(
    "llmlb_cached_tokens_total", "counter", "tokens of prompts that needed no computing, of the former", ("model",)
)
MIGRATIONS = Family("llmlb_migrations_total", "counter", "answers carried on by another node, by cause", ("reason",))
ATTEMPT_FAILURES = Family(
    "llmlb_attempt_failures_total", "counter", "nodes that did not bring an answer to its end", ("reason",)
)

BUS_CONNECTED = Family("llmlb_bus_connected", "gauge", "1 while the bus can be reached")
BUS_RECONNECTS = Family("llmlb_bus_reconnects_total", "counter", "times the connection to the bus came back")
SLOW_CONSUMERS = Family(
    "llmlb_slow_consumers_total", "counter", "bus messages dropped because they were not read in time"
)

HISTORY_UP = Family("llmlb_history_up", "gauge", "1 while request records reach the database; router only")
HISTORY_RECORDS = Family(
    "llmlb_history_records_total", "counter", "request records written to the database; router only"
)
HISTORY_SKIPPED = Family("llmlb_history_skipped_total", "counter", "records that could not be read; router only")

NODES = Family("llmlb_nodes", "gauge", "nodes known, by state", ("state",))
NODE_UP = Family("llmlb_node_up", "gauge", "1 while the node may get work: online and heard of lately", _NODE)
NODE_SLOTS = Family("llmlb_node_slots", "gauge", "slots of the models loaded there", _NODE)
NODE_RUNNING = Family("llmlb_node_running", "gauge", "requests on the node, from every gateway", _NODE)
GPU_USED = Family("llmlb_gpu_memory_used_bytes", "gauge", "VRAM in use", _GPU)
GPU_TOTAL = Family("llmlb_gpu_memory_total_bytes", "gauge", "VRAM in all", _GPU)
GPU_TEMPERATURE = Family("llmlb_gpu_temperature_celsius", "gauge", "temperature", _GPU)
GPU_UTILIZATION = Family("llmlb_gpu_utilization_ratio", "gauge", "share of the time it worked, 0 to 1", _GPU)
BREAKER = Family(
    "llmlb_breaker_state",
    "gauge",
    "0 closed, 1 half open, 2 open; a pair that never failed has none",
    ("node", "model"),
)

FAMILIES: dict[str, Family] = {value.name: value for value in list(globals().values()) if isinstance(value, Family)}
