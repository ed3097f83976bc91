"""The recorded session of the README is there, small, and free of this machine's names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from docs.media.cast_svg import row
from docs.media.record import CAST, SVG, SVG_MOST_BYTES

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_recording() -> None:
    assert f"({SVG.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
    assert SVG.stat().st_size <= SVG_MOST_BYTES
    ElementTree.fromstring(SVG.read_text())


def test_the_cast_is_whole_and_names_no_machine() -> None:
    head, *events = [json.loads(line) for line in CAST.read_text().splitlines()]
    assert head["version"] == 2
    times = [at for at, _, _ in events]
    assert times == sorted(times)
    text = "".join(piece for _, _, piece in events)
    assert "llmlb node run smollm2" in text
    assert "\x1b[?2004h$ " in text
    assert not re.search(r"/(home|root|tmp|work|Users)/|Error|Traceback", text)


def test_a_row_of_the_screen_keeps_its_styles_and_places() -> None:
    assert row("") == row("   ") == ""
    assert row("a<b") == '<tspan x="12">a&lt;b</tspan>'
    assert row("\x1b[1mbold\x1b[0m \x1b[2;36mdim\x1b[39m") == (
        '<tspan x="12" class="b">bold</tspan><tspan x="54" class="d" fill="#56b6c2">dim</tspan>'
    )
