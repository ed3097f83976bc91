"""``llmlb router …``: the cluster. ``llm-router`` is the same group under its older name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from llmlb.bus.settings import Settings, parse_duration
from llmlb.cli import key_commands, user_commands
from llmlb.cli.exit_codes import HELP
from llmlb.cli.node_commands import JsonFlag, show_json

if TYPE_CHECKING:
    from llmlb.cli.client import GatewayClient

app = typer.Typer(help="Look after the cluster.", no_args_is_help=True, epilog=HELP)
app.add_typer(user_commands.app, name="user")
app.add_typer(key_commands.app, name="key")


def client() -> GatewayClient:
    from llmlb.cli.client import GatewayClient

    return GatewayClient(Settings.load(), "router")


@app.command(epilog=f"Example: llmlb router serve --port 32768. {HELP}")
def serve(
    port: Annotated[int | None, typer.Option(help="Port of the router's gateway.", show_default="32768")] = None,
    host: Annotated[str | None, typer.Option(help="Bind address.", show_default="0.0.0.0")] = None,
    no_embedded_bus: Annotated[
        bool, typer.Option("--no-embedded-bus", help="Never start a bus, wait for one to appear.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Gateway processes on the port; each more serves more requests.", show_default="1"),
    ] = None,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Start router and gateway in the foreground."""
    embedded = False if no_embedded_bus else None
    settings = Settings.load(router_port=port, router_bind=host, embedded_bus=embedded, router_workers=workers)
    from llmlb.cli.serve import run_router

    raise typer.Exit(run_router(settings, worker=worker))


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


Node = Annotated[str, typer.Argument(help="Id of the node, or its beginning.")]


def _path(node: str, what: str = "") -> str:
    return f"/v0/nodes/{quote(node, safe='')}{what}"


def _done(word: str, answer: dict[str, Any]) -> None:
    print(f"{word} {answer['node_id'][:12]}")


@app.command(epilog=f"Example: llmlb router approve 3f2a. {HELP}")
def approve(node: Node) -> None:
    """Approve a node of another machine, so that it gets work."""
    _done("approved", client().post(_path(node, "/approve"), {}, has="node_id"))


@app.command(epilog=f"Example: llmlb router reject 3f2a. {HELP}")
def reject(node: Node) -> None:
    """Refuse a node: it gets no work until it is approved, whatever join token it has."""
    _done("rejected", client().post(_path(node, "/reject"), {}, has="node_id"))


@app.command(epilog=f"Example: llmlb router drain 3f2a. {HELP}")
def drain(node: Node) -> None:
    """Take a node out of work for a while: what runs on it ends by itself, nothing new goes there."""
    _done("draining", client().post(_path(node, "/drain"), {}, has="node_id"))


@app.command(epilog=f"Example: llmlb router undrain 3f2a. {HELP}")
def undrain(node: Node) -> None:
    """Put a drained node back to work."""
    _done("back to work:", client().post(_path(node, "/undrain"), {}, has="node_id"))


@app.command(epilog=f"Example: llmlb router remove 3f2a. {HELP}")
def remove(node: Node) -> None:
    """Forget a node. One that still runs comes back as new; reject keeps it out."""
    _done("removed", client().delete(_path(node), has="node_id"))


@app.command(epilog=f"Example: llmlb router label 3f2a gpu zone=b. {HELP}")
def label(
    node: Node,
    labels: Annotated[
        list[str] | None, typer.Argument(help="All its labels from now on; none takes them away.")
    ] = None,
) -> None:
    """Label a node, beside the labels of its own settings."""
    _done("labelled", client().put(_path(node, "/labels"), {"labels": labels or []}, has="node_id"))


@app.command("join-token", epilog=f"Example: llmlb router join-token --uses 8 --expires 1h. {HELP}")
def join_token(
    name: Annotated[str, typer.Option(help="What it is for, for people.")] = "",
    uses: Annotated[int | None, typer.Option(min=1, max=10_000, help="Nodes it lets in.", show_default="any")] = None,
    expires: Annotated[str, typer.Option(help="How long it is good for, as 24h or 30m; never for ever.")] = "24h",
    json: JsonFlag = False,
) -> None:
    """Make a token with which nodes of other machines come in without being approved; it is shown this once."""
    body: dict[str, Any] = {"name": name, "uses": uses}
    if expires != "never":
        try:
            body["expires_in_s"] = parse_duration(expires)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--expires") from error
        if body["expires_in_s"] <= 0:
            raise typer.BadParameter("must be longer than nothing; never makes one for ever", param_hint="--expires")
    made = client().post("/v0/join-tokens", body, has="token")
    if json:
        show_json(made)
    else:
        print(made["token"])
