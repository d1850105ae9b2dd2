"""Tokens that were added to a vocabulary later, which only a file beside tokenizer.json has."""

from pathlib import Path
from typing import Any

from icl_jax.interop.json_files import optional_json

ADDED = "added_tokens.json"


def add_tokens(
    tokenizers: Any,
    backend: Any,
    folder: Path,
    config: dict[str, Any],
    special: dict[str, str],
) -> None:
    """Adds the tokens that only ``added_tokens_decoder`` or, without it, added_tokens.json has."""
    there = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    file, added = _added(tokenizers, folder, config, special)
    for index, token in added:
        if repr(token) not in there:
            backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != index:
            raise ValueError(
                f"{file}: {token.content!r} should be token {index}, but comes to be {found}. "
                "Fetch the tokenizer's files again."
            )


def _added(
    tokenizers: Any, folder: Path, config: dict[str, Any], special: dict[str, str]
) -> tuple[Path, list[tuple[int, Any]]]:
    """The file that says what is added to a vocabulary; number and token of each, in order."""
    decoder = config.get("added_tokens_decoder")
    file = folder / ("tokenizer_config.json" if decoder is not None else ADDED)
    try:
        if decoder is not None:
            found = [(int(index), tokenizers.AddedToken(**made)) for index, made in decoder.items()]
            if not all(token.content for _, token in found):
                raise ValueError("one has no content")
        else:
            named = {*special.values(), *extra_special_tokens(config)}
            found = [
                (int(index), tokenizers.AddedToken(text, normalized=False, special=True))
                if text in named
                else (int(index), tokenizers.AddedToken(text, normalized=True))
                for text, index in optional_json(file).items()
            ]
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: damaged added tokens ({error}). Fetch it again.") from error
    return file, sorted(found, key=lambda entry: entry[0])


def extra_special_tokens(config: dict[str, Any]) -> tuple[str, ...]:
    """The texts of the special tokens that have no name of their own."""
    tokens = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = tokens.values() if isinstance(tokens, dict) else tokens
    texts = [token.get("content") if isinstance(token, dict) else token for token in listed]
    return tuple(text for text in texts if isinstance(text, str))
