"""Requests that schemathesis makes from the OpenAPI document, and what breaks it, against a real ``llmlb serve``.

No answer is a 5xx, none has a status, media type, header or body that the document does not tell, and nothing that the
document forbids is taken. ``make fuzz`` is the same for longer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.run import Target, fuzz, target

SEED = 1
EXAMPLES = 5
"""Of each operation and phase."""
SHOWN = 8000


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("fuzz")) as it:
        yield it
        assert "Traceback" not in it.process.output()


@pytest.mark.parametrize(
    ("role", "only", "max_time_s"),
    # What is below /v1 is the same code on both.
    [("router", ".", 30), ("node", "^/v0/(?!auth|users|keys)|^/[a-z.]*$", 10)],
)
def test_no_answer_breaks_off_and_none_is_undocumented(fuzzed: Target, role: str, only: str, max_time_s: int) -> None:
    code, report = fuzz(fuzzed, role, seed=SEED, examples=EXAMPLES, max_time_s=max_time_s, only=only)
    assert code == 0, report[-SHOWN:]
