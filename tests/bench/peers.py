"""Other routers that come as wheels from PyPI, each in an environment of its own under build/bench, made once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.children import Unavailable, environ, running
from tests.bench.scripted import FAST, SPEEDS
from tests.support.cluster import free_port

FOLDER = Path("build/bench")
INSTALL_S = 600.0
START_S = 90.0
MOST = "4096"
"""Requests at once that a router is to take; their defaults are below the 2,000 streams of the benchmark."""


@dataclass(frozen=True)
class Peer:
    """A router. ``command`` gets its bin folder, its port, the backend's port, and a folder for its files."""

    name: str
    requirement: str
    command: Callable[[Path, int, int, Path], list[str]]
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def version(self) -> str:
        return self.requirement.partition("==")[2]


def _vllm(folder: Path, port: int, backend: int, _: Path) -> list[str]:
    command = [str(folder / "vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    command += ["--worker-urls", f"http://127.0.0.1:{backend}", "--policy", "round_robin"]
    return [*command, *_rust_limits()]


def _sglang(folder: Path, port: int, backend: int, _: Path) -> list[str]:
    command = [str(folder / "sglang-router"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{backend}", "--policy", "round_robin", "--log-level", "warn"]
    return [*command, *_rust_limits()]


def _rust_limits() -> list[str]:
    prometheus = ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*prometheus, "--max-concurrent-requests", MOST, "--queue-size", MOST]


def _litellm(folder: Path, port: int, backend: int, files: Path) -> list[str]:
    config = files / "litellm.yaml"
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{backend}/v1",
                "api_key": "sk-bench",
            },
        }
        for name in SPEEDS
    ]
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    command = [str(folder / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--num_workers", "1"]


PEERS = (
    Peer("vllm-router", "vllm-router==0.1.17", _vllm),
    Peer("sglang-router", "sglang-router==0.3.2", _sglang),
    Peer(
        "LiteLLM",
        "litellm[proxy]==1.106.2",
        _litellm,
        (
            ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),  # else it fetches a price list from the network at start
            ("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true"),  # no keys here: as llmlb on loopback
            ("LITELLM_LOG", "ERROR"),
            ("LITELLM_MODE", "PRODUCTION"),
        ),
    ),
)


def bin_folder(peer: Peer) -> Path:
    """The bin folder of its environment, with it installed. Raises Unavailable."""
    name = peer.requirement.partition("==")[0].partition("[")[0]
    venv = (FOLDER / f"peer-{name}-{peer.version}").resolve()
    done = venv / ".installed"
    if done.exists():
        return venv / "bin"
    print(f"Installing {peer.requirement} in {venv.relative_to(Path.cwd())}, once.", file=sys.stderr, flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]
    with (FOLDER / f"peer-{name}.log").open("wb") as log:
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [*pip, "--only-binary", ":all:", peer.requirement],
        ):
            try:
                failed = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=INSTALL_S).returncode
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"could not be installed: {type(error).__name__}") from error
            if failed:
                raise Unavailable(f"could not be installed: see {log.name}")
    done.touch()
    return venv / "bin"


@contextlib.contextmanager
def started(peer: Peer, backend: int, folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Its port and process, when it has answered a question. Raises Unavailable."""
    port = free_port()
    command = peer.command(bin_folder(peer), port, backend, folder)
    log = folder / f"{peer.name}.log"
    with running(command, log, environ(folder, **dict(peer.environment))) as popen:
        deadline = time.monotonic() + START_S
        while not answers(port):
            if popen.poll() is not None:
                raise Unavailable(f"ended with {popen.returncode}: {_last_line(log)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"no answer within {START_S:.0f} s: {_last_line(log)}")
            time.sleep(0.2)
        yield port, popen


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:120].replace("|", "/") if lines else "it said nothing"


def answers(port: int) -> bool:
    """Whether a question is answered there."""
    body = {"model": FAST, "messages": [{"role": "user", "content": "are you there"}], "max_tokens": 1}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False
