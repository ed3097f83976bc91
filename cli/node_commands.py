"""``llmlb node …``: the models and the work of one node."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated

import typer

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.settings import Settings
from llmlb.cli.client import GatewayClient
from llmlb.cli.exit_codes import HELP

app = typer.Typer(help="Run and look after the models of one node.", no_args_is_help=True, epilog=HELP)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelArg = Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a model.")]


def client() -> GatewayClient:
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
