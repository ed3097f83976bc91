from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest

from tests.unit.cli.fake_gateway import Gateway


@pytest.fixture
def fake() -> Iterator[tuple[type[Gateway], str]]:
    """A gateway to be scripted, and its address."""
    handler: type[Gateway] = type("Scripted", (Gateway,), {"asked": [], "bodies": {}, "scripts": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield handler, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
