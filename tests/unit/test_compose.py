"""compose.yaml fits the program's own settings."""

from __future__ import annotations

import re

from llmlb.bus.settings import Settings
from tests.unit.test_project import ROOT


def test_docker_waits_longer_than_running_answers_may_take_at_the_end() -> None:
    found = re.search(r"^  stop_grace_period: (\d+)s$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= Settings.load({}, embedded_bus=False).drain_timeout_s + 20
