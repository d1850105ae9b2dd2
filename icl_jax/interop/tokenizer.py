"""The tokenizer of a checkpoint, from its own files; and a new one for a model of our own.

``tokenizers`` does the work; nothing of a checkpoint is executed.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax import checks
from icl_jax.interop.options import read_json
from icl_jax.interop.safetensors import missing_package

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL, GENERATION, TEMPLATE = (
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)

#: The special tokens of a tokenizer that ``train_bpe`` makes.
BOS, EOS = "<|bos|>", "<|eos|>"


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
      tokens_T: (T,), int32.
      offsets_T2: (T, 2), int32: where in the text each token begins and ends; equal for tokens that
        stand for no text, such as BOS.
    """

    tokens_T: np.ndarray
    offsets_T2: np.ndarray


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
      backend: the ``tokenizers.Tokenizer``.
      bos_id: of the token that begins a text; None where there is none.
      eos_ids: of the tokens that end one.
      adds_bos: whether texts are to begin with BOS.
      special_tokens: name -> text, as chat templates use them (``bos_token``, ...).
      chat_template: a Jinja template, or None.
    """

    backend: Any
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    special_tokens: dict[str, str]
    chat_template: str | None

    def encode(self, text: str, *, add_special: bool = True) -> Encoded:
        """The tokens of a text; BOS (and what else the checkpoint adds) only if ``add_special``."""
        found = self.backend.encode(text, add_special_tokens=add_special)
        tokens, offsets = list(found.ids), list(found.offsets)
        # Some files add BOS themselves, others leave it to the reader: never twice.
        missing = self.bos_id is not None and tokens[:1] != [self.bos_id]
        if add_special and self.adds_bos and missing:
            tokens, offsets = [self.bos_id, *tokens], [(0, 0), *offsets]
        return Encoded(
            np.asarray(tokens, np.int32).reshape(-1), np.asarray(offsets, np.int32).reshape(-1, 2)
        )

    def decode(self, tokens_T: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of tokens."""
        tokens = [int(token) for token in tokens_T]
        return str(self.backend.decode(tokens, skip_special_tokens=skip_special))


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint comes with a tokenizer that ``load_tokenizer`` reads."""
    names = (TOKENIZER, "vocab.json", "vocab.txt", "tokenizer.model")
    return any((folder / name).is_file() for name in names)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in the folder of a checkpoint.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a file is damaged, or of a kind that is not supported.
      ImportError: tokenizers is not installed.
    """
    folder = Path(folder)
    config = _optional_json(folder / CONFIG)
    backend = _backend(folder, config)
    special = _special_tokens(_optional_json(folder / SPECIAL) | config)
    bos = special.get("bos_token")
    return Tokenizer(
        backend,
        None if bos is None else backend.token_to_id(bos),
        _eos_ids(folder, backend, special),
        bool(config.get("add_bos_token", False)),
        special,
        _chat_template(folder, config),
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer (Sennrich et al., arXiv 1508.07909) of some texts.

    Raises:
      ValueError: ``vocab_size`` does not hold the 256 bytes and two special tokens.
      ImportError: tokenizers is not installed.
    """
    checks.positive_int("train_bpe", "vocab_size", vocab_size)
    if vocab_size < 258:
        raise ValueError(f"train_bpe: vocab_size must be at least 258, got {vocab_size}.")
    tokenizers = _library()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(list(texts), trainer)
    bos_id, eos_id = backend.token_to_id(BOS), backend.token_to_id(EOS)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]
    )
    special = {"bos_token": BOS, "eos_token": EOS}
    return Tokenizer(backend, bos_id, (eos_id,), True, special, None)


def save_tokenizer(folder: str | Path, tokenizer: Tokenizer) -> None:
    """Writes the files of a tokenizer, as ``load_tokenizer`` and transformers read them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(folder / TOKENIZER))
    config = {
        **tokenizer.special_tokens,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _backend(folder: Path, config: dict[str, Any]) -> Any:
    """``tokenizers.Tokenizer`` from the newest kind of file that is there."""
    tokenizers = _library()
    try:
        if (folder / TOKENIZER).is_file():
            backend = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
            # Settings of a training long past, which would cut or fill every text.
            backend.no_truncation()
            backend.no_padding()
            return backend
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
            backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
            backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = tokenizers.decoders.ByteLevel()
            specials = _special_tokens(_optional_json(folder / SPECIAL) | config)
            known = [text for text in specials.values() if backend.token_to_id(text) is not None]
            backend.add_special_tokens(sorted(set(known)))
            return backend
        if (folder / "vocab.txt").is_file():
            return tokenizers.BertWordPieceTokenizer(
                str(folder / "vocab.txt"), lowercase=bool(config.get("do_lower_case", True))
            )
    except Exception as error:  # The library raises plain Exception.
        raise ValueError(
            f"{folder}: the tokenizer's files cannot be read ({error}). Fetch them again."
        ) from error
    if (folder / "tokenizer.model").is_file():
        raise ValueError(
            f"{folder}: only tokenizer.model (SentencePiece) is there, which is not supported. In "
            "transformers, AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW) makes a "
            "tokenizer.json of it."
        )
    raise FileNotFoundError(
        f"{folder}: no {TOKENIZER}, nor vocab.json with merges.txt, nor vocab.txt. Give prompts as "
        "token ids, or put the tokenizer's files there."
    )


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise missing_package("tokenizers") from error
    return tokenizers


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token`` and the like; newer files write an object with the text in ``content``."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _eos_ids(folder: Path, backend: Any, special: dict[str, str]) -> tuple[int, ...]:
    """What ends a text: as generation is configured (several, perhaps), or the tokenizer's one."""
    for file in (GENERATION, "config.json"):
        ids = _optional_json(folder / file).get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    token = special.get("eos_token")
    found = None if token is None else backend.token_to_id(token)
    return () if found is None else (found,)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template in a file of its own, or in the configuration: a text, or several with names."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return str(named.get("default", template[0]["template"]))
    return template if isinstance(template, str) else None


def _optional_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
