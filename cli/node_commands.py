"""``llmlb node …``: the models and the work of one node."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llmlb.bus.errors import InvalidRequest, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.exit_codes import CONNECTION, OK, exit_code
from llmlb.cli.help_text import SERVING_CODES, epilog
from llmlb.cli.options import Host, Interval, JsonFlag, LogFormat, NoEmbeddedBus, WatchFlag, show_json

if TYPE_CHECKING:
    from llmlb.cli.client import GatewayClient

app = typer.Typer(
    help="Run and look after the models of one node.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=epilog("llmlb node list", "llmlb node run smollm2"),
)

ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a model.")]


def client() -> GatewayClient:
    from llmlb.cli.client import GatewayClient

    return GatewayClient(Settings.load(), "node")


@app.command(epilog=epilog("llmlb node serve --port 32769", codes=SERVING_CODES))
def serve(
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65535, help="Port of the node's gateway.", show_default="32769"
        ),
    ] = None,
    host: Host = None,
    no_embedded_bus: NoEmbeddedBus = False,
    log_format: LogFormat = None,
) -> None:
    """Start a node in the foreground: it joins the cluster of LLMLB_BUS_URL and serves its own gateway."""
    embedded = False if no_embedded_bus else None
    settings = Settings.load(node_port=port, node_bind=host, embedded_bus=embedded, log_format=log_format)
    from llmlb.cli.serve import run_node

    raise typer.Exit(run_node(settings))


@app.command("list", epilog=epilog("llmlb node list"))
def list_models(
    beginning: Annotated[
        str | None, typer.Argument(metavar="BEGINNING", help="Only models whose name or alias begins so.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List the models on the node's disk."""
    from llmlb.cli import render

    models = client().rows("/v0/models", "models", has="size_bytes")
    if beginning:
        wanted = beginning.lower()
        models = [m for m in models if any(n.lower().startswith(wanted) for n in (m["name"], *m.get("aliases", ())))]
    if json:
        show_json(models)
    else:
        print(render.models(models, time.time()))


app.command("ls", hidden=True, help="Same as list.", epilog=epilog("llmlb node ls"))(list_models)


@app.command(epilog=epilog("llmlb node ps", "llmlb node ps --watch"))
def ps(json: JsonFlag = False, watch: WatchFlag = False, interval: Interval = None) -> None:
    """List the models in memory."""
    from llmlb.cli import listing, render

    gateway = client()
    listing.show(
        lambda: gateway.rows("/v0/ps", "models", has="instance"), render.running, json=json, watch=watch, every=interval
    )


@app.command(epilog=epilog("llmlb node show smollm2", "llmlb node show smollm2 --template"))
def show(
    model: ModelArg,
    license: Annotated[bool, typer.Option("--license", help="Only the licence.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Only the parameters of the model file.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Only file, template and system prompt.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only the chat template in use.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Only the system prompt.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show what is known of a model."""
    from llmlb.cli import render

    if license + parameters + modelfile + template + system + json > 1:
        raise InvalidRequest("give one of --license, --parameters, --modelfile, --template, --system, --json")
    gateway = client()
    found = gateway.get(gateway.model_path(model), has="model")
    if json:
        show_json(found)
    elif license:
        print(found["license"] or "")
    elif parameters:
        print(render.parameter_lines(found["parameters"]))
    elif modelfile:
        print(render.modelfile(found))
    elif template:
        print(found["template"])
    elif system:
        print(found["system"] or "")
    else:
        print(render.details(found))


@app.command(epilog=epilog("llmlb node pull owner/model:Q4_K_M"))
def pull(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="owner/model, owner/model:QUANT, or an address on Hugging Face.")
    ],
    cancel: Annotated[bool, typer.Option("--cancel", help="Give the running pull of this model up.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="With --cancel: drop what it has fetched, too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the last state as JSON on standard output.")] = False,
) -> None:
    """Bring a model onto the node's disk. Ctrl+C stops watching; the node goes on."""
    from llmlb.cli import pull as pulls
    from llmlb.cli.pull_output import Terminal, output_for

    if not model.strip():
        raise InvalidRequest("there is no name of a model: owner/model, or an address on Hugging Face")
    if purge and not cancel:
        raise InvalidRequest("--purge goes with --cancel")
    if cancel:
        answer = pulls.cancel(client(), model, purge=purge)
        if json:
            show_json(answer)
        else:
            print(pulls.cancelled_lines(answer, model))
        return
    output = output_for(sys.stderr)
    code, task = pulls.watch(
        pulls.Watch(client(), model, output), output, hint=isinstance(output, Terminal) and not json
    )
    if json and task is not None:
        show_json(task)
    raise typer.Exit(code)


@app.command(epilog=epilog("llmlb node rm owner/model", "llmlb node rm owner/a owner/b"))
def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Names or aliases of models.")],
    json: JsonFlag = False,
) -> None:
    """Remove models from the node's disk, without asking; a loaded one is unloaded first."""
    gateway = client()
    worst = OK
    done: list[dict[str, object]] = []
    for model in models:
        try:
            removed = gateway.delete(gateway.model_path(model), has="freed_bytes")
        except LlmlbError as error:
            if exit_code(error) == CONNECTION:
                if json and done:
                    show_json(done)
                raise
            worst = exit_code(error)
            done.append({"model": model, "deleted": False, "freed_bytes": 0, "error": error.message})
            print(f"Error: {error.message}", file=sys.stderr)
        else:
            freed = removed["freed_bytes"]
            done.append({"model": removed["model"], "deleted": True, "freed_bytes": freed, "error": None})
            if not json:
                print(f"deleted '{removed['model']}'")
    if json:
        show_json(done)
    raise typer.Exit(worst)


app.command("remove", hidden=True, help="Same as rm.", epilog=epilog("llmlb node remove owner/model"))(rm)


@app.command(epilog=epilog("llmlb node stop smollm2"))
def stop(model: ModelArg, json: JsonFlag = False) -> None:
    """Unload a model from memory; answers that are running end first."""
    stopped = client().post("/v0/models/stop", {"model": model}, has="model")
    if json:
        show_json(stopped)


@app.command(epilog=epilog('llmlb node run smollm2 "Why is the sky blue?"'))
def run(
    model: ModelArg,
    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Answer this and exit.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Show the model's thinking.")] = False,
    hidethinking: Annotated[bool, typer.Option("--hidethinking", help="Hide the model's thinking (default).")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print tokens and speed after each answer.")] = False,
) -> None:
    """Talk to a model. With a prompt, or text on standard input, answers once and exits."""
    from llmlb.cli import repl

    settings = Settings.load()
    raise typer.Exit(repl.run(settings, model, prompt or [], think=think, hide=hidethinking, verbose=verbose))
