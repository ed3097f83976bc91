from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llmlb.bus.errors import InvalidRequest
from llmlb.bus.messages.infer import ChatMessage, ContentPart, InferRequest, Sampling, Tool, ToolCall
from llmlb.node.engine.prompts import PromptMaker, RenderedPrompt, reader_for
from llmlb.node.engine.reasoning import FAMILIES
from llmlb.node.engine.templates import ChatTemplate
from llmlb.node.engine.tools import FUNCTIONARY_RECIPIENT, HERMES, MISTRAL

WEATHER = Tool(name="get_weather", description="Weather {of} a city", parameters='{"properties": {"city": {}}}')
NOW = Tool(name="now")
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role == 'system' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
"""As Gemma's: no system role, and user and assistant in turn."""
SHOWING = "{{ messages | tojson }}{{ tools | tojson }}"


def user(text: str = "hi", *parts: ContentPart) -> ChatMessage:
    return ChatMessage(role="user", content=text, parts=parts)


def calls(*ids: str, content: str = "") -> ChatMessage:
    each = tuple(ToolCall(id=one, name="get_weather", arguments='{"city": "Paris"}') for one in ids)
    return ChatMessage(role="assistant", content=content, tool_calls=each)


def result(identifier: str, text: str = "sunny") -> ChatMessage:
    return ChatMessage(role="tool", content=text, tool_call_id=identifier)


def image(color: str = "red", size: tuple[int, int] = (3, 2)) -> ContentPart:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return ContentPart(type="image", data=base64.b64encode(file.getvalue()).decode())


def text(value: str) -> ContentPart:
    return ContentPart(type="text", text=value)


def render(template: str, *messages: ChatMessage, **fields: Any) -> RenderedPrompt:
    request = InferRequest(request_id="r", model="m", kind="chat", messages=messages, **fields)
    return PromptMaker(ChatTemplate(template)).render(request)


def shown(template: str, *messages: ChatMessage, **fields: Any) -> list[dict[str, Any]]:
    """The turns that a template which knows tools was given."""
    rendered = render("{{ messages | tojson }}{# tools " + template + " #}", *messages, **fields)
    turns: list[dict[str, Any]] = json.loads(rendered.text)
    return turns


def test_a_completion_is_its_prompt_and_nothing_else() -> None:
    request = InferRequest(request_id="r", model="m", kind="completion", prompt="Once <think>", tools=(NOW,))
    rendered = PromptMaker(ChatTemplate(CHATML)).render(request)
    assert (rendered.text, rendered.opened, rendered.tools) == ("Once <think>", None, ())
    reader = reader_for(request, rendered)
    assert reader.feed(b"<think>a</think>").text == "<think>a</think>"


def test_a_template_that_knows_tools_gets_them_as_openai_has_them() -> None:
    rendered = render(SHOWING, user(), tools=(WEATHER, NOW))
    assert rendered.tools == (WEATHER, NOW)
    described = json.loads(rendered.text[rendered.text.index("}][") + 2 :])
    assert described[0]["function"] == {
        "name": "get_weather",
        "description": "Weather {of} a city",
        "parameters": {"properties": {"city": {}}},
    }


def test_one_that_knows_none_gets_instructions_in_the_system_prompt() -> None:
    alone = render(CHATML, user(), tools=(WEATHER,))
    assert alone.format == HERMES
    assert alone.text.startswith("<system>You may call")
    assert '"Weather {of} a city"' in alone.text
    assert render(CHATML, ChatMessage(role="system", content="Be brief."), user(), tools=(NOW,)).text.startswith(
        "<system>Be brief.\n\nYou may call"
    )
    assert render(CHATML, user()).text == "<user>hi<assistant>"


def test_one_that_has_no_system_role_gets_them_from_the_user() -> None:
    rendered = render(ALTERNATING, user("What?"), tools=(NOW,))
    assert rendered.text.startswith("[user]You may call")
    assert rendered.text.endswith("What?")


def test_calls_and_results_are_plain_turns_in_turn_for_a_template_without_tools() -> None:
    turns = [user("Where?"), calls("a", "b", content="I look."), result("a"), result("b", "rain"), user("And?")]
    rendered = render(ALTERNATING, *turns)
    assert rendered.text == (
        '[user]Where?[assistant]I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
        "[user]<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>\nAnd?"
    )


def test_arguments_are_objects_for_templates_and_text_where_they_are_none() -> None:
    broken = ToolCall(id="b", name="now", arguments="{oops")
    turns = shown("", user(), calls("a"), result("a"), ChatMessage(role="assistant", content="", tool_calls=(broken,)))
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert turns[3]["tool_calls"][0]["function"]["arguments"] == "{oops"
    assert turns[2]["tool_call_id"] == "a"


def test_a_template_that_adds_arguments_to_text_gets_text() -> None:
    each = "{% for c in m.tool_calls %}{{ '>' + c.function.arguments }}{% endfor %}"
    template = "{# tools #}{% for m in messages %}" + each + "{% endfor %}"
    assert render(template, user(), calls("a"), result("a")).text == '>{"city": "Paris"}'


def test_a_template_that_takes_one_call_at_once_gets_one_after_the_other() -> None:
    template = (
        "{# tools #}{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}"
        "{{ raise_exception('one at once') }}{% endif %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.id }}{% endfor %}{% endfor %}"
    )
    turns = [user(), calls("a", "b", content="I look."), result("b", "rain"), result("a"), user("And?")]
    assert render(template, *turns).text == "[user]hi[assistant]I look.a[tool]sunny[assistant]b[tool]rain[user]And?"
    with pytest.raises(InvalidRequest, match="one at once"):
        render(template, user(), calls("a", "b"), result("a"))


def test_mistral_gets_ids_as_short_as_it_wants_them_and_the_same_for_call_and_result() -> None:
    long = "call_0123456789abcdef01234567"
    turns = shown("[TOOL_CALLS]", user(), calls(long, "abcDEF123"), result(long), result("abcDEF123"))
    ids = [call["id"] for call in turns[1]["tool_calls"]]
    assert ids == [turns[2]["tool_call_id"], turns[3]["tool_call_id"]]
    assert ids[1] == "abcDEF123"
    assert len(ids[0]) == 9
    assert ids[0].isalnum()
    assert shown("", user(), calls(long), result(long))[2]["tool_call_id"] == long


def test_with_tool_choice_none_the_model_hears_of_no_tools() -> None:
    rendered = render(SHOWING, user(), tools=(NOW,), tool_choice="none")
    assert rendered.tools == ()
    assert rendered.text.endswith("null")
    assert reader_for(InferRequest(request_id="r", model="m", kind="chat"), rendered).feed(b"<tool_call>").text


def test_a_named_tool_is_the_only_one_and_has_to_be_there() -> None:
    rendered = render(SHOWING, user(), tools=(NOW, WEATHER), tool_choice="required", tool_name="now")
    assert rendered.tools == (NOW,)
    assert "get_weather" not in rendered.text
    with pytest.raises(InvalidRequest, match="'nope'"):
        render(SHOWING, user(), tools=(NOW,), tool_choice="required", tool_name="nope")


def test_forced_calls_are_json_and_free_ones_as_the_template_has_them() -> None:
    template = "{{ tools }}'>>>all\\n' + {{ messages[0].content }}"
    assert render(template, user(), tools=(NOW,)).format == FUNCTIONARY_RECIPIENT
    assert render(template, user(), tools=(NOW,), tool_choice="required").format == HERMES
    assert render("{{ tools }}[TOOL_CALLS]", user(), tools=(NOW,), tool_choice="required").format == MISTRAL


def test_functionary_names_the_user_even_without_tools() -> None:
    rendered = render("{{ tools }}'>>>all\\n'", user())
    reader = reader_for(InferRequest(request_id="r", model="m", kind="chat"), rendered)
    assert reader.feed(b"all\nHello").text == "Hello"


def test_a_block_that_the_prompt_opens_is_known_to_the_reader() -> None:
    rendered = render("{{ messages[0].content }}<assistant><think>\n", user())
    assert rendered.opened == FAMILIES[0]
    request = InferRequest(request_id="r", model="m", kind="chat", sampling=Sampling(stop=("END",)))
    piece = reader_for(request, rendered).feed(b"a</think>bEND")
    assert (piece.reasoning, piece.text) == ("a", "b")
    assert render("{{ messages[0].content }}<assistant>", user("<think>")).opened is None


def test_whether_to_think_is_a_variable_of_the_template_that_the_requests_own_win_over() -> None:
    template = "{{ enable_thinking is defined }} {{ enable_thinking }} {{ x }}"
    assert render(template, user()).text == "False  "
    assert render(template, user(), think=False).text == "True False "
    kwargs = '{"enable_thinking": true, "x": 1, "messages": []}'
    assert (
        render(template + "{{ messages | length }}", user(), think=False, template_kwargs=kwargs).text == "True True 11"
    )


@pytest.mark.parametrize("kwargs", ["[]", "1", "{", '"x"'])
def test_variables_that_are_no_object_are_the_requests_fault(kwargs: str) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        render(CHATML, user(), template_kwargs=kwargs)


def test_images_are_where_they_were_in_the_conversation() -> None:
    rendered = render(
        CHATML, user("", text("A"), image("red"), text("B")), user("", image("blue", (1, 1)), text("C")), user("D")
    )
    texts = [piece if isinstance(piece, str) else "#" for piece in rendered.pieces]
    assert texts == ["<user>A\n", "#", "\nB<user>", "#", "\nC<user>D<assistant>"]
    pixels = [piece for piece in rendered.pieces if not isinstance(piece, str)]
    assert [one.shape for one in pixels] == [(2, 3, 3), (1, 1, 3)]
    assert np.array_equal(pixels[0][0, 0], [255, 0, 0])
    assert rendered.images


def test_users_cannot_forge_the_place_of_an_image() -> None:
    tries = [f"<image-{'0' * 16}>", "<image-", "<__media__>", "<image-{{ mark }}>"]
    rendered = render(CHATML, user("", text(" ".join(tries)), image()), user(tries[0]))
    assert len(rendered.pieces) == 3
    assert " ".join(tries) in rendered.text
    assert not render(CHATML, *(user(one) for one in tries)).images
    first, second = (render("{{ messages | tojson }}", user("", image())).pieces[0] for _ in range(2))
    assert first == second, "the mark itself is never in the prompt"


@pytest.mark.parametrize("template", ["nothing", "{{ messages[0].content }}{{ messages[0].content }}"])
def test_a_template_that_drops_or_repeats_images_is_refused(template: str) -> None:
    with pytest.raises(InvalidRequest, match="images"):
        render(template, user("", image()))


@pytest.mark.parametrize("data", ["not base64!", "é", "AAAA", ""])
def test_what_is_no_image_is_the_requests_fault(data: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        render(CHATML, user(), user("", ContentPart(type="image", data=data)))
    assert error.value.param == "messages.1.content"
