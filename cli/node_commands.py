"""``llmlb node …``: the models and the work of one node."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llmlb.bus.errors import InvalidRequest, LlmlbError
from llmlb.bus.settings import Settings
from llmlb.cli.exit_codes import CONNECTION, HELP, OK, exit_code

if TYPE_CHECKING:
    from llmlb.cli.client import GatewayClient

app = typer.Typer(help="Run and look after the models of one node.", no_args_is_help=True, epilog=HELP)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a model.")]


def client() -> GatewayClient:
    from llmlb.cli.client import GatewayClient

    return GatewayClient(Settings.load(), "node")


def show_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command(epilog=f"Example: llmlb node serve --port 32769. {HELP}")
def serve(
    port: Annotated[int | None, typer.Option(help="Port of the node's gateway.", show_default="32769")] = None,
    host: Annotated[str | None, typer.Option(help="Bind address.", show_default="0.0.0.0")] = None,
    no_embedded_bus: Annotated[
        bool, typer.Option("--no-embedded-bus", help="Never start a bus, wait for one to appear.")
    ] = False,
) -> None:
    """Start a node in the foreground: it joins the cluster of LLMLB_BUS_URL and serves its own gateway."""
    settings = Settings.load(node_port=port, node_bind=host, embedded_bus=False if no_embedded_bus else None)
    from llmlb.cli.serve import run_node

    raise typer.Exit(run_node(settings))


@app.command("list", epilog=f"Example: llmlb node list. {HELP}")
def list_models(json: JsonFlag = False) -> None:
    """List the models on the node's disk."""
    from llmlb.cli import render

    models = client().rows("/v0/models", "models", has="size_bytes")
    if json:
        show_json(models)
    else:
        print(render.models(models, time.time()))


app.command("ls", hidden=True, help="Same as list.", epilog=f"Example: llmlb node ls. {HELP}")(list_models)


@app.command(epilog=f"Example: llmlb node ps. {HELP}")
def ps(json: JsonFlag = False) -> None:
    """List the models in memory."""
    from llmlb.cli import render

    models = client().rows("/v0/ps", "models", has="instance")
    if json:
        show_json(models)
    else:
        print(render.running(models))


@app.command(epilog=f"Example: llmlb node show smollm2 --template. {HELP}")
def show(
    model: ModelArg,
    license: Annotated[bool, typer.Option("--license", help="Only the licence.")] = False,
    parameters: Annotated[bool, typer.Option("--parameters", help="Only the parameters of the model file.")] = False,
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Only file, template and system prompt.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Only the chat template in use.")] = False,
    system: Annotated[bool, typer.Option("--system", help="Only the system prompt.")] = False,
) -> None:
    """Show what is known of a model."""
    from llmlb.cli import render

    if license + parameters + modelfile + template + system > 1:
        raise InvalidRequest("give one of --license, --parameters, --modelfile, --template, --system")
    gateway = client()
    found = gateway.get(gateway.model_path(model), has="model")
    if license:
        print(found["license"] or "")
    elif parameters:
        width = max((len(key) for key in found["parameters"]), default=0)
        print("\n".join(f"{key.ljust(width)}  {value}" for key, value in found["parameters"].items()))
    elif modelfile:
        print(render.modelfile(found))
    elif template:
        print(found["template"])
    elif system:
        print(found["system"] or "")
    else:
        print(render.details(found))


@app.command(epilog=f"Example: llmlb node pull owner/model:Q4_K_M. {HELP}")
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


@app.command(epilog=f"Example: llmlb node rm owner/model. {HELP}")
def rm(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names or aliases of models.")],
) -> None:
    """Remove models from the node's disk, without asking; a loaded one is unloaded first."""
    gateway = client()
    worst = OK
    for model in models:
        try:
            removed = gateway.delete(gateway.model_path(model), has="freed_bytes")
        except LlmlbError as error:
            if exit_code(error) == CONNECTION:
                raise
            worst = exit_code(error)
            print(f"Error: {error.message}", file=sys.stderr)
        else:
            print(f"deleted '{removed['model']}'")
    raise typer.Exit(worst)


app.command("remove", hidden=True, help="Same as rm.", epilog=f"Example: llmlb node remove owner/model. {HELP}")(rm)


@app.command(epilog=f"Example: llmlb node stop smollm2. {HELP}")
def stop(model: ModelArg) -> None:
    """Unload a model from memory; answers that are running end first."""
    client().post("/v0/models/stop", {"model": model}, has="model")


@app.command(epilog=f'Example: llmlb node run smollm2 "Why is the sky blue?". {HELP}')
def run(
    model: ModelArg,
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]", help="Answer this and exit.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Show the model's thinking.")] = False,
    hidethinking: Annotated[bool, typer.Option("--hidethinking", help="Hide the model's thinking (default).")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print tokens and speed after each answer.")] = False,
) -> None:
    """Talk to a model. With a prompt, or text on standard input, answers once and exits."""
    from llmlb.cli.repl import Session, run_once, run_repl

    gateway = client()
    gateway.get(gateway.model_path(model), has="model")
    session = Session(gateway, model, show_thinking=think and not hidethinking, verbose=verbose)
    text = " ".join(prompt or [])
    if sys.stdin is None or not sys.stdin.isatty():
        piped = sys.stdin.buffer.read().decode("utf-8", "replace") if sys.stdin else ""
        text = "\n\n".join(part for part in (text, piped.strip()) if part)
        if not text:
            raise InvalidRequest("there is no prompt: standard input is empty")
    raise typer.Exit(run_once(session, text) if text else run_repl(session))
