"""``llmlb node pull``: start a pull or attach to it, watch it to its end, or give it up.

The pull is the node's: nothing that happens to this process ends it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Any

from llmlb.bus.errors import BusDown, Cancelled, DeadlineExceeded, LlmlbError, NodeLost, RequestError
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import INTERRUPTED, OK, Unreachable
from llmlb.cli.pull_output import Output
from llmlb.cli.pull_view import FINAL
from llmlb.cli.render import printable, size

POLL_S = 0.2
ANSWER_TIMEOUT_S = 8.0
"""Longer than a gateway waits for its node (5 s), so that its own answer comes first."""
PATIENCE_S = 15.0
"""How long a node may be away before watching ends: longer than a restart takes."""

PASSING = (Unreachable, BusDown, NodeLost, DeadlineExceeded)


class Watch:
    """One pull, seen from outside. ``clock`` in seconds."""

    def __init__(
        self,
        gateway: GatewayClient,
        model: str,
        output: Output,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gateway = gateway
        self._model = shlex.quote(model)
        self._named = model
        self._output = output
        self._clock = clock
        self._sleep = sleep
        self._task: dict[str, Any] | None = None
        self._heard = 0.0

    def run(self) -> dict[str, Any]:
        """The final state. Raises Unreachable when the node stays away, and what the gateway refuses."""
        started = self._gateway.post("/v0/models/pull", {"model": self._named}, has="task")
        task: dict[str, Any] = started["task"]
        self._task, self._heard = task, self._clock()
        try:
            while True:
                self._output.show(task)
                if task["status"] in FINAL:
                    return task
                self._sleep(POLL_S)
                self._task = task = self._next(task)
        finally:
            self._output.leave()

    def _next(self, task: dict[str, Any]) -> dict[str, Any]:
        """The next state; keeps asking while nobody answers, as long as :data:`PATIENCE_S`."""
        while True:
            try:
                found = self._gateway.get(
                    self._gateway.task_path(task["task_id"]), has="status", timeout_s=ANSWER_TIMEOUT_S
                )
            except PASSING as error:
                self._wait_for_node(task, error)
            except RequestError as error:
                # A node that has just started may not have read its tasks back yet.
                self._wait_for_node(task, error)
            else:
                self._heard = self._clock()
                return found

    def _wait_for_node(self, task: dict[str, Any], error: LlmlbError) -> None:
        left = PATIENCE_S - (self._clock() - self._heard)
        if left <= 0:
            if not isinstance(error, PASSING):
                raise error
            raise Unreachable(
                f"{error.message}. The pull goes on when the node is back; watch it with: llmlb node pull {self._model}"
            ) from error
        self._output.show(task, f"trying again for {left:.0f} s: {_short(error)}")
        self._sleep(POLL_S)

    def detached(self) -> None:
        """Say what Ctrl+C did not end."""
        goes_on = "The pull goes on in the node." if self._task else "Not waited for the node's answer."
        self._output.say(
            f"{goes_on}\nWatch it:  llmlb node pull {self._model}\nCancel it: llmlb node pull --cancel {self._model}"
        )


def _short(error: LlmlbError) -> str:
    """Without the advice that stands behind it."""
    return error.message.partition(". ")[0]


def outcome(task: dict[str, Any]) -> LlmlbError | None:
    """What the end of a pull is for an exit code: None for a success, else an error that is 1."""
    if task["status"] == "completed":
        return None
    if task["status"] == "cancelled":
        return Cancelled("the pull was cancelled")
    error = task.get("error") or {}
    return LlmlbError(str(error.get("message") or "the pull failed"))


def watch(watching: Watch, output: Output, *, hint: bool) -> tuple[int, dict[str, Any] | None]:
    """Exit code and final state (None after Ctrl+C). ``hint``: name the model as ``run`` takes it.

    Raises LlmlbError for a pull that ended without a model.
    """
    try:
        task = watching.run()
    except KeyboardInterrupt:
        watching.detached()
        return INTERRUPTED, None
    error = outcome(task)
    if error is not None:
        raise error
    name = task.get("alias") or task.get("name") or task["model"]
    if hint:
        output.say(f"run it with: llmlb node run {printable(shlex.quote(name))}")
    return OK, task


def cancel(gateway: GatewayClient, model: str, *, purge: bool) -> dict[str, Any]:
    """Give the pull of a model up. ``purge`` drops what it has fetched. Raises as GatewayClient.get."""
    return gateway.delete(gateway.task_path(model) + ("?purge=1" if purge else ""), has="task")


def cancelled_lines(answer: dict[str, Any], model: str) -> str:
    """What was cancelled, and what stays of it."""
    task, kept = answer["task"], answer.get("kept_bytes", 0)
    lines = [f"cancelled '{printable(task['model'])}'"]
    if kept:
        total = f" of {size(task['total_bytes'])}" if task.get("total_bytes") else ""
        lines += [
            f"{size(kept)}{total} are kept for another pull; drop them with: "
            f"llmlb node pull --cancel --purge {shlex.quote(model)}"
        ]
    return "\n".join(lines)
