"""``python -m tests.bench.hub_child FILE REPO NAME``: the tests' hub with one file, as fast as the kernel sends.

Says ``ready``; then answers each line with ``{"url": …, "served": bytes}``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from tests.support.hub import Fault, HubFile, LocalHub
from tests.support.hub_server import CdnHandler

PIECE = 1 << 20
UNSENT = 128 * 1024


class FastCdn(CdnHandler):
    """Sends with sendfile, so that the server is not what is measured. Without faults and budgets."""

    def _body(self, file: HubFile, start: int, end: int, fault: Fault) -> None:
        content = file._content
        assert isinstance(content, Path)
        # What waits on our side for room on theirs was never under way, and is not to count as sent.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        with content.open("rb") as source:
            while start < end:
                sent = os.sendfile(self.connection.fileno(), source.fileno(), start, min(PIECE, end - start))
                if not sent:
                    raise ConnectionError("the client is gone")
                self.server.hub.count(self.seen, sent)
                start += sent


def main(path: str, repo: str, name: str) -> None:
    with LocalHub() as hub:
        hub._cdn.RequestHandlerClass = FastCdn
        hub.add(repo, {name: Path(path)})
        print("ready", flush=True)
        for _ in sys.stdin:
            print(json.dumps({"url": hub.url, "served": hub.served()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
