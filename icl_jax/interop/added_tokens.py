"""Tokens that are added to a vocabulary: what files number, then special ones that are named."""

from pathlib import Path
from typing import Any

from icl_jax.interop.json_files import optional_json
from icl_jax.interop.special_tokens import SpecialTokens

ADDED = "added_tokens.json"


def add_tokens(
    tokenizers: Any,
    backend: Any,
    folder: Path,
    config: dict[str, Any],
    special: SpecialTokens,
    described: list[dict[str, Any]],
) -> None:
    """Adds the tokens that files number, then the special ones that none of them has.

    As transformers does: ``added_tokens_decoder`` counts alone, else added_tokens.json and what
    tokenizer.json adds; a special token that is named only gets the next free id.

    Args:
      tokenizers: the package.
      backend: the ``tokenizers.Tokenizer``.
      folder: of the checkpoint.
      config: of tokenizer_config.json.
      special: the special tokens.
      described: ``added_tokens`` of tokenizer.json.

    Raises:
      ValueError: the tokens are damaged, or would have other numbers than the files say.
    """
    file, numbered = _numbered(tokenizers, folder, config, special, described)
    tokens: list[Any] = [token for _, token in numbered]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known |= {token.content for token in tokens}
    for token in (*special.named.values(), *special.extra):
        if str(token) not in known and token not in tokens:
            tokens.append(token)
    names = set(special.texts.values())
    made = [
        tokenizers.AddedToken(token, special=True) if isinstance(token, str) else token
        for token in tokens
    ]
    for token in made:
        token.special = token.special or token.content in names
    backend.add_tokens(made)
    for index, token in numbered:
        found = backend.token_to_id(token.content)
        if found != index:
            raise ValueError(
                f"{file}: {token.content!r} should be token {index}, but comes to be {found}. "
                "Fetch the tokenizer's files again."
            )


def _numbered(
    tokenizers: Any,
    folder: Path,
    config: dict[str, Any],
    special: SpecialTokens,
    described: list[dict[str, Any]],
) -> tuple[Path, list[tuple[int, Any]]]:
    """The file that says what is added to a vocabulary; number and token of each, in order."""
    decoder = config.get("added_tokens_decoder")
    file = folder / ("tokenizer_config.json" if decoder is not None else ADDED)
    try:
        if decoder is not None:
            found = {int(index): tokenizers.AddedToken(**made) for index, made in decoder.items()}
            if not all(token.content for token in found.values()):
                raise ValueError("one has no content")
        else:
            found = {
                int(index): tokenizers.AddedToken(text, normalized=False, special=True)
                if text in special.stated
                else tokenizers.AddedToken(text, normalized=True)
                for text, index in optional_json(file).items()
            }
            file = file if found else folder / "tokenizer.json"
            for made in described:
                about = {name: value for name, value in made.items() if name != "id"}
                found[int(made["id"])] = tokenizers.AddedToken(**about)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: damaged added tokens ({error}). Fetch it again.") from error
    return file, sorted(found.items())
