"""How a download is cut into requests, and when a connection waits for the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.node.pull.digest import STEP_BYTES, Digest, Follower
from llmlb.node.pull.fetch import AHEAD_BYTES, Count, Fetch, Limits
from llmlb.node.pull.hub import Location
from llmlb.node.pull.link import Link
from llmlb.node.pull.partial import BLOCK, Partial

MIB = 1024 * 1024
GIB = 1024 * MIB
DATA = bytes(range(256)) * 4096 * 3


@given(
    gaps=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 20_000)), min_size=1, max_size=20),
    cut=st.integers(0, BLOCK - 1),
    connections=st.integers(1, 8),
)
def test_the_segments_are_what_is_missing_and_end_small(
    gaps: list[tuple[int, int]], cut: int, connections: int
) -> None:
    missing, at = [], 0
    for there, gone in gaps:
        missing.append(((at + there + 1) * BLOCK, (at + there + 1 + gone) * BLOCK))
        at += there + 1 + gone
    missing[-1] = (missing[-1][0], missing[-1][1] - cut)
    segments = Limits(connections=connections).segments(missing)
    joined: list[tuple[int, int]] = []
    for each in segments:
        if joined and joined[-1][1] == each.position and (each.position, each.end) not in missing:
            joined[-1] = (joined[-1][0], each.end)
        else:
            joined.append((each.position, each.end))
    assert joined == missing
    sizes = [each.end - each.position for each in segments]
    assert max(sizes) <= 64 * MIB
    assert all(each.position % BLOCK == 0 and each.marked == each.position for each in segments)
    assert sum(sizes[-connections:]) <= max(4 * MIB * connections, sum(sizes) // 2)


def test_a_large_file_takes_few_requests_and_a_small_one_too() -> None:
    assert len(Limits().segments([(0, 3 * MIB)])) == 1
    assert len(Limits().segments([(0, 400 * MIB)])) < 50
    assert len(Limits().segments([(0, 40 * GIB)])) < 750


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[Partial]:
    made = Partial(tmp_path / "file")
    made.open()
    made.resume("etag", len(DATA))
    yield made
    made.close()


def test_the_digest_follows_what_is_there_without_a_gap(partial: Partial) -> None:
    digest = Digest(hashlib.sha256(DATA).hexdigest(), len(DATA))
    follower = Follower(partial, digest)
    partial.write(DATA[MIB:], MIB)
    partial.mark(MIB, len(DATA))
    assert not follower.follow()
    partial.write(DATA[: MIB - BLOCK], 0)
    partial.mark(0, MIB - BLOCK)
    assert not follower.follow(STEP_BYTES), "less than asked for"
    assert follower.follow()
    assert (follower.at, follower.behind) == (MIB - BLOCK, MIB - BLOCK)
    partial.write(DATA[MIB - BLOCK : MIB], MIB - BLOCK)
    partial.mark(MIB - BLOCK, MIB)
    while follower.follow():
        pass
    assert follower.at == len(DATA)
    assert digest.right


def test_connections_wait_one_by_one_for_a_digest_that_is_behind_and_the_first_never(partial: Partial) -> None:
    link, count = (
        Link(Location("http://127.0.0.1/", "etag", len(DATA)), lambda: pytest.fail("it is not asked")),
        Count(),
    )
    fetch = Fetch(partial, link, Digest("0" * 64, len(DATA)), Limits(), count)

    def waiting() -> list[int]:
        return [number for number in range(4) if fetch._is_ahead(number)]

    assert waiting() == []
    count.fetched = 100 * AHEAD_BYTES
    assert waiting() == [], "nothing of it can be hashed: there is a gap"
    found = []
    for lag in range(6):
        fetch._follower.behind = lag * AHEAD_BYTES
        found.append(waiting())
    assert found == [[], [3], [2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    count.fetched = 0
    assert waiting() == [], "what was there before is hashed meanwhile, and nobody waits for it"
