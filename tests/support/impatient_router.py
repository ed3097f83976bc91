"""``llmlb router serve``, for which a node is offline after 6 s of silence and not after 30: tests wait for that."""

from __future__ import annotations

from llmlb.cli.main import main
from llmlb.router.membership import Membership

OFFLINE_AFTER_S = 6.0

if __name__ == "__main__":
    assert Membership.__init__.__kwdefaults__ is not None
    Membership.__init__.__kwdefaults__["offline_after_s"] = OFFLINE_AFTER_S
    main()
