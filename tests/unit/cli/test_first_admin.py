"""What the start-up block says about letting others in."""

from __future__ import annotations

import pytest

from llmlb.bus.settings import Settings
from llmlb.cli.banner import first_admin

SETTINGS = Settings.load({})


def test_it_says_how_to_make_the_first_admin_where_others_could_reach_the_port() -> None:
    assert first_admin(SETTINGS, "0.0.0.0", None)[-1] == "  llmlb router user add NAME --admin"
    assert first_admin(SETTINGS, "::", 5)[-1] == "  LLMLB_HOST=127.0.0.1:5 llmlb router user add NAME --admin"


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "localhost"])
def test_nothing_is_said_where_nobody_else_could(bind: str) -> None:
    assert first_admin(SETTINGS, bind, None) == []


def test_nothing_is_said_where_everybody_may() -> None:
    assert first_admin(Settings.load({}, auth="off"), "0.0.0.0", None) == []
