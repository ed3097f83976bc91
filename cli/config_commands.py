"""``llmlb config …``: the settings in force."""

from __future__ import annotations

import typer

from llmlb.bus.settings import Settings
from llmlb.cli.help_text import LOCAL_CODES, epilog
from llmlb.cli.options import JsonFlag, show_json

app = typer.Typer(
    help="Settings.", no_args_is_help=True, rich_markup_mode=None, epilog=epilog("llmlb config show", codes=LOCAL_CODES)
)


@app.command("show", epilog=epilog("llmlb config show", codes=LOCAL_CODES))
def config_show(json: JsonFlag = False) -> None:
    """Print every setting with its environment variable; secrets are masked."""
    rows = Settings.load().describe()
    if json:
        show_json([{"variable": env, "value": value or None, "meaning": help} for _, env, value, help in rows])
        return
    from llmlb.cli.render import table

    print(table(["VARIABLE", "VALUE", "MEANING"], [[env, value or "-", help] for _, env, value, help in rows]))
