"""The start-up block: what runs where, and lines that can be pasted."""

from __future__ import annotations

import json
import shlex

from llmlb.bus.settings import Settings
from llmlb.cli.banner import Begun, Part, block, ending

SETTINGS = Settings.load({})
ROUTER = Part("router", "0.0.0.0", 32768)
NODE = Part("node", "0.0.0.0", 32769, "0123456789abcdef0123456789abcdef")


def begun(*parts: Part, models: int = 1, gpus: tuple[str, ...] = (), owns: bool = False) -> Begun:
    names = [(f"owner/m{number}", [f"m{number}"] if number == 0 else []) for number in range(models)]
    return Begun("the cluster", "0.1.0", parts, "nats://127.0.0.1:4222", owns, gpus, names)


def test_it_names_addresses_bus_gpu_and_models() -> None:
    lines = block(begun(ROUTER, NODE, gpus=("RTX4090", "A100"), models=2, owns=True), SETTINGS).split("\n")
    assert lines[:7] == [
        "",
        "llmlb 0.1.0: the cluster is ready",
        "  bus     nats://127.0.0.1:4222 (started here)",
        "  router  http://127.0.0.1:32768/v1",
        "  node    http://127.0.0.1:32769/v1   id 0123456789ab",
        "  GPU     RTX4090, A100",
        "  models  owner/m0, owner/m1",
    ]
    assert lines[-2:] == ["Ctrl+C ends it.", ""]


def test_a_machine_without_a_gpu_and_without_models_says_what_to_do() -> None:
    text = block(begun(NODE, models=0), SETTINGS)
    assert "  GPU     none: models run on the CPU\n" in text
    assert "  models  none yet; get one with: llmlb node pull OWNER/MODEL\n" in text
    assert "curl" not in text


def test_a_router_has_no_gpu_and_pulls_nothing() -> None:
    text = block(begun(ROUTER, models=0), SETTINGS)
    assert "GPU" not in text
    assert "  models  none yet\n" in text


def test_many_models_are_counted() -> None:
    assert "owner/m4 and 3 more\n" in block(begun(NODE, models=8), SETTINGS)


def test_the_lines_to_paste_are_what_a_shell_reads() -> None:
    lines = block(begun(Part("node", "::", 5, "0" * 32)), SETTINGS).split("\n")
    curl = shlex.split(lines[lines.index("Ask it:") + 1])
    assert curl[:2] == ["curl", "http://[::1]:5/v1/chat/completions"]
    assert json.loads(curl[-1])["model"] == "m0"
    assert "  LLMLB_HOST=127.0.0.1:5 llmlb node run m0" in lines


def test_what_is_waited_for_at_the_end_is_said() -> None:
    assert "up to 20 s" in ending(20.0)
    assert "Ctrl+C again ends at once" in ending(20.0)
