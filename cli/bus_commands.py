"""``llmlb bus …``: what crosses the bus."""

from __future__ import annotations

from typing import Annotated

import typer

from llmlb.bus.settings import Settings
from llmlb.cli.help_text import BUS_CODES, epilog
from llmlb.cli.lazy import LazyGroup

app = typer.Typer(
    cls=LazyGroup,
    help="Look into the bus.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=epilog("llmlb bus watch", codes=BUS_CODES),
)


@app.callback()
def bus() -> None:
    """Look into the bus."""


@app.command(epilog=epilog("llmlb bus watch", "llmlb bus watch --model smollm2 --json", codes=BUS_CODES))
def watch(
    node: Annotated[
        str | None, typer.Option("--node", metavar="ID", help="Only this node: the beginning of its id.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only models with this in their name.")
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="Only this request: the beginning of its id.")
    ] = None,
    heartbeats: Annotated[bool, typer.Option("--heartbeats", help="Show the heartbeats of the nodes, too.")] = False,
    pieces: Annotated[bool, typer.Option("--pieces", help="Show each piece of an answer, too.")] = False,
    bodies: Annotated[
        bool, typer.Option("--bodies", help="Show whole messages: prompts and answers, too. Secrets stay masked.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Show live what crosses the bus of LLMLB_BUS_URL, until Ctrl+C."""
    settings = Settings.load()
    from llmlb.cli import bus_watch
    from llmlb.cli.bus_view import Wanted

    wanted = Wanted(node=node, model=model, request=request, heartbeats=heartbeats, pieces=pieces)
    raise typer.Exit(bus_watch.run(settings, wanted, as_json=json, bodies=bodies))
