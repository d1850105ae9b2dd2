"""Prompts with parts to remove: lines of a file, as token ids and kept positions.

A line is one of

    {"remove": "context in front", "keep": "what stays"}
    {"spans": [{"text": "...", "keep": true}, {"text": "...", "keep": false}, ...]}
    {"messages": [{"role": "...", "content": "...", "keep": true}, ...]}
    {"tokens": [1, 2, 3, 4], "keep": [0, 3]}

and may have a "name". The whole text is tokenised once, as the model would read it. A token that
reaches across a border between a kept and a removed part is kept. What stands for no text, such as
BOS in front or a separator at the end, is kept too, BOS unless ``keep_bos`` is false. In messages,
what the chat template writes around one goes with it, and the header of the answer to come is kept.
"""

import dataclasses
import json
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax.interop.chat import render_messages
from icl_jax.interop.json_files import without_repeats
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
      text: the whole text; None of a prompt that was given as token ids.

    Examples:
      >>> from icl_jax.interop.spans import Prompt
      >>> text = "Ada built it. Who built it?"
      >>> prompt = Prompt(np.arange(3, 9), np.array([0, 4, 5]), "mine", text)
      >>> prompt
      Prompt('mine', 6 tokens, 3 kept: 'Ada built it. Who built it?')
      >>> np.delete(prompt.tokens, prompt.kept).tolist()  # what becomes weights
      [4, 5, 6]
    """

    tokens: np.ndarray
    kept: np.ndarray
    name: str
    text: str | None = None

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        text = "" if self.text is None else f": {textwrap.shorten(self.text, 60)!r}"
        return f"Prompt({name}{len(self.tokens)} tokens, {len(self.kept)} kept{text})"


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
      keep_bos: whether a BOS in front stays when the text after it is removed; lines of token ids
        say it themselves.

    Raises:
      FileNotFoundError: no such file.
      ValueError: naming the file, the line, and what is wrong with it.

    Examples:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.spans import read_prompts
      >>> folder = Path(tempfile.mkdtemp())
      >>> lines = [
      ...     {"tokens": [2, 5, 6], "keep": [0, 2], "name": "mine"},
      ...     {"tokens": [2, 7], "keep": [1]},
      ... ]
      >>> file = folder / "prompts.jsonl"
      >>> with file.open("w") as out:
      ...     for line in lines:
      ...         print(json.dumps(line), file=out)
      >>> read_prompts(file, None, vocab_size=30)
      [Prompt('mine', 3 tokens, 2 kept), Prompt('line 2', 2 tokens, 1 kept)]
      >>> try:
      ...     read_prompts(file, None, vocab_size=7)
      ... except ValueError as error:
      ...     print(str(error).split(": ")[-1].partition(". ")[0])
      token 7 is not in the model's vocabulary of 7
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file. Give a JSON-lines file, a prompt per line.")
    prompts = []
    # Bytes, because a text has more kinds of line ends than JSON lines; sig: Windows's editors.
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                prompt = parse_prompt(_parsed(line), tokenizer, keep_bos=keep_bos)
                check_prompt(prompt, vocab_size=vocab_size, max_length=max_length)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
            prompts.append(dataclasses.replace(prompt, name=prompt.name or f"line {number}"))
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

    Examples:
      >>> from icl_jax.interop.spans import parse_prompt
      >>> from icl_jax.interop.tokenizer import train_bpe
      >>> tokenizer = train_bpe(["Ada built it."], 258)  # a token per character, and a BOS
      >>> prompt = parse_prompt({"remove": "Ada built it.", "keep": " Who?"}, tokenizer)
      >>> prompt.kept.tolist(), tokenizer.decode(prompt.tokens[prompt.kept])
      ([0, 14, 15, 16, 17, 18], ' Who?')
      >>> parse_prompt({"tokens": [2, 5, 6, 7], "keep": [0, 3]}, None)  # ids need no tokenizer
      Prompt(4 tokens, 2 kept)
    """
    kind = _kind(line)
    name = _name(line) if "name" in line else ""
    if kind == "tokens":
        tokens = _integers(line, "tokens")
        return Prompt(tokens, _integers(line, "keep"), name)
    if tokenizer is None:
        raise ValueError(
            "the checkpoint has no tokenizer that can be read (tokenizer.json; a SentencePiece "
            "tokenizer.model alone cannot): give token ids, "
            '{"tokens": [...], "keep": [...]}.'
        )
    if kind == "messages":
        text, borders = _messages(line, tokenizer)
        encoded = tokenizer.encode(text, add_special=False)
    else:
        spans = _spans(line) if kind == "spans" else _remove_and_keep(line)
        text = "".join(span for span, _ in spans)
        ends = np.cumsum([len(span) for span, _ in spans])
        borders = [(int(end), keep) for end, (_, keep) in zip(ends, spans, strict=True)]
        encoded = tokenizer.encode(text)
    kept = _kept(encoded, borders, tokenizer.bos_id, keep_bos)
    return Prompt(encoded.tokens_T, kept, name, text)


def check_prompt(prompt: Prompt, *, vocab_size: int, max_length: int | None = None) -> None:
    """Raises ValueError for a prompt that a model cannot read, or of which nothing is removed."""
    length, kept = len(prompt.tokens), prompt.kept
    if not length:
        raise ValueError("the prompt is empty. Give it tokens.")
    wrong = prompt.tokens[(prompt.tokens < 0) | (prompt.tokens >= vocab_size)]
    if len(wrong):
        raise ValueError(
            f"token {wrong[0]} is not in the model's vocabulary of {vocab_size}. Is the tokenizer "
            "that of this checkpoint?"
        )
    if max_length is not None and length > max_length:
        raise ValueError(
            f"{length} tokens are more than the model has room for, {max_length}. Shorten the "
            "prompt, or generate less."
        )
    if not len(kept):
        raise ValueError("nothing is kept: a patch needs a token that it patches. Keep one.")
    if np.any(np.diff(kept) <= 0) or kept[0] < 0 or kept[-1] >= length:
        raise ValueError(
            f"kept positions must increase and lie in 0 to {length - 1}, got {kept.tolist()}."
        )
    if len(kept) == length:
        raise ValueError(
            "nothing is removed: there is no context to turn into weights. Remove a token that has "
            "no kept character in it."
        )


def _kind(line: Any) -> str:
    if isinstance(line, dict):
        keys = set(line) - {"name"}
        for kind, needed in _KINDS.items():
            if keys == needed:
                return kind
    expected = " or ".join("{" + ", ".join(sorted(keys)) + "}" for keys in _KINDS.values())
    found = sorted(line) if isinstance(line, dict) else type(line).__name__
    raise ValueError(
        f"a prompt is an object with {expected} (and a name, if you like) and nothing else, got "
        f"{found}."
    )


def _remove_and_keep(line: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(_text(line, "remove"), False), (_text(line, "keep"), True)]


def _spans(line: dict[str, Any]) -> list[tuple[str, bool]]:
    entries = _entries(line, "spans", ("text",))
    return [(entry["text"], entry["keep"]) for entry in entries]


def _messages(line: dict[str, Any], tokenizer: Tokenizer) -> tuple[str, list[tuple[int, bool]]]:
    """The rendered conversation, and where its parts end and whether they are kept."""
    entries = _entries(line, "messages", ("role", "content"))
    keeps = [entry.pop("keep") for entry in entries]
    text, ends = render_messages(tokenizer, entries)
    return text, [*zip(ends, keeps, strict=True), (len(text), True)]


def _kept(
    encoded: Encoded,
    borders: Sequence[tuple[int, bool]],
    bos_id: int | None,
    keep_bos: bool,
) -> np.ndarray:
    """Positions of the tokens that have a character in a kept part of the text; (K,), int32."""
    # Per character, how many before it are kept: a token has some if its two ends differ in that.
    ends = [end for end, _ in borders]
    is_kept = np.repeat([keep for _, keep in borders], np.diff(ends, prepend=0))
    kept_before = np.concatenate([[0], np.cumsum(is_kept)])
    begins_T, ends_T = encoded.offsets_T2.T
    textless_T = begins_T == ends_T
    keep_T = textless_T | (kept_before[ends_T] > kept_before[begins_T])
    # In front: BOS without a text of its own, or the one that a chat template wrote.
    front_T = np.logical_and.accumulate(textless_T)
    front_T[:1] |= encoded.tokens_T[:1] == bos_id
    return np.flatnonzero(np.where(front_T, keep_bos, keep_T)).astype(np.int32)


def _integers(line: dict[str, Any], key: str) -> np.ndarray:
    values = line[key]
    listed = values if isinstance(values, list) else [values]
    wrong = [value for value in listed if type(value) is not int or not 0 <= value < 2**31]
    if wrong or listed is not values:
        raise ValueError(
            f'"{key}" must be a list of whole numbers from 0 to {2**31 - 1}, got '
            f"{(wrong or listed)[0]!r}."
        )
    return np.asarray(values, np.int32)


def _entries(line: dict[str, Any], key: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The parts of a prompt: each has some texts, and whether it is kept."""
    form = "{" + ", ".join(f'"{text}": "..."' for text in texts) + ', "keep": true or false}'
    entries = line[key]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'"{key}" must be a list of {form}, got {entries!r}.')
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or set(entry) != {*texts, "keep"}:
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f'entry {number} of "{key}" must be {form}, got {found}.')
        if not isinstance(entry["keep"], bool):
            raise ValueError(
                f'entry {number} of "{key}": "keep" must be true or false, got {entry["keep"]!r}.'
            )
        for text in texts:
            _text(entry, text, f'entry {number} of "{key}": ')
    return [dict(entry) for entry in entries]


def _text(entry: dict[str, Any], key: str, where: str = "") -> str:
    text = entry[key]
    if not isinstance(text, str) or not text:
        raise ValueError(f'{where}"{key}" must be a text that is not empty, got {text!r}.')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write one of the two that make an emoji.
        raise ValueError(
            f'{where}"{key}" has half a character (at {error.start}). Write all of it.'
        ) from error
    return text


def _name(line: dict[str, Any]) -> str:
    name = _text(line, "name")
    control = [letter for letter in name if unicodedata.category(letter) == "Cc"]
    if control:
        raise ValueError(
            f'"name" must have no control characters, got {name!r}, which has {control[0]!r}: it '
            "stands in tables and pages."
        )
    return name


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:  # Of the encoding or of the JSON.
        raise ValueError(
            f"not JSON ({error}). Write one object per line, in UTF-8; json.dumps makes them."
        ) from error
