"""``node run``: the one-shot form against a stand-in, and what the conversation reads."""

from __future__ import annotations

import pytest

from llmlb.bus.errors import LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.repl import Session, is_command, read_message
from tests.unit.cli.fake_gateway import Gateway, run, stream, text

USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (stream(text("Hel"), done=False), "the answer ended early"),
        (stream(text("Hel"), finish=False), "the answer ended early"),
        (stream(text("Hel"), finish=False, done=False), "the answer ended early"),
        (
            stream(
                text("Hel"), {"error": {"message": "it crashed", "code": "engine_crashed"}}, finish=False, done=False
            ),
            "it crashed",
        ),
    ],
)
def test_an_answer_that_does_not_end_is_an_error_and_never_a_success(
    fake: tuple[type[Gateway], str], body: bytes, says: str
) -> None:
    handler, address = fake
    handler.posted = body
    done = run("node", "run", "m", "hello", LLMLB_HOST=address)
    assert done.returncode == 1
    assert done.stdout.startswith("Hel")
    assert says in done.stderr


def test_thinking_is_hidden_unless_asked_for(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream({"choices": [{"delta": {"reasoning_content": "hmm"}}]}, text("42"))
    assert run("node", "run", "m", "q", LLMLB_HOST=address).stdout == "42\n"
    shown = run("node", "run", "m", "q", "--think", LLMLB_HOST=address).stdout
    assert shown == "Thinking...\nhmm\n...done thinking.\n\n42\n"


def test_thinking_that_is_cut_short_is_closed(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream({"choices": [{"delta": {"reasoning_content": "hmm"}}]}, done=False)
    done = run("node", "run", "m", "q", "--think", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (1, "Thinking...\nhmm\n...done thinking.\n\n")


def test_prompt_and_piped_text_are_one_turn_with_the_sampling_of_the_contract(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream(text("4"), text("2"), USAGE)
    done = run("node", "run", "m", "Sum", "up:", "--verbose", stdin="one\ntwo\n", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "eval count:         2 token(s)" in done.stderr
    assert "tokens/s" in done.stderr
    (_, _, body) = handler.asked[-1]
    assert body["messages"] == [{"role": "user", "content": "Sum up:\n\none\ntwo"}]
    assert (body["temperature"], body["top_p"], body["stream"]) == (0.7, 0.9, True)


def test_nothing_to_ask_is_an_error(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    done = run("node", "run", "m", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no prompt" in done.stderr
    assert [method for method, _, _ in handler.asked] == ["GET"]


def test_a_refusal_before_the_answer_prints_nothing_on_standard_output(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = b'{"error": {"message": "the model is downloading", "code": "model_downloading"}}'
    handler.posted_type = "application/json"
    handler.status = 503
    handler.do_GET = lambda self: _found(self)  # type: ignore[assignment]
    done = run("node", "run", "m", "q", LLMLB_HOST=address)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Error: the model is downloading\n")


def _found(handler: Gateway) -> None:
    handler.status = 200
    handler._send(handler.body, "application/json")


def test_an_answer_that_is_no_stream_is_an_error(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted, handler.posted_type = b"<html>", "text/html"
    done = run("node", "run", "m", "q", LLMLB_HOST=address)
    assert done.returncode == 1
    assert "is not a llmlb gateway" in done.stderr


def test_only_answers_that_came_to_their_end_are_remembered(
    fake: tuple[type[Gateway], str], capsys: pytest.CaptureFixture[str]
) -> None:
    handler, address = fake
    session = Session(GatewayClient(Settings.load({"LLMLB_HOST": address}), "node"), "m")
    handler.posted = stream(text("Hello."))
    session.ask("Hi.")
    handler.posted = stream(text("Hal"), done=False)
    with pytest.raises(LlmlbError):
        session.ask("Lost.")
    handler.posted = stream(text("Yes."))
    session.ask("Still there?")
    assert [turn["content"] for turn in handler.asked[-1][2]["messages"]] == ["Hi.", "Hello.", "Still there?"]
    assert capsys.readouterr().out == "Hello.\nHal\nYes.\n"
    session.clear()
    assert session.history == []


@pytest.mark.parametrize("line", ["/bye", "/clear", "/?", "/set parameter x", "/"])
def test_a_line_with_a_slash_is_a_command(line: str) -> None:
    assert is_command(line)


@pytest.mark.parametrize("line", ["hello", "/tmp/cat.png what is it?", "/cat.png what?", "/clear\nand more", "a /bye"])
def test_a_path_or_a_text_is_not_a_command(line: str) -> None:
    assert not is_command(line)


@pytest.mark.parametrize(
    ("lines", "message", "prompts"),
    [
        (["hello"], "hello", [">>> "]),
        (['"""one', "", 'two"""'], "one\n\ntwo", [">>> ", "... ", "... "]),
        (['"""one""" two'], "one two", [">>> "]),
        (['say """x"""'], 'say """x"""', [">>> "]),
    ],
)
def test_three_quotes_begin_and_end_a_text_of_several_lines(lines: list[str], message: str, prompts: list[str]) -> None:
    asked: list[str] = []
    left = iter(lines)

    def read(prompt: str) -> str:
        asked.append(prompt)
        return next(left)

    assert read_message(read) == message
    assert asked == prompts
