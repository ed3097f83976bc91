"""Hosts of their own on this machine: network namespaces on a bridge, with cables that can be cut (Linux, root).

The bridge is in a namespace, too, so that nothing of the machine's own network is touched. Names are unique to the
run, and a namespace takes its cables with it when it is deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNET = 0x40000000
"""Source: Linux, include/uapi/linux/sched.h."""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


def why_not() -> str | None:
    """Why namespaces can't be made here; None when they can."""
    name = f"llmlb-{uuid.uuid4().hex[:6]}"
    try:
        _ip("netns", "add", name)
    except FileNotFoundError:
        return "the program ip is not there"
    except subprocess.CalledProcessError as error:
        return f"ip netns add is not permitted: {error.stderr.decode(errors='replace').strip()}"
    try:
        _ip("-n", name, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    except subprocess.CalledProcessError as error:
        return f"links can't be made: {error.stderr.decode(errors='replace').strip()}"
    finally:
        _ip("netns", "del", name)
    return None


class Lan:
    """Hosts 10.77.0.1, 10.77.0.2 … on one switch. :meth:`close` takes all of it away."""

    def __init__(self, hosts: int) -> None:
        self._run = uuid.uuid4().hex[:6]
        self._made: list[str] = []
        self._switch = self._namespace("switch")
        try:
            _ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge0", "up")
            for host in range(1, hosts + 1):
                self._plug(host)
        except BaseException:
            self.close()
            raise

    def _namespace(self, name: str) -> str:
        whole = f"llmlb-{self._run}-{name}"
        _ip("netns", "add", whole)
        self._made.append(whole)
        _ip("-n", whole, "link", "set", "lo", "up")
        return whole

    def _plug(self, host: int) -> None:
        name = self._namespace(str(host))
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{host}", "netns", self._switch)
        _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", self._switch, "link", "set", f"port{host}", "master", "bridge0", "up")

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host}"

    def command(self, host: int, *command: str) -> list[str]:
        """The command that runs this command on a host."""
        return ["ip", "netns", "exec", f"llmlb-{self._run}-{host}", *command]

    def enter(self, host: int) -> Callable[[], None]:
        """What takes the calling thread to a host: sockets that it opens from then on are there."""

        def go() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/var/run/netns/llmlb-{self._run}-{host}").open() as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

        return go

    def cut(self, host: int) -> None:
        """Pull the cable of a host out of the switch."""
        _ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        _ip("-n", self._switch, "link", "set", f"port{host}", "up")

    def close(self) -> None:
        for name in reversed(self._made):
            with contextlib.suppress(subprocess.SubprocessError):
                _ip("netns", "del", name)
        self._made.clear()
