"""``llmlb node run``: a conversation in the terminal, and the one-shot form for prompts and pipes."""

from __future__ import annotations

import contextlib
import sys
import threading

from llmlb.bus.errors import InvalidRequest, LlmlbError, ModelUnknown, RequestError
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import OK
from llmlb.cli.render import printable
from llmlb.cli.repl_ask import Talk
from llmlb.cli.repl_images import begins_with_image, read_prompt
from llmlb.cli.repl_output import Screen
from llmlb.cli.repl_session import Session, SessionSettings
from llmlb.cli.repl_terminal import as_it_was, ended_by_signals, no_echo

HELP = """Available commands:
  /clear   forget the conversation
  /bye     leave (Ctrl+D too)
  /?       this help

Use \"\"\" to begin and end a text of several lines, or Alt+Enter for a new line.
A path of an image in a message (PNG, JPEG, WebP, GIF) attaches the image.
Ctrl+C stops an answer, Ctrl+G opens an editor, arrow keys bring back old lines."""
AGAIN = "The conversation is kept. To ask again: arrow up, Enter."


def run(
    settings: Settings, model: str, words: list[str], *, think: bool = False, hide: bool = False, verbose: bool = False
) -> int:
    """The command; its exit code. Raises LlmlbError. ``hide`` wins over ``think`` in what is shown."""
    gateway = GatewayClient(settings, "node")
    found = _known(gateway, model)
    session = Session(model, SessionSettings(show_thinking=think and not hide, think=True if think else None))
    talk = Talk(gateway, settings, session, Screen(sys.stdout), verbose=verbose)
    talk.canonical = found
    try:
        text = " ".join(words)
        piped = _piped(settings.max_body_bytes)
        if text or piped:
            return run_once(talk, text, piped or "", settings)
        if piped is not None:
            raise InvalidRequest("there is no prompt: standard input is empty")
        if not talk.screen.is_terminal:
            raise InvalidRequest("a conversation needs a terminal: give a prompt, or a text on standard input")
        return run_repl(talk, settings)
    finally:
        talk.close()


def _known(gateway: GatewayClient, model: str) -> str:
    """The model's own name. Raises ModelUnknown with the nearest names and how to get it."""
    try:
        return str(gateway.get(gateway.model_path(model), has="model")["model"]["name"])
    except ModelUnknown as error:
        wanted = model if "/" in model else "owner/model"
        end = "" if error.message.endswith(("?", ".")) else "."
        raise ModelUnknown(f"{error.message}{end} To pull a model: llmlb node pull {wanted}") from error


def _piped(max_bytes: int) -> str | None:
    """What comes on standard input; None where that is a terminal. Raises InvalidRequest for too much."""
    if sys.stdin is not None and sys.stdin.isatty():
        return None
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InvalidRequest(f"the text on standard input has more than {max_bytes} bytes (LLMLB_MAX_BODY)")
    return data.decode("utf-8", "replace").strip()


def run_once(talk: Talk, text: str, piped: str, settings: Settings) -> int:
    """Answer one prompt; the exit code. Images are those that ``text`` names, not ``piped``. Raises LlmlbError."""
    prompt = read_prompt(text, settings.max_body_bytes)
    for note in prompt.notes:
        print(note, file=sys.stderr)
    if piped:
        prompt.parts += ["\n\n", piped] if prompt.parts else [piped]
    talk.ask(prompt)
    return OK


def run_repl(talk: Talk, settings: Settings) -> int:
    """Read, answer, until /bye or Ctrl+D; the exit code."""
    from prompt_toolkit.history import InMemoryHistory

    from llmlb.cli.repl_input import Reader, open_history

    history = InMemoryHistory() if settings.no_history else open_history(settings.home / "history")
    reader = Reader(history, styled=talk.screen.styled, interrupts=talk.interrupts)
    _load_ahead(settings, talk.session.model_name)
    with ended_by_signals(), as_it_was(), talk.interrupts:
        while True:
            try:
                talk.interrupts.clear()
                text = reader.read()
                if not _turn(talk, text, settings):
                    return OK
            except KeyboardInterrupt:
                if reader.was_empty:
                    print("Use Ctrl + d or /bye to exit.")
            except EOFError:
                return OK


def _turn(talk: Talk, text: str, settings: Settings) -> bool:
    """One message or command; False to leave."""
    command = text.strip()
    if is_command(command) and not begins_with_image(command):
        return _command(talk.session, command)
    if command:
        with no_echo():
            _ask(talk, text, settings)
    return True


def _ask(talk: Talk, text: str, settings: Settings) -> None:
    """One question; whatever fails is one line, and the session goes on."""
    try:
        prompt = read_prompt(text, settings.max_body_bytes)
        for note in prompt.notes:
            talk.screen.note(note)
        talk.ask(prompt)
        if talk.session.context_length is None:
            talk.learn_context()
    except KeyboardInterrupt:
        pass
    except LlmlbError as error:
        print(f"Error: {printable(error.message)}", file=sys.stderr)
        if not isinstance(error, RequestError):  # that would only fail again
            print(AGAIN, file=sys.stderr)
    print()


def is_command(text: str) -> bool:
    """True for ``/clear``, ``/set x``; False for a text of several lines and for one that begins with a path."""
    if not text.startswith("/") or "\n" in text:
        return False
    word = text.split()[0]
    return "/" not in word[1:] and "." not in word


def _command(session: Session, command: str) -> bool:
    """A line that begins with a slash; False to leave."""
    word = command.split()[0]
    if word in ("/bye", "/exit"):
        return False
    if word == "/clear":
        session.clear()
        print("Cleared the conversation.")
    elif word in ("/?", "/help"):
        print(HELP)
    else:
        print(f"Unknown command '{printable(command)}'. Type /? for help.")
    return True


def _load_ahead(settings: Settings, model: str) -> None:
    """Have the model loaded while the first question is being typed: counting tokens needs it, and takes no slot."""

    def load() -> None:
        gateway = GatewayClient(settings, "node")
        body = {"model": model, "messages": [{"role": "user", "content": "."}]}
        with contextlib.suppress(LlmlbError):  # the first question will say what is wrong
            gateway.post("/v1/messages/count_tokens", body, has="input_tokens")
        gateway.close()

    threading.Thread(target=load, name="load-ahead", daemon=True).start()
