"""What stands at the end of each ``--help``: examples to paste, and the exit codes. Pure."""

from __future__ import annotations

CODES = "Exit codes: 0 success, 1 error, 2 no connection to the server."
SERVING_CODES = "Exit codes: 0 ended by SIGTERM or Ctrl+C, 1 could not start, 130 ended by a second signal."
LOCAL_CODES = "Exit codes: 0 success, 1 error."
CHECK_CODES = "Exit codes: 0 nothing failed, 1 something did."
BUS_CODES = "Exit codes: 1 error, 2 no connection to the bus, 130 ended by Ctrl+C."

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""For the root of a command tree: what is below inherits it."""


def epilog(*examples: str, codes: str = CODES) -> str:
    """\\b keeps the lines of a paragraph as they are: an example that is wrapped can't be pasted."""
    if len(examples) == 1:
        shown = f"Example: {examples[0]}"
    else:
        shown = "Examples:\n" + "\n".join(f"  {example}" for example in examples)
    return f"\b\n{shown}\n\n\b\n{codes}"
