"""Requests that schemathesis makes from the OpenAPI document, and what breaks it, against a real ``llmlb serve``.

No answer is a 5xx, none has a status, media type, header or body that the document does not tell, and nothing that the
document forbids is taken; and none leaves an error or a warning of Python in the server's output. The requests are the
same in every run: a number of them, no limit of time. ``make fuzz`` is longer, and has others each time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.run import Target, fuzz, target

SEED = 1
EXAMPLES = 3
"""Of each operation, beside those that go through all that its schema says one by one."""
SHOWN = 8000


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("fuzz")) as it:
        yield it


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("role", "only"),
    # What is below /v1 is the same code on both.
    [("router", "."), ("node", "^/v0/(?!auth|users|keys)|^/[a-z.]*$")],
)
def test_no_answer_breaks_off_and_none_is_undocumented(fuzzed: Target, role: str, only: str) -> None:
    code, report = fuzz(fuzzed, role, seed=SEED, examples=EXAMPLES, max_time_s=None, only=only, workers=1)
    assert code == 0, report[-SHOWN:]
    assert not fuzzed.trouble()
