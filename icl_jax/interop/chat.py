"""Chat messages as the text that a model was trained on: Jinja templates, in a sandbox.

Templates get no clock (``strftime_now``): the same messages give the same text tomorrow. Those that
would write today's date fall back to a fixed one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from icl_jax.interop.safetensors import missing_package
from icl_jax.interop.tokenizer import Tokenizer

Message = Mapping[str, Any]


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The text of a conversation.

    Args:
      tokenizer: with a chat template.
      messages: ``{"role": ..., "content": ...}`` each.
      add_generation_prompt: whether the text ends with the header of an answer to come.

    Raises:
      ValueError: no template, or one that refuses these messages.
      ImportError: jinja2 is not installed.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            'render_chat: the checkpoint has no chat template. Give texts ("remove" and "keep", '
            'or "spans") instead of messages.'
        )
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise missing_package("jinja2") from error

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _generation_extension()],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    try:
        return environment.from_string(tokenizer.chat_template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens,
        )
    except TemplateError as error:
        raise ValueError(f"render_chat: the template refuses these messages: {error}") from error


def message_ends(tokenizer: Tokenizer, messages: Sequence[Message], text: str) -> list[int]:
    """Where in the text of a conversation each message ends; the last one at the text's end.

    What a template writes around a message belongs to it. Where a template writes a message
    differently once more follow, the message ends with its content.

    Raises:
      ValueError: a message's content is not in the text.
    """
    ends: list[int] = []
    for count, message in enumerate(messages[:-1], 1):
        start = ends[-1] if ends else 0
        try:
            prefix = render_chat(tokenizer, messages[:count], add_generation_prompt=False)
        except ValueError:  # Some templates want conversations to be whole.
            prefix = ""
        content = str(message["content"]).strip()
        at = text.find(content, start)
        if at < 0:
            raise ValueError(
                f'message_ends: the template changes the content of message {count}. Give "spans" '
                "of the rendered text instead of messages."
            )
        whole = text.startswith(prefix) and len(prefix) >= at + len(content)
        ends.append(len(prefix) if whole else at + len(content))
    return [*ends, len(text)]


def _generation_extension() -> Any:
    """``{% generation %}`` marks what an assistant says; it changes nothing of the text."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    # Jinja's own escapes what HTML would read.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)
