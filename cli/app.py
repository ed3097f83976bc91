"""The tree of commands under ``llmlb``. A group's module is imported when one of its commands is called."""

from __future__ import annotations

from typing import Annotated

import typer

import llmlb
from llmlb.cli.help_text import CHECK_CODES, CONTEXT, LOCAL_CODES, SERVING_CODES, epilog
from llmlb.cli.lazy import LazyGroup
from llmlb.cli.options import HostBoth, JsonFlag, LogFormat, NodePort, NoEmbeddedBus, RouterPort

SUMMARY = "One LLM service out of any set of machines."


class Root(LazyGroup):
    """``llmlb``."""

    groups = {
        "node": ("llmlb.cli.node_commands", "Run and look after the models of one node."),
        "router": ("llmlb.cli.router_commands", "Look after the cluster."),
        "bus": ("llmlb.cli.bus_commands", "Look into the bus."),
        "config": ("llmlb.cli.config_commands", "Settings."),
    }
    order = ("serve", "node", "router", "bus", "doctor", "config", "completion")


app = typer.Typer(
    name="llmlb",
    cls=Root,
    help=SUMMARY,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    epilog=epilog("llmlb serve", "llmlb node run smollm2", "llmlb router status"),
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llmlb {llmlb.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-v", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One LLM service out of any set of machines."""


@app.command(epilog=epilog("llmlb serve", "llmlb serve --host 127.0.0.1 --log-format json", codes=SERVING_CODES))
def serve(
    port: RouterPort = None,
    node_port: NodePort = None,
    host: HostBoth = None,
    no_embedded_bus: NoEmbeddedBus = False,
    log_format: LogFormat = None,
) -> None:
    """Start a bus, a router and a node for one machine, in the foreground."""
    from llmlb.bus.settings import Settings

    settings = Settings.load(
        router_port=port,
        node_port=node_port,
        router_bind=host,
        node_bind=host,
        embedded_bus=False if no_embedded_bus else None,
        log_format=log_format,
    )
    from llmlb.cli.serve import run_all

    raise typer.Exit(run_all(settings))


@app.command(epilog=epilog("llmlb doctor", "llmlb doctor --json", codes=CHECK_CODES))
def doctor(json: JsonFlag = False) -> None:
    """Check this machine and what it talks to; say what is wrong and what to do about it."""
    from llmlb.bus.settings import Settings
    from llmlb.cli.doctor import run

    raise typer.Exit(run(Settings.load(), as_json=json))


@app.command(epilog=epilog("source <(llmlb completion bash)", "llmlb completion zsh >> ~/.zshrc", codes=LOCAL_CODES))
def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script that completes commands, options, and the names of models and nodes."""
    from llmlb.cli.completion import script

    print(script(shell))
