"""Who this node is: an id kept in its home, and a lock so that two nodes never share one."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path
from typing import IO

from llmlb.bus.errors import ConfigError
from llmlb.bus.subjects import is_node_id


class Identity:
    """The node id of a home directory; holding the object holds the home's lock."""

    def __init__(self, home: Path) -> None:
        """Take the home over, making it and the id when they are missing.

        Raises ConfigError when another node runs with this home, when it can't be written, or the id file is damaged.
        """
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = open(home / "node.lock", "a+")  # noqa: SIM115  # held until close
        except OSError as error:
            raise ConfigError(f"the home directory {home} can't be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise ConfigError(
                f"another node (process {holder}) already runs with the home directory {home}; "
                "give this one its own with LLMLB_HOME"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        try:
            self.node_id = self._read_or_make(home / "node_id")
        except ConfigError:
            self._lock.close()
            raise

    @staticmethod
    def _read_or_make(path: Path) -> str:
        try:
            if path.exists():
                node_id = path.read_text().strip()
                if not is_node_id(node_id):
                    raise ConfigError(f"{path} does not hold a node id; remove the file to become a new node")
                return node_id
            node_id = uuid.uuid4().hex
            part = path.with_suffix(".part")
            with open(part, "w") as file:
                file.write(node_id + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise ConfigError(f"the node id file {path} can't be used: {error.strerror}") from error
        return node_id

    def close(self) -> None:
        """Give the home back."""
        self._lock.close()
