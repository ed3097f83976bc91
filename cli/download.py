"""``llmlb router model download``: let nodes fetch a model, watch all of them to the end, or give it up.

The downloads are the nodes': nothing that happens to this process ends them.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmlb.bus.errors import (
    BusDown,
    DeadlineExceeded,
    InvalidRequest,
    LlmlbError,
    NodeLost,
    NodeUnknown,
    NotFound,
    RateLimited,
)
from llmlb.cli.client import GatewayClient
from llmlb.cli.download_view import labels, why_failed
from llmlb.cli.exit_codes import INTERRUPTED, OK, Unreachable
from llmlb.cli.pull_output import Output
from llmlb.cli.pull_view import FINAL

POLL_S = 0.5
ANSWER_TIMEOUT_S = 8.0
PATIENCE_S = 15.0
"""How long a router may be away, or a node not be heard of, before watching ends: longer than a restart takes."""
REASONS_SHOWN = 3

PASSING = (Unreachable, BusDown, NodeLost, DeadlineExceeded, NotFound, RateLimited)
"""NotFound: a router that has just started may not have read the tasks yet."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which model, the route that starts it, and on which nodes: ids or their beginnings, none for all."""

    model: str
    path: str
    nodes: tuple[str, ...] = ()

    def command(self, *options: str) -> str:
        """To be pasted into a shell."""
        where = ["--all"] if not self.nodes else [word for node in self.nodes for word in ("--node", node)]
        return shlex.join(["llmlb", "router", "model", "download", self.model, *where, *options])


class Watch:
    """One model on its nodes, seen from outside. ``clock`` in seconds."""

    def __init__(
        self,
        gateway: GatewayClient,
        wanted: Wanted,
        output: Output,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gateway, self._wanted, self._output = gateway, wanted, output
        self._clock, self._sleep = clock, sleep
        self._old: set[tuple[Any, ...]] = set()
        """Ends of earlier downloads: the router may show one for a moment after it has asked anew."""
        self._heard: dict[str, float] = {}
        """By task when it was in an answer, and its node online."""
        self.state: dict[str, Any] | None = None
        """The last known; None until the router has answered."""

    def run(self) -> dict[str, Any]:
        """The final state. Raises Unreachable when the router stays away, and what it refuses."""
        self._old = {_mark(each) for each in self._earlier() if each["task"]["status"] in FINAL}
        body = {"nodes": list(self._wanted.nodes)} if self._wanted.nodes else {"all": True}
        started = self._gateway.post(self._wanted.path, body, has="tasks")
        tasks = [_pending(each) if _mark(each) in self._old else each for each in started["tasks"]]
        state = self.state = {"model": started["model"], "tasks": tasks}
        self._heard = dict.fromkeys((each["id"] for each in tasks), self._clock())
        try:
            while True:
                self._output.show(state)
                if self._over(state):
                    return state
                self._sleep(POLL_S)
                state = self.state = self._next(state)
        finally:
            self._output.leave()

    def _earlier(self) -> list[dict[str, Any]]:
        try:
            return self._gateway.rows(self._gateway.task_path(self._wanted.model), "tasks", has="task")
        except NotFound:
            return []

    def _over(self, state: Mapping[str, Any]) -> bool:
        """Every node has ended, or is not heard of for :data:`PATIENCE_S`."""
        soon = self._clock() - PATIENCE_S
        return all(each["task"]["status"] in FINAL or self._heard[each["id"]] <= soon for each in state["tasks"])

    def _next(self, state: dict[str, Any]) -> dict[str, Any]:
        """The next state; keeps asking while nobody answers, as long as :data:`PATIENCE_S`."""
        path = self._gateway.task_path(state["tasks"][0]["task"]["task_id"])
        since = self._clock()
        while True:
            try:
                found = self._gateway.get(path, has="tasks", timeout_s=ANSWER_TIMEOUT_S)["tasks"]
            except PASSING as error:
                left = PATIENCE_S - (self._clock() - since)
                if left <= 0:
                    raise self._given_up(error) from error
                self._output.show(state, f"trying again for {left:.0f} s: {error.message.partition('. ')[0]}")
                self._sleep(POLL_S)
            else:
                self._shift(self._clock() - since)
                return self._merged(state, {each["id"]: each for each in found})

    def _shift(self, seconds: float) -> None:
        """Time in which the router told nothing of any node does not count against them."""
        self._heard = {task: at + seconds for task, at in self._heard.items()}

    def _merged(self, state: dict[str, Any], found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """The tasks that were started, as they are now. One that ended stays ended: its node may begin anew later."""
        tasks = []
        for each in state["tasks"]:
            new = found.get(each["id"])
            if each["task"]["status"] in FINAL:
                new = each
            elif new is None:
                new = {**each, "online": False}
            elif _mark(new) in self._old:
                new = {**each, "online": new["online"]}
            if new["online"]:
                self._heard[each["id"]] = self._clock()
            tasks.append(new)
        return {**state, "tasks": tasks}

    def _given_up(self, error: LlmlbError) -> LlmlbError:
        if isinstance(error, NotFound):
            return LlmlbError("the downloads are not there any more: the nodes were taken out of the cluster")
        again = self._wanted.command()
        return Unreachable(f"{error.message}. The nodes go on by themselves; watch them with: {again}")

    def detached(self) -> None:
        """Say what Ctrl+C did not end."""
        goes_on = "The downloads go on in the nodes." if self.state else "Not waited for the router's answer."
        self._output.say(
            f"{goes_on}\nWatch them:  {self._wanted.command()}\nCancel them: {self._wanted.command('--cancel')}"
        )


def _mark(each: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of an end: node, and when it was told. What has not ended has a mark that no end has."""
    task = each["task"]
    over = task["status"] in FINAL
    return (each["id"], task["status"], task.get("started_at"), task.get("sent_at")) if over else (each["id"],)


def _pending(each: dict[str, Any]) -> dict[str, Any]:
    """In place of the end of an earlier download, until the node tells of this one."""
    begin = {
        "status": "pending",
        "phase": "waiting",
        "downloaded_bytes": 0,
        "speed_bps": 0,
        "error": None,
        "note": None,
    }
    return {**each, "task": {**each["task"], **begin}}


def outcome(state: Mapping[str, Any]) -> LlmlbError | None:
    """What the end is for an exit code: None when every node has the model, else an error that is 1."""
    tasks = state["tasks"]
    names = labels(tasks)
    bad = [each for each in tasks if each["task"]["status"] != "completed"]
    if not bad:
        return None
    reasons = [f"{names[each['id']]}: {_short_of(each)}" for each in bad[:REASONS_SHOWN]]
    more = f" and {len(bad) - REASONS_SHOWN} more" if len(bad) > REASONS_SHOWN else ""
    return LlmlbError(f"{len(bad)} of {len(tasks)} nodes did not get it: {'; '.join(reasons)}{more}")


def _short_of(each: Mapping[str, Any]) -> str:
    if each["task"]["status"] in FINAL:
        return why_failed(each["task"])
    return "offline, fetches it when it is back"


def watch(watching: Watch) -> tuple[int, dict[str, Any] | None, LlmlbError | None]:
    """Exit code, final state (None after Ctrl+C), and the error that is still to be said. Raises as Watch.run."""
    try:
        state = watching.run()
    except KeyboardInterrupt:
        watching.detached()
        return INTERRUPTED, None, None
    return OK, state, outcome(state)


def cancel(gateway: GatewayClient, wanted: Wanted, *, purge: bool) -> dict[str, Any]:
    """Give the downloads of a model up, everywhere or on some nodes; their last states as ``tasks``.

    Raises NotFound, NodeUnknown, InvalidRequest (a beginning of several ids), Conflict (over already).
    """
    query = "?purge=1" if purge else ""
    if not wanted.nodes:
        return gateway.delete(gateway.task_path(wanted.model) + query, has="tasks")
    known = gateway.rows(gateway.task_path(wanted.model), "tasks", has="node_id")
    chosen = {_chosen(known, beginning) for beginning in wanted.nodes}
    ended = [gateway.delete(gateway.task_path(task) + query, has="tasks") for task in sorted(chosen)]
    return {**ended[0], "tasks": [task for answer in ended for task in answer["tasks"]]}


def _chosen(known: list[dict[str, Any]], beginning: str) -> str:
    found = [each["id"] for each in known if each["node_id"].startswith(beginning.lower())]
    if not beginning or not found:
        raise NodeUnknown(f"no node whose id begins with '{beginning}' has a download of it")
    if len(found) > 1:
        raise InvalidRequest(f"'{beginning}' stands for {len(found)} nodes; give more of the id")
    return str(found[0])
