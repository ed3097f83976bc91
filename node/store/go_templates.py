"""Ollama's templates are Go's, not Jinja: the well-known families are recognised by their marks and put into Jinja.

Recognised, not translated: a template with code of its own (tools, thinking) comes out as the plain chat form of its
family. Source of the forms: the chat templates of the families' first models on the Hub.
"""

from __future__ import annotations

_LOOP = "{% for message in messages %}"
_END = "{% endfor %}"
_GO_ON = "{% if add_generation_prompt %}"

_SYSTEM_FIRST = (
    "{% if messages and messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)
_TURNS = "{% for message in turns %}"


def _marked(before: str, between: str, after: str, *, bos: bool = False) -> str:
    """A family that writes each turn between marks, with the role in them."""
    return (
        ("{{ bos_token }}" if bos else "")
        + _LOOP
        + f"{{{{ '{before}' + message.role + '{between}' + message.content + '{after}' }}}}"
        + _END
        + f"{_GO_ON}{{{{ '{before}assistant{between}' }}}}{{% endif %}}"
    )


def _titled(user: str, between: str, answer: str, end: str) -> str:
    """A family that writes the system prompt first, then turns under titles."""
    return (
        _SYSTEM_FIRST
        + "{{ bos_token }}{% if system %}{{ system + '\\n\\n' }}{% endif %}"
        + _TURNS
        + "{% if message.role == 'assistant' %}"
        + f"{{{{ '{answer}' + message.content + {end} }}}}"
        + "{% else %}"
        + f"{{{{ '{user}' + message.content + '{between}' }}}}"
        + "{% endif %}"
        + _END
        + f"{_GO_ON}{{{{ '{answer.rstrip()}' }}}}{{% endif %}}"
    )


def _instructed(system: str) -> str:
    """Llama 2 and Mistral: ``[INST]`` around what the user says; ``system`` is put before the first of it."""
    return (
        _SYSTEM_FIRST
        + "{{ bos_token }}"
        + _TURNS
        + "{% if message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
        + "{% else %}{{ '[INST] ' }}{% if loop.first and system %}"
        + system
        + "{% endif %}{{ message.content + ' [/INST]' }}{% endif %}"
        + _END
    )


_GEMMA = (
    _SYSTEM_FIRST
    + "{{ bos_token }}"
    + _TURNS
    + "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
    + "{% if loop.first and system %}{{ system + '\\n\\n' }}{% endif %}{{ message.content + '<end_of_turn>\\n' }}"
    + _END
    + f"{_GO_ON}{{{{ '<start_of_turn>model\\n' }}}}{{% endif %}}"
)
_DEEPSEEK_USER, _DEEPSEEK_ANSWER = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
_DEEPSEEK = (
    _SYSTEM_FIRST
    + "{{ bos_token }}{{ system }}"
    + _TURNS
    + f"{{% if message.role == 'assistant' %}}{{{{ '{_DEEPSEEK_ANSWER}' + message.content + eos_token }}}}"
    + f"{{% else %}}{{{{ '{_DEEPSEEK_USER}' + message.content }}}}{{% endif %}}"
    + _END
    + f"{_GO_ON}{{{{ '{_DEEPSEEK_ANSWER}' }}}}{{% endif %}}"
)

FAMILIES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("phi4", ("<|im_start|>", "<|im_sep|>"), _marked("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    ("chatml", ("<|im_start|>", "<|im_end|>"), _marked("<|im_start|>", "\\n", "<|im_end|>\\n")),
    (
        "llama3",
        ("<|start_header_id|>", "<|eot_id|>"),
        _marked("<|start_header_id|>", "<|end_header_id|>\\n\\n", "<|eot_id|>", bos=True),
    ),
    ("gemma", ("<start_of_turn>", "<end_of_turn>"), _GEMMA),
    ("llama2", ("[INST]", "<<SYS>>"), _instructed("{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}")),
    ("mistral", ("[INST]", "[/INST]"), _instructed("{{ system + '\\n\\n' }}")),
    ("phi3", ("<|user|>", "<|end|>"), _marked("<|", "|>\\n", "<|end|>\\n")),
    ("zephyr", ("<|user|>", "</s>"), _marked("<|", "|>\\n", "</s>\\n")),
    ("deepseek", (_DEEPSEEK_USER, _DEEPSEEK_ANSWER), _DEEPSEEK),
    ("alpaca", ("### Instruction:",), _titled("### Instruction:\\n", "\\n\\n", "### Response:\\n", "'\\n\\n'")),
    ("vicuna", ("USER:", "ASSISTANT:"), _titled("USER: ", "\\n", "ASSISTANT: ", "eos_token + '\\n'")),
)
"""(name, marks that all are in the Go template, the form in Jinja), the more special ones first."""


def recognised(template: str) -> tuple[str, str] | None:
    """(family, template in Jinja) of a Go template; None when it is of none that is known."""
    for name, marks, jinja in FAMILIES:
        if all(mark in template for mark in marks):
            return name, jinja
    return None
