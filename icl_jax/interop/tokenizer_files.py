"""What a tokenizer is read from: tokenizer.json, or the older files of GPT-2 and BERT.

Read as transformers reads it: some classes take tokenizer.json as it stands, others make parts of
it anew (``tokenizer_classes``, ``tokenizer_parts``). Which special tokens a text gets stands in
tokenizer.json if there is one (``add_bos_token`` of its configuration says nothing then), else in
the configuration.
"""

import json
from pathlib import Path
from typing import Any

from icl_jax.interop.added_tokens import add_tokens
from icl_jax.interop.json_files import optional_json, read_json
from icl_jax.interop.safetensors import missing_package
from icl_jax.interop.special_tokens import NAMES, SpecialTokens, read_special_tokens
from icl_jax.interop.tokenizer_classes import (
    CONFIG,
    TOKENIZER,
    chosen_class,
    named_class,
    reading_class,
    tokenizer_class,
)
from icl_jax.interop.tokenizer_parts import DEFAULTS, made_anew

# Who reads vocab.json with merges.txt, and vocab.txt. Others split words differently, and only
# their tokenizer.json says how.
_GPT2, _BERT = "GPT2Tokenizer", "BertTokenizer"

_CONVERT = (
    f"In transformers, AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW) makes a {TOKENIZER} "
    "of it."
)

# How Mistral's later tokenizers cut a text; the first files of some were of another kind.
_MISTRAL = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_backend(
    folder: Path, config: dict[str, Any], beside: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The ``tokenizers.Tokenizer`` of the newest kind of file that is there.

    Args:
      folder: of the checkpoint.
      config: of tokenizer_config.json.
      beside: of special_tokens_map.json; empty where it does not count.

    Returns:
      The ``tokenizers.Tokenizer``, and name -> text of the special tokens.

    Raises:
      FileNotFoundError: no file of a tokenizer.
      ValueError: a file is damaged, or of a kind that is not supported.
      ImportError: tokenizers is not installed.
    """
    tokenizers = library()
    try:
        read = _described(tokenizers, folder, config)
        if read is not None:
            return _backend(tokenizers, *read, config, beside)
    except (ValueError, OSError):
        raise
    except Exception as error:  # The library raises plain Exception.
        raise ValueError(
            f"{folder}: the tokenizer's files cannot be read ({error}). Fetch them again."
        ) from error
    if (folder / "tokenizer.model").is_file():
        raise ValueError(
            f"{folder}: only tokenizer.model (SentencePiece) is there, which is not supported. "
            f"{_CONVERT}"
        )
    raise FileNotFoundError(
        f"{folder}: no {TOKENIZER}, nor vocab.json with merges.txt, nor vocab.txt. Give prompts as "
        "token ids, or put the tokenizer's files there."
    )


def _described(
    tokenizers: Any, folder: Path, config: dict[str, Any]
) -> tuple[Path, str, dict[str, Any]] | None:
    """The file, the class that reads it, and tokenizer.json or what stands for it; None: none."""
    newest, vocabulary = folder / TOKENIZER, folder / "vocab.json"
    merges, words = folder / "merges.txt", folder / "vocab.txt"
    if newest.is_file():
        if any(name != TOKENIZER for name in config.get("fast_tokenizer_files") or []):
            raise ValueError(
                f"{folder / CONFIG}: fast_tokenizer_files = "
                f"{json.dumps(config['fast_tokenizer_files'])}: each is for other versions of "
                f"transformers. Let the one that counts be {TOKENIZER}, and leave the list out."
            )
        return newest, tokenizer_class(folder, config), read_json(newest)
    if vocabulary.is_file() and merges.is_file():
        _check_kind(folder, config, "vocab.json with merges.txt", _GPT2)
        found, merged = tokenizers.models.BPE.read_file(str(vocabulary), str(merges))
        return vocabulary, _GPT2, {"model": {"type": "BPE", "vocab": found, "merges": merged}}
    if words.is_file():
        _check_kind(folder, config, "vocab.txt", _BERT)
        found = tokenizers.models.WordPiece.read_file(str(words))
        return words, _BERT, {"model": {"type": "WordPiece", "vocab": found}}
    return None


def _backend(
    tokenizers: Any,
    file: Path,
    kind: str,
    described: dict[str, Any],
    config: dict[str, Any],
    beside: dict[str, Any],
) -> tuple[Any, dict[str, str]]:
    """The tokenizer that a class makes, and its special tokens."""
    folder = file.parent
    special = read_special_tokens(tokenizers, folder, config, beside, DEFAULTS.get(kind, {}))
    settings = config | {name: said for name, said in beside.items() if name not in NAMES}
    added = described.get("added_tokens") or []
    _check_prefix_space(folder, described, settings)
    if kind:
        described = made_anew(file, kind, described, settings, special.texts)
    _check_cuts(folder, described, settings)
    # Trimmed offsets leave the spaces of a token out: one of spaces only would seem to stand for no
    # text at all. They change no token.
    for part in _parts(described.get("post_processor"), "processors"):
        if part.get("trim_offsets"):
            part["trim_offsets"] = False
    backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    # Settings of a training long past.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    add_tokens(tokenizers, backend, folder, settings, special, added)
    again = _told_again(kind, special)
    backend.add_tokens([tokenizers.AddedToken(text, special=True) for text in again])
    if kind == _BERT:
        ends = [special.texts[name] for name in ("cls_token", "sep_token")]
        backend.post_processor = _around(tokenizers, backend, *ends)
    elif file.name != TOKENIZER:
        asked = [name if settings.get(f"add_{name}") else "" for name in ("bos_token", "eos_token")]
        backend.post_processor = _around(tokenizers, backend, *map(special.texts.get, asked))
    return backend, special.texts


def _told_again(kind: str, special: SpecialTokens) -> list[str]:
    """The special tokens that lose what files say of them: they take no space with them."""
    if kind == "Qwen2Tokenizer":
        return [str(token) for token in (*special.named.values(), *special.extra)]
    if kind == "CohereTokenizer":
        own = [token for name, token in special.named.items() if name not in NAMES]
        return [token for token in (*own, *special.extra) if isinstance(token, str)]
    return []


def _parts(described: Any, inner: str) -> list[dict[str, Any]]:
    """A part of a tokenizer and, where it is a sequence, its parts."""
    if not isinstance(described, dict):
        return []
    within = described.get(inner)
    return [described, *(part for part in within or [] if isinstance(part, dict))]


def _check_cuts(folder: Path, described: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuses a tokenizer that cuts a text by chance, or in a way that is mended on reading."""
    model = described.get("model")
    for name in ("dropout", "alpha"):
        value = model.get(name) if isinstance(model, dict) else None
        if value:
            raise ValueError(
                f"{folder / TOKENIZER}: model.{name} = {json.dumps(value)} cuts a text by chance, "
                "every time otherwise. Let it be null."
            )
    if config.get("fix_mistral_regex") and json.dumps(_MISTRAL)[1:-1] not in json.dumps(described):
        raise ValueError(
            f"{folder / CONFIG}: fix_mistral_regex = true, but {TOKENIZER} cuts a text as before. "
            f"{_CONVERT}"
        )


def _check_prefix_space(folder: Path, described: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuses a Llama tokenizer whose two files differ in whether a text begins with a space."""
    asked = config.get("add_prefix_space")
    parts = [
        *_parts(described.get("normalizer"), "normalizers"),
        *_parts(described.get("pre_tokenizer"), "pretokenizers"),
    ]
    spaced = any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )
    if (
        chosen_class(folder, config) == "LlamaTokenizer"
        and asked is not None
        and bool(asked) != spaced
    ):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: add_prefix_space = {json.dumps(asked)}, but "
            f"{TOKENIZER} puts {'a' if spaced else 'no'} space in front of a text. Which of them "
            "counts differs from version to version of transformers: make them agree."
        )


def _around(tokenizers: Any, backend: Any, first: str | None, last: str | None) -> Any:
    """What puts a token in front of a text and one behind it."""
    given = {text: backend.token_to_id(text) for text in (first, last) if text is not None}
    single = [part for part in (first, "$A", last) if part is not None]
    return tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=list(given.items())
    )


def _check_kind(folder: Path, config: dict[str, Any], files: str, known: str) -> None:
    """Raises ValueError for files that mean something else than they look like."""
    model = optional_json(folder / "config.json").get("model_type")
    named = named_class(folder, config) or model
    if named and reading_class(folder, config) != known:
        raise ValueError(
            f"{folder}: {files} of a {named} cannot be read without its {TOKENIZER}, only those of "
            f"a {known}. {_CONVERT}"
        )


def library() -> Any:
    """The package ``tokenizers``, its modules imported."""
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise missing_package("tokenizers") from error
    return tokenizers
