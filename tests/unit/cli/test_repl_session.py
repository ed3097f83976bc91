"""A conversation's turns, and what of them is sent."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmlb.cli.repl_session import ANSWER_SHARE, ImageData, Message, Session, SessionSettings, body_bytes, estimated

PLENTY = 7_000_000


def user(*parts: str | ImageData) -> Message:
    return Message("user", parts)


def answer(text: str) -> Message:
    return Message("assistant", (text,))


def usage(prompt: int, completion: int, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def test_the_defaults_are_those_of_the_data_model() -> None:
    settings = SessionSettings()
    assert (settings.temperature, settings.top_p, settings.max_tokens) == (0.7, 0.9, None)
    assert (settings.show_thinking, settings.stream) == (False, True)
    body = Session("m").request(user("hi"))
    assert (body["temperature"], body["top_p"], body["stream"]) == (0.7, 0.9, True)
    assert not {"max_tokens", "think"} & body.keys()
    body = Session("m", SessionSettings(max_tokens=5, think=True)).request(user("hi"))
    assert (body["max_tokens"], body["think"]) == (5, True)


def test_turns_are_sent_in_order_without_their_thinking() -> None:
    session = Session("m")
    session.add(user("one"), Message("assistant", ("1",), thinking="hmm"), usage(10, 5))
    sent = session.request(user("two"))["messages"]
    assert [(it["role"], it["content"]) for it in sent] == [("user", "one"), ("assistant", "1"), ("user", "two")]
    assert "hmm" not in str(sent)
    assert session.token_count == 15
    session.clear()
    assert session.request(user("two"))["messages"] == sent[2:]


def test_images_are_sent_where_they_stand() -> None:
    image = ImageData("image/png", b"abc")
    content = user("look at ", image, " now").body()["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text"]
    assert content[1]["image_url"]["url"] == "data:image/png;base64,YWJj"
    assert user(image, " ").body()["content"] == content[1:2], "a text of blanks is none"
    assert "abc" not in repr(image)


def test_the_oldest_turns_go_when_the_context_is_full_and_an_answer_finds_room() -> None:
    session = Session("m", context_length=400)
    for number in range(3):
        session.add(user(f"question {number}"), answer("a"), usage(100 * number + 50, 50))
    assert [turn.tokens for turn in session.history] == [100, 100, 100]
    assert session.fit(user("next"), PLENTY) == 1
    assert [turn.question.content for turn in session.history] == ["question 1", "question 2"]
    left = 400 - 200 - estimated(user("next"))
    assert left >= 400 // ANSWER_SHARE
    assert session.fit(user("next"), PLENTY) == 0


def test_thinking_takes_no_room_in_the_next_prompt() -> None:
    session = Session("m")
    session.add(user("q"), answer("a"), usage(50, 90, reasoning=80))
    assert session.history[0].tokens == 60


def test_a_context_that_is_not_known_has_room_and_the_server_has_the_last_word() -> None:
    session = Session("m")
    for number in range(5):
        session.add(user(str(number)), answer("a"), None)
    assert session.fit(user("next"), PLENTY) == 0
    assert session.drop_oldest() == 3
    assert session.drop_oldest() == 1
    assert session.drop_oldest() == 1
    assert session.drop_oldest() == 0


def test_turns_with_images_go_when_the_body_is_too_large_or_has_too_many() -> None:
    session = Session("m")
    image = ImageData("image/png", bytes(1_000_000))
    for _ in range(4):
        session.add(user(image, "?"), answer("a"), usage(10, 1))
    assert session.fit(user(image), 4_100_000) == 2
    session.clear()
    small = ImageData("image/png", b"x")
    session.add(user(*[small] * 20), answer("a"), usage(10, 1))
    assert session.fit(user(*[small] * 13), PLENTY) == 1


@given(st.lists(st.integers(0, 2000), max_size=12), st.integers(1, 4000), st.text(max_size=200))
def test_what_is_left_fits_or_is_nothing(tokens: list[int], context: int, text: str) -> None:
    session = Session("m", context_length=context)
    total = 0
    for count in tokens:
        session.add(user("q"), answer("a"), usage(total, count))
        total += count
    before = list(session.history)
    dropped = session.fit(user(text), PLENTY)
    assert session.history == before[dropped:]
    if session.history:
        assert sum(turn.tokens for turn in session.history) + estimated(user(text)) <= context


def test_half_a_surrogate_does_no_harm() -> None:
    message = user("\udc80")
    assert body_bytes(message) > 0
    assert estimated(message) > 0
