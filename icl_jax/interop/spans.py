"""Prompts with parts to remove: lines of a file, as token ids and kept positions.

A line is one of

    {"remove": "context in front", "keep": "what stays"}
    {"spans": [{"text": "...", "keep": true}, {"text": "...", "keep": false}, ...]}
    {"messages": [{"role": "...", "content": "...", "keep": true}, ...]}
    {"tokens": [1, 2, 3, 4], "keep": [0, 3]}

and may have a "name". The whole text is tokenised once, as the model would read it; a token that
reaches across a border is kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax.interop.chat import message_ends, render_chat
from icl_jax.interop.tokenizer import Encoded, Tokenizer

_KINDS = {
    "remove": {"remove", "keep"},
    "spans": {"spans"},
    "messages": {"messages"},
    "tokens": {"tokens", "keep"},
}


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what is kept of it.

    Attributes:
      tokens: (T,), int32.
      kept: (K,), int32 positions, increasing; at least one is kept and one removed.
      name: for tables.
    """

    tokens: np.ndarray
    kept: np.ndarray
    name: str


def read_prompts(
    file: str | Path,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_length: int | None = None,
    keep_bos: bool = True,
) -> list[Prompt]:
    """The prompts of a JSON-lines file, all of them checked.

    Args:
      file: a prompt per line; empty lines are skipped.
      tokenizer: of the checkpoint; None allows token ids only.
      vocab_size: of the model.
      max_length: the most tokens that a prompt may have; None for any number.
      keep_bos: whether a BOS in front stays when the text after it is removed.

    Raises:
      FileNotFoundError: no such file.
      ValueError: naming the file, the line, and what is wrong with it.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Give a JSON-lines file, a prompt per line.")
    prompts = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                prompt = parse_prompt(json.loads(line), tokenizer, keep_bos=keep_bos)
                check_prompt(prompt, vocab_size=vocab_size, max_length=max_length)
            except ValueError as error:  # JSON's errors are among them.
                raise ValueError(f"{file}, line {number}: {error}") from error
            name = prompt.name or f"line {number}"
            prompts.append(Prompt(prompt.tokens, prompt.kept, name))
    if not prompts:
        raise ValueError(f"{file}: no prompts. Write one per line, as JSON.")
    names = [prompt.name for prompt in prompts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{file}: several prompts are called {twice[0]!r}. Give each its own name."
        )
    return prompts


def parse_prompt(line: Any, tokenizer: Tokenizer | None, *, keep_bos: bool = True) -> Prompt:
    """One line of a file; ``name`` is empty where it has none.

    Raises:
      ValueError: a line that is none of the kinds above, or text without a tokenizer.
    """
    kind = _kind(line)
    name = str(line.get("name", ""))
    if kind == "tokens":
        tokens = _integers(line, "tokens")
        return Prompt(tokens, _integers(line, "keep"), name)
    if tokenizer is None:
        raise ValueError(
            'the checkpoint has no tokenizer: give token ids, {"tokens": [...], "keep": [...]}.'
        )
    if kind == "messages":
        text, borders = _messages(line["messages"], tokenizer)
        encoded = tokenizer.encode(text, add_special=False)
    else:
        spans = _spans(line) if kind == "spans" else _remove_and_keep(line)
        text = "".join(span for span, _ in spans)
        ends = np.cumsum([len(span) for span, _ in spans])
        borders = [(int(end), keep) for end, (_, keep) in zip(ends, spans, strict=True)]
        encoded = tokenizer.encode(text)
    return Prompt(encoded.tokens_T, _kept(encoded, borders, tokenizer, keep_bos), name)


def check_prompt(prompt: Prompt, *, vocab_size: int, max_length: int | None = None) -> None:
    """Raises ValueError for a prompt that a model cannot read, or of which nothing is removed."""
    length, kept = len(prompt.tokens), prompt.kept
    if not length:
        raise ValueError("the prompt is empty.")
    wrong = prompt.tokens[(prompt.tokens < 0) | (prompt.tokens >= vocab_size)]
    if len(wrong):
        raise ValueError(f"token {wrong[0]} is not in the vocabulary of {vocab_size}.")
    if max_length is not None and length > max_length:
        raise ValueError(
            f"{length} tokens are more than the model has room for, {max_length}. Shorten the "
            "prompt, or generate less."
        )
    if not len(kept):
        raise ValueError("nothing is kept: a patch needs a token that it patches.")
    if np.any(np.diff(kept) <= 0) or kept[0] < 0 or kept[-1] >= length:
        raise ValueError(
            f"kept positions must increase from 0 to {length - 1}, got {kept.tolist()}."
        )
    if len(kept) == length:
        raise ValueError("nothing is removed: there is no context to turn into weights.")


def _kind(line: Any) -> str:
    if isinstance(line, dict):
        keys = set(line) - {"name"}
        for kind, needed in _KINDS.items():
            if keys == needed:
                return kind
    expected = " or ".join("{" + ", ".join(sorted(keys)) + "}" for keys in _KINDS.values())
    found = sorted(line) if isinstance(line, dict) else type(line).__name__
    raise ValueError(f"a prompt is an object with {expected} (and a name), got {found}.")


def _remove_and_keep(line: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(_text(line, "remove"), False), (_text(line, "keep"), True)]


def _spans(line: dict[str, Any]) -> list[tuple[str, bool]]:
    spans = line["spans"]
    if not isinstance(spans, list) or not spans:
        raise ValueError('"spans" must be a list of {"text": ..., "keep": true or false}.')
    return [(_text(span, "text"), _keep(span)) for span in spans]


def _messages(messages: Any, tokenizer: Tokenizer) -> tuple[str, list[tuple[int, bool]]]:
    """The rendered conversation, and where each message ends and whether it is kept."""
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" must be a list of {"role", "content", "keep"}.')
    keeps = [_keep(message) for message in messages]
    plain = [{key: _text(message, key) for key in ("role", "content")} for message in messages]
    answers = plain[-1]["role"] == "assistant"
    text = render_chat(tokenizer, plain, add_generation_prompt=not answers)
    return text, list(zip(message_ends(tokenizer, plain, text), keeps, strict=True))


def _kept(
    encoded: Encoded,
    borders: Sequence[tuple[int, bool]],
    tokenizer: Tokenizer,
    keep_bos: bool,
) -> np.ndarray:
    """Positions of the tokens that have a part in a kept stretch of the text."""
    start, stretches = 0, []
    for end, keep in borders:
        if keep:
            stretches.append((start, end))
        start = end
    kept = []
    for position, (token, (begin, end)) in enumerate(
        zip(encoded.tokens_T, encoded.offsets_T2, strict=True)
    ):
        if position == 0 and token == tokenizer.bos_id:
            keep = keep_bos
        elif begin == end:  # It stands for no text: a separator at the end, say.
            keep = True
        else:
            keep = any(begin < stop and end > first for first, stop in stretches)
        if keep:
            kept.append(position)
    return np.asarray(kept, np.int32)


def _integers(line: dict[str, Any], key: str) -> np.ndarray:
    values = line[key]
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(f'"{key}" must be a list of whole numbers.')
    return np.asarray(values, np.int32)


def _text(entry: Any, key: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str) or not entry[key]:
        raise ValueError(f'"{key}" must be a text that is not empty.')
    return str(entry[key])


def _keep(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("keep"), bool):
        raise ValueError('every entry needs "keep": true or false.')
    return bool(entry["keep"])
