"""Chat messages as the text that a model was trained on: Jinja templates, in a bounded sandbox.

A template gets what transformers gives it, but for the clock: the same messages give the same text
tomorrow. Templates that ask whether there is a clock (``strftime_now``) are told that there is none
and write a date of their own; those that read it without asking get ``DATE``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from icl_jax.interop.template_process import PROCESS
from icl_jax.interop.template_worker import DAMAGED, DATE
from icl_jax.interop.tokenizer import Tokenizer

__all__ = ["DATE", "Message", "render_chat", "render_messages"]

Message = Mapping[str, Any]


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
    (found,) = _render(tokenizer, [(messages, add_generation_prompt)])
    return _text(found)


def _render(
    tokenizer: Tokenizer, asked: Sequence[tuple[Sequence[Message], bool]]
) -> list[dict[str, str]]:
    """The text or the error of each conversation, with the header of an answer to come or not."""
    if tokenizer.chat_template is None:
        raise ValueError(
            'render_chat: the checkpoint has no chat template. Give texts ("remove" and "keep", '
            'or "spans") instead of messages.'
        )
    for messages, _ in asked:
        _check(messages)
    renderings = [
        {
            **tokenizer.special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompted,
        }
        for messages, prompted in asked
    ]
    found = PROCESS.render(tokenizer.chat_template, renderings)
    # A template that is damaged, or that had to be stopped, has one answer for all.
    return found if len(found) == len(asked) else found * len(asked)


def _text(found: Mapping[str, str]) -> str:
    """The text of a rendering; ValueError where it is an error."""
    if "text" in found:
        return found["text"]
    if found["kind"] == DAMAGED:
        raise ValueError(f"render_chat: {found['error']}. Fetch the tokenizer's files again.")
    raise ValueError(
        f"render_chat: the template refuses these messages: {found['error']} ({found['kind']}). "
        'Change them, or give the text of the whole prompt as "spans".'
    )


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
    # Contents may well stand elsewhere in the text too ("user" in a header), so they are looked for
    # between the pieces that the template writes around marks which cannot.
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    parts = [(messages[:count], False) for count in range(1, len(messages) + 1)]
    whole_found, marked_found, *found = _render(
        tokenizer, [(messages, prompted), (marked, prompted), *parts]
    )
    text = _text(whole_found)
    contents = _contents(messages, marks, _text(marked_found), text)
    ends = []
    for count, (_, content_end) in enumerate(contents, 1):
        following = contents[count][0] if count < len(contents) else len(text)
        # Some templates want conversations to be complete: then there is no text.
        whole = found[count - 1].get("text", "")
        is_part = text.startswith(whole) and content_end <= len(whole) <= following
        ends.append(len(whole) if is_part else content_end)
    return text, ends


def _contents(
    messages: Sequence[Message], marks: Sequence[str], rest: str, text: str
) -> list[tuple[int, int]]:
    """Where in the text of a conversation the content of each message begins and ends.

    Args:
      messages: of the conversation.
      marks: what stands for the content of each.
      rest: the text of the conversation with the marks.
      text: the text of the conversation.
    """
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
