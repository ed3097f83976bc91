"""One cluster, and schemathesis against one of its gateways."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.cluster import Process, cluster

ROOT = Path(__file__).parents[2]
CONFIG = "always.toml", "fixed.toml"
"""Schemathesis's settings, in this folder: of every run, and of one without a limit of time."""
CHECKS = (
    "no_failure",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
PERMISSIONS = ["inference", "models.read", "registry", "nodes", "logs", "metrics", "users"]
FIXED_RUN_S = 400
"""Seconds after which a run without a limit of time is given up: ten times what it takes."""
_TROUBLE = re.compile(r"Traceback \(most recent|Warning: |^\S+Z (ERROR|CRITICAL) ")


@dataclass(frozen=True)
class Target:
    """A cluster that is up, with a key that may everything."""

    process: Process
    key: str

    def url(self, role: str) -> str:
        return self.process.url if role == "router" else self.process.node_url

    def trouble(self) -> list[str]:
        """Lines of its output that a request must not lead to: errors, tracebacks, warnings of Python."""
        return [line for line in self.process.output().splitlines() if _TROUBLE.search(line)]


@contextlib.contextmanager
def target(root: Path) -> Iterator[Target]:
    """``llmlb serve`` with an admin: the requests would make one otherwise, and lock themselves out."""
    # A hub that is not there: requests would ask the real one for anything.
    with cluster(root, HF_ENDPOINT="http://127.0.0.1:9", LLMLB_CONTEXT_LENGTH="2048") as it:
        process = it.start("serve", home="fuzzed").wait_ready()
        with httpx.Client(base_url=process.url, timeout=30) as client:
            admin = {"name": "admin", "password": "correct horse", "role": "admin"}
            key = {"name": "fuzz", "permissions": PERMISSIONS}
            made = client.post("/v0/keys", json=key)
            assert made.status_code == 201, made.text
            answer = client.post("/v0/users", json=admin)
            assert answer.status_code == 201, answer.text
        yield Target(process, made.json()["key"])


def fuzz(
    it: Target, role: str, *, seed: int, examples: int, max_time_s: int | None, only: str = ".", workers: int = 2
) -> tuple[int, str]:
    """Schemathesis's exit code and its report, which has a curl line for each failure. ``only``: paths, as a regex.

    ``max_time_s`` None: each operation is given ``examples`` and no more, the same ones in every run. Else it goes on
    until then, with others each time round, and what the server has answered goes into what it is asked.
    """
    timed = [] if max_time_s is None else ["--max-time", str(max_time_s)]
    folder = it.process.log.parent
    config = folder / "schemathesis.toml"
    config.write_text("".join((Path(__file__).parent / name).read_text() for name in CONFIG[: 1 if timed else 2]))
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config)),
        *("run", f"{it.url(role)}/openapi.json"),
        *("--header", f"Authorization: Bearer {it.key}"),
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), *timed),
        *("--seed", str(seed), "--generation-database", "none", "--workers", str(workers)),
        *("--request-timeout", "120", "--continue-on-failure", "--no-color", "--no-shrink", "--warnings", "off"),
        *("--suppress-health-check", "all"),
        *("--include-path-regex", only),
        *("--generation-with-security-parameters", "false"),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMLB_", "HF_"))}
    environ = {**kept, "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    if max_time_s is None:
        environ["PYTHONHASHSEED"] = "0"  # what is drawn from a set depends on its order
    limit_s = FIXED_RUN_S if max_time_s is None else max_time_s + 130
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=limit_s)
    lines = it.process.output().splitlines()
    seen = [line for line in lines if "request_failed" in line or _TROUBLE.search(line)]
    return done.returncode, "\n".join([done.stdout, done.stderr, *seen[-40:]])
