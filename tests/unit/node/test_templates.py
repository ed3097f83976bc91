from __future__ import annotations

import pytest

from llmlb.bus.errors import InvalidRequest, ModelLoadFailed
from llmlb.node.engine.templates import ChatTemplate
from llmlb.node.store.bundled import bundled_path
from llmlb.node.store.gguf import read_gguf

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def smollm2() -> ChatTemplate:
    path = bundled_path()
    assert path is not None
    return ChatTemplate(read_gguf(path).chat_template)


def test_the_demo_models_own_template(smollm2: ChatTemplate) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *USER]
    assert smollm2.origin == "model"
    assert smollm2.render(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "You are a helpful AI assistant named SmolLM" in smollm2.render(USER)


def test_a_model_without_a_template_gets_chatml() -> None:
    template = ChatTemplate(None)
    assert template.origin == "default"
    assert template.render(USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_text_of_users_is_never_a_template() -> None:
    turns = [{"role": "user", "content": "{{ 7 * 7 }}{% for x in y %}"}]
    assert "{{ 7 * 7 }}{% for x in y %}" in ChatTemplate(None).render(turns)


def test_what_the_template_refuses_is_the_requests_fault() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template.render(USER)


def test_a_template_without_developer_gets_it_as_system() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role not in ['system', 'user'] %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}]{% endfor %}"
    )
    assert template.render([{"role": "developer", "content": "x"}, *USER]) == "[system][user]"


def test_a_template_that_is_not_jinja_fails_at_load() -> None:
    with pytest.raises(ModelLoadFailed, match="not valid"):
        ChatTemplate("{% for x in %}")


SHARED = (
    "{% set ns = namespace(a=['x'], b=['x'], t=('x',), d={}) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% set ns.t = (ns.t, ns.t) %}"
    "{% set ns.d = {1: ns.d, 2: ns.d} %}"
    "{% endfor %}"
)
"""Lists of sixty levels, whose text has 2 ** 60 characters."""
SHARED_PRINTED = [
    "{{ ns.a }}",
    "{{ ns.d }}",
    "{{ ns }}",
    "{{ ns.d.values() }}",
    "{{ ns.d.items() }}",
    "{{ 'a' ~ ns.a }}",
    "{{ ns.a|string }}",
    "{{ ns.a|tojson }}",
    "{{ {'a': ns.d}|tojson(indent=1) }}",
    "{{ ns.a|pprint }}",
    "{{ ns.a|join }}",
    "{{ [ns.a]|join('-') }}",
    "{{ ns.a|upper }}",
    "{{ ns.a|replace('a', 'b') }}",
    "{{ [ns.a]|map('string')|list }}",
    "{{ '{}'.format(ns.a) }}",
    "{{ '{x}'.format(x=ns.a) }}",
    "{{ raise_exception(ns.a) }}",
    "{% if ns.a == ns.b %}{% endif %}",
    "{% if ns.a < ns.b %}{% endif %}",
    "{% if ns.a in [ns.b] %}{% endif %}",
    "{% if ns.a is eq(ns.b) %}{% endif %}",
    "{% if ns.a is in([ns.b]) %}{% endif %}",
    "{{ [{'a': ns.a}]|selectattr('a', 'equalto', ns.b)|list|length }}",
    "{{ [ns.a, ns.b]|sort|length }}",
    "{{ [ns.a, ns.b]|max|length }}",
    "{{ [ns.a]|map('list') }}",
    "{{ [ns.a]|map('list')|tojson }}",
    "{{ [ns.a]|map('list')|join }}",
    "{{ [ns.a, ns.b]|map('list')|sort|length }}",
    "{% if ns.a in [ns.b]|map('list') %}{% endif %}",
    "{{ dict([(ns.t, 1)]|map('list'))|length }}",
    "{{ [ns.b].index(ns.a) }}",
    "{{ {}.get(ns.t) }}",
    "{{ {}[ns.t] }}",
    "{{ {ns.t: 1}|length }}",
    "{{ dict([(ns.t, 1)])|length }}",
    "{{ [ns.t]|unique|list|length }}",
    "{% for x in [ns.a, ns.b] %}{{ loop.changed(x) }}{% endfor %}",
]


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'a' * 1000000 * 1000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(10000000000) %}x{% endfor %}",
        "{{ '%10000000000d' % 1 }}",
        "{{ messages.append(1) }}",
        "{{ undefined_thing.attribute }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aaa') %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x|replace('a', 'aaa') %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a'|center(10000000000) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=10000000000) }}",
        "{{ '%10000000000d'|format(1) }}",
        "{{ 'a\nb'|indent(10000000000) }}",
        "{{ messages|tojson(indent=10000000000) }}",
        "{{ ([[0] * 10000] * 1000)|sum(start=[])|length }}",
        "{% set x = 'x' * 15000000 %}{{ range(60)|join(x)|length }}",
        "{% set x = 'x' * 15000000 %}{{ x.join(['a'] * 60)|length }}",
        "{% set x = 'x' * 9000000 %}{{ ''.join([x, x])|length }}",
        "{% set x = '\t' * 9000 %}{{ x.expandtabs(99999)|length }}",
        "{% set x = 'x' * 9000000 %}{{ x.translate({120: x})|length }}",
        "{{ (1).to_bytes(10000000000, 'big')|length }}",
        "{{ cycler() }}",
        "{{ [1, 'a']|sort }}",
        "{{ 'x'|filesizeformat }}",
        "{{ lipsum(n=1000000) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        *(SHARED + printed for printed in SHARED_PRINTED),
    ],
)
def test_a_hostile_template_gets_nothing_and_ends(hostile: str) -> None:
    with pytest.raises((InvalidRequest, ModelLoadFailed)):
        ChatTemplate(hostile).render(USER)


def test_the_usual_helpers_are_there() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ strftime_now('%Y')|length }}{{ {'a': '<é>'}|tojson }}"
        "{% for x in [1,2,3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
        bos="<s>",
    )
    assert template.render(USER) == '<s>4{"a": "<é>"}1'


def test_joining_and_adding_are_as_jinja_has_them() -> None:
    cases = {
        "{{ [1, 'a', none]|join('-') }}": "1-a-None",
        "{{ messages|join(', ', attribute='role') }}": "user",
        "{{ [1, 2.5]|sum }} {{ [[1], [2]]|sum(start=[]) }}": "3.5 [1, 2]",
        "{{ messages|map(attribute='content')|map('length')|sum }}": str(len(USER[0]["content"])),
        "{{ '-'.join(['a', 'b']) }}{{ 'a\tb'.expandtabs(4) }}{{ 'ab'.replace('a', 'c') }}": "a-ba   bcb",
    }
    for source, rendered in cases.items():
        assert ChatTemplate(source).render(USER) == rendered


def test_tools_and_further_variables_reach_the_template_but_do_not_replace_its_own() -> None:
    template = ChatTemplate("{{ tools[0].function.name }}{{ enable_thinking }}{{ messages|length }}")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert template.render(USER, tools=tools, extra={"enable_thinking": False, "messages": []}) == "fFalse1"


def test_tags_that_are_for_training_change_nothing() -> None:
    template = ChatTemplate("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert template.render(USER) == "hi"
    assert ChatTemplate("{{ messages|map(attribute='role')|tojson }}").render(USER) == '["user"]'


def test_values_are_written_compared_and_hashed_as_jinja_does_it() -> None:
    cases = {
        "{{ [1, 'a', [none]] }}{{ {'a': (1, 2)} }}{{ [1] ~ 'b' ~ 2 }}": "[1, 'a', [None]]{'a': (1, 2)}[1]b2",
        "{{ [1, 2] == [1, 2] }}{{ 1 < 2 < 3 }}{{ [1] in [[1]] }}{{ 'a' not in {'a': 1} }}": "TrueTrueTrueFalse",
        "{{ {('a', 1): 'x'}[('a', 1)] }}{{ dict(a=1).get('a') }}{{ {'a': 1}.items()|list }}": "x1[('a', 1)]",
        "{{ [3, 1]|sort }}{{ [{'a': 1}, {'a': 2}]|selectattr('a', 'eq', 2)|list }}": "[1, 3][{'a': 2}]",
        "{% set x = [1] %}{% set y = [x, x, x] %}{{ y }}{{ y|tojson }}{{ namespace(a=y) }}": "[[1], [1], [1]]"
        "[[1], [1], [1]]<Namespace {'a': [[1], [1], [1]]}>",
        "{{ undefined_thing }}{{ 'a' ~ undefined_thing ~ true }}": "aTrue",
    }
    for source, rendered in cases.items():
        assert ChatTemplate(source).render(USER) == rendered


def test_a_value_that_is_shared_and_not_written_out_is_no_harm() -> None:
    source = SHARED + "{{ ns.a|length }}{{ ns.a is defined }}{{ messages[0].role }}"
    assert ChatTemplate(source).render(USER) == "2Trueuser"
