"""What a tokenizer is read from: tokenizer.json, or the older files of GPT-2 and BERT.

Which special tokens a text gets is read where transformers reads it: in tokenizer.json alone if
there is one (``add_bos_token`` of its configuration says nothing then), else in the configuration.
"""

import json
from pathlib import Path
from typing import Any

from icl_jax.interop.options import read_json
from icl_jax.interop.safetensors import missing_package

TOKENIZER, ADDED = "tokenizer.json", "added_tokens.json"

# Who reads vocab.json with merges.txt as GPT-2 does, and vocab.txt as BERT does. Others split words
# differently, and only their tokenizer.json says how.
_GPT2 = ("GPT2Tokenizer", "CodeGenTokenizer", "gpt2", "gpt_neo", "gptj", "codegen", "opt", "phi")
_BERT = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "bert",
    "distilbert",
    "electra",
)

# Their special tokens, where no file names them.
_GPT2_SPECIAL = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_BERT_SPECIAL = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
}

_CONVERT = (
    f"In transformers, AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW) makes a {TOKENIZER} "
    "of it."
)


def read_backend(
    folder: Path, config: dict[str, Any], special: dict[str, str]
) -> tuple[Any, dict[str, str]]:
    """The ``tokenizers.Tokenizer`` of the newest kind of file that is there.

    Args:
      folder: of the checkpoint.
      config: of special_tokens_map.json and tokenizer_config.json.
      special: name -> text of the special tokens that it names.

    Returns:
      The ``tokenizers.Tokenizer``, and the special tokens with the defaults of its kind.

    Raises:
      FileNotFoundError: no file of a tokenizer.
      ValueError: a file is damaged, or of a kind that is not supported.
      ImportError: tokenizers is not installed.
    """
    tokenizers = library()
    found: Any = None
    try:
        if (folder / TOKENIZER).is_file():
            found = _from_file(tokenizers, folder / TOKENIZER)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            _check_kind(folder, config, "vocab.json with merges.txt", _GPT2)
            special = _defaults(config, _GPT2_SPECIAL) | special
            found = _gpt2(tokenizers, folder, config, special)
        elif (folder / "vocab.txt").is_file():
            _check_kind(folder, config, "vocab.txt", _BERT)
            special = _defaults(config, _BERT_SPECIAL) | special
            found = _bert(tokenizers, folder, config, special)
    except (ValueError, OSError):
        raise
    except Exception as error:  # The library raises plain Exception.
        raise ValueError(
            f"{folder}: the tokenizer's files cannot be read ({error}). Fetch them again."
        ) from error
    if found is not None:
        # Named but not marked as special in older files; never new ones, which no model knows.
        marked = {token.content for token in found.get_added_tokens_decoder().values()}
        known = {text for text in special.values() if found.token_to_id(text) is not None}
        found.add_special_tokens(sorted(known - marked))
        return found, special
    if (folder / "tokenizer.model").is_file():
        raise ValueError(
            f"{folder}: only tokenizer.model (SentencePiece) is there, which is not supported. "
            f"{_CONVERT}"
        )
    raise FileNotFoundError(
        f"{folder}: no {TOKENIZER}, nor vocab.json with merges.txt, nor vocab.txt. Give prompts as "
        "token ids, or put the tokenizer's files there."
    )


def _from_file(tokenizers: Any, file: Path) -> Any:
    """tokenizer.json, but for what cuts and fills texts, and what hides characters of tokens."""
    described = read_json(file)
    post_processor = described.get("post_processor") or {}
    # Trimmed offsets leave the spaces of a token out: one of spaces only would seem to stand for no
    # text at all. They change no token.
    parts = [post_processor, *post_processor.get("processors", [])]
    trimmed = [part for part in parts if part.get("trim_offsets")]
    for part in trimmed:
        part["trim_offsets"] = False
    if trimmed:
        backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    else:
        backend = tokenizers.Tokenizer.from_file(str(file))
    # Settings of a training long past.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _gpt2(tokenizers: Any, folder: Path, config: dict[str, Any], special: dict[str, str]) -> Any:
    """Byte-level BPE from vocab.json and merges.txt."""
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    spaced = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = tokenizers.decoders.ByteLevel()
    added = optional_json(folder / ADDED)
    for token, index in sorted(added.items(), key=lambda entry: int(entry[1])):
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False)])
        if backend.token_to_id(token) != index:
            raise ValueError(
                f"{folder / ADDED}: {token!r} should be token {index}, but comes to be "
                f"{backend.token_to_id(token)}. Fetch the tokenizer's files again."
            )
    ends = [
        special.get(name) if config.get(f"add_{name}") else None
        for name in ("bos_token", "eos_token")
    ]
    backend.post_processor = _around(tokenizers, backend, *ends)
    return backend


def _bert(tokenizers: Any, folder: Path, config: dict[str, Any], special: dict[str, str]) -> Any:
    """WordPiece from vocab.txt."""
    unknown = special.get("unk_token", "[UNK]")
    file = str(folder / "vocab.txt")
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(file, unk_token=unknown))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    ends = (special.get("cls_token", "[CLS]"), special.get("sep_token", "[SEP]"))
    if None in map(backend.token_to_id, ends):
        raise ValueError(f"{file}: has no {ends[0]} or no {ends[1]}. {_CONVERT}")
    backend.post_processor = _around(tokenizers, backend, *ends)
    return backend


def _around(tokenizers: Any, backend: Any, first: str | None, last: str | None) -> Any:
    """What puts a token in front of a text and one behind it."""
    given = {text: backend.token_to_id(text) for text in (first, last) if text is not None}
    single = [part for part in (first, "$A", last) if part is not None]
    return tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=list(given.items())
    )


def _defaults(config: dict[str, Any], defaults: dict[str, str]) -> dict[str, str]:
    """Special tokens of a kind that its files don't name; null in a file: it has none."""
    return {name: text for name, text in defaults.items() if name not in config}


def _check_kind(folder: Path, config: dict[str, Any], files: str, known: tuple[str, ...]) -> None:
    """Raises ValueError for files that mean something else than they look like."""
    named = config.get("tokenizer_class")
    kind = named or optional_json(folder / "config.json").get("model_type")
    if kind is not None and str(kind).removesuffix("Fast") not in known:
        raise ValueError(
            f"{folder}: {files} of a {kind} cannot be read without its {TOKENIZER}, only those of "
            f"{', '.join(known)}. {_CONVERT}"
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


def optional_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without the file."""
    return read_json(file) if file.is_file() else {}
