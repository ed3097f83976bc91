"""What /metrics says, in both text formats, and the documents and the dashboard that name it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from llmlb.bus.messages.infer import Usage
from llmlb.bus.messages.nodes import GpuReading
from llmlb.bus.messages.requests import RequestAttempt
from llmlb.bus.messages.router import ClusterModel, NodeView
from llmlb.bus.settings import Settings
from llmlb.router.gateway.app import GatewayServer, build_app
from llmlb.router.gateway.metric_names import FAMILIES
from llmlb.router.gateway.metrics import Exposition
from llmlb.router.gateway.ports import Gateway
from llmlb.router.metrics import LABELS_MAX, OTHER, Histogram, Metrics
from tests.support.records import NODE, record
from tests.unit.gateway.scripted import Scripted

ROOT = Path(__file__).parents[3]
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PARSERS = [("text/plain", parse_plain), (OPENMETRICS, parse_openmetrics)]


def model(name: str, *aliases: str) -> ClusterModel:
    return ClusterModel(name=name, aliases=aliases, nodes=1, loaded=1, status="available", created_at=0.0)


def node(number: int = 0, **fields: Any) -> NodeView:
    plain: dict[str, Any] = {
        "node_id": f"{number:032x}",
        "name": f"host{number}",
        "gateway": "127.0.0.1:32769",
        "state": "online",
        "suspect": False,
        "draining": False,
        "version": "0",
        "models": (),
        "loaded_models": (),
        "models_ready": 0,
        "models_total": 0,
        "running": 3,
        "slots": 4,
        "gpus": (GpuReading(name="H", memory_total_bytes=100, memory_used_bytes=40, temperature_c=50.5),),
        "cpu_percent": None,
        "memory_total_bytes": None,
        "memory_available_bytes": None,
        "uptime_s": 1.0,
        "last_heartbeat_age_s": 0.1,
        "metrics_stale": False,
    }
    return NodeView(**{**plain, **fields})


def exposition(metrics: Metrics | None = None, nodes: Sequence[NodeView] = (), **more: Any) -> Exposition:
    bus = SimpleNamespace(connected=True, reconnects=2, slow_consumers=1)
    history = SimpleNamespace(up=True, written=7, skipped=0)
    return Exposition(metrics or Metrics(), bus, lambda: nodes, build=("router", "1.2"), **{"history": history, **more})


async def scraped(made: Exposition, accept: str = "text/plain") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by name and labels."""
    body, _ = await made.render(accept)
    parse = parse_openmetrics if accept == OPENMETRICS else parse_plain
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in parse(body.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples


def value(samples: dict[Any, float], metric: str, /, **labels: str) -> float | None:
    return samples.get((metric, frozenset(labels.items())))


@pytest.fixture
def busy() -> Metrics:
    """Two models with some history."""
    metrics = Metrics(lambda: [model("owner/a", "a"), model("owner/b")])
    for name in ("owner/a", "a", "owner/b"):
        metrics.request_began(name)
        metrics.request_ended(record(model=name, queue_ms=400.0))
    metrics.request_began("a")
    metrics.waiting("a", 1)
    metrics.migrated("node_lost")
    metrics.attempt_failed("node_busy")
    return metrics


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
async def test_requests_are_told_by_model_and_alias_together(busy: Metrics, accept: str) -> None:
    samples = await scraped(exposition(busy), accept)
    labels = {"model": "owner/a", "kind": "chat", "status": "ok", "reason": ""}
    assert value(samples, "llmlb_requests_total", **labels) == 2
    assert value(samples, "llmlb_requests_running", model="owner/a") == 1
    assert value(samples, "llmlb_requests_running", model="owner/b") == 0
    assert value(samples, "llmlb_requests_waiting", model="owner/a") == 1
    assert value(samples, "llmlb_prompt_tokens_total", model="owner/a") == 60
    assert value(samples, "llmlb_generation_tokens_total", model="owner/a") == 16
    assert value(samples, "llmlb_cached_tokens_total", model="owner/a") == 32
    assert value(samples, "llmlb_migrations_total", reason="node_lost") == 1
    assert value(samples, "llmlb_attempt_failures_total", reason="node_busy") == 1
    assert value(samples, "llmlb_bus_connected") == 1
    assert value(samples, "llmlb_bus_reconnects_total") == 2
    assert value(samples, "llmlb_slow_consumers_total") == 1
    assert value(samples, "llmlb_history_records_total") == 7
    assert value(samples, "llmlb_build_info", role="router", version="1.2") == 1
    assert value(samples, "process_resident_memory_bytes") is not None


async def test_histograms_count_seconds_in_the_buckets_of_the_field(busy: Metrics) -> None:
    samples = await scraped(exposition(busy))
    for name, low, high, total in (
        ("llmlb_time_to_first_token_seconds", "0.1", "0.25", 0.24),
        ("llmlb_inter_token_latency_seconds", "0.01", "0.025", 0.03),
        ("llmlb_request_duration_seconds", "0.8", "1.0", 2.0),
        ("llmlb_queue_time_seconds", "0.3", "0.5", 0.8),
    ):
        assert value(samples, f"{name}_bucket", model="owner/a", le=low) == 0
        assert value(samples, f"{name}_bucket", model="owner/a", le=high) == 2
        assert value(samples, f"{name}_bucket", model="owner/a", le="+Inf") == 2
        assert value(samples, f"{name}_count", model="owner/a") == 2
        assert value(samples, f"{name}_sum", model="owner/a") == pytest.approx(total)


async def test_only_answered_requests_count_as_whole_ones(busy: Metrics) -> None:
    busy.request_ended(
        record(model="owner/b", status="cancelled", usage=None, first_token_ms=None, inter_token_ms=None)
    )
    busy.request_ended(record(model="owner/b", status="error", reason="queue_full", usage=None, tried=()))
    samples = await scraped(exposition(busy))
    assert value(samples, "llmlb_request_duration_seconds_count", model="owner/b") == 1
    assert value(samples, "llmlb_queue_time_seconds_count", model="owner/b") == 3
    assert value(samples, "llmlb_generation_tokens_total", model="owner/b") == 16, "what a cancelled one had counts"
    labels = {"model": "owner/b", "kind": "chat", "status": "error", "reason": "queue_full"}
    assert value(samples, "llmlb_requests_total", **labels) == 1


async def test_nodes_gpus_and_breakers_are_read_at_the_scrape() -> None:
    nodes = [
        node(1, name='quoted "host"\\\n'),
        node(2, suspect=True, gpus=()),
        node(3, state="offline", metrics_stale=True),
        node(4, state="pending", gpus=()),
    ]
    breakers = {(NODE, "owner/a"): "open", (NODE, "owner/b"): "half-open"}
    for accept, _ in PARSERS:
        samples = await scraped(exposition(nodes=nodes, breakers=lambda: breakers), accept)
        first = {"node": f"{1:032x}", "name": 'quoted "host"\\\n'}
        assert value(samples, "llmlb_node_up", **first) == 1
        assert value(samples, "llmlb_node_slots", **first) == 4
        assert value(samples, "llmlb_node_running", **first) == 3
        assert value(samples, "llmlb_gpu_memory_used_bytes", **first, gpu="0") == 40
        assert value(samples, "llmlb_gpu_memory_total_bytes", **first, gpu="0") == 100
        assert value(samples, "llmlb_gpu_temperature_celsius", **first, gpu="0") == 50.5
        assert value(samples, "llmlb_gpu_utilization_ratio", **first, gpu="0") is None, "not known is not 0"
        assert value(samples, "llmlb_node_up", node=f"{2:032x}", name="host2") == 0, "suspect"
        assert value(samples, "llmlb_node_up", node=f"{3:032x}", name="host3") == 0
        assert value(samples, "llmlb_gpu_memory_used_bytes", node=f"{3:032x}", name="host3", gpu="0") is None
        assert [value(samples, "llmlb_nodes", state=s) for s in ("online", "offline", "pending")] == [2, 1, 1]
        assert value(samples, "llmlb_breaker_state", node=NODE, model="owner/a") == 2
        assert value(samples, "llmlb_breaker_state", node=NODE, model="owner/b") == 1


@given(st.lists(st.text(min_size=1), unique=True, max_size=5))
def test_any_name_survives_both_formats(texts: list[str]) -> None:
    # Text formats have one line a sample: carriage returns and the like are legal inside of quotes.
    texts = [text for text in texts if text.isprintable() or text in ("\n", '"', "\\")]
    made = exposition(nodes=[node(number, name=text) for number, text in enumerate(texts)])
    for accept, _ in PARSERS:
        samples = asyncio.run(scraped(made, accept))
        for number, text in enumerate(texts):
            assert value(samples, "llmlb_node_up", node=f"{number:032x}", name=text) == 1


async def test_names_that_no_node_lists_never_become_labels() -> None:
    metrics = Metrics(lambda: [model("known")])
    for number in range(50):
        metrics.request_began(f"made up {number}")
        metrics.request_ended(record(model=f"made up {number}", status="error", reason="model_not_found"))
    metrics.request_began("made up and running")
    metrics.waiting("made up and waiting", 1)
    samples = await scraped(exposition(metrics))
    models = {dict(labels)["model"] for _, labels in samples if "model" in dict(labels)}
    assert models == {OTHER}
    assert value(samples, "llmlb_requests_running", model=OTHER) == 1


async def test_labels_of_models_and_reasons_are_bounded() -> None:
    metrics = Metrics(lambda: [model(f"m{number}") for number in range(LABELS_MAX + 50)])
    for number in range(LABELS_MAX + 50):
        metrics.request_ended(record(model=f"m{number}"))
    for number in range(500):
        metrics.request_ended(record(model="m0", status="error", reason=f"reason {number}"))
        metrics.migrated(f"reason {number}")
        metrics.attempt_failed(f"reason {number}")
    samples = await scraped(exposition(metrics))
    models = {dict(labels)["model"] for _, labels in samples if "model" in dict(labels)}
    assert len(models) == LABELS_MAX + 1
    for name in ("llmlb_requests_total", "llmlb_migrations_total", "llmlb_attempt_failures_total"):
        assert len({dict(labels)["reason"] for found, labels in samples if found == name}) <= 70
    asked = sum(count for (name, _), count in samples.items() if name == "llmlb_requests_total")
    assert asked == LABELS_MAX + 50 + 500, "what has no label of its own is counted all the same"


def test_the_models_are_not_listed_for_each_unknown_name() -> None:
    clock, listed = [0.0], [0]

    def models() -> list[ClusterModel]:
        listed[0] += 1
        return [model("late")] if clock[0] >= 100.0 else []

    metrics = Metrics(models, lambda: clock[0])
    for _ in range(100):
        metrics.request_ended(record(model="late"))
    assert listed == [1]
    metrics.request_began("late")
    clock[0] = 100.0
    assert metrics.snapshot().running == {OTHER: 0, "late": 1}, "it gets its label while it runs"
    metrics.request_ended(record(model="late"))
    assert metrics.snapshot().running == {OTHER: 0, "late": 0}


def test_an_end_without_a_beginning_does_no_harm() -> None:
    metrics = Metrics(lambda: [model("m")])
    metrics.request_ended(record(model="m"))
    metrics.waiting("m", -1)
    metrics.request_began("m")
    assert metrics.snapshot().running == {"m": 1}
    assert metrics.snapshot().waiting == {"m": 0}


def test_a_snapshot_does_not_change_any_more() -> None:
    metrics = Metrics(lambda: [model("m")])
    metrics.request_ended(record(model="m"))
    before = metrics.snapshot()
    metrics.request_ended(record(model="m", usage=Usage(prompt_tokens=1, completion_tokens=1)))
    metrics.migrated("x")
    assert sum(before.series["m"].ended.values()) == sum(before.series["m"].first_token.counts) == 1
    assert before.series["m"].prompt_tokens == 30
    assert before.migrations == {}


def test_tokens_of_an_answer_without_an_end_are_those_of_its_attempts() -> None:
    metrics = Metrics(lambda: [model("m")])
    tried = tuple(RequestAttempt(node_id=NODE, placement="", tokens=tokens) for tokens in (5, 7))
    metrics.request_ended(record(model="m", status="error", reason="node_lost", usage=None, tried=tried))
    assert metrics.snapshot().series["m"].generation_tokens == 12


@given(st.lists(st.floats(0, 10_000)))
def test_every_value_is_in_exactly_one_bucket(values: list[float]) -> None:
    histogram = Histogram((0.1, 1.0, 10.0))
    for one in values:
        histogram.observe(one)
    expected = [sum(one <= edge for one in values) for edge in (0.1, 1.0, 10.0)]
    assert [sum(histogram.counts[: n + 1]) for n in range(3)] == expected
    assert sum(histogram.counts) == len(values)


async def test_a_thousand_nodes_do_not_hold_up_the_loop() -> None:
    nodes = [node(number) for number in range(1000)]
    made = exposition(nodes=nodes)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        ticking = group.create_task(tick())
        samples = await scraped(made)
        ticking.cancel()
    print(f"1,000 nodes, parsed: {(time.perf_counter() - began) * 1000:.0f} ms")
    assert ticks > 0, "the text is made in a thread"
    assert sum(name == "llmlb_node_up" for name, _ in samples) == 1000


# Over HTTP


async def test_the_gateway_answers_in_the_format_asked_for(tmp_path: Path, busy: Metrics) -> None:
    scripted = Scripted()
    for role in ("router", "node"):
        gateway = Gateway(
            role=role,  # type: ignore[arg-type]
            settings=Settings.load({}, home=tmp_path),
            version="0",
            inference=scripted,
            models=scripted,
            readiness=scripted,
            router_ops=None,
            node_ops=None,
            node_id=None,
            metrics=exposition(busy, [node()]),
        )
        server = GatewayServer(build_app(gateway))
        await server.start("127.0.0.1", 0)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
                plain = await client.get("/metrics")
                assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
                assert list(parse_plain(plain.text))
                browser = await client.get("/metrics", headers={"accept": "text/html,*/*;q=0.8"})
                assert browser.headers["content-type"].startswith("text/plain")
                newer = await client.get("/metrics", headers={"accept": OPENMETRICS})
                assert newer.headers["content-type"].startswith("application/openmetrics-text")
                assert newer.text.endswith("# EOF\n")
                assert list(parse_openmetrics(newer.text))
                both = await asyncio.gather(*(client.get("/metrics") for _ in range(5)))
                assert {answer.status_code for answer in both} == {200}
        finally:
            await server.stop(0.1)


# Documents


async def in_the_registry(busy: Metrics) -> dict[str, str]:
    """Name as scraped and type of every family that a busy router shows."""
    made = exposition(busy, [node(1)], breakers=lambda: {(NODE, "m"): "open"})
    body, _ = await made.render("text/plain")
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", body.decode(), re.MULTILINE))


def documented() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    text = (ROOT / "docs" / "metrics.md").read_text()
    for name, kind, labels, help in re.findall(
        r"^\| `(llmlb_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE
    ):
        yield name, kind, tuple(re.findall(r"`(\w+)`", labels)), help


async def test_the_documents_name_every_metric_as_it_is(busy: Metrics) -> None:
    real = {name: kind for name, kind in (await in_the_registry(busy)).items() if name.startswith("llmlb_")}
    rows = list(documented())
    assert {name: kind for name, kind, _, _ in rows} == real
    assert len(rows) == len(real)
    for name, kind, labels, help in rows:
        family = FAMILIES[name]
        assert (kind, labels, help) == (family.type, family.labels, family.help), name


def expressions(thing: Any) -> Iterator[str]:
    """Every PromQL expression of a dashboard."""
    if isinstance(thing, dict):
        for key, one in thing.items():
            if key in ("expr", "definition") and isinstance(one, str):
                yield one
            else:
                yield from expressions(one)
    elif isinstance(thing, list):
        for one in thing:
            yield from expressions(one)


async def test_every_metric_of_the_dashboard_exists(busy: Metrics) -> None:
    real = await in_the_registry(busy)
    board = json.loads((ROOT / "deploy" / "grafana" / "llmlb.json").read_text())
    names = {name for text in expressions(board) for name in re.findall(r"\b(?:llmlb|process)_\w+", text)}
    assert len(names) > 20
    for name in names:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in real or real.get(base) == "histogram", name
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert set(FAMILIES) <= shown, "the dashboard shows everything there is"


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "llmlb.json").read_text())
    assert board["schemaVersion"] >= 38  # Grafana 10
    assert "id" not in board
    variables = {one["name"]: one["type"] for one in board["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in cells, f"{panel['title']} lies on another panel"
            cells.add(cell)
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(board)))) - {"__rate_interval"}
    assert used <= set(variables)


def test_the_scrape_config_points_at_the_default_ports() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = {
        job["job_name"]: (job["metrics_path"], job["static_configs"][0]["targets"]) for job in config["scrape_configs"]
    }
    defaults = Settings.load({})
    assert targets == {
        "llmlb-router": ("/metrics", [f"127.0.0.1:{defaults.router_port}"]),
        "llmlb-node": ("/metrics", [f"127.0.0.1:{defaults.node_port}"]),
    }
