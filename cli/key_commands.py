"""``llmlb router key …``: API keys."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from llmlb.cli.credentials import AsUser, Passwords, PasswordStdin, client
from llmlb.cli.help_text import epilog
from llmlb.cli.options import JsonFlag, show_json

app = typer.Typer(
    help="API keys: what programs show.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=epilog("llmlb router key create my-app"),
)

ALL = "inference, models.read, registry, nodes, logs, metrics, users"


@app.command(epilog=epilog("llmlb router key create my-app --expires 70"))
def create(
    name: Annotated[str, typer.Argument(help="What it is for: A-Z a-z 0-9 . _ @ -")],
    permission: Annotated[
        list[str] | None,
        typer.Option("--permission", "-p", help=f"One of {ALL}; repeatable.", show_default="inference, models.read"),
    ] = None,
    expires: Annotated[int | None, typer.Option(metavar="DAYS", help="3, 7, 21 or 70.", show_default="never")] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute.", show_default="any")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens a minute.", show_default="any")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at a time.", show_default="any")] = None,
    json: JsonFlag = False,
    as_user: AsUser = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Make an API key; it is shown this once. The permission users is as good as being an admin."""
    body: dict[str, Any] = {
        "name": name,
        "expires_in_days": expires,
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrency": concurrency,
    }
    if permission:
        body["permissions"] = permission
    made = client(as_user, Passwords(stdin=password_stdin)).post("/v0/keys", body, has="key")
    if json:
        show_json(made)
    else:
        print(made["key"])


def _day(moment: float | None, none: str) -> str:
    return none if moment is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))


@app.command("list", epilog=epilog("llmlb router key list"))
def list_keys(json: JsonFlag = False, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """List the API keys; times are UTC."""
    from llmlb.cli.render import table

    found = client(as_user, Passwords(stdin=password_stdin)).rows("/v0/keys", "keys", has="key_id")
    if json:
        show_json(found)
        return
    rows = [
        [
            key["key_id"],
            key["name"],
            ",".join(key["permissions"]),
            _day(key["expires_at"], "never")
            + (" (over)" if key["expires_at"] is not None and key["expires_at"] < time.time() else ""),
            _day(key["last_used_at"], "-"),
        ]
        for key in found
    ]
    print(table(["ID", "NAME", "PERMISSIONS", "EXPIRES", "LAST USED"], rows))


@app.command(epilog=epilog("llmlb router key revoke my-app"))
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, its beginning, or the name.")],
    json: JsonFlag = False,
    as_user: AsUser = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Revoke an API key: within a second nothing takes it any more."""
    gone = client(as_user, Passwords(stdin=password_stdin)).delete(f"/v0/keys/{quote(key, safe='')}", has="key_id")
    if json:
        show_json(gone)
    else:
        print(f"revoked {gone['key_id']} ({gone['name']})")
