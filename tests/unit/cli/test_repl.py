"""``node run``: the one-shot form against a stand-in, and what the conversation reads."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmlb.bus.errors import ContextOverflow, LlmlbError, MessageTooLarge
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.repl import is_command
from llmlb.cli.repl_ask import DROPPED, Talk, Times, speed
from llmlb.cli.repl_images import Prompt
from llmlb.cli.repl_output import Printer, Screen
from llmlb.cli.repl_session import Session
from tests.unit.cli.fake_gateway import Gateway, environ, run, stream, text

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


@pytest.fixture
def talk(fake: tuple[type[Gateway], str]) -> Iterator[Talk]:
    """A conversation with the stand-in."""
    settings = Settings.load({"LLMLB_HOST": fake[1]})
    made = Talk(GatewayClient(settings, "node"), settings, Session("m"), Screen(io.StringIO()))
    yield made
    made.close()


def asked(talk: Talk, text: str) -> None:
    talk.ask(Prompt([text]))


def shown(talk: Talk) -> str:
    assert isinstance(talk.screen.out, io.StringIO)
    return talk.screen.out.getvalue()


def contents(handler: type[Gateway]) -> list[str]:
    return [turn["content"] for turn in handler.asked[-1][2]["messages"]]


def test_only_answers_that_came_to_their_end_are_remembered(fake: tuple[type[Gateway], str], talk: Talk) -> None:
    handler, _ = fake
    handler.posted = stream(text("Hello."))
    asked(talk, "Hi.")
    handler.posted = stream(text("Hal"), done=False)
    with pytest.raises(LlmlbError):
        asked(talk, "Lost.")
    handler.posted = stream(text("Yes."))
    asked(talk, "Still there?")
    assert contents(handler) == ["Hi.", "Hello.", "Still there?"]
    assert shown(talk) == "Hello.\nHal\nYes.\n"
    talk.session.clear()
    assert talk.session.history == []


def test_an_answer_that_ctrl_c_stopped_is_remembered_as_far_as_it_was_shown(
    fake: tuple[type[Gateway], str], talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, _ = fake
    handler.posted = stream(text("One, "), text("two, "), text("three"))
    pieces: list[str] = []

    def say(self: Printer, piece: str) -> None:
        if pieces:
            raise KeyboardInterrupt
        pieces.append(piece)
        self.answer += piece

    with monkeypatch.context() as patched:
        patched.setattr(Printer, "say", say)
        with pytest.raises(KeyboardInterrupt):
            asked(talk, "Count.")
    asked(talk, "Go on.")
    assert contents(handler) == ["Count.", "One, ", "Go on."]


OVERFLOW = b'{"error": {"message": "the prompt has 300 tokens", "code": "context_length_exceeded"}}'


def test_when_the_server_says_that_the_context_is_full_the_oldest_turns_go_with_one_notice(
    fake: tuple[type[Gateway], str], talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    handler, _ = fake
    handler.posted = stream(text("a"))
    for number in range(4):
        asked(talk, f"q{number}")
    handler.do_POST = _overflow_beyond(3)  # type: ignore[method-assign]
    asked(talk, "q4")
    assert contents(handler) == ["q3", "a", "q4"]
    asked(talk, "q5")
    assert contents(handler) == ["q4", "a", "q5"]
    assert shown(talk) == "a\n" * 6
    assert capsys.readouterr().err == f"{DROPPED}\n"
    handler.do_POST = _overflow_beyond(0)  # type: ignore[method-assign]
    with pytest.raises(ContextOverflow):
        asked(talk, "alone too long")


def _overflow_beyond(messages: int) -> Callable[[Gateway], None]:
    answer = Gateway.do_POST

    def do_post(handler: Gateway) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if len(body["messages"]) > messages:
            handler._send(OVERFLOW, "application/json", 400)
            return
        handler.rfile = io.BytesIO(json.dumps(body).encode())  # type: ignore[assignment]
        handler.headers.replace_header("Content-Length", str(len(json.dumps(body))))
        answer(handler)

    return do_post


def test_an_unknown_model_is_said_with_the_way_to_get_it(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    error = {"message": "model 'owner/x' was not found; did you mean owner/a?", "code": "model_not_found"}
    handler.scripts = {"GET /v0/models/owner/x": [(404, {"error": error})]}
    done = run("node", "run", "owner/x", "q", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {error['message']} To pull a model: llmlb node pull owner/x\n"


def test_a_cut_answer_is_said(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream(text("long"), {"choices": [{"delta": {}, "finish_reason": "length"}]}, finish=False)
    done = run("node", "run", "m", "q", LLMLB_HOST=address)
    assert (done.returncode, done.stdout) == (0, "long\n")
    assert done.stderr == "The answer stopped here: the model's context is full.\n"


def test_a_pipe_gets_the_answer_as_it_came(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream(text("# A **b**\n- `c`\n"), text("\x1b[1m raw"))
    assert run("node", "run", "m", "q", LLMLB_HOST=address).stdout == "# A **b**\n- `c`\n\x1b[1m raw\n"


def test_a_reader_that_goes_away_is_no_error(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream(*[text("word " * 200)] * 200)
    command = [sys.executable, "-m", "llmlb", "node", "run", "m", "q"]
    env = environ(LLMLB_HOST=address)
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == "word"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_an_image_in_the_prompt_is_sent_and_said(fake: tuple[type[Gateway], str], tmp_path: Path) -> None:
    handler, address = fake
    handler.posted = stream(text("A cat."))
    image = tmp_path / "my cat.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("node", "run", "m", f"{image} what is it?", LLMLB_HOST=address)
    assert (done.stdout, done.stderr) == ("A cat.\n", f"Added image '{image}'\n")
    content = handler.asked[-1][2]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]


def test_names_of_images_in_piped_text_are_text(fake: tuple[type[Gateway], str], tmp_path: Path) -> None:
    handler, address = fake
    handler.posted = stream(text("ok"))
    image = tmp_path / "cat.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("node", "run", "m", "Sum up:", stdin=f"see {image}", LLMLB_HOST=address)
    assert (done.stdout, done.stderr) == ("ok\n", "")
    assert handler.asked[-1][2]["messages"] == [{"role": "user", "content": f"Sum up:\n\nsee {image}"}]


def test_a_message_too_large_for_a_request_is_an_error(talk: Talk, fake: tuple[type[Gateway], str]) -> None:
    with pytest.raises(MessageTooLarge):
        asked(talk, "x" * 25_000_000)
    assert fake[0].asked == []


def test_too_much_on_standard_input_is_an_error(fake: tuple[type[Gateway], str]) -> None:
    done = run("node", "run", "m", stdin="x" * 3000, LLMLB_HOST=fake[1], LLMLB_MAX_BODY="2KB")
    assert done.returncode == 1
    assert "more than 2000 bytes" in done.stderr


def test_think_is_asked_for_and_hiding_wins_over_showing(fake: tuple[type[Gateway], str]) -> None:
    handler, address = fake
    handler.posted = stream({"choices": [{"delta": {"reasoning_content": "\nhmm\n"}}]}, text("42"))
    done = run("node", "run", "m", "q", "--think", "--hidethinking", LLMLB_HOST=address)
    assert done.stdout == "42\n"
    assert handler.asked[-1][2]["think"] is True
    assert run("node", "run", "m", "q", "--think", LLMLB_HOST=address).stdout == (
        "Thinking...\nhmm\n...done thinking.\n\n42\n"
    )


def test_speed_counts_the_tokens_after_the_first_one() -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 21, "prompt_tokens_details": {"cached_tokens": 10}}
    times = Times(began=0.0, first=0.5, ended=2.5)
    assert speed(usage, times).split("\n") == [
        "total duration:     2.50s",
        "first token:        0.50s",
        "prompt eval count:  30 token(s), 10 of them cached",
        "prompt eval rate:   40.0 tokens/s",
        "eval count:         21 token(s)",
        "eval duration:      2.00s",
        "eval rate:          10.0 tokens/s",
    ]
    assert "eval rate:          0.0" in speed({"prompt_tokens": 1, "completion_tokens": 0}, Times(0.0, None, 0.0))


@pytest.mark.parametrize("line", ["/bye", "/clear", "/?", "/set parameter x", "/"])
def test_a_line_with_a_slash_is_a_command(line: str) -> None:
    assert is_command(line)


@pytest.mark.parametrize("line", ["hello", "/tmp/cat.png what is it?", "/cat.png what?", "/clear\nand more", "a /bye"])
def test_a_path_or_a_text_is_not_a_command(line: str) -> None:
    assert not is_command(line)
