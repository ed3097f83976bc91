"""A real nats-server for tests."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from llmlb.bus.server import find_binary


class NatsServer:
    """One server with JetStream; ended by :meth:`stop`. Port -1: the system chooses. Killed and started again, it has
    the same port and store."""

    def __init__(self, folder: Path, port: int = -1, host: str = "127.0.0.1", more: str = "") -> None:
        """``more``: lines of its configuration."""
        self._folder = folder
        self._more = more
        self._host = host
        self.port = port
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "nats.conf"

    def start(self) -> NatsServer:
        ports = self._folder / "ports"
        ports.mkdir(exist_ok=True)
        for old in ports.glob("*.ports"):
            old.unlink()
        self._config.write_text(
            f'host: "{self._host}"\nport: {self.port}\nports_file_dir: "{ports}"\nmax_payload: 8388608\n'
            f'jetstream: {{ store_dir: "{self._folder / "store"}" }}\n{self._more}'
        )
        self.process = subprocess.Popen(
            [find_binary(), "-c", str(self._config), "-l", str(self._folder / "log")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for file in ports.glob("*.ports"):
                try:
                    self.url = json.loads(file.read_text())["nats"][0]
                except (ValueError, KeyError, IndexError):
                    continue
                self.port = int(self.url.rsplit(":", 1)[1])
                return self
            time.sleep(0.005)
        raise AssertionError("nats-server did not start")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
