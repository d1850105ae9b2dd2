"""What classes of transformers make anew of tokenizer.json: all but its vocabulary and merges.

Its normalizer, pre-tokenizer, decoder and the options of its model then say nothing; what it puts
around a text does, for most of them.
"""

import json
from pathlib import Path
from typing import Any

_ENDS = "<|endoftext|>"

#: Class -> its special tokens, where no file names them; null in a file: it has none.
DEFAULTS: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), _ENDS),
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("unk_token", "bos_token", "eos_token"), _ENDS),
        "pad_token": "<|padding|>",
    },
    **dict.fromkeys(
        ("Qwen2Tokenizer", "Qwen3_5Tokenizer"),
        dict.fromkeys(("unk_token", "eos_token", "pad_token"), _ENDS),
    ),
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {
        f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")
    },
    "CohereTokenizer": {
        "unk_token": "<UNK>",
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "pad_token": "<PAD>",
        "cls_token": "<CLS>",
        "sep_token": "<SEP>",
        "mask_token": "<MASK_TOKEN>",
    },
    "BertTokenizer": {
        f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")
    },
}

# How the Qwens cut a text before bytes are looked at; the later ones keep marks with their letters.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?LETTERS+|\p{N}| ?[^\s\p{L}MARKS\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _QWEN.replace("LETTERS", r"\p{L}").replace("MARKS", "")
_QWEN_3_5 = _QWEN.replace("LETTERS", r"[\p{L}\p{M}]").replace("MARKS", r"\p{M}")

_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_NFC = {"type": "NFC"}


def made_anew(
    file: Path,
    kind: str,
    described: dict[str, Any],
    config: dict[str, Any],
    special: dict[str, str],
) -> dict[str, Any]:
    """tokenizer.json as a class makes it of the one that is there, without added tokens.

    Args:
      file: of the tokenizer.
      kind: the class, one of ``DEFAULTS``.
      described: tokenizer.json, or what older files have of it.
      config: of tokenizer_config.json.
      special: name -> text of the special tokens.

    Raises:
      ValueError: the class makes nothing of such a model.
    """
    is_bert = kind == "BertTokenizer"
    model = _model(file, kind, described.get("model"), "WordPiece" if is_bert else "BPE")
    spaced = bool(config.get("add_prefix_space"))
    if is_bert or kind == "GemmaTokenizer":
        for name in (*(("cls_token", "sep_token") if is_bert else ()), "unk_token"):
            if special.get(name) not in model["vocab"]:
                raise ValueError(
                    f"{file}: has no {special.get(name)} in its vocabulary, which a {kind} needs "
                    f"as its {name}. Let {name} in tokenizer_config.json be the one that is there."
                )
        model["unk_token"] = special["unk_token"]
    parts: dict[str, Any] = {"normalizer": None, "decoder": _BYTES}
    if is_bert:
        parts = {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
                "strip_accents": config.get("strip_accents"),
                "lowercase": bool(config.get("do_lower_case", True)),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        }
    elif kind == "LlamaTokenizer":
        model |= {"fuse_unk": True, "byte_fallback": True}
        parts = _llama(config)
    elif kind == "GemmaTokenizer":
        model |= {"fuse_unk": True, "byte_fallback": True}
        pattern = {"String": " "}
        parts = {
            "normalizer": {"type": "Replace", "pattern": pattern, "content": "▁"},
            "pre_tokenizer": _split(pattern, "MergedWithPrevious"),
            "decoder": {"type": "Sequence", "decoders": _spaces_and_bytes()},
        }
    else:
        before = {
            "Qwen2Tokenizer": _split({"Regex": _QWEN_2}),
            "Qwen3_5Tokenizer": _split({"Regex": _QWEN_3_5}),
            "CohereTokenizer": {"type": "Digits", "individual_digits": True},
        }.get(kind)
        cuts = {**_BYTES, "add_prefix_space": spaced, "use_regex": not kind.startswith("Qwen")}
        parts["pre_tokenizer"] = (
            {"type": "Sequence", "pretokenizers": [before, cuts]} if before else cuts
        )
        if kind != "GPT2Tokenizer":
            parts["normalizer"] = _NFC
        if kind == "GPTNeoXTokenizer":
            parts["post_processor"] = None
    return {**described, **parts, "model": model, "added_tokens": []}


def _model(file: Path, kind: str, given: Any, wanted: str) -> dict[str, Any]:
    """The vocabulary and merges of a model, with the options that a class gives it."""
    given = given if isinstance(given, dict) else {}
    found, vocabulary = given.get("type", wanted), given.get("vocab")
    if found != wanted or not isinstance(vocabulary, dict):
        raise ValueError(
            f"{file}: model.type = {json.dumps(found)}, but a {kind} makes its own of a {wanted} "
            "with a vocabulary. If the file is to be read as it stands, let tokenizer_class in "
            'tokenizer_config.json be "PreTrainedTokenizerFast"; else fetch it again.'
        )
    if wanted == "WordPiece":
        options = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        return {"type": wanted, **options, "vocab": vocabulary}
    return {"type": wanted, "vocab": vocabulary, "merges": given.get("merges") or []}


def _llama(config: dict[str, Any]) -> dict[str, Any]:
    spaced = config.get("add_prefix_space")
    spaced = True if spaced is None else bool(spaced)
    always = "always" if config.get("legacy") else "first"
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": always if spaced else "never",
            "split": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [*_spaces_and_bytes(), *([strip] if spaced else [])],
        },
    }


def _split(pattern: dict[str, str], behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _spaces_and_bytes() -> list[dict[str, Any]]:
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
