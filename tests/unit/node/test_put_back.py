from __future__ import annotations

import time
from typing import Any, cast

import pytest

from llmlb.bus.errors import BusDown
from llmlb.bus.messages.models import ManifestFile, ModelManifest, RegisteredModel
from llmlb.bus.messages.pulls import PullOrigin, PullProgress, PullTask
from llmlb.node.pull import put_back
from llmlb.node.pull.put_back import PutBack
from llmlb.node.pull.reports import Reports

AT = 1_800_000_000.25


class Queue:
    def __init__(self) -> None:
        self.put_tasks: list[PullTask] = []

    async def wait_all_taken(self) -> None:
        """Everything is here."""

    async def put(self, task: PullTask) -> None:
        self.put_tasks.append(task)


class Up:
    async def wait_up(self) -> None:
        """It is."""


class Rig:
    def __init__(self) -> None:
        self.queue = Queue()
        self.reports = Reports(cast(Any, None), "n")
        self.active: set[str] = set()
        self.put_back = PutBack(cast(Any, Up()), cast(Any, self.queue), self.reports, self.active)

    def known(self, task_id: str, origin: PullOrigin, registered_at: float | None, status: str = "downloading") -> None:
        progress = PullProgress(
            task_id=task_id,
            node_id="n",
            model="o/m",
            origin=origin,
            status="downloading",
            phase="downloading",
            registered_at=registered_at,
            started_at=time.time(),
        )
        self.reports.put(progress.model_copy(update={"status": status}))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def record() -> RegisteredModel:
    file = ManifestFile(path="m-Q4_0.gguf", local="m-Q4_0.gguf", size_bytes=7)
    manifest = ModelManifest(repo="o/m", format="GGUF", revision="c" * 40, files=(file,))
    return RegisteredModel(name="o/m", registered_at=AT + 1, manifest=manifest)


async def test_what_is_registered_is_put_back_with_the_files_that_are_registered(rig: Rig) -> None:
    rig.known("a", "sync", AT)

    async def registered() -> dict[str, RegisteredModel]:
        return {"a": record()}

    rig.put_back.registered = registered
    await rig.put_back.run()
    (task,) = rig.queue.put_tasks
    assert (task.task_id, task.manifest, task.registered_at) == ("a", record().manifest, AT + 1)


async def test_what_only_the_registry_wanted_and_does_not_any_more_is_over(rig: Rig) -> None:
    rig.known("a", "sync", AT)
    await rig.put_back.run()
    assert rig.queue.put_tasks == []
    told = rig.reports.get("a")
    assert told is not None
    assert told.status == "failed"
    assert told.error is not None
    assert "registration" in told.error.message


async def test_what_a_user_wants_is_put_back_whatever_is_registered(rig: Rig) -> None:
    rig.known("a", "user", None)
    rig.known("b", "user", AT)
    rig.known("over", "user", None, "completed")
    rig.known("here", "user", None)
    rig.active.add("here")

    async def registered() -> dict[str, RegisteredModel]:
        return {"a": record()}

    rig.put_back.registered = registered
    await rig.put_back.run()
    assert {(task.task_id, task.manifest) for task in rig.queue.put_tasks} == {("a", None), ("b", None)}


async def test_a_bus_that_does_not_tell_what_is_registered_is_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_back, "READ_AGAIN_S", 0.0)
    rig.known("a", "sync", AT)
    asked = 0

    async def registered() -> dict[str, RegisteredModel]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise BusDown("the bus is away")
        return {"a": record()}

    rig.put_back.registered = registered
    await rig.put_back.run()
    assert asked == 3
    assert rig.queue.put_tasks[0].manifest is not None
