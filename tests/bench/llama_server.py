"""llama.cpp's own server, from the source that the llama-cpp-python sdist carries: build it once, run it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tests.support.cluster import free_port, wait_until

FOLDER = Path("build/bench")
OFF = (
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI",
    "LLAMA_CURL",
    "LLAMA_OPENSSL",
)
START_TIMEOUT_S = 60.0


def find_or_build() -> Path | None:
    """The binary for the llama-cpp-python that is installed; None where there is no cmake to build it."""
    release = version("llama-cpp-python")
    build = FOLDER / f"llama-server-{release}"
    binary = build / "bin" / "llama-server"
    if binary.exists():
        return binary
    cmake = shutil.which("cmake")
    if cmake is None:
        return None
    source = _source(release)
    print(f"Building llama-server of llama-cpp-python {release} in {build}; this takes minutes, once.", flush=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    # The same as llama-cpp-python was built with, see the Makefile.
    flags = shlex.split(os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=OFF"))
    flags += ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_SERVER=ON", *(f"-D{name}=OFF" for name in OFF)]
    log = FOLDER / "build.log"
    with log.open("wb") as out:
        for command in (
            [cmake, "-S", str(source), "-B", str(build), *generator, *flags],
            [cmake, "--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count() or 1)],
        ):
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
            if done.returncode:
                raise RuntimeError(f"llama-server could not be built; see {log}")
    return binary


def _source(release: str) -> Path:
    """The llama.cpp inside the sdist, downloaded once."""
    source = FOLDER / f"llama_cpp_python-{release}" / "vendor" / "llama.cpp"
    if source.exists():
        return source
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(FOLDER), f"llama-cpp-python=={release}"]
    subprocess.run(command, check=True)
    (archive,) = FOLDER.glob(f"llama_cpp_python-{release}.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(FOLDER, filter="data")
    archive.unlink()
    return source


def features(text: str) -> set[str]:
    """The CPU features in a ``system_info`` text of llama.cpp."""
    return set(re.findall(r"(\w+) = 1\b", text))


def system_info(binary: Path) -> str:
    """What the binary says it was built for: it prints that before it finds that there is no model."""
    command = [str(binary), "-m", os.devnull, "-lv", "5", "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "system_info" in line]
    return lines[0] if lines else ""


@contextlib.contextmanager
def running(
    binary: Path, model: Path, flags: list[str], settings: dict[str, str], log: Path
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server with a model, ready: its port and process. ``settings``: more environment variables."""
    port = free_port()
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *flags]
    with log.open("wb") as out:
        popen = subprocess.Popen(
            command, env={**os.environ, **settings}, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: _healthy(popen, port, log), START_TIMEOUT_S, "llama-server is ready")
        yield port, popen
    finally:
        popen.terminate()
        try:
            popen.wait(10)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def _healthy(popen: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    if popen.poll() is not None:
        raise RuntimeError(f"llama-server ended with {popen.returncode}:\n{log.read_text(errors='replace')[-2000:]}")
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False
