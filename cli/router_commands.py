"""``llmlb router …``: the cluster. ``llm-router`` is the same group under its older name."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import HELP
from llmlb.cli.node_commands import JsonFlag, show_json

app = typer.Typer(help="Look after the cluster.", no_args_is_help=True, epilog=HELP)


def client() -> GatewayClient:
    return GatewayClient(Settings.load(), "router")


@app.command(epilog=f"Example: llmlb router serve --port 32768. {HELP}")
def serve(
    port: Annotated[int | None, typer.Option(help="Port of the router's gateway.", show_default="32768")] = None,
    host: Annotated[str | None, typer.Option(help="Bind address.", show_default="0.0.0.0")] = None,
    no_embedded_bus: Annotated[
        bool, typer.Option("--no-embedded-bus", help="Never start a bus, wait for one to appear.")
    ] = False,
) -> None:
    """Start router and gateway in the foreground."""
    settings = Settings.load(router_port=port, router_bind=host, embedded_bus=False if no_embedded_bus else None)
    from llmlb.cli.serve import run_router

    raise typer.Exit(run_router(settings))


@app.command(epilog=f"Example: llmlb router nodes. {HELP}")
def nodes(json: JsonFlag = False) -> None:
    """List the nodes of the cluster."""
    from llmlb.cli import render

    found = client().rows("/v0/nodes", "nodes", has="node_id")
    if json:
        show_json(found)
    else:
        print(render.nodes(found))


@app.command(epilog=f"Example: llmlb router models. {HELP}")
def models(json: JsonFlag = False) -> None:
    """List the models of the cluster and on how many nodes each can run."""
    from llmlb.cli import render

    found = client().rows("/v0/models", "models", has="nodes")
    if json:
        show_json(found)
    else:
        print(render.cluster_models(found))


@app.command(epilog=f"Example: llmlb router status. {HELP}")
def status(json: JsonFlag = False) -> None:
    """Sum up the cluster."""
    from llmlb.cli import render

    found = client().get("/v0/status", has="health")
    if json:
        show_json(found)
    else:
        print(render.status(found))


@app.command(epilog=f"Example: llmlb router approve 3f2a. {HELP}")
def approve(node: Annotated[str, typer.Argument(help="Id of the node, or its beginning.")]) -> None:
    """Approve a node of another machine, so that it gets work."""
    answer = client().post(f"/v0/nodes/{quote(node, safe='')}/approve", {}, has="node_id")
    print(f"approved {answer['node_id'][:12]}")
