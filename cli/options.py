"""Options and arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer


def _log_format(text: str | None) -> str | None:
    from llmlb.bus.settings import parse_log_format

    try:
        return None if text is None else parse_log_format(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text; its keys are stable.")]
WatchFlag = Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl+C.")]
Interval = Annotated[
    str | None,
    typer.Option(
        "--interval",
        metavar="DURATION",
        help="With --watch: time between two looks, as 500ms or 5s.",
        show_default="2s",
    ),
]
RouterPort = Annotated[
    int | None,
    typer.Option(
        "--port", metavar="PORT", min=0, max=65535, help="Port of the router's gateway.", show_default="32768"
    ),
]
NodePort = Annotated[
    int | None,
    typer.Option(
        "--node-port", metavar="PORT", min=0, max=65535, help="Port of the node's gateway.", show_default="32769"
    ),
]
HostBoth = Annotated[
    str | None, typer.Option("--host", metavar="ADDRESS", help="Bind address of both.", show_default="0.0.0.0")
]
Host = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Bind address.", show_default="0.0.0.0")]
NoEmbeddedBus = Annotated[bool, typer.Option("--no-embedded-bus", help="Never start a bus, wait for one to appear.")]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="FORMAT",
        callback=_log_format,
        help="text, or json: one object a line.",
        show_default="text",
    ),
]


def show_json(value: object) -> None:
    """For people and programs: indented, in the characters it has."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
