"""A group whose sub-groups are imported when they are called: ``llmlb --help`` builds none of their commands."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import typer.main
from typer.core import TyperGroup


class LazyGroup(TyperGroup):
    """Knows name, module and one line of each sub-group, and the order of everything in its help."""

    groups: ClassVar[dict[str, tuple[str, str]]] = {}
    """By name: the module that has the group as ``app``, and what the help says of it."""
    order: ClassVar[tuple[str, ...]] = ()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.groups and cmd_name not in self.commands:
            self.commands[cmd_name] = typer.main.get_group(importlib.import_module(self.groups[cmd_name][0]).app)
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Those of ``order`` first, in that order."""
        names = dict.fromkeys([*self.commands, *self.groups])
        return sorted(names, key=lambda name: self.order.index(name) if name in self.order else len(self.order))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.list_commands(ctx):
            for name in self.groups:  # so that the error can name the nearest one
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in self.groups:
                rows.append((name, self.groups[name][1]))
            elif not self.commands[name].hidden:
                rows.append((name, self.commands[name].get_short_help_str(limit=100)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
