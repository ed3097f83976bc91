"""``llmlb router user …``: who may log in."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.settings import parse_duration
from llmlb.cli.credentials import AsUser, Passwords, PasswordStdin, client
from llmlb.cli.help_text import epilog
from llmlb.cli.options import JsonFlag, show_json

app = typer.Typer(
    help="Users: who may log in.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=epilog("llmlb router user add alice --admin"),
)

Name = Annotated[str, typer.Argument(help="Name of the user: A-Z a-z 0-9 . _ @ -")]
Role = Annotated[str, typer.Argument(help="admin or viewer.")]


def _path(name: str, what: str = "") -> str:
    return f"/v0/users/{quote(name, safe='')}{what}"


def _done(answer: dict[str, Any], text: str, *, json: bool) -> None:
    """``text`` holds names of the answer's fields."""
    if json:
        show_json(answer)
    else:
        print(text.format_map(answer))


@app.command(epilog=epilog("llmlb router user add alice --admin"))
def add(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="May change everything; the first user must be one.")] = False,
    json: JsonFlag = False,
    as_user: AsUser = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user; the password is asked for. From the first one on, programs on this machine need credentials too."""
    passwords = Passwords(stdin=password_stdin)
    gateway = client(as_user, passwords)
    body = {"name": name, "password": passwords.new(name), "role": "admin" if admin else "viewer"}
    _done(gateway.post("/v0/users", body, has="name"), "added {name}", json=json)


@app.command("list", epilog=epilog("llmlb router user list --as alice"))
def list_users(json: JsonFlag = False, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """List the users."""
    from llmlb.cli.render import table

    found = client(as_user, Passwords(stdin=password_stdin)).rows("/v0/users", "users", has="name")
    if json:
        show_json(found)
    else:
        rows = [
            [user["name"], user["role"], time.strftime("%Y-%m-%d", time.gmtime(user["created_at"]))] for user in found
        ]
        print(table(["NAME", "ROLE", "CREATED"], rows))


@app.command(epilog=epilog("llmlb router user remove bob"))
def remove(name: Name, json: JsonFlag = False, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """Remove a user, whose sessions end at once. API keys stay: revoke those too."""
    gateway = client(as_user, Passwords(stdin=password_stdin))
    _done(gateway.delete(_path(name), has="name"), "removed {name}", json=json)


@app.command(epilog=epilog("llmlb router user passwd bob"))
def passwd(name: Name, json: JsonFlag = False, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """Give a user another password; every session of the user ends."""
    passwords = Passwords(stdin=password_stdin)
    gateway = client(as_user, passwords)
    changed = gateway.put(_path(name, "/password"), {"password": passwords.new(name)}, has="name")
    _done(changed, "changed the password of {name}", json=json)


@app.command(epilog=epilog("llmlb router user role bob admin"))
def role(
    name: Name, role: Role, json: JsonFlag = False, as_user: AsUser = None, password_stdin: PasswordStdin = False
) -> None:
    """Make a user an admin or a viewer."""
    changed = client(as_user, Passwords(stdin=password_stdin)).put(_path(name, "/role"), {"role": role}, has="role")
    _done(changed, "{name} is {role} now", json=json)


@app.command(epilog=epilog("llmlb router user invite --expires 24h"))
def invite(
    admin: Annotated[bool, typer.Option("--admin", help="The user will be an admin.")] = False,
    expires: Annotated[str, typer.Option(help="How long it is good for, as 24h or 7d.")] = "7d",
    json: JsonFlag = False,
    as_user: AsUser = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Make a code with which somebody becomes a user, once; it is shown this once."""
    try:
        expires_in_s = parse_duration(expires)
    except ValueError as error:
        raise InvalidRequest(f"--expires: {error}") from error
    body = {"role": "admin" if admin else "viewer", "expires_in_s": expires_in_s}
    _done(
        client(as_user, Passwords(stdin=password_stdin)).post("/v0/users/invitations", body, has="code"),
        "{code}",
        json=json,
    )
