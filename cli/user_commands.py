"""``llmlb router user …``: who may log in."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

import typer

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.settings import parse_duration
from llmlb.cli.credentials import AsUser, Passwords, PasswordStdin, client
from llmlb.cli.exit_codes import HELP
from llmlb.cli.node_commands import JsonFlag, show_json

app = typer.Typer(help="Users: who may log in.", no_args_is_help=True, epilog=HELP)

Name = Annotated[str, typer.Argument(help="Name of the user: A-Z a-z 0-9 . _ @ -")]
Role = Annotated[str, typer.Argument(help="admin or viewer.")]


def _path(name: str, what: str = "") -> str:
    return f"/v0/users/{quote(name, safe='')}{what}"


@app.command(epilog=f"Example: llmlb router user add alice --admin. {HELP}")
def add(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="May change everything; the first user must be one.")] = False,
    as_user: AsUser = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user; the password is asked for. From the first one on, programs on this machine need credentials too."""
    passwords = Passwords(stdin=password_stdin)
    gateway = client(as_user, passwords)
    body = {"name": name, "password": passwords.new(name), "role": "admin" if admin else "viewer"}
    print(f"added {gateway.post('/v0/users', body, has='name')['name']}")


@app.command("list", epilog=f"Example: llmlb router user list --as alice. {HELP}")
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


@app.command(epilog=f"Example: llmlb router user remove bob. {HELP}")
def remove(name: Name, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """Remove a user, whose sessions end at once. API keys stay: revoke those too."""
    gateway = client(as_user, Passwords(stdin=password_stdin))
    print(f"removed {gateway.delete(_path(name), has='name')['name']}")


@app.command(epilog=f"Example: llmlb router user passwd bob. {HELP}")
def passwd(name: Name, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """Give a user another password; every session of the user ends."""
    passwords = Passwords(stdin=password_stdin)
    gateway = client(as_user, passwords)
    gateway.put(_path(name, "/password"), {"password": passwords.new(name)}, has="name")
    print(f"changed the password of {name}")


@app.command(epilog=f"Example: llmlb router user role bob admin. {HELP}")
def role(name: Name, role: Role, as_user: AsUser = None, password_stdin: PasswordStdin = False) -> None:
    """Make a user an admin or a viewer."""
    changed = client(as_user, Passwords(stdin=password_stdin)).put(_path(name, "/role"), {"role": role}, has="role")
    print(f"{changed['name']} is {changed['role']} now")


@app.command(epilog=f"Example: llmlb router user invite --expires 24h. {HELP}")
def invite(
    admin: Annotated[bool, typer.Option("--admin", help="The user will be an admin.")] = False,
    expires: Annotated[str, typer.Option(help="How long it is good for, as 24h or 7d.")] = "7d",
    as_user: AsUser = None,
    password_stdin: PasswordStdin = False,
) -> None:
    """Make a code with which somebody becomes a user, once; it is shown this once."""
    try:
        expires_in_s = parse_duration(expires)
    except ValueError as error:
        raise InvalidRequest(f"--expires: {error}") from error
    body = {"role": "admin" if admin else "viewer", "expires_in_s": expires_in_s}
    print(client(as_user, Passwords(stdin=password_stdin)).post("/v0/users/invitations", body, has="code")["code"])
