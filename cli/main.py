"""The process of a command: console scripts ``llmlb`` and ``llm-router``. The commands are in :mod:`llmlb.cli.app`.

Here is what belongs to the process alone: exit codes, Ctrl+C, readers that go away, and that nobody sees a traceback.
Only the standard library is imported before it is known what is wanted.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import os
import signal
import sys
from typing import Any, NoReturn

OK, GENERAL, INTERRUPTED = 0, 1, 130
_NO_NUMBER = "Input should be a valid integer, unable to parse string as an integer"
"""What pydantic says of ``--port abc``."""


class _ReaderGone(Exception):
    """Nobody reads our output any more (head, less): nothing to say, and no failure."""


def main() -> NoReturn:
    """Console script ``llmlb``."""
    if sys.argv[1:] in (["--version"], ["-v"]):
        _process(_version)
    if sys.argv[1:2] == ["__complete"]:
        _process(_names)
    _process(lambda: _command("llmlb.cli.app", "llmlb"))


def router_main() -> NoReturn:
    """Console script ``llm-router``: the ``llmlb router`` group."""
    _process(lambda: _command("llmlb.cli.router_commands", "llm-router"))


def _version() -> int:
    import llmlb

    print(f"llmlb {llmlb.__version__}")
    return OK


def _names() -> int:
    """For the scripts of ``llmlb completion``."""
    from llmlb.cli import candidates

    print("\n".join(candidates.names(sys.argv[2] if len(sys.argv) > 2 else "")))
    return OK


def _command(module: str, name: str) -> int:
    with _ctrl_c_ends_at_once():
        gc.disable()  # what is loaded stays: to look through it for garbage only takes time
        import typer.main

        from llmlb.cli import plain_params

        plain_params.install()
        command = typer.main.get_group(importlib.import_module(module).app)
        gc.freeze()
        gc.enable()
    try:
        # Not command(): typer's own main turns a broken pipe into exit code 1, and a wrong call into 2.
        with command.make_context(name, sys.argv[1:]) as context:
            code = command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as error:
        return _wrong_call(error)
    return code if isinstance(code, int) else OK


@contextlib.contextmanager
def _ctrl_c_ends_at_once() -> Any:
    """While the program is still being loaded: no traceback from the middle of an import."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _wrong_call(error: Any) -> int:
    """Typer's code for it is 2, which means "no connection" here. A group without a command asks for its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.ctx.get_help())
        return OK
    context = getattr(error, "ctx", None)
    text = " ".join(error.format_message().split()).replace(_NO_NUMBER, "not a whole number")
    if context is not None:
        text += f"{'' if text.endswith(('.', '?')) else '.'} See: {context.command_path} --help"
    print(f"Error: {text}", file=sys.stderr)
    return GENERAL


def _explain(text: str) -> None:
    """One line on standard error; in front of it the traceback of the error at hand, with LLMLB_DEBUG."""
    if _debug():
        import traceback

        traceback.print_exc()
    from llmlb.cli.render import printable

    print(f"Error: {printable(' '.join(text.split()))}", file=sys.stderr)


def _debug() -> bool:
    from llmlb.bus.errors import ConfigError
    from llmlb.bus.settings import Settings

    try:
        return Settings.load().debug
    except ConfigError:
        return False


def _process(run: Any) -> NoReturn:
    """Run it to its exit code; the process ends here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model's answer may hold what the terminal's encoding has not.
            stream.reconfigure(errors="replace")
    try:
        code = _guarded(run)
    except _ReaderGone:
        code = OK
        _silence(sys.stdout, sys.stderr)
    _end(code)


def _end(code: int) -> NoReturn:
    """Without taking every module apart first, where nothing was loaded that has to be taken apart: 20 ms of 150.

    Source: mypy ends so, too (``mypy/util.py``, ``hard_exit``).
    """
    threads, ends = sys.modules.get("threading"), ("asyncio", "logging", "multiprocessing", "prompt_toolkit")
    if not any(name in sys.modules for name in ends) and (threads is None or threads.active_count() == 1):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _guarded(run: Any) -> int:
    try:
        code: int = run()
        if sys.stdout is not None:  # a shell may start us without one: llmlb … >&-
            sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        raise _ReaderGone from error
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the top of the process: one line, not a traceback
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say it; the exit code. Raises _ReaderGone."""
    from llmlb.bus.errors import LlmlbError
    from llmlb.cli.exit_codes import exit_code

    if isinstance(error, LlmlbError):
        _tell(error.message)
        return exit_code(error)
    written = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EBADF)
    text = (
        f"cannot write the output: {os.strerror(getattr(error, 'errno', 0))}"
        if written
        else f"{type(error).__name__}: {error} (LLMLB_DEBUG=true shows where)"
    )
    _tell(text)
    _silence(sys.stdout)  # what is left in its buffer can't be written, or must not follow the error
    return GENERAL


def _tell(text: str) -> None:
    try:
        _explain(text)
    except BrokenPipeError as gone:
        raise _ReaderGone from gone


def _silence(*streams: Any) -> None:
    """The interpreter flushes them at its end, and must not fail then."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
