"""Users, invitations, tokens, throttling, limits: the pure parts of who may."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlb.bus.errors import Conflict, InvalidRequest, NotFound, RateLimited
from llmlb.bus.messages.identity import KeyLimits, People
from llmlb.router.identity import book, passwords, signed
from llmlb.router.identity.limits import Bucket, Meter
from llmlb.router.identity.throttle import MOST, Logins, Throttle

CLAIMS = signed.Claims(user_id="u", session_id="s", epoch=1, issued_at=10.0, expires_at=20.0)


@pytest.fixture
def people() -> People:
    return book.add(book.add(People(), "alice", "admin", "hash", 1.0), "bob", "viewer", "hash", 2.0)


def test_the_first_user_is_an_admin() -> None:
    with pytest.raises(InvalidRequest, match="first user must be an admin"):
        book.add(People(), "bob", "viewer", "", 1.0)


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a\n", "a\r\nSet-Cookie: x", "é", "a/b", "a\x00", "<b>"])
def test_a_name_holds_nothing_that_could_be_taken_for_something_else(name: str) -> None:
    with pytest.raises(InvalidRequest):
        book.add(People(), name, "admin", "", 1.0)


def test_a_name_is_given_once(people: People) -> None:
    with pytest.raises(Conflict):
        book.add(people, "bob", "admin", "", 3.0)


def test_the_last_admin_stays_an_admin(people: People) -> None:
    for change in (lambda: book.remove(people, "alice"), lambda: book.set_role(people, "alice", "viewer")):
        with pytest.raises(Conflict, match="last admin"):
            change()
    two = book.set_role(people, "bob", "admin")
    assert [user.name for user in book.remove(two, "alice").users] == ["bob"]


def test_whoever_is_unknown_is_said_to_be(people: People) -> None:
    for change in (lambda: book.remove(people, "x"), lambda: book.set_password(people, "x", "h")):
        with pytest.raises(NotFound):
            change()


def test_another_password_ends_the_sessions_before_it(people: People) -> None:
    after = book.find(book.set_password(people, "bob", "other"), "bob")
    assert after is not None
    assert (after.password, after.epoch) == ("other", 1)


def test_an_invitation_makes_one_user_before_it_expires(people: People) -> None:
    code = book.new_code()
    invited = book.invite(people, book.digest_of(code), "viewer", "alice", 100.0, 1.0)
    assert code not in invited.model_dump_json()
    after = book.redeem(invited, code, "carol", "hash", 99.0)
    assert [user.name for user in after.users] == ["alice", "bob", "carol"]
    for state, given_code, now in ((after, code, 99.0), (invited, code, 100.0), (invited, "invite-x", 1.0)):
        with pytest.raises(InvalidRequest, match="not valid, was used, or has expired"):
            book.redeem(state, given_code, "dave", "hash", now)


def test_expired_invitations_make_room(people: People) -> None:
    for _ in range(book.MOST_INVITATIONS):
        people = book.invite(people, "0" * 64, "viewer", "alice", 10.0, 1.0)
    with pytest.raises(Conflict):
        book.invite(people, "1" * 64, "viewer", "alice", 20.0, 1.0)
    assert len(book.invite(people, "1" * 64, "viewer", "alice", 20.0, 11.0).invitations) == 1


def test_a_password_is_recognised_and_its_hash_tells_nothing() -> None:
    hashed = passwords.make_hash("correct horse")
    assert "correct" not in hashed
    assert passwords.matches("correct horse", hashed)
    assert not passwords.matches("correct horsf", hashed)
    assert not passwords.matches("correct horse", "argon2$of$a$newer$version$x")
    assert not passwords.matches("correct horse", "scrypt$60$8$5$AAAA$AAAA"), "a cost that no machine can pay"


@pytest.mark.parametrize("password", ["short", "x" * 257])
def test_a_password_has_a_sensible_length(password: str) -> None:
    with pytest.raises(InvalidRequest):
        passwords.checked(password)


async def test_no_more_passwords_are_hashed_at_once_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "WAITING_MAX", 1)
    hasher = passwords.Hasher()
    first = asyncio.ensure_future(hasher.matches("x" * 8, None))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await hasher.hash("y" * 8)
    assert not await first
    assert await hasher.hash("y" * 8)
    hasher.close()


def test_a_token_is_read_with_its_secret_only() -> None:
    token = signed.sign(CLAIMS, b"secret")
    assert signed.read(token, b"secret") == CLAIMS
    assert signed.read(token, b"other") is None


@given(st.integers(0, 200), st.characters())
def test_a_changed_token_is_nothing(at: int, char: str) -> None:
    token = signed.sign(CLAIMS, b"secret")
    at %= len(token)
    changed = token[:at] + char + token[at + 1 :]
    assert signed.read(changed, b"secret") in ((CLAIMS,) if changed == token else (None,))


@given(st.text())
def test_any_text_is_a_token_or_nothing(text: str) -> None:
    assert signed.read(text, b"secret") is None


def test_a_token_without_a_signature_is_nothing() -> None:
    """The classic holes: alg none, another algorithm, an empty signature."""
    body = signed.sign(CLAIMS, b"secret").split(".")[1]
    for header in (b'{"alg":"none"}', b'{"alg":"HS512","typ":"JWT"}', b'{"typ":"JWT","alg":"HS256"}'):
        head = signed._text(header)
        for mac in ("", signed._text(signed._mac(b"secret", f"{head}.{body}"))):
            assert signed.read(f"{head}.{body}.{mac}", b"secret") is None


def test_a_csrf_token_is_for_one_session() -> None:
    assert signed.csrf_token("a", b"secret") != signed.csrf_token("b", b"secret")


def test_failures_make_one_wait_longer_each_time() -> None:
    throttle, now = Throttle(5), 0.0
    waits = []
    for _ in range(16):
        throttle.began("x", now)
        waits.append(throttle.wait_s("x", now))
        now += waits[-1]
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[4:9] == [1, 2, 4, 8, 16]
    assert waits[-1] == 300
    assert throttle.wait_s("y", now) == 0
    throttle.succeeded("x")
    assert throttle.wait_s("x", now) == 0


def test_old_failures_are_forgotten_and_few_are_kept() -> None:
    throttle = Throttle(2)
    throttle.began("x", 0.0)
    throttle.began("x", 4000.0)
    assert throttle.wait_s("x", 4000.0) == 0
    for number in range(MOST + 5):
        throttle.began(str(number), 0.0)
    assert len(throttle._seen) == MOST


def test_five_typos_of_a_stranger_lock_nobody_out() -> None:
    logins = Logins()
    for _ in range(5):
        assert logins.begin("alice", "10.0.0.1", 0.0) == 0
    assert logins.begin("alice", "10.0.0.1", 0.0) > 0
    assert logins.begin("alice", "10.0.0.2", 0.0) == 0


def test_guessing_over_many_names_or_addresses_is_slowed_too() -> None:
    logins = Logins()
    assert any(logins.begin(f"user{number}", "10.0.0.1", 0.0) > 0 for number in range(25))
    logins = Logins()
    assert any(logins.begin("alice", f"10.0.{number}.1", 0.0) > 0 for number in range(60))


def test_addresses_of_one_ipv6_network_are_one_peer() -> None:
    logins = Logins()
    for at in range(20):
        assert logins.begin(f"name{at}", f"2001:db8::{at:x}", 0.0) == 0.0
    assert logins.begin("another", "2001:db8::ffff:1%eth0", 0.0) > 0
    assert logins.begin("another", "2001:db8:0:1::1", 0.0) == 0.0
    assert logins.begin("another", "unknown:peer", 0.0) == 0.0
    for at in range(30):
        assert logins.begin("mapped", f"::ffff:198.51.100.{at}", 0.0) == 0.0, "IPv4 as such"


def test_nobody_keeps_others_from_registering() -> None:
    logins = Logins()
    for at in range(100):
        logins.begin("", f"203.0.113.{at}", 0.0)
        logins.failed("", f"203.0.113.{at}", 0.0)
    assert logins.begin("", "198.51.100.1", 0.0) == 0.0
    for _ in range(5):
        logins.begin("", "203.0.113.1", 100.0)
    assert logins.begin("", "203.0.113.1", 100.0) > 0, "but guessing is slowed"


def test_a_right_password_is_no_failure() -> None:
    logins = Logins()
    for _ in range(100):
        assert logins.begin("alice", "10.0.0.1", 0.0) == 0
        logins.succeeded("alice", "10.0.0.1")


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5)), max_size=50), st.integers(1, 100))
def test_a_bucket_never_gives_more_than_its_size_and_what_flowed_in(steps: list[tuple[float, int]], size: int) -> None:
    bucket, now, taken = Bucket(size, 0.0), 0.0, 0
    for wait_s, amount in steps:
        now += wait_s
        if bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            taken += amount
    assert taken <= size + now * size / 60 + 1e-6


def test_requests_a_minute() -> None:
    meter = Meter()
    meter.set(KeyLimits(requests_per_minute=2), 0.0)
    for _ in range(2):
        assert meter.refusal(0.0) is None
        meter.begin(0.0)
    refused = meter.refusal(0.0)
    assert refused is not None
    assert refused[1] == pytest.approx(30)
    assert meter.refusal(30.1) is None
    assert meter.headers(0.0)["x-ratelimit-limit-requests"] == "2"


def test_tokens_a_minute_may_be_overdrawn_by_one_answer() -> None:
    meter = Meter()
    meter.set(KeyLimits(tokens_per_minute=60), 0.0)
    assert meter.refusal(0.0) is None
    meter.used(120, 0.0)
    refused = meter.refusal(0.0)
    assert refused is not None
    assert refused[1] == pytest.approx(61)
    assert meter.headers(0.0)["x-ratelimit-remaining-tokens"] == "0"
    assert meter.refusal(62.0) is None


def test_a_limit_that_did_not_change_goes_on_counting() -> None:
    meter = Meter()
    meter.set(KeyLimits(requests_per_minute=1), 0.0)
    meter.begin(0.0)
    meter.set(KeyLimits(requests_per_minute=1, concurrency=3), 0.0)
    assert meter.refusal(0.0) is not None
    meter.set(KeyLimits(concurrency=1), 0.0)
    assert meter.refusal(0.0) is None
    meter.running = 1
    assert meter.refusal(0.0) is not None
