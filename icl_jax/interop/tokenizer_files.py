"""What a tokenizer is read from: tokenizer.json, or the older files of GPT-2 and BERT.

Which special tokens a text gets is read where transformers reads it: in tokenizer.json alone if
there is one (``add_bos_token`` of its configuration says nothing then), else in the configuration.
"""

import json
from pathlib import Path
from typing import Any

from icl_jax.interop.added_tokens import add_tokens, extra_special_tokens
from icl_jax.interop.json_files import optional_json, read_json
from icl_jax.interop.safetensors import missing_package

TOKENIZER = "tokenizer.json"

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

# Classes of transformers that make the byte-level part of tokenizer.json anew, from the options of
# tokenizer_config.json; BERT's do so with what is done to a text first.
_BYTE_LEVEL = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "CodeGenTokenizer")

# The class of a model_type. Where it is "", tokenizer.json counts whatever class a file names, and
# for one its own counts.
_REGISTERED = {
    **dict.fromkeys(
        ("codegen", "gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"), "GPT2Tokenizer"
    ),
    **dict.fromkeys(("gpt_neox", "mamba2", "mpt", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(
        (
            "granite",
            "ministral",
            "mistral",
            "mistral3",
            "mixtral",
            "olmo2",
            "olmo3",
            "phi3",
            "stablelm",
        ),
        "",
    ),
}
_OWN = "qwen2"

# Their special tokens, where no file names them.
_GPT2_SPECIAL = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_BERT_SPECIAL = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
}

#: Class -> special tokens, where no file names them.
_SPECIAL = {
    **dict.fromkeys(_GPT2, _GPT2_SPECIAL),
    **dict.fromkeys(_BERT, _BERT_SPECIAL),
    "GPTNeoXTokenizer": {**_GPT2_SPECIAL, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {
        f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")
    },
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
      config: of tokenizer_config.json, with what special_tokens_map.json has.
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
            found = _from_file(tokenizers, folder, config, special)
            defaults = _defaults(config, _SPECIAL.get(_class(folder, config), {}))
            there = {
                name: text for name, text in defaults.items() if found.token_to_id(text) is not None
            }
            special = there | special
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
        named = {*special.values(), *extra_special_tokens(config)}
        known = {text for text in named if found.token_to_id(text) is not None}
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


def _from_file(
    tokenizers: Any, folder: Path, config: dict[str, Any], special: dict[str, str]
) -> Any:
    """tokenizer.json, but for what cuts and fills texts, and what hides characters of tokens."""
    described = read_json(folder / TOKENIZER)
    # Trimmed offsets leave the spaces of a token out: one of spaces only would seem to stand for no
    # text at all. They change no token.
    for part in _parts(described.get("post_processor"), "processors"):
        if part.get("trim_offsets"):
            part["trim_offsets"] = False
    kind = _class(folder, config)
    model = described.get("model")
    if kind in _BERT and isinstance(model, dict) and model.get("type", "WordPiece") == "WordPiece":
        described["normalizer"] = {
            "type": "BertNormalizer",
            "clean_text": True,
            **_bert_text(config),
        }
    byte_level = [
        part
        for part in _parts(described.get("pre_tokenizer"), "pretokenizers")
        if part.get("type") == "ByteLevel"
    ]
    if kind in _BYTE_LEVEL:
        for part in byte_level:
            part["add_prefix_space"] = bool(config.get("add_prefix_space"))
    elif kind == "LlamaTokenizer":
        _check_prefix_space(folder, described, config)
    backend = tokenizers.Tokenizer.from_str(json.dumps(described))
    # Settings of a training long past.
    backend.no_truncation()
    backend.no_padding()
    add_tokens(tokenizers, backend, folder, config, special)
    return backend


def _parts(described: Any, inner: str) -> list[dict[str, Any]]:
    """A part of a tokenizer and, where it is a sequence, its parts."""
    if not isinstance(described, dict):
        return []
    within = described.get(inner)
    return [described, *(part for part in within or [] if isinstance(part, dict))]


def _class(folder: Path, config: dict[str, Any]) -> str:
    """The class that transformers reads a tokenizer with; empty for the one that adds nothing."""
    model = optional_json(folder / "config.json")
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    named = str(named or "").removesuffix("Fast")
    kind = model.get("model_type")
    registered = _REGISTERED.get(kind, named) if isinstance(kind, str) else named
    return named if named and registered and kind != _OWN else registered


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
    if asked is not None and bool(asked) != spaced:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: add_prefix_space = {json.dumps(asked)}, but "
            f"{TOKENIZER} puts {'a' if spaced else 'no'} space in front of a text. Which of them "
            "counts differs from version to version of transformers: make them agree."
        )


def _gpt2(tokenizers: Any, folder: Path, config: dict[str, Any], special: dict[str, str]) -> Any:
    """Byte-level BPE from vocab.json and merges.txt."""
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    spaced = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = tokenizers.decoders.ByteLevel()
    add_tokens(tokenizers, backend, folder, config, special)
    ends = [
        special.get(name) if config.get(f"add_{name}") else None
        for name in ("bos_token", "eos_token")
    ]
    backend.post_processor = _around(tokenizers, backend, *ends)
    return backend


def _bert_text(config: dict[str, Any]) -> dict[str, Any]:
    """What BERT does to a text first, as its options have it."""
    return {
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
        "strip_accents": config.get("strip_accents"),
        "lowercase": bool(config.get("do_lower_case", True)),
    }


def _bert(tokenizers: Any, folder: Path, config: dict[str, Any], special: dict[str, str]) -> Any:
    """WordPiece from vocab.txt."""
    unknown = special.get("unk_token", "[UNK]")
    file = str(folder / "vocab.txt")
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(file, unk_token=unknown))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(**_bert_text(config))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    add_tokens(tokenizers, backend, folder, config, special)
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
