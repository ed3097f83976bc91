"""What is typed: the keys of the prompt, texts of several lines, and the file that keeps them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llmlb.cli.repl_input import HISTORY_KEPT_BYTES, HISTORY_MOST_BYTES, Reader, open_history, unfinished, unquoted

Typed = Callable[[str], Reader]
CTRL_A, CTRL_C, CTRL_D, CTRL_K, CTRL_U, CTRL_W, UP = "\x01", "\x03", "\x04", "\x0b", "\x15", "\x17", "\x1b[A"


@pytest.fixture
def typed() -> Iterator[Typed]:
    """A reader whose user types this."""
    with create_pipe_input() as pipe:

        def make(keys: str) -> Reader:
            pipe.send_text(keys)
            return Reader(InMemoryHistory(["first", "second"]), styled=True, source=pipe, sink=DummyOutput())

        yield make


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ('"""\rone\r\rtwo\r"""\r', "one\n\ntwo"),
        ('"""one""" two\r', "one two"),
        ('say """x"""\r', 'say """x"""'),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("\x1b[200~pasted\nlines\n\tand a tab\x1b[201~ typed\r", "pasted\nlines\n\tand a tab typed"),
        ('"""\x1b[200~pasted\r\nlines\x1b[201~"""\r', "pasted\nlines"),
        (f"{UP}\r", "second"),
        (f"{UP}{UP}\r", "first"),
        (f"world{CTRL_A}hello \r", "hello world"),
        (f"one two{CTRL_W}three\r", "one three"),
        (f"gone{CTRL_U}kept\r", "kept"),
        (f"kept gone{CTRL_A}\x1bf{CTRL_K}\r", "kept"),
        (f"ab{CTRL_A}{CTRL_D}\r", "b"),
        ("日本語\r", "日本語"),
    ],
)
def test_keys_make_a_message(typed: Typed, keys: str, message: str) -> None:
    assert typed(keys).read() == message


def test_ctrl_c_knows_whether_something_was_typed_and_ctrl_d_leaves(typed: Typed) -> None:
    reader = typed(f"{CTRL_C}half{CTRL_C}{CTRL_D}")
    with pytest.raises(KeyboardInterrupt):
        reader.read()
    assert reader.was_empty
    with pytest.raises(KeyboardInterrupt):
        reader.read()
    assert not reader.was_empty
    with pytest.raises(EOFError):
        reader.read()


def test_quotes_that_are_not_closed_are_unfinished() -> None:
    assert unfinished('"""')
    assert unfinished('  """one\ntwo')
    assert not unfinished('"""one"""')
    assert not unfinished('one """')
    assert unquoted('"""\none\n"""') == "one"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_history_is_its_users_own_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "home" / "history"
    history = open_history(path)
    history.append_string("one\ntwo")
    assert mode(path) == 0o600
    assert list(open_history(path).load_history_strings()) == ["one\ntwo"]
    path.chmod(0o644)
    open_history(path)
    assert mode(path) == 0o600


def test_a_large_history_loses_its_oldest_part_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "history"
    line = "x" * 1000
    history = open_history(path)
    for number in range(HISTORY_MOST_BYTES // 1000):
        history.append_string(f"{number} {line}")
    newest = f"{number} {line}"
    kept = list(open_history(path).load_history_strings())
    assert kept[0] == newest
    assert all(entry.endswith(f" {line}") for entry in kept)
    assert path.stat().st_size <= HISTORY_KEPT_BYTES
    assert mode(path) == 0o600
    assert [it.name for it in tmp_path.iterdir()] == ["history"]


def test_a_history_that_cannot_be_kept_is_only_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)
    history = open_history(tmp_path / "history")
    os.unlink(tmp_path / "history")
    os.mkdir(tmp_path / "history")
    history.append_string("one")
    history.append_string("half of a \udc80")
    assert history.get_strings() == ["one", "half of a \udc80"]
