"""``llmlb router model …``: what the cluster may run, where it comes from, and getting it onto the nodes."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from llmlb.bus.errors import Conflict, InvalidRequest, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.exit_codes import CONNECTION, OK, exit_code
from llmlb.cli.help_text import epilog
from llmlb.cli.options import Interval, JsonFlag, WatchFlag, show_json

if TYPE_CHECKING:
    from llmlb.cli.client import GatewayClient

app = typer.Typer(
    help="Models of the cluster: find, register, fetch, delete.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=epilog("llmlb router model list qwen3 --quant Q4_K_M", "llmlb router model add Qwen/Qwen3-8B-GGUF:Q4_K_M"),
)


def client() -> GatewayClient:
    from llmlb.cli.client import GatewayClient

    return GatewayClient(Settings.load(), "router")


def _path(gateway: GatewayClient, model: str, what: str = "") -> str:
    """Raises InvalidRequest: an empty name would be another route's address."""
    if not model.strip():
        raise InvalidRequest("the name of a model is missing; registered ones: llmlb router model supported")
    return gateway.model_path(model) + what


def _warn(text: str) -> None:
    from llmlb.cli.render import printable

    print(f"Warning: {printable(' '.join(text.split()))}", file=sys.stderr)


@app.command("list", epilog=epilog("llmlb router model list qwen3 coder --quant Q4_K_M"))
def list_catalog(
    query: Annotated[list[str] | None, typer.Argument(metavar="[QUERY]", help="Words to look for.")] = None,
    quant: Annotated[str | None, typer.Option(metavar="QUANT", help="Only this quantization, as Q4_K_M.")] = None,
    page: Annotated[int, typer.Option(min=1, max=100, help="Which page.")] = 1,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Repositories a page.")] = 50,
    json: JsonFlag = False,
) -> None:
    """List the hub's GGUF models, the most downloaded first. Each row can be added."""
    from llmlb.cli import model_render

    asked = {"q": " ".join(query or ()), "page": page, "limit": limit, "quant": quant}
    wanted = urlencode({key: value for key, value in asked.items() if value})
    found = client().get(f"/v0/models/catalog?{wanted}", has="models")
    if json:
        show_json(found)
    else:
        print(model_render.catalog(found))
    if (trouble := model_render.catalog_trouble(found)) is not None:
        _warn(trouble)
    if found.get("has_more") and not json:
        words = "".join(f" {shlex.quote(word)}" for word in query or ())
        more = f"{words}{f' --quant {shlex.quote(quant)}' if quant else ''}{f' --limit {limit}' if limit != 50 else ''}"
        print(f"more with: llmlb router model list{more} --page {page + 1}", file=sys.stderr)


@app.command(epilog=epilog("llmlb router model supported", "llmlb router model supported --watch"))
def supported(json: JsonFlag = False, watch: WatchFlag = False, interval: Interval = None) -> None:
    """List supported and registered models. NODES: on how many it is ready."""
    from llmlb.cli import listing, model_render

    gateway = client()
    listing.show(
        lambda: gateway.rows("/v0/models/hub", "models", has="lifecycle_status"),
        model_render.supported,
        json=json,
        watch=watch,
        every=interval,
    )


@app.command(
    epilog=epilog("llmlb router model add owner/model:Q4_K_M", "llmlb router model add owner/model --file a.gguf")
)
def add(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/model, owner/model:QUANT, or an address on Hugging Face.")
    ],
    file: Annotated[str | None, typer.Option(metavar="GGUF", help="This file of the repository.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What people call it.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="ALIAS", help="A further name for requests; repeatable.")
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE", help="Id of a node it is meant for, or its beginning; repeatable.", show_default="all"
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Register a model: the nodes fetch it by themselves."""
    from llmlb.cli import model_render

    body: dict[str, Any] = {"repo": repo}
    given = {"filename": file, "display_name": name, "aliases": alias, "nodes": node}
    body |= {key: value for key, value in given.items() if value is not None and value != []}
    try:
        made = client().post("/v0/models/register", body, has="model")
    except Conflict as error:
        raise Conflict(f"{error.message}. See what is there with: llmlb router model supported") from error
    if json:
        show_json(made)
    else:
        print(model_render.registered(made["model"]))
    for warning in made.get("warnings", ()):
        _warn(str(warning))


@app.command(epilog=epilog("llmlb router model rm owner/model:Q4_K_M"))
def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Names or aliases of registered models.")],
    json: JsonFlag = False,
) -> None:
    """Delete models from the cluster, without asking. Nodes remove the files; requests that run finish."""
    from llmlb.cli import model_render

    gateway, worst = client(), OK
    done: list[dict[str, Any]] = []
    for model in models:
        try:
            gone = gateway.delete(_path(gateway, model), has="nodes")
        except LlmlbError as error:
            if exit_code(error) == CONNECTION:
                if json and done:
                    show_json(done)
                raise
            worst = exit_code(error)
            done.append({"model": model, "deleted": False, "nodes": [], "error": error.message})
            print(model_render.error_line(error.message), file=sys.stderr)
        else:
            done.append({"model": gone["model"], "deleted": True, "nodes": gone["nodes"], "error": None})
            if not json:
                print(model_render.deleted(gone))
    if json:
        show_json(done)
    raise typer.Exit(worst)


@app.command(
    epilog=epilog(
        "llmlb router model download owner/model:Q4_K_M --all", "llmlb router model download chat --node 3f2a"
    )
)
def download(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a registered model.")],
    all_nodes: Annotated[bool, typer.Option("--all", help="On every node it is meant for.")] = False,
    node: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="On this node: its id or its beginning; repeatable.")
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Give the downloads there up.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="With --cancel: drop what was fetched, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the last state as JSON on standard output.")] = False,
) -> None:
    """Let nodes fetch a model now, and watch them. Ctrl+C stops watching; the nodes go on."""
    from llmlb.cli import download as downloads
    from llmlb.cli import download_view

    if all_nodes == bool(node):
        raise InvalidRequest("say where: --all, or --node with the beginning of a node's id")
    if purge and not cancel:
        raise InvalidRequest("--purge goes with --cancel")
    gateway = client()
    wanted = downloads.Wanted(model, _path(gateway, model, "/download"), tuple(node or ()))
    if cancel:
        ended = downloads.cancel(gateway, wanted, purge=purge)
        if json:
            show_json(ended)
        else:
            print("\n".join(download_view.cancelled_lines(ended["tasks"])))
        return
    code, found, error = downloads.watch(downloads.Watch(gateway, wanted, download_view.output_for(sys.stderr)))
    if json and found is not None:
        show_json(found)
    if error is not None:
        raise error
    raise typer.Exit(code)
