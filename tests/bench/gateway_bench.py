"""The gateway: what a key, a long prompt, an image and a long list cost (issue 6). Simulated engine, one router."""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import about, body_floor, machine, report
from tests.bench.report import Bar, Check
from tests.support.simcluster import SimCluster, simcluster

TITLE = "Gateway"
MODEL = "simulated/gateway"
MODELS = 500
AT_A_TIME = 8
"""Requests under way: what the process does beside them, each second, then weighs little."""
METHOD = """\
One router, one simulated node that answers with one token, one client with eight requests at a time, each on a
connection of its own. The node takes little of the machine's cores for a long prompt (it counts the words of its
beginning, and makes one digest of its text), as real nodes are other machines. CPU time is the router process's own
(`/proc/<pid>/task/*/schedstat`), over a fixed number of requests; the two sides of a pair alternate, and the median
over the pairs counts. A loopback client needs no key before the first user exists, so the same process answers requests
with a key and without.

Throughput of bodies: bytes that the larger body has more than a body of a few words, over the CPU time that it takes
more: what a byte costs from the socket through validation onto the bus, into the record that the history keeps of it
and onto the bus once more. Beside it, with everything that a request costs whatever its size, the bytes of whole
requests over their whole CPU time; and the floor, in turn with it: what the same bytes add to bare Sanic that decodes
them with orjson and publishes them once with nats-py. Whatever the machine does at the moment, both meet it."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pairs: int = 15
    requests: int = 400
    lists: int = 300
    key_pairs: int = 120
    """Of half as many requests: a few percent show only in many pairs, each short beside how the machine changes."""


QUICK = Sizes(pairs=5, requests=160, lists=60, key_pairs=10)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def chat(text: str, image: bytes | None = None) -> bytes:
    """A body."""
    content: Any = text
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "seed": 1}
    return json.dumps(body).encode()


def prose(size: int) -> str:
    """Words, with a line break now and then."""
    draw = random.Random(1)
    words = ("the", "model", "answers", "with", "one", "token", "and", "nobody", "reads", "it.\n", "quickly,", "brown")
    text = ""
    while len(text) < size:
        text += draw.choice(words) + " "
    return text[:size]


class Client:
    """Some connections, and the CPU time of the process behind them."""

    def __init__(self, port: int, pid: int) -> None:
        self._pid = pid
        self._connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(AT_A_TIME)]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        """One request, one answer."""
        return self._ask(1, method, path, body, headers)

    def _ask(self, count: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        """On so many connections at the same time; the last answer."""
        data = b""
        for connection in self._connections[:count]:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        for connection in self._connections[:count]:
            answer = connection.getresponse()
            data = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{answer.status}: {data[:500]!r}")
        return data

    def cpu_ms(self, count: int, body: bytes, **headers: str) -> float:
        """A request's, on average over so many."""
        before = machine.cpu_exact_s(self._pid)
        for _ in range(count // AT_A_TIME):
            self._ask(AT_A_TIME, "POST", "/v1/chat/completions", body, headers)
        return (machine.cpu_exact_s(self._pid) - before) / (count // AT_A_TIME * AT_A_TIME) * 1000


def run(arguments: argparse.Namespace) -> str:
    """Measure; the text of this part."""
    measured = about.Measured()
    sizes = QUICK if arguments.quick else Sizes()
    with (
        tempfile.TemporaryDirectory(prefix="llmlb-bench-") as name,
        simcluster(Path(name), LLMLB_QUEUE_MAX="1000", LLMLB_STALL_TIMEOUT="60s") as site,
    ):
        router = site.start_router()
        node = site.start_node("node", "--tokens-per-s=100000", model=MODEL)
        site.wait_ready(router, node)
        client = Client(router.router_port or 0, router.popen.pid)
        checks = keys(client, sizes)
        (folder := Path(name) / "floor").mkdir()
        with body_floor.running(folder) as (port, pid):
            checks += bodies(client, Client(port, pid), sizes)
        checks += spread(site, client, sizes)
        checks += lists(site, client, sizes)
    lines = [*about.lines(), measured.line()]
    return "\n\n".join(
        ["\n".join(lines), report.checks_table(checks), f"### Method of the gateway's figures\n\n{METHOD}"]
    )


def keys(client: Client, sizes: Sizes) -> list[Check]:
    """With a key beside without."""
    made = json.loads(
        client.ask("POST", "/v0/keys", json.dumps({"name": "bench", "permissions": ["inference"]}).encode())
    )
    header = {"Authorization": f"Bearer {made['key']}"}
    body = chat("a few words")
    client.cpu_ms(sizes.requests, body)
    ratios, plain = [], []
    count = sizes.requests // 2
    for at in range(sizes.key_pairs):
        sides = [{}, header] if at % 2 else [header, {}]
        taken = {bool(side): client.cpu_ms(count, body, **side) for side in sides}
        ratios.append(taken[True] / taken[False])
        plain.append(taken[False])
    more = 100 * (statistics.median(ratios) - 1)
    note = f"median of {len(ratios)} pairs of {count} requests; without: {statistics.median(plain):.3f} ms"
    return [Check("CPU of a request with an API key, beside one without", "% more", more, Bar(5), note)]


def code(size: int) -> str:
    """This repository's own: quotation marks, colons, underscores, and many line breaks."""
    folder = Path(__file__).parents[2] / "router"
    text = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
    return (text * (size // len(text) + 1))[:size]


def bodies(client: Client, floor: Client, sizes: Sizes) -> list[Check]:
    """Long ones beside short ones, and beside the floor."""
    small = chat("a few words")
    checks: list[Check] = []
    large = {
        "64 KB prompts": (chat(prose(64_000)), Bar(300, at_least=True)),
        "64 KB prompts of code": (chat(code(64_000)), None),
        "100 KB images": (chat("what is it?", random.Random(1).randbytes(75_000)), Bar(300, at_least=True)),
    }
    for one in (client, floor):
        one.cpu_ms(sizes.requests // 2, large["64 KB prompts"][0])
    for name, (body, bar) in large.items():
        more: dict[str, list[float]] = {"ours": [], "floor": []}
        whole = []
        for at in range(sizes.pairs):
            sides = [("ours", client), ("floor", floor)]
            for side, one in sides if at % 2 else sides[::-1]:
                base, taken = one.cpu_ms(sizes.requests, small), one.cpu_ms(sizes.requests, body)
                more[side].append(max(taken - base, 1e-6))
                if one is client:
                    whole.append(len(body) / taken / 1000)
        ms = {side: statistics.median(values) for side, values in more.items()}
        speed = {side: (len(body) - len(small)) / value / 1000 for side, value in ms.items()}
        note = f"bytes over the CPU time they add, {ms['ours']:.2f} ms; median of {sizes.pairs} pairs"
        against = f"{ms['ours']:.3f} ms against {ms['floor']:.3f} ms ({speed['floor']:.0f} MB/s), in the same run"
        checks += [
            Check(f"{name} through the gateway", "MB/s", speed["ours"], bar, note),
            Check(f"{name}, added CPU time ÷ floor", "x", ms["ours"] / ms["floor"], None, against),
            Check(f"{name}, with all of a request's CPU time", "MB/s", statistics.median(whole)),
        ]
    return checks


def spread(site: SimCluster, client: Client, sizes: Sizes) -> list[Check]:
    """Long bodies where there is a choice of nodes: who computed the beginning of a prompt is found, and noted."""
    for number in range(2):
        site.wait_ready(site.routers[0], site.start_node(f"more{number}", "--tokens-per-s=100000", model=MODEL))
    small, large = chat("a few words"), chat(prose(64_000))
    client.cpu_ms(sizes.requests // 2, large)
    more = [-client.cpu_ms(sizes.requests, small) + client.cpu_ms(sizes.requests, large) for _ in range(sizes.pairs)]
    took = statistics.median(more)
    note = f"{took:.2f} ms; who computed the same beginning is found and noted"
    speed = (len(large) - len(small)) / took / 1000
    return [Check("64 KB prompts through the gateway, three nodes to choose from", "MB/s", speed, None, note)]


def lists(site: SimCluster, client: Client, sizes: Sizes) -> list[Check]:
    """``GET /v1/models`` with many models."""
    names = [f"simulated/list-{at:03}" for at in range(MODELS - 1)]
    more = [f"--model={name}" for name in names[1:]]
    node = site.start_node("many", *more, model=names[0])
    site.wait_ready(site.routers[0], node)
    deadline = time.monotonic() + 60
    while len(json.loads(client.ask("GET", "/v1/models"))["data"]) < MODELS:
        if time.monotonic() > deadline:
            raise RuntimeError("not every model is listed")
        time.sleep(0.2)
    taken: dict[str, list[float]] = {"fresh": [], "told": [], "gzip": []}
    for _ in range(sizes.lists):
        time.sleep(0.11)  # longer than the list is kept
        for name, headers in (("fresh", {}), ("told", {}), ("gzip", {"Accept-Encoding": "gzip"})):
            began = time.perf_counter()
            client.ask("GET", "/v1/models", **headers)
            taken[name].append((time.perf_counter() - began) * 1000)
    said = f"`GET /v1/models` with {MODELS} models"
    middle = {name: statistics.median(values) for name, values in taken.items()}
    worst = report.percentile(taken["fresh"], 0.99)
    return [
        Check(said, "ms", middle["fresh"], Bar(5), f"median of {sizes.lists}, put together anew; p99 {worst:.1f} ms"),
        Check(f"{said}, again within 0.1 s", "ms", middle["told"], Bar(5)),
        Check(f"{said}, packed", "ms", middle["gzip"], Bar(5)),
    ]
