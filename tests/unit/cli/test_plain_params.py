"""typer without pydantic: what needs no adapter is passed on, everything else is judged by typer as ever."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer
from typer import core

from llmlb.cli import plain_params

app = typer.Typer()
got: dict[str, Any] = {}


@app.command()
def command(
    name: str,
    names: Annotated[list[str] | None, typer.Argument()] = None,
    count: Annotated[int | None, typer.Option()] = None,
    level: Annotated[int, typer.Option(min=1, max=3)] = 2,
    flag: Annotated[bool, typer.Option("--flag")] = False,
    text: Annotated[str, typer.Option()] = "x",
    shout: Annotated[str, typer.Option(parser=str.upper)] = "x",
) -> None:
    got.update(name=name, names=names, count=count, level=level, flag=flag, text=text, shout=shout)


def call(*words: str) -> dict[str, Any]:
    got.clear()
    app(list(words), standalone_mode=False)
    return dict(got)


@pytest.mark.parametrize(
    "words",
    [
        ["a"],
        ["a", "b", "c"],
        ["a", "--count", "5", "--flag", "--text", "y", "--level", "3"],
        ["a", "--shout", "loud"],
        ["", "--text", ""],
    ],
)
def test_a_command_gets_the_same_with_it_and_without(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(core, "build_runtime_param", core.build_runtime_param)
    without = call(*words)
    plain_params.install()
    plain_params.install()
    assert call(*words) == without


@pytest.mark.parametrize("words", [["a", "--count", "x"], ["a", "--level", "9"], []])
def test_what_typer_refuses_is_refused_in_its_words(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    def refusal() -> str:
        with pytest.raises(typer.TyperException) as error:
            call(*words)
        return str(error.value)

    monkeypatch.setattr(core, "build_runtime_param", core.build_runtime_param)
    without = refusal()
    plain_params.install()
    assert refusal() == without


def test_a_typer_that_is_built_otherwise_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core, "build_runtime_param")
    plain_params.install()
    assert not hasattr(core, "build_runtime_param")
