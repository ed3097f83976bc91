"""``llmlb node run`` in a real terminal, with real models; random ones where only the path to them counts."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support import tiny_models
from tests.support.cluster import Cluster, Process, cluster, wait_until
from tests.support.tmux import IDLE, LEFT, Pane, pane

LONG = "Write a very long story about every animal there is, one after the other."
EYES, THINKER = "test/eyes", "test/thinker"
THINKS = tiny_models.TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")

Served = tuple[Cluster, Process]
Run = Callable[..., AbstractContextManager[Pane]]


def tiny(folder: Path, template: str = tiny_models.TEMPLATE, *, vision: bool = False) -> None:
    folder.mkdir(parents=True)
    tiny_models.write_text_model(folder / "model-F32.gguf", template=template)
    if vision:
        tiny_models.write_projector(folder / "mmproj-F32.gguf")


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``llmlb serve`` with SmolLM2, a model that sees and one that thinks, and a small context."""
    settings = {"LLMLB_CONTEXT_LENGTH": "384"}
    with cluster(tmp_path_factory.mktemp("repl"), **settings) as it:
        tiny(it.root / "one" / "models" / EYES, vision=True)
        tiny(it.root / "one" / "models" / THINKER, THINKS)
        process = it.start("serve", home="one").wait_ready()
        for model in ("smollm2", EYES, THINKER):
            body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            assert httpx.post(f"{process.node_url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        yield it, process


@pytest.fixture
def run(talking: Served, tmp_path: Path) -> Run:
    """``llmlb node run`` with these arguments, in a terminal, with a home of its own."""
    it, process = talking

    def start(*arguments: str, columns: int = 80, rows: int = 40, **env: str) -> AbstractContextManager[Pane]:
        home = {"LLMLB_HOST": f"127.0.0.1:{process.node_port}", "NO_COLOR": "", **env}
        command = [sys.executable, "-m", "llmlb", "node", "run", *arguments]
        return pane(command, it.environ(tmp_path / "home", **home), columns=columns, rows=rows)

    return start


def running(process: Process) -> int:
    return sum(model["running"] for model in httpx.get(f"{process.node_url}/v0/ps").json()["models"])


def test_a_conversation(run: Run) -> None:
    with run("smollm2") as it:
        it.wait(IDLE)
        it.line("What is the capital of Japan?")
        it.wait(r"Japan\?\n[^\n]*Tokyo.*\n\n" + IDLE)
        it.line("/nonsense now")
        it.wait(r"Unknown command '/nonsense now'\. Type /\? for help\.\n" + IDLE)
        it.line("/?")
        it.wait(r"Available commands:\n  /clear .*  /bye .*" + IDLE)
        it.line("/clear")
        it.wait(r"/clear\nCleared the conversation\.\n" + IDLE)
        it.line("")
        it.wait(r">>>\n" + IDLE)
        it.line("/bye")
        it.wait(LEFT)


def test_texts_of_several_lines_are_one_message(run: Run, talking: Served) -> None:
    with run("smollm2") as it:
        it.wait(IDLE)
        it.line('"""What is')
        it.wait(r'>>> """What is\n\.\.\.$')
        it.line("the capital of")
        it.line('Japan?"""')
        it.wait(r"\.\.\. the capital of\n\.\.\. Japan\?\"\"\"\n.*Tokyo.*\n\n" + IDLE)
        it.paste("Say\n\nthe capital of Japan")
        it.wait(r">>> Say\n\.\.\.\n\.\.\. the capital of Japan$")
        it.line(" again.")
        it.wait(r"again\.\n\S.*\n\n" + IDLE)
        it.keys("C-d")
        it.wait(LEFT)


def test_ctrl_c_stops_the_answer_and_keeps_the_session(run: Run, talking: Served) -> None:
    with run("smollm2") as it:
        it.wait(IDLE)
        it.keys("C-c")
        it.wait(r">>>\nUse Ctrl \+ d or /bye to exit\.\n" + IDLE)
        it.type("half a line")
        it.keys("C-c")
        it.wait(r">>> half a line\n" + IDLE)
        it.line(LONG)
        it.wait(r"other\.\n(\S+\s+){3}")
        it.type("typed meanwhile")
        it.keys("C-c")
        shown = it.wait(r"other\.\n(.*)\n\n" + IDLE)[1]
        assert "typed" not in shown
        assert "^C" not in shown
        wait_until(lambda: running(talking[1]) == 0, 10, "the slot is free again")
        it.line("What is the capital of Japan?")
        it.wait(r"Japan\?\n\S.*\n\n" + IDLE)
        it.keys("C-d")
        it.wait(LEFT)


def test_history_is_kept_in_the_home_unless_it_is_not_wanted(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "home" / "history"
    with run("smollm2", LLMLB_NOHISTORY="1") as it:
        it.wait(IDLE)
        it.line("/secret")
        it.wait("Unknown command.*" + IDLE)
        it.line("/bye")
        it.wait(LEFT)
    assert not path.exists()
    with run("smollm2") as it:
        it.wait(IDLE)
        it.line("/remembered")
        it.wait("Unknown command.*" + IDLE)
        it.line("/bye")
        it.wait(LEFT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with run("smollm2") as it:
        it.wait(IDLE)
        it.keys("Up", "Up")
        it.wait(r">>> /remembered$")


def test_thinking_is_shown_dimmed_or_leaves_nothing(run: Run) -> None:
    with run(THINKER, "--think") as it:
        it.wait(IDLE)
        it.line("hi")
        it.wait(r">>> hi\nThinking\.\.\.\n.+\n\.\.\.done thinking\.\n\n.*" + IDLE, 60)
        assert "\x1b[2mThinking..." in it.screen(styles=True)
    with run(THINKER) as it:
        it.wait(IDLE)
        it.line("hi")
        # The spinner itself is looked at in test_repl_look.py: this model may be faster than it appears.
        it.wait(r">>> hi\n(The answer stopped here: the model's context is full\.\n)?\n" + IDLE, 60)


def picture(path: Path, kind: str = "png") -> Path:
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(path, kind)
    return path


def test_images_are_attached_and_what_cannot_be_sent_is_one_line(run: Run, tmp_path: Path) -> None:
    first, second = picture(tmp_path / "my cat.png"), picture(tmp_path / "dog.jpg", "jpeg")
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(200_000))
    with run(EYES, columns=200, LLMLB_MAX_BODY="200KB") as it:
        it.wait(IDLE)
        it.line(f"{broken} what?")
        it.wait(rf"Error: '{broken}' is not an image: PNG, JPEG, WebP and GIF are\n\n" + IDLE)
        it.line(f"{large} what?")
        it.wait(rf"Error: the image '{large}' is too large: 200 KB, and 101 KB is the most\n\n" + IDLE)
        it.line(f"Compare '{first}' and {second} please")
        it.wait(rf"Added image '{first}'\nAdded image '{second}'\n\S")
        it.keys("C-c")
        it.wait(r"please\n.*\n\n" + IDLE)
        it.line("/bye")
        it.wait(LEFT)


def test_a_model_without_eyes_says_so_and_the_session_goes_on(run: Run, tmp_path: Path) -> None:
    with run("smollm2", columns=200) as it:
        it.wait(IDLE)
        it.line(f"{picture(tmp_path / 'cat.png')} what is it?")
        it.wait(r"Error: \S+ takes text only: it has no vision capability\n\n" + IDLE)
        it.line("What is the capital of Japan?")
        it.wait(r"Japan\?\n\S.*\n\n" + IDLE)


def test_a_full_context_drops_the_oldest_turns_with_one_notice(run: Run) -> None:
    with run(EYES, columns=200, rows=50) as it:
        it.wait(IDLE)
        for number in range(3):
            it.line(f"question {number}")
            it.wait(rf"question {number}\n.*The answer stopped here: the model's context is full\.\n\n" + IDLE, 60)
        screen = it.screen()
        assert screen.count("its oldest turns are no longer sent") == 1
        assert "Error" not in screen


def test_one_prompt_in_a_terminal_is_answered_once(run: Run) -> None:
    with run("smollm2", "What is the capital of Japan?", "--verbose") as it:
        screen = it.wait(r"(.*)EXIT 0 echo icanon$")[1]
    assert "Tokyo" in screen
    assert ">>>" not in screen
    for name in ("total duration", "first token", "prompt eval count", "eval count", "eval rate"):
        assert f"\n{name}:" in screen


def test_a_prompt_without_a_terminal_is_answered_once_without_escape_sequences(talking: Served) -> None:
    it, process = talking
    done = it.cli("node", "run", "smollm2", "Say hello.", host=f"127.0.0.1:{process.node_port}")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "\x1b" not in done.stdout + done.stderr


def test_a_terminal_that_goes_away_ends_the_session(run: Run, talking: Served) -> None:
    with run("smollm2") as it:
        it.wait(IDLE)
        it.line(LONG)
        wait_until(lambda: running(talking[1]) == 1, 15, "it is being answered")
    wait_until(lambda: running(talking[1]) == 0, 10, "the slot is free again")


def test_a_server_that_goes_away_in_an_answer_leaves_the_session(tmp_path: Path) -> None:
    with cluster(tmp_path) as it:
        process = it.start("serve", home="one").wait_ready()
        host = f"127.0.0.1:{process.node_port}"
        env = it.environ(tmp_path / "home", LLMLB_HOST=host, NO_COLOR="")
        with pane([sys.executable, "-m", "llmlb", "node", "run", "smollm2"], env, columns=150) as terminal:
            terminal.wait(IDLE)
            terminal.line("My name is Ada. What is the capital of Japan?")
            terminal.wait(r"Japan\?\n\S.*\n\n" + IDLE, 60)
            terminal.line(LONG)
            terminal.wait(r"other\.\n(\S+\s+){3}", 60)
            process.kill()
            terminal.wait(r"Error: [^\n]*\nThe conversation is kept\. To ask again: arrow up, Enter\.\n\n" + IDLE)
            terminal.keys("Up", "Enter")
            terminal.wait(rf"Error: cannot reach llmlb at {host}: connection refused\..*kept.*" + IDLE)
            again = it.start("serve", "--node-port", str(process.node_port), home="one")
            wait_until(lambda: again.ready(f"http://{host}"), 30, "it is back")
            terminal.line("What is my name?")
            terminal.wait(r"my name\?\n\S.*\n\n" + IDLE, 60)
            terminal.line("/bye")
            terminal.wait(LEFT)
        again.stop()
    assert LONG in (tmp_path / "home" / "history").read_text()
