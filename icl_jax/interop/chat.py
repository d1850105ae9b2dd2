"""Chat messages as the text that a model was trained on: Jinja templates, in a sandbox.

A template gets what transformers gives it, but for the clock: the same messages give the same text
tomorrow. Templates that ask whether there is a clock (``strftime_now``) are told that there is none
and write a date of their own; those that read it without asking get ``DATE``.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from icl_jax.interop.safetensors import missing_package
from icl_jax.interop.tokenizer import Tokenizer

Message = Mapping[str, Any]

#: Today, as templates see it: the day that those of Llama 3 write without a clock, at midnight.
DATE = {
    **{"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%-d": "26"},
    **{"%A": "Friday", "%a": "Fri", "%j": "208", "%F": "2024-07-26", "%-m": "7", "%%": "%"},
    **{"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%T": "00:00:00"},
}

_ASKS_FOR_CLOCK = re.compile(r"\bstrftime_now\s+is\s+(not\s+)?(un)?defined\b")


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """The text of a conversation.

    Args:
      tokenizer: with a chat template.
      messages: ``{"role": ..., "content": ...}`` each, both texts.
      add_generation_prompt: whether the text ends with the header of an answer to come.

    Raises:
      ValueError: no template, a damaged one, one that refuses these messages, or a message that
        lacks its role or content.
      ImportError: jinja2 is not installed.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            'render_chat: the checkpoint has no chat template. Give texts ("remove" and "keep", '
            'or "spans") instead of messages.'
        )
    _check(messages)
    template = _compiled(tokenizer.chat_template)
    variables = {
        **tokenizer.special_tokens,
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return str(template.render(variables))
    except Exception as error:  # Of the sandbox, or whatever the template's own code comes to.
        raise ValueError(
            f"render_chat: the template refuses these messages: {error} ({type(error).__name__}). "
            'Change them, or give the text of the whole prompt as "spans".'
        ) from error


def render_messages(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str, list[int]]:
    """A conversation up to the next answer, and where in its text each message ends.

    What a template writes around a message belongs to it, a default system prompt in front to the
    first. Where a template writes more after a message once it is the last, nobody can say what of
    the text between two messages belongs to which: then the message ends with its content.

    Args:
      tokenizer: with a chat template.
      messages: as ``render_chat`` takes them.

    Returns:
      The text, and an end per message. The header of an answer to come stands after the last end;
      there is none if the last message is the assistant's.

    Raises:
      ValueError: as ``render_chat`` does; or the template leaves a message out, changes what it
        says, or writes messages in another order.
    """
    _check(messages)
    prompted = messages[-1]["role"] != "assistant"
    text = render_chat(tokenizer, messages, add_generation_prompt=prompted)
    contents = _contents(tokenizer, messages, text, prompted)
    ends = []
    for count, (_, content_end) in enumerate(contents, 1):
        following = contents[count][0] if count < len(contents) else len(text)
        try:
            whole = render_chat(tokenizer, messages[:count], add_generation_prompt=False)
        except ValueError:  # Some templates want conversations to be complete.
            whole = ""
        is_part = text.startswith(whole) and content_end <= len(whole) <= following
        ends.append(len(whole) if is_part else content_end)
    return text, ends


def _contents(
    tokenizer: Tokenizer, messages: Sequence[Message], text: str, prompted: bool
) -> list[tuple[int, int]]:
    """Where in the text of a conversation the content of each message begins and ends."""
    # Contents may well stand elsewhere in the text too ("user" in a header), so they are looked for
    # between the pieces that the template writes around marks which cannot.
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    rest = render_chat(tokenizer, marked, add_generation_prompt=prompted)
    pattern = ""
    for number, (mark, message) in enumerate(zip(marks, messages, strict=True), 1):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise ValueError(_unclear(number, "does not write it once, after the one before"))
        said = message["content"]
        # Templates may strip what is said.
        forms = dict.fromkeys((said, said.lstrip(), said.rstrip(), said.strip()))
        pattern += re.escape(before) + "(" + "|".join(map(re.escape, forms)) + ")"
    match = re.fullmatch(pattern + re.escape(rest), text)
    if match is None:
        raise ValueError(_unclear(None, "changes what they say"))
    return [match.span(number) for number in range(1, len(messages) + 1)]


def _unclear(number: int | None, reason: str) -> str:
    which = "the messages" if number is None else f"message {number}"
    return (
        f"render_messages: where {which} ends in the text is unclear: the template {reason}. Give "
        'the text of the whole prompt as "spans" instead of messages.'
    )


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("render_chat: there are no messages. Give one at least.")
    for number, message in enumerate(messages, 1):
        found = message if isinstance(message, Mapping) else {}
        if not all(isinstance(found.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f'render_chat: message {number} must be {{"role": ..., "content": ...}} of texts, '
                f"got {message!r}."
            )


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """A template in a sandbox that changes nothing and reaches nothing."""
    try:
        from jinja2.exceptions import TemplateSyntaxError
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
    if not _ASKS_FOR_CLOCK.search(template):
        environment.globals["strftime_now"] = _date
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"render_chat: line {error.lineno} of the chat template is damaged: {error.message}. "
            "Fetch the tokenizer's files again."
        ) from error


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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes what HTML would read.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _date(form: str) -> str:
    """DATE as ``strftime`` would write it."""

    def part(match: re.Match[str]) -> str:
        if match[0] not in DATE:
            _raise(f"strftime_now knows {', '.join(DATE)}, got {match[0]!r}")
        return DATE[match[0]]

    return re.sub(r"%-?.?", part, form)


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)
