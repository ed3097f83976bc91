"""What Tab completes in a real zsh and a real fish; bash: test_completion.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from llmlb.cli import completion
from tests.unit.cli.fake_gateway import MODEL, Gateway, environ

NAMES = {"/v0/models": {"models": [{**MODEL, "name": "owner/a:Q4_K_M", "aliases": ["a-1b"]}]}}
WAIT_S = 30.0


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def env(fake: tuple[type[Gateway], str], tmp_path: Path) -> dict[str, str]:
    """With ``llmlb`` and ``llm-router`` on the path, and the scripts in the home."""
    fake[0].bodies = NAMES
    for name in ("llmlb", "llm-router"):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m llmlb "$@"\n')
        (tmp_path / name).chmod(0o755)
    for shell in ("zsh", "fish"):
        (tmp_path / f"script.{shell}").write_text(completion.script(shell))
    plain = environ(LLMLB_HOST=fake[1], HOME=str(tmp_path), TERM="dumb")
    return {**plain, "PATH": f"{tmp_path}:{plain['PATH']}"}


def fish(env: dict[str, str], *lines: str) -> list[list[str]]:
    """What fish offers for each of the lines, without the descriptions."""
    source = f'source "{env["HOME"]}/script.fish"; for line in $argv; complete -C "$line"; echo =; end'
    done = subprocess.run(
        ["fish", "--no-config", "-c", source, *lines], env=env, capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [[row.partition("\t")[0] for row in block.split()] for block in re.sub("\t.*", "", done.stdout).split("=")]


@needs("fish")
def test_fish_completes_commands_options_and_names(env: dict[str, str]) -> None:
    offers = fish(
        env,
        *("llmlb ", "llmlb node sh", "llmlb node show --l", "llmlb router st", "llm-router st", "llmlb node pull "),
        *("llmlb node show ", "llmlb node rm a-1b owner/a:Q", "llmlb completion "),
    )
    groups, show, license, status, older, none, names, second, shells, _ = offers
    assert sorted(groups) == ["bus", "completion", "config", "doctor", "node", "router", "serve"]
    assert (show, license, status, older, none) == (["show"], ["--license"], ["status"], ["status"], [])
    assert sorted(names) == ["a-1b", "owner/a:Q4_K_M"]
    assert (second, sorted(shells)) == (["owner/a:Q4_K_M"], ["bash", "fish", "zsh"])


@pytest.fixture
def zsh(env: dict[str, str]) -> Iterator[pexpect.spawn[str]]:
    """At its prompt, with the script loaded."""
    child: pexpect.spawn[str] = pexpect.spawn(
        "zsh", ["-f", "-i"], env={**env, "PS1": "%% "}, encoding="utf-8", dimensions=(40, 160), timeout=WAIT_S
    )
    child.delaybeforesend = None
    child.expect("% ")
    # In two parts, so that the echo of the line is not taken for what it prints.
    child.sendline('source "$HOME/script.zsh"; LISTMAX=0; echo rea""dy')
    child.expect("ready\r\n")
    yield child
    child.close(force=True)


def tab(zsh: pexpect.spawn[str], typed: str, becomes: str) -> None:
    """Type it and press Tab; then the line is emptied. Fails where ``becomes`` never stands there."""
    zsh.send(f"{typed}\t")
    zsh.expect_exact(becomes)
    zsh.sendcontrol("u")
    zsh.sendline('echo an""other')
    zsh.expect("another\r\n")


@needs("zsh")
def test_zsh_completes_commands_options_and_names(zsh: pexpect.spawn[str]) -> None:
    for typed, becomes in (
        ("llmlb no", "llmlb node "),
        ("llmlb node show --l", "llmlb node show --license "),
        ("llm-router st", "llm-router status "),
        ("llmlb node show a", "llmlb node show a-1b "),
        ("llmlb node rm a-1b owner/a:Q", "llmlb node rm a-1b owner/a:Q4_K_M "),
        ("llmlb node sh", "llmlb node show "),
        ("llmlb node ", "-- Show what is known of a model."),
        ("llmlb completion f", "llmlb completion fish "),
    ):
        tab(zsh, typed, becomes)


@needs("zsh")
def test_zsh_keeps_a_completion_that_is_set_up_already(env: dict[str, str]) -> None:
    """What the user's own start-up files did is not done again, and nothing is said."""
    lines = (
        "autoload -Uz compinit && compinit -i; compdef _files mine; source $HOME/script.zsh; print $_comps[mine] $path"
    )
    done = subprocess.run(["zsh", "-f", "-c", lines], env=env, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"_files {env['HOME']} ")
