"""``router model …`` against a stand-in: what is asked, what is printed, and the exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmlb.cli import candidates, model_render
from tests.unit.cli.fake_gateway import GB, Gateway, run
from tests.unit.cli.fake_models import NAME, NODE_A, NODE_B, catalog_page, hub_model, refused, variant

Fake = tuple[type[Gateway], str]


# The catalog


def test_the_catalog_has_a_row_a_variant_and_says_how_to_see_more(fake: Fake) -> None:
    handler, address = fake
    page = catalog_page(
        variant(NAME, registered=True),
        variant(
            "owner/m:Q8_0", size_bytes=None, required_memory_bytes=None, fits_count=None, files=["a.gguf", "b.gguf"]
        ),
        has_more=True,
    )
    handler.body = json.dumps(page).encode()
    done = run("router", "model", "list", "big", "model", "--quant", "Q4_K_M", "--page", "2", LLMLB_HOST=address)
    assert done.returncode == 0
    assert handler.asked[0][1] == "/v0/models/catalog?q=big+model&page=2&limit=50&quant=Q4_K_M"
    assert done.stdout.splitlines() == [
        "MODEL           SIZE    MEMORY  FITS  STATE       DOWNLOADS  UPDATED     FILE",
        "owner/m:Q4_K_M  6.4 GB  8.0 GB  2/3   registered  12K        2026-01-02  m-Q4_K_M.gguf",
        "owner/m:Q8_0    -       -       -     -           12K        2026-01-02  a.gguf and 1 more",
    ]
    assert done.stderr == "more with: llmlb router model list big model --quant Q4_K_M --page 3\n"


def test_a_page_from_before_is_a_warning_and_no_failure(fake: Fake) -> None:
    handler, address = fake
    handler.body = json.dumps(catalog_page(stale=True, age_s=7200.0, note="the hub limits requests")).encode()
    done = run("router", "model", "list", "--json", LLMLB_HOST=address)
    assert done.returncode == 0
    assert json.loads(done.stdout)["stale"] is True
    assert done.stderr == "Warning: this is what the hub said 2 hours ago, not now: the hub limits requests\n"


def test_names_out_of_the_hub_can_not_move_the_cursor() -> None:
    page = catalog_page(variant("owner/\x1b[2Jm"), note="\x1b[2J")
    assert "\x1b" not in model_render.catalog(page)
    assert "\x1b" not in model_render.registered(hub_model(id="\x1b[2J"))
    assert "\x1b" not in model_render.deleted({"model": "\x1b[2J", "nodes": []})


# Supported and registered models


def test_the_supported_models_show_progress_and_what_failed_where() -> None:
    def node(status: str, done: int, error: str | None = None) -> dict[str, Any]:
        return {
            "node_id": NODE_A,
            "name": "den",
            "lifecycle_status": status,
            "downloaded_bytes": done,
            "total_bytes": 2 * GB,
            "error": error,
        }

    nodes = [node("pending", GB), node("pending", 0), node("ready", 2 * GB), node("error", 0, "the disk is full")]
    shown = model_render.supported(
        [
            hub_model(id="other/a"),
            hub_model(status="downloading", lifecycle_status="ready", nodes=nodes, nodes_ready=1, nodes_total=4),
        ]
    )
    assert shown.splitlines() == [
        "MODEL           SIZE    MEMORY  STATUS           STATE  NODES  ALIASES",
        "other/a         6.4 GB  8.0 GB  available        -      -      -",
        "owner/m:Q4_K_M  6.4 GB  8.0 GB  downloading 25%  ready  1/4    -",
        f"owner/m:Q4_K_M on den ({NODE_A[:12]}): the disk is full",
    ]


def test_add_sends_what_was_given_and_shows_warnings(fake: Fake) -> None:
    handler, address = fake
    model = hub_model(lifecycle_status="registered", nodes_total=2, registered_at=1.0)
    handler.scripts["POST /v0/models/register"] = [(201, {"model": model, "record": {}, "warnings": ["it is\nlarge"]})]
    options = ["--file", "m.gguf", "--name", "M", "--alias", "m", "--alias", "big", "--node", "4f1c", "--node", "aa"]
    done = run("router", "model", "add", "owner/m", *options, LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (0, f"registered '{NAME}', 6.4 GB: 2 nodes fetch it\n")
    assert done.stderr == "Warning: it is large\n"
    assert handler.asked[0][2] == {
        "repo": "owner/m",
        "filename": "m.gguf",
        "display_name": "M",
        "aliases": ["m", "big"],
        "nodes": ["4f1c", "aa"],
    }
    run("router", "model", "add", "owner/m", LLMLB_HOST=address)
    assert handler.asked[1][2] == {"repo": "owner/m"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lifecycle_status": "conversion_pending"}, "it waits for a conversion, no node fetches it"),
        ({"lifecycle_status": "registered", "nodes_total": 1}, "1 node fetches it"),
        ({"lifecycle_status": "registered"}, "nodes that come fetch it"),
    ],
)
def test_add_says_who_fetches_it(fields: dict[str, Any], says: str) -> None:
    assert model_render.registered(hub_model(size_bytes=None, **fields)) == f"registered '{NAME}': {says}"


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (refused("conflict", "the model 'm' is registered already", 409), 1, "llmlb router model supported"),
        (refused("not_found", "owner/m has no file x.gguf; it has y.gguf", 404, param="filename"), 1, "it has y.gguf"),
        (refused("not_found", "there is nothing at this address", 404), 1, "does not know this command"),
        (refused("hub_unavailable", "the hub does not answer in time", 503), 1, "the hub does not answer in time"),
        (refused("bus_unavailable", "the bus is away", 503), 2, "the bus is away"),
        ((201, {"record": {}}), 1, "it is not a router's gateway, or another version"),
    ],
)
def test_what_the_router_refuses_is_one_line(fake: Fake, answer: Any, code: int, says: str) -> None:
    handler, address = fake
    handler.scripts["POST /v0/models/register"] = [answer]
    done = run("router", "model", "add", "owner/m", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert says in line


def test_rm_goes_on_after_what_it_can_not_delete_and_exits_with_1(fake: Fake) -> None:
    handler, address = fake
    handler.scripts["DELETE /v0/models/owner/a:Q8_0"] = [{"model": "owner/a:Q8_0", "nodes": [NODE_A, NODE_B]}]
    handler.scripts["DELETE /v0/models/none"] = [refused("model_not_found", "the model 'none' is not registered", 404)]
    done = run("router", "model", "rm", "none", "", "owner/a:Q8_0", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (1, "deleted 'owner/a:Q8_0': 2 nodes remove its files\n")
    first, second = done.stderr.splitlines()
    assert first == "Error: the model 'none' is not registered"
    assert second.startswith("Error: the name of a model is missing")
    shown = run("router", "model", "rm", "none", "owner/a:Q8_0", "--json", LLMLB_HOST=address)
    assert [(row["model"], row["deleted"], len(row["nodes"])) for row in json.loads(shown.stdout)] == [
        ("none", False, 0),
        ("owner/a:Q8_0", True, 2),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "say where: --all, or --node"),
        (["--all", "--node", "aa"], "say where: --all, or --node"),
        (["--all", "--purge"], "--purge goes with --cancel"),
    ],
)
def test_a_download_that_does_not_say_where_is_a_wrong_call(fake: Fake, options: list[str], says: str) -> None:
    done = run("router", "model", "download", NAME, *options, LLMLB_HOST=fake[1])
    assert done.returncode == 1
    assert says in done.stderr
    assert fake[0].asked == []


def test_only_registered_models_are_completed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, address = fake
    monkeypatch.setenv("LLMLB_HOST", address)
    models = [hub_model(id="other/a"), hub_model(registered_at=1.0, aliases=["m"])]
    handler.bodies = {"/v0/models/hub": {"models": models}}
    assert candidates.names("registered") == ["m", NAME]
