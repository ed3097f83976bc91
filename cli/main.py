"""The ``llmlb`` command. Only what a command needs is imported when it runs: ``--help`` takes no HTTP and no bus."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from typing import Annotated

import typer

import llmlb
from llmlb.bus.errors import ConfigError, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli import node_commands, plain_params, router_commands
from llmlb.cli.exit_codes import GENERAL, HELP, INTERRUPTED, OK, exit_code

app = typer.Typer(
    name="llmlb",
    help="One LLM service out of any set of machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=HELP,
)
config = typer.Typer(help="Settings.", no_args_is_help=True, epilog=HELP)
app.add_typer(node_commands.app, name="node")
app.add_typer(router_commands.app, name="router")
app.add_typer(config, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llmlb {llmlb.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One LLM service out of any set of machines."""


@app.command(epilog=f"Example: llmlb serve. {HELP}")
def serve(
    port: Annotated[int | None, typer.Option(help="Port of the router's gateway.", show_default="32768")] = None,
    node_port: Annotated[int | None, typer.Option(help="Port of the node's gateway.", show_default="32769")] = None,
    host: Annotated[str | None, typer.Option(help="Bind address of both.", show_default="0.0.0.0")] = None,
    no_embedded_bus: Annotated[
        bool, typer.Option("--no-embedded-bus", help="Never start a bus, wait for one to appear.")
    ] = False,
) -> None:
    """Start a bus, a router and a node for one machine, in the foreground."""
    settings = Settings.load(
        router_port=port,
        node_port=node_port,
        router_bind=host,
        node_bind=host,
        embedded_bus=False if no_embedded_bus else None,
    )
    from llmlb.cli.serve import run_all

    raise typer.Exit(run_all(settings))


@config.command("show", epilog=f"Example: llmlb config show. {HELP}")
def config_show() -> None:
    """Print every setting with its environment variable; secrets are masked."""
    from llmlb.cli.render import table

    rows = [[env, value or "-", help] for _, env, value, help in Settings.load().describe()]
    print(table(["VARIABLE", "VALUE", "MEANING"], rows))


def _debug() -> bool:
    try:
        return Settings.load().debug
    except ConfigError:
        return False


def _run(command: typer.Typer, name: str) -> int:
    try:
        code = command(prog_name=name, standalone_mode=False)
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        # typer's own code for a wrong call is 2, which means "no connection" here.
        error.show()  # type: ignore[attr-defined]  # every one that reaches here is a click exception, which has it
        return GENERAL
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except LlmlbError as error:
        if _debug():
            traceback.print_exc()
        print(f"Error: {error.message}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  the top of the process: one line, not a traceback
        if _debug():
            traceback.print_exc()
        print(f"Error: {type(error).__name__}: {error} (LLMLB_DEBUG=true shows where)", file=sys.stderr)
        return GENERAL
    return code if isinstance(code, int) else OK


def _main(command: typer.Typer, name: str) -> None:
    plain_params.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model's answer may hold what the terminal's encoding has not.
            stream.reconfigure(errors="replace")
    try:
        code = _run(command, name)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (head, less): nothing to say. The interpreter must not flush again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    sys.exit(code)


def main() -> None:
    """Console script ``llmlb``."""
    _main(app, "llmlb")


def router_main() -> None:
    """Console script ``llm-router``: the ``llmlb router`` group."""
    _main(router_commands.app, "llm-router")
