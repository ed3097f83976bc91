"""Every command, option and group explains itself. The tree is walked, so that a new command is looked at too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmlb.cli import app, completion, router_commands
from llmlb.cli.help_text import CONTEXT, epilog

ROOT = typer.main.get_group(app.app)
PLACES = {place.path: place for place in completion.places()}
COMMANDS = [path for path, place in PLACES.items() if path]


def context_of(path: str) -> Any:
    context = ROOT.make_context("llmlb", [], resilient_parsing=True)
    for name in path.split():
        command: Any = context.command
        below = command.get_command(context, name)
        context = below.make_context(name, [], parent=context, resilient_parsing=True)
    return context


@pytest.mark.parametrize("path", ["", *COMMANDS])
def test_it_has_a_sentence_its_options_an_example_and_the_exit_codes(path: str) -> None:
    context = context_of(path)
    text = context.get_help()
    assert text.startswith(f"Usage: llmlb {path}".rstrip())
    assert len(context.command.help.split()) >= 1
    assert "Example" in text
    assert f"  llmlb {path}".rstrip() in text.replace("Example: ", "  ") or not PLACES[path].commands
    assert "Exit codes: " in text
    assert "-h, --help" in text
    assert not set(text) & set("│╭╮╰╯─"), "no boxes: help goes into pipes and narrow terminals"
    for param in context.command.params:
        assert param.help or param.hidden, f"{path} {param.name} is not explained"


def test_no_line_of_an_example_is_cut_or_wrapped() -> None:
    long = "llmlb " + "x" * 200
    assert long in epilog(long)
    assert epilog("a", "b").startswith("\b\nExamples:\n  a\n  b\n")


def test_the_router_group_is_also_a_program_of_its_own() -> None:
    group = typer.main.get_group(router_commands.app)
    context = group.make_context("llm-router", [], resilient_parsing=True)
    assert context.help_option_names == CONTEXT["help_option_names"]
    assert "Usage: llm-router" in context.get_help()


@pytest.mark.parametrize(
    "listing",
    ["node list", "node ls", "node ps", "node show", "router nodes", "router models", "router status", "config show"]
    + ["router user list", "router key list", "doctor", "bus watch"]
    + [f"router {change}" for change in ("approve", "reject", "drain", "undrain", "label", "remove", "join-token")]
    + [f"router user {change}" for change in ("add", "remove", "passwd", "role", "invite")]
    + ["router key create", "router key revoke", "node rm", "node stop", "node pull"],
)
def test_what_prints_data_has_json(listing: str) -> None:
    assert "--json" in dict(PLACES[listing].options)


@pytest.mark.parametrize("path", ["node ps", "router status", "router nodes"])
def test_what_changes_by_itself_can_be_watched(path: str) -> None:
    assert {"--watch", "--interval"} <= set(dict(PLACES[path].options))


@pytest.mark.parametrize("path", ["serve", "node serve", "router serve"])
def test_serving_commands_choose_the_form_of_their_log(path: str) -> None:
    assert "--log-format" in dict(PLACES[path].options)


DOCS = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("path", [path for path, place in PLACES.items() if path and not place.commands])
def test_every_command_is_in_the_documents(path: str) -> None:
    group, _, name = path.rpartition(" ")
    assert f"llmlb {path}" in DOCS or (f"llmlb {group} " in DOCS and re.search(rf"`{name}\b", DOCS)), path


@pytest.mark.parametrize("path", [path for path, place in PLACES.items() if "--json" in dict(place.options)])
def test_the_keys_of_every_json_are_in_the_documents(path: str) -> None:
    if path in ("node ls", "node remove"):
        return  # other names of list and rm
    table = DOCS.partition("| command | JSON |")[2].partition("\n\n")[0]
    group, _, name = path.rpartition(" ")
    assert f"`{path}`" in table or f"`{group} …`" in table or f"`{name}`" in table
