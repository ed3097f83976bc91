from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.cli import render

MODEL = {"name": "meta-llama/Llama-3.2-3B-Instruct", "size_bytes": 6_400_000_000, "created_at": 0, "source": "Local"}
NODE = {
    "node_id": "abc123" + "0" * 26,
    "name": "box",
    "gateway": "0.0.0.0:32769",
    "state": "online",
    "suspect": False,
    "draining": False,
    "gpus": [{"name": "NVIDIA GeForce RTX 4090"}],
    "models": ["a", "b", "c"],
}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_499_999, "999 MB"),
        (999_999_999, "1.0 GB"),
        (960_000_000, "960 MB"),
        (98_362_432, "98 MB"),
        (6_400_000_000, "6.4 GB"),
        (14_200_000_000, "14.2 GB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert render.size(count) == text


@given(st.integers(1000, 10**15), st.integers(0, 10**12))
def test_a_size_is_near_what_it_stands_for_and_never_reads_as_less_of_a_bigger_file(count: int, more: int) -> None:
    assert value(render.size(count)) == pytest.approx(count, rel=0.34)
    assert value(render.size(count)) <= value(render.size(count + more))
    assert float(render.size(count).split()[0]) < 1000 or count > 10**14


def value(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (600, "600"), (3_210_000_000, "3.21B"), (134_515_008, "134.52M"), (999_999_999, "1.00B")],
)
def test_parameters(count: int | None, text: str) -> None:
    assert render.parameters(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Just now"),
        (30, "30 seconds ago"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86_400, "1 day ago"),
        (3 * 86_400, "3 days ago"),
        (15 * 86_400, "2 weeks ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert render.age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "Forever"),
        (3, "Less than a minute"),
        (61, "About a minute"),
        (299, "4 minutes"),
        (7200, "2 hours"),
    ],
)
def test_time_left(seconds: float | None, text: str) -> None:
    assert render.until(seconds) == text


@given(st.lists(st.lists(st.text("abc é", max_size=30), min_size=3, max_size=3), max_size=8))
def test_columns_line_up_and_nothing_is_cut(rows: list[list[str]]) -> None:
    lines = render.table(["ONE", "TWO", "THREE"], rows).split("\n")
    assert len(lines) == len(rows) + 1
    starts = [lines[0].index("TWO"), lines[0].index("THREE")]
    for row, line in zip(rows, lines[1:], strict=True):
        padded = line.ljust(starts[1] + 40)
        assert padded[: starts[0]].rstrip() == row[0].rstrip()
        assert padded[starts[0] : starts[1]].rstrip() == row[1].rstrip()
        assert padded[starts[1] :].rstrip() == row[2].rstrip()


def test_wide_characters_keep_the_columns_and_control_characters_do_nothing() -> None:
    assert render.table(["HOST", "N"], [["機械", "1"], ["box", "2"]]) == "HOST  N\n機械  1\nbox   2"
    assert render.table(["A", "B"], [["x\x1b[2J\ny", "1"]]) == "A        B\nx?[2J?y  1"


def test_node_list_has_the_columns_of_the_contract() -> None:
    ollama = {"name": "ollama:llama3.2", "size_bytes": 4_100_000_000, "created_at": 0, "source": "Ollama"}
    text = render.models([MODEL, ollama], now=7200)
    assert text.split("\n")[0].split() == ["NAME", "SIZE", "MODIFIED"]
    assert "meta-llama/Llama-3.2-3B-Instruct  6.4 GB  2 hours ago" in text
    assert "ollama:llama3.2 (readonly)" in text


def test_ps_has_the_columns_of_the_contract() -> None:
    loaded = {
        "name": "m",
        "instance": "abc123",
        "size_bytes": 6_400_000_000,
        "processor": "100% GPU",
        "state": "ready",
        "expires_in_s": 250,
        "vram_percent": 85.2,
        "gpu_temperature_c": 62.0,
    }
    without_gpu = {**loaded, "vram_percent": None, "gpu_temperature_c": None, "processor": "100% CPU"}
    head, first, second = render.running([loaded, without_gpu]).split("\n")
    assert head.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "UNTIL", "VRAM", "TEMP"]
    assert first.split() == ["m", "abc123", "6.4", "GB", "100%", "GPU", "4", "minutes", "85%", "62°C"]
    assert second.split()[-2:] == ["-", "-"]


def test_show_is_the_block_of_the_contract() -> None:
    details = {
        "model": {
            "name": "meta-llama/Llama-3.2-3B-Instruct",
            "architecture": "llama",
            "parameters": 3_210_000_000,
            "quantization": "Q4_K_M",
            "context_length": 131072,
            "format": "GGUF",
            "size_bytes": 6_400_000_000,
        },
        "license": "Llama 3.2 Community License",
    }
    assert render.details(details) == (
        "Model: meta-llama/Llama-3.2-3B-Instruct\n"
        "  Architecture: llama\n"
        "  Parameters: 3.21B\n"
        "  Quantization: Q4_K_M\n"
        "  Context Length: 131072\n"
        "  Format: GGUF\n"
        "  Size: 6.4 GB\n"
        "  License: Llama 3.2 Community License"
    )


def test_show_names_the_aliases_and_what_is_wrong_after_the_block_of_the_contract() -> None:
    model = {
        "name": "a",
        "architecture": "llama",
        "parameters": None,
        "quantization": None,
        "context_length": None,
        "format": "GGUF",
        "size_bytes": 5,
        "aliases": ["x", "y"],
    }
    lines = render.details({"model": model, "license": "a\x1b[2Jb\nc", "problem": "it crashed"}).split("\n")
    assert lines[7:] == ["  License: a?[2Jb", "  Aliases: x, y", "  Failed: it crashed"]


def test_until_counts_down_and_a_model_without_a_gpu_has_dashes() -> None:
    loaded = {"name": "m", "instance": "i", "size_bytes": 1, "processor": "100% CPU", "state": "ready"}
    without_gpu = {"vram_percent": None, "gpu_temperature_c": None}
    shown = [
        render.running([{**loaded, **without_gpu, "expires_in_s": left}]).split("\n")[1].split("100% CPU  ")[1]
        for left in (300.0, 299.0, 119.0, 59.0)
    ]
    assert [" ".join(line.split()) for line in shown] == [
        "5 minutes - -",
        "4 minutes - -",
        "About a minute - -",
        "Less than a minute - -",
    ]


@given(st.text(max_size=40), st.integers(0, 30))
def test_a_clipped_text_fits(text: str, width: int) -> None:
    made = render.clipped(text, width)
    assert render.columns_of(made) <= width
    assert made == text or made.endswith("…") or not made


def test_router_nodes_has_the_columns_of_the_contract() -> None:
    head, row = render.nodes([NODE]).split("\n")
    assert head.split() == ["ID", "HOST", "STATUS", "GPU", "MODELS"]
    assert row.split() == ["abc123000000", "box:32769", "online", "RTX4090", "3"]
    assert "suspect" in render.nodes([{**NODE, "suspect": True}])
    assert "draining" in render.nodes([{**NODE, "draining": True}])
    assert "offline" in render.nodes([{**NODE, "state": "offline", "suspect": True}])


def test_router_status_is_the_block_of_the_contract() -> None:
    status = {
        "health": "healthy",
        "nodes_online": 3,
        "nodes_offline": 0,
        "models_available": 12,
        "requests_last_hour": 1234,
        "vram_percent": 85.0,
    }
    assert render.status(status) == (
        "Cluster Status: healthy\n\n"
        "Nodes:      3 online / 0 offline\n"
        "Models:     12 available\n"
        "Requests:   1,234 (last hour)\n"
        "VRAM:       85% average utilization"
    )
    assert render.status({**status, "vram_percent": None}).endswith("VRAM:       -")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("AMD Radeon RX 7900 XTX", "RX7900XTX"),
    ],
)
def test_gpu_names_are_short(name: str, short: str) -> None:
    assert render.gpu_name(name) == short


def test_of_a_long_licence_show_prints_the_first_line() -> None:
    model = {"name": "m", "architecture": "llama", "parameters": 1, "quantization": None, "context_length": None}
    found = {"model": {**model, "format": "GGUF", "size_bytes": 1, "aliases": []}, "license": "\nMIT License\n\nLong …"}
    assert "  License: MIT License" in render.details(found).splitlines()
