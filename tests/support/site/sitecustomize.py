"""Run by each Python process that a test starts, before its own code: tests/conftest.py has this folder in PYTHONPATH.

It leaves out what costs the tests much and shows them nothing. What it leaves out has tests of its own.
"""

import os
import sys

if "llmlb.node.engine.worker" in sys.orig_argv and os.environ.get("TESTS_SELF_TEST") == "no":
    # Five seconds of CPU time after each load, begun anew after each answer: tests/contract/test_same_answer.py has it.
    from llmlb.node.engine.llama_cpp import LlamaCppEngine

    LlamaCppEngine._test_a_little = lambda self: False  # type: ignore[method-assign]
if "llmlb.router.history_child" in sys.orig_argv:
    # nats-py takes it along where it is installed: 0.2 s. Here litellm brings it, at a user's nothing does.
    sys.modules.setdefault("aiohttp", None)  # type: ignore[arg-type]
