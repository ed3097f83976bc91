"""``llmlb router …``: the cluster. ``llm-router`` is the same group under its older name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from llmlb.bus.settings import Settings, parse_duration
from llmlb.cli import key_commands, model_commands, user_commands
from llmlb.cli.help_text import CONTEXT, SERVING_CODES, epilog
from llmlb.cli.options import Host, Interval, JsonFlag, LogFormat, NoEmbeddedBus, RouterPort, WatchFlag, show_json

if TYPE_CHECKING:
    from llmlb.cli.client import GatewayClient

app = typer.Typer(
    help="Look after the cluster.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    epilog=epilog("llmlb router status", "llmlb router nodes --watch"),
)
app.add_typer(model_commands.app, name="model")
app.add_typer(user_commands.app, name="user")
app.add_typer(key_commands.app, name="key")


def client() -> GatewayClient:
    from llmlb.cli.client import GatewayClient

    return GatewayClient(Settings.load(), "router")


@app.command(epilog=epilog("llmlb router serve --port 32768", codes=SERVING_CODES))
def serve(
    port: RouterPort = None,
    host: Host = None,
    no_embedded_bus: NoEmbeddedBus = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Gateway processes on the port; each more serves more requests.", show_default="1"),
    ] = None,
    log_format: LogFormat = None,
    worker: Annotated[str, typer.Option("--worker", hidden=True)] = "",
) -> None:
    """Start router and gateway in the foreground."""
    settings = Settings.load(
        router_port=port,
        router_bind=host,
        embedded_bus=False if no_embedded_bus else None,
        router_workers=workers,
        log_format=log_format,
    )
    from llmlb.cli.serve import run_router

    raise typer.Exit(run_router(settings, worker=worker))


@app.command(epilog=epilog("llmlb router nodes", "llmlb router nodes --watch"))
def nodes(json: JsonFlag = False, watch: WatchFlag = False, interval: Interval = None) -> None:
    """List the nodes of the cluster."""
    from llmlb.cli import listing, render

    gateway = client()
    listing.show(
        lambda: gateway.rows("/v0/nodes", "nodes", has="node_id"), render.nodes, json=json, watch=watch, every=interval
    )


@app.command(epilog=epilog("llmlb router models"))
def models(json: JsonFlag = False) -> None:
    """List the models of the cluster and on how many nodes each can run."""
    from llmlb.cli import listing, render

    listing.show(lambda: client().rows("/v0/models", "models", has="nodes"), render.cluster_models, json=json)


@app.command(epilog=epilog("llmlb router status", "llmlb router status --watch"))
def status(json: JsonFlag = False, watch: WatchFlag = False, interval: Interval = None) -> None:
    """Sum up the cluster."""
    from llmlb.cli import listing, render

    gateway = client()
    listing.show(lambda: gateway.get("/v0/status", has="health"), render.status, json=json, watch=watch, every=interval)


Node = Annotated[str, typer.Argument(help="Id of the node, or its beginning.")]


def _path(node: str, what: str = "") -> str:
    return f"/v0/nodes/{quote(node, safe='')}{what}"


def _done(word: str, answer: dict[str, Any], *, json: bool) -> None:
    if json:
        show_json(answer)
    else:
        print(f"{word} {answer['node_id'][:12]}")


@app.command(epilog=epilog("llmlb router approve 3f2a"))
def approve(node: Node, json: JsonFlag = False) -> None:
    """Approve a node of another machine, so that it gets work."""
    _done("approved", client().post(_path(node, "/approve"), {}, has="node_id"), json=json)


@app.command(epilog=epilog("llmlb router reject 3f2a"))
def reject(node: Node, json: JsonFlag = False) -> None:
    """Refuse a node: it gets no work until it is approved, whatever join token it has."""
    _done("rejected", client().post(_path(node, "/reject"), {}, has="node_id"), json=json)


@app.command(epilog=epilog("llmlb router drain 3f2a"))
def drain(node: Node, json: JsonFlag = False) -> None:
    """Take a node out of work for a while: what runs on it ends by itself, nothing new goes there."""
    _done("draining", client().post(_path(node, "/drain"), {}, has="node_id"), json=json)


@app.command(epilog=epilog("llmlb router undrain 3f2a"))
def undrain(node: Node, json: JsonFlag = False) -> None:
    """Put a drained node back to work."""
    _done("back to work:", client().post(_path(node, "/undrain"), {}, has="node_id"), json=json)


@app.command(epilog=epilog("llmlb router remove 3f2a"))
def remove(node: Node, json: JsonFlag = False) -> None:
    """Forget a node. One that still runs comes back as new; reject keeps it out."""
    _done("removed", client().delete(_path(node), has="node_id"), json=json)


@app.command(epilog=epilog("llmlb router label 3f2a gpu zone=b"))
def label(
    node: Node,
    labels: Annotated[
        list[str] | None, typer.Argument(help="All its labels from now on; none takes them away.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Label a node, beside the labels of its own settings."""
    _done("labelled", client().put(_path(node, "/labels"), {"labels": labels or []}, has="node_id"), json=json)


@app.command("join-token", epilog=epilog("llmlb router join-token --uses 8 --expires 1h"))
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
