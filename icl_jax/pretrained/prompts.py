"""What a person gives as a prompt, and what of it is to go, as token ids and kept positions.

A prompt is a text, a conversation (messages with role and content), token ids, a line of a prompts'
file as a dictionary, or a ``Prompt``. What is removed (or kept: give one of the two, the rest is
the other) is, of

    a text           a text in it, a span ``(begin, end)`` of characters, or a list of them
    a conversation   the number of a message from 0, or a list of them
    token ids        a position, or a list of them
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from icl_jax import checks
from icl_jax.interop.chat import render_chat
from icl_jax.interop.spans import Prompt, parse_prompt
from icl_jax.interop.tokenizer import Tokenizer


def is_several(prompt: Any) -> bool:
    """Whether ``prompt`` is a list of prompts rather than one."""
    if isinstance(prompt, jax.Array | np.ndarray):
        return prompt.ndim == 2
    if isinstance(prompt, str | Mapping | Prompt) or not isinstance(prompt, Sequence):
        return False
    if all(isinstance(one, Mapping) and "role" in one for one in prompt):
        return not prompt
    return not all(isinstance(one, int | np.integer) for one in prompt)


def make_prompt(
    prompt: Any,
    tokenizer: Tokenizer | None,
    *,
    remove: Any = None,
    keep: Any = None,
    keep_bos: bool = True,
) -> Prompt:
    """A prompt in any of the forms above; without ``remove`` and ``keep``, all of it stays.

    Args:
      prompt: see the top of this file.
      tokenizer: of the checkpoint; None allows token ids only.
      remove, keep: see there; both only if they are all of the prompt together.
      keep_bos: whether a BOS in front stays when the text after it is removed.

    Raises:
      ValueError: a part that is not there, is there twice, or is asked to go and to stay; text
        without a tokenizer; or what ``interop.spans`` refuses.
      TypeError: no prompt, or parts of another kind than its.
    """
    asked = remove is not None or keep is not None
    if isinstance(prompt, Prompt | Mapping):
        if asked:
            raise ValueError(
                "prompt: it says itself what is kept; leave remove and keep out, or give its text."
            )
        if isinstance(prompt, Prompt):
            return prompt
        return parse_prompt(dict(prompt), tokenizer, keep_bos=keep_bos)
    if isinstance(prompt, str):
        if not asked:
            tokens_T = _needed(tokenizer).encode(prompt).tokens_T
            return _whole(tokens_T, prompt)
        keeps = _keeps(_marked_text(prompt, remove, "remove"), _marked_text(prompt, keep, "keep"))
        borders = [0, *(np.flatnonzero(np.diff(keeps)) + 1).tolist(), len(prompt)]
        spans = [
            {"text": prompt[begin:end], "keep": bool(keeps[begin])}
            for begin, end in zip(borders[:-1], borders[1:], strict=True)
        ]
        return parse_prompt({"spans": spans}, tokenizer, keep_bos=keep_bos)
    entries = np.asarray(prompt).tolist() if isinstance(prompt, jax.Array | np.ndarray) else prompt
    if not isinstance(entries, Sequence) or is_several(entries) or not len(entries):
        raise TypeError(
            f"prompt: must be a text, messages, token ids or a Prompt, got {type(prompt).__name__}."
        )
    if isinstance(entries[0], Mapping):
        return _conversation(entries, tokenizer, remove, keep, asked, keep_bos)
    tokens_T = checks.token_list("prompt", "tokens", entries)
    if not asked:
        return _whole(tokens_T, None)
    count = len(entries)
    keeps = _keeps(_marked(count, remove, "remove"), _marked(count, keep, "keep"))
    line = {"tokens": tokens_T.tolist(), "keep": np.flatnonzero(keeps).tolist()}
    return parse_prompt(line, tokenizer)


def _conversation(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer | None,
    remove: Any,
    keep: Any,
    asked: bool,
    keep_bos: bool,
) -> Prompt:
    if asked:
        count = len(messages)
        keeps = _keeps(_marked(count, remove, "remove"), _marked(count, keep, "keep"))
        messages = [
            {**one, "keep": bool(stays)} for one, stays in zip(messages, keeps, strict=True)
        ]
    elif not any("keep" in one for one in messages):
        text = render_chat(_needed(tokenizer), messages)
        return _whole(_needed(tokenizer).encode(text, add_special=False).tokens_T, text)
    return parse_prompt({"messages": list(messages)}, tokenizer, keep_bos=keep_bos)


def _whole(tokens_T: np.ndarray, text: str | None) -> Prompt:
    return Prompt(tokens_T, np.arange(len(tokens_T), dtype=np.int32), "", text)


def _needed(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(
            "prompt: the checkpoint has no tokenizer that can be read; give token ids instead of "
            "a text."
        )
    return tokenizer


def _keeps(removed: np.ndarray | None, kept: np.ndarray | None) -> np.ndarray:
    """Whether each character, message or token stays."""
    if removed is None or kept is None:
        return kept if removed is None else ~removed  # type: ignore[return-value]
    if np.any(removed & kept):
        raise ValueError("prompt: remove and keep share a part. Give one; the rest is the other.")
    if not np.all(removed | kept):
        raise ValueError(
            "prompt: a part of the prompt is neither in remove nor in keep. Give one of the two; "
            "the rest is the other."
        )
    return kept


def _marked_text(text: str, parts: Any, what: str) -> np.ndarray | None:
    """Which characters of a text are in its parts."""
    if parts is None:
        return None
    is_one = isinstance(parts, str) or (
        isinstance(parts, tuple) and all(isinstance(end, int | np.integer) for end in parts)
    )
    marked = np.zeros(len(text), bool)
    for part in [parts] if is_one else parts:
        if isinstance(part, str):
            times = text.count(part) if part else 0
            if times != 1:
                found = "is empty" if not part else f"is {times} times in the prompt"
                found = "is not in the prompt" if part and not times else found
                raise ValueError(
                    f"prompt: {what}: {part[:80]!r} {found}. Give a text that is there once, or a "
                    "span (begin, end) of characters."
                )
            begin = text.index(part)
            end = begin + len(part)
        else:
            begin, end = _span(part, len(text), what)
        marked[begin:end] = True
    return marked


def _span(part: Any, length: int, what: str) -> tuple[int, int]:
    if not (isinstance(part, Sequence) and len(part) == 2):
        raise TypeError(
            f"prompt: {what} must be a text, a span (begin, end) or a list of them, got {part!r}."
        )
    begin, end = (int(one) for one in part)
    if not 0 <= begin < end <= length:
        raise ValueError(
            f"prompt: {what}: the span ({begin}, {end}) is not in the text of {length} characters."
        )
    return begin, end


def _marked(count: int, parts: Any, what: str) -> np.ndarray | None:
    """Which messages or tokens are chosen by their numbers."""
    if parts is None:
        return None
    numbers = np.atleast_1d(np.asarray(parts))
    if not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(
            f"prompt: {what} of messages or token ids is a number or a list of numbers, from 0, "
            f"got {parts!r}."
        )
    wrong = numbers[(numbers < -count) | (numbers >= count)]
    if wrong.size:
        raise ValueError(f"prompt: {what}: there is no number {wrong[0]} among {count}.")
    marked = np.zeros(count, bool)
    marked[numbers] = True
    return marked
