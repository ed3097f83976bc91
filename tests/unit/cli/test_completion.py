"""What Tab completes: the script of bash in a real bash, and the names that it asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmlb.bus.errors import InvalidRequest
from llmlb.cli import candidates, completion
from tests.support.cluster import free_port
from tests.unit.cli.fake_gateway import MODEL, Gateway, environ, run

TRY = """
shopt -s extglob
source "$1"
shift
for line in "$@"; do
    COMP_LINE="$line" COMP_POINT=${#line} COMP_WORDS=($line) COMPREPLY=()
    [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _llmlb
    echo "${COMPREPLY[*]}"
done
"""


def tab(folder: Path, *lines: str, host: str = "127.0.0.1:1") -> list[str]:
    """What bash offers for each of the lines."""
    (folder / "script").write_text(completion.script("bash"))
    (folder / "llmlb").write_text(f'#!/bin/sh\nexec {sys.executable} -m llmlb "$@"\n')
    (folder / "llmlb").chmod(0o755)
    env = environ(LLMLB_HOST=host)
    done = subprocess.run(
        ["bash", "-c", TRY, "bash", str(folder / "script"), *lines],
        env={**env, "PATH": f"{folder}:{env['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


def test_commands_and_options_are_completed_without_a_server(tmp_path: Path) -> None:
    groups, node, sh, options, router = tab(
        tmp_path, "llmlb ", "llmlb node ", "llmlb node sh", "llmlb node show --l", "llm-router st"
    )
    assert groups.split() == ["serve", "node", "router", "bus", "doctor", "config", "completion"]
    assert {"serve", "run", "pull", "list", "show", "rm", "stop", "ps"} == set(node.split())
    assert (sh, options, router) == ("show", "--license", "status")


def test_names_of_models_come_from_the_server_and_a_colon_is_no_end(
    fake: tuple[type[Gateway], str], tmp_path: Path
) -> None:
    handler, address = fake
    handler.bodies = {"/v0/models": {"models": [{**MODEL, "name": "owner/a:Q4_K_M", "aliases": ["a-1b"]}]}}
    first, second = tab(tmp_path, "llmlb node show ", "llmlb node rm owner/a:Q", host=address)
    assert first == "a-1b owner/a:Q4_K_M"
    assert second == "Q4_K_M", "bash has the part before the colon already"


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_there_is_a_script_for_each_shell_with_every_command(shell: str) -> None:
    text = completion.script(shell)
    for place in completion.places():
        assert place.path in text


def test_another_shell_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InvalidRequest, match="bash, zsh, fish"):
        completion.script("tcsh")


def test_names_without_a_server_are_none_and_silent() -> None:
    done = run("__complete", "models", LLMLB_HOST=f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert candidates.names("nonsense") == []


def test_a_name_that_a_shell_would_run_is_not_offered(
    fake: tuple[type[Gateway], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, address = fake
    names = ["ok/one", "$(touch x)", "a;b", "a b", "a\x1b[2Jb"]
    handler.bodies = {"/v0/models": {"models": [{**MODEL, "name": name} for name in names]}}
    monkeypatch.setenv("LLMLB_HOST", address)
    assert candidates.names("models") == ["ok/one"]
