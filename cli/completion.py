"""Shell completion. The scripts hold every command and option, so that only names of models and nodes ask the program.

Written out of the tree of commands, so that a new one is completed as soon as the script is loaded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmlb.bus.errors import InvalidRequest

SHELLS = ("bash", "zsh", "fish")
_NAMES = {"model": "models", "models": "models", "node": "nodes", "shell": "shells"}
"""By the name of an argument: what it is completed with."""
_EXCEPT = {
    "node stop": "running",
    "node pull": "",
    "router model rm": "registered",
    "router model download": "registered",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A command or a group: the words before it, and what can follow."""

    path: str
    commands: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    names: str


def places() -> list[Place]:
    """Every command and group of ``llmlb``, the root first."""
    import typer.main

    from llmlb.cli import app

    root = typer.main.get_group(app.app)
    return list(_walk(root, "", root.make_context("llmlb", [], resilient_parsing=True)))


def _walk(command: Any, path: str, context: Any) -> Iterator[Place]:
    options = [
        (o, p.help or "") for p in command.get_params(context) for o in p.opts if o.startswith("--") and not p.hidden
    ]
    if not hasattr(command, "list_commands"):
        kinds = [_NAMES[p.name] for p in command.params if p.name in _NAMES and not p.opts[0].startswith("-")]
        yield Place(path, (), tuple(options), _EXCEPT.get(path, kinds[0] if kinds else ""))
        return
    below = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    shown = tuple((name, each.get_short_help_str(200)) for name, each in below if not each.hidden)
    yield Place(path, shown, tuple(options), "")
    for name, each in below:
        inner = each.make_context(name, [], parent=context, resilient_parsing=True)
        yield from _walk(each, f"{path} {name}".strip(), inner)


def script(shell: str) -> str:
    """The script of one shell. Raises InvalidRequest for another one."""
    if shell not in SHELLS:
        raise InvalidRequest(f"no completion for '{shell}'; there is one for {', '.join(SHELLS)}")
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](places())


_BASH = """# llmlb completion; load it with: source <(llmlb completion bash)
_llmlb() {
    local cur word path='' commands='' options='' names='' i
    cur="${COMP_LINE:0:COMP_POINT}"
    cur="${cur##*[[:space:]]}"
    [[ "${COMP_WORDS[0]##*/}" == llm-router ]] && path='router'
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${COMP_WORDS[i]}"
        case "${path:+$path }$word" in
            %(paths)s) path="${path:+$path }$word" ;;
        esac
    done
    case "$path" in
%(cases)s
    esac
    if [[ "$cur" == -* ]]; then
        commands="$options"
    elif [[ -n "$names" ]]; then
        commands="$(LLMLB_DEBUG='' llmlb __complete "$names" 2>/dev/null)"
    fi
    COMPREPLY=($(compgen -W "$commands" -- "$cur"))
    # A colon parts words for bash: what stands before the last one is on the line already.
    if [[ "$cur" == *:* && "${COMP_WORDBREAKS:-}" == *:* ]]; then
        local before="${cur%%"${cur##*:}"}"
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
}
complete -F _llmlb llmlb
complete -F _llmlb llm-router"""


def _bash(found: list[Place]) -> str:
    cases = [
        f"        '{place.path}') commands='{' '.join(name for name, _ in place.commands)}'"
        f" options='{' '.join(name for name, _ in place.options)}' names='{place.names}' ;;"
        for place in found
    ]
    return _BASH % {"paths": _paths(found), "cases": "\n".join(cases)}


def _paths(found: list[Place]) -> str:
    """As a pattern of ``case``."""
    return "|".join(f"'{place.path}'" for place in found if place.path)


_ZSH = """#compdef llmlb llm-router
# llmlb completion; load it with: source <(llmlb completion zsh)
_llmlb() {
    local place='' names='' i
    local -a commands options found
    [[ "${words[1]:t}" == llm-router ]] && place='router'
    for ((i = 2; i < CURRENT; i++)); do
        case "${place:+$place }${words[i]}" in
            (%(paths)s) place="${place:+$place }${words[i]}" ;;
        esac
    done
    case "$place" in
%(cases)s
    esac
    if [[ "$PREFIX" == -* ]]; then
        _describe -o option options
    elif (( $#commands )); then
        _describe command commands
    elif [[ -n "$names" ]]; then
        found=("${(@f)$(LLMLB_DEBUG='' llmlb __complete "$names" 2>/dev/null)}")
        compadd -- "${(@)found:#}"
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _llmlb llmlb llm-router"""


def _zsh(found: list[Place]) -> str:
    def described(rows: tuple[tuple[str, str], ...]) -> str:
        return " ".join("'" + f"{name}:{help}".replace("'", "'\\''") + "'" for name, help in rows)

    cases = [
        f"        ('{place.path}') commands=({described(place.commands)})"
        f" options=({described(place.options)}) names='{place.names}' ;;"
        for place in found
    ]
    return _ZSH % {"paths": _paths(found), "cases": "\n".join(cases)}


_FISH = """# llmlb completion; load it with: llmlb completion fish | source
function __llmlb_path
    set -l path
    set -l tokens (commandline -opc)
    string match -qr -- '(^|/)llm-router$' $tokens[1]; and set path router
    for token in $tokens[2..-1]
        string match -q -- '-*' $token; or set -a path $token
    end
    echo "$path"
end
function __llmlb_in
    string match -q -- "$argv" (__llmlb_path); or string match -q -- "$argv *" (__llmlb_path)
end
function __llmlb_at
    test (__llmlb_path) = "$argv"
end
complete -c llmlb -c llm-router -f"""


def _fish(found: list[Place]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [_FISH]
    for place in found:
        for name, help in place.commands:
            lines.append(f"complete -c llmlb -c llm-router -n '__llmlb_at {place.path}' -a {name} -d {quoted(help)}")
        at = "__llmlb_at" if place.commands else "__llmlb_in"
        for name, help in place.options:
            lines.append(f"complete -c llmlb -c llm-router -n '{at} {place.path}' -l {name[2:]} -d {quoted(help)}")
        if place.names:
            lines.append(
                f"complete -c llmlb -c llm-router -n '__llmlb_in {place.path}' -a '(llmlb __complete {place.names})'"
            )
    return "\n".join(lines)
