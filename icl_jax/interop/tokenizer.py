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
from icl_jax.interop.generation_config import read_generation_config
from icl_jax.interop.json_files import optional_json
from icl_jax.interop.special_tokens import NAMES
from icl_jax.interop.tokenizer_classes import CONFIG, TOKENIZER
from icl_jax.interop.tokenizer_files import library, read_backend

SPECIAL = "special_tokens_map.json"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"

#: Settings of a tokenizer that are true or false.
_SWITCHES = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "do_lower_case",
    "fix_mistral_regex",
    "legacy",
    "split_special_tokens",
    "strip_accents",
    "tokenize_chinese_chars",
)

#: The special tokens of a tokenizer that ``train_bpe`` makes.
BOS, EOS = "<|bos|>", "<|eos|>"


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
      tokens_T: (T,), int32.
      offsets_T2: (T, 2), int32: the characters that each token stands for, from the first to before
        the last, its spaces included; equal for tokens that stand for no text, such as BOS. Tokens
        that share a character (a part of its bytes each) have its place both.
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
      pad_id: of the token that fills batches; None where there is none.
      special_tokens: name -> text, as chat templates use them (``bos_token``, ...).
      chat_template: a Jinja template, or None.

    Examples:
      >>> from icl_jax.interop.tokenizer import train_bpe
      >>> tokenizer = train_bpe(["Ada built it in 1871."], 262)
      >>> tokenizer
      Tokenizer(262 tokens, bos_id=0, eos_ids=(1,), no chat template)
      >>> found = tokenizer.encode("Ada built it")
      >>> tokenizer.decode(found.tokens_T), bool(found.tokens_T[0] == tokenizer.bos_id)
      ('Ada built it', True)
      >>> found.offsets_T2[:3].tolist()  # the BOS stands for no text
      [[0, 0], [0, 2], [2, 3]]
    """

    backend: Any
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    special_tokens: dict[str, str]
    chat_template: str | None

    def __repr__(self) -> str:
        chat = "a" if self.chat_template is not None else "no"
        return (
            f"Tokenizer({self.backend.get_vocab_size()} tokens, bos_id={self.bos_id}, "
            f"eos_ids={self.eos_ids}, {chat} chat template)"
        )

    @property
    def adds_bos(self) -> bool:
        """Whether a text is made to begin with BOS."""
        return self.bos_id is not None and self.backend.encode("").ids[:1] == [self.bos_id]

    @property
    def adds_eos(self) -> bool:
        """Whether a text is made to end with an EOS."""
        ends = self.backend.encode("").ids[int(self.adds_bos) :]
        return bool(ends) and ends[-1] in self.eos_ids

    def encode(self, text: str, *, add_special: bool = True) -> Encoded:
        """The tokens of a text; BOS (and what else the checkpoint adds) only if ``add_special``."""
        found = self.backend.encode(text, add_special_tokens=add_special)
        return Encoded(
            np.asarray(found.ids, np.int32).reshape(-1),
            np.asarray(found.offsets, np.int32).reshape(-1, 2),
        )

    def decode(self, tokens_T: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of tokens."""
        tokens = [int(token) for token in tokens_T]
        return str(self.backend.decode(tokens, skip_special_tokens=skip_special))


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint comes with a tokenizer that ``load_tokenizer`` reads."""
    names = (TOKENIZER, "vocab.json", "vocab.txt")
    return any((folder / name).is_file() for name in names)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in the folder of a checkpoint.

    Its ids are those of ``AutoTokenizer`` in transformers 5, also where that makes parts of
    tokenizer.json anew or adds special tokens to it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: a file is damaged, or of a kind that is not supported.
      ImportError: tokenizers is not installed.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe
      >>> folder = Path(tempfile.mkdtemp())
      >>> save_tokenizer(folder, train_bpe(["Ada built it in 1871."], 258))  # or a checkpoint's
      >>> tokenizer = load_tokenizer(folder)
      >>> tokenizer, len(tokenizer.encode("Ada", add_special=False).tokens_T)
      (Tokenizer(258 tokens, bos_id=0, eos_ids=(1,), no chat template), 3)
    """
    folder = Path(folder)
    config = optional_json(folder / CONFIG)
    # Newer files say all in one.
    beside = {} if "added_tokens_decoder" in config else optional_json(folder / SPECIAL)
    _check_settings(folder, config | beside)
    backend, special = read_backend(folder, config, beside)

    def identity(name: str) -> int | None:
        return backend.token_to_id(special[name]) if name in special else None

    return Tokenizer(
        backend,
        identity("bos_token"),
        _eos_ids(folder, identity("eos_token")),
        identity("pad_token"),
        special,
        _chat_template(folder, config | beside),
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer (Sennrich et al., arXiv 1508.07909) of some texts.

    Raises:
      ValueError: ``vocab_size`` does not hold the 256 bytes and two special tokens.
      ImportError: tokenizers is not installed.

    Examples:
      >>> from icl_jax.interop.tokenizer import train_bpe
      >>> tokenizer = train_bpe(["la la la la"], 260)  # two merges: "la" and " la"
      >>> tokenizer, len(tokenizer.encode("la la la").tokens_T)  # a BOS and three
      (Tokenizer(260 tokens, bos_id=0, eos_ids=(1,), no chat template), 4)
    """
    checks.positive_int("train_bpe", "vocab_size", vocab_size)
    if vocab_size < 258:
        raise ValueError(f"train_bpe: vocab_size must be at least 258, got {vocab_size}.")
    tokenizers = library()
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
    return Tokenizer(backend, bos_id, (eos_id,), None, special, None)


def save_tokenizer(folder: str | Path, tokenizer: Tokenizer) -> None:
    """Writes the files of a tokenizer, as ``load_tokenizer`` and transformers read them.

    Several EOS tokens are not among them: those stand in the model's generation_config.json.
    Beside the config.json of a Qwen 2 (or Qwen 3.5) both read them as a tokenizer of that model:
    what is done to a text first is then the model's own.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe
      >>> folder = Path(tempfile.mkdtemp())
      >>> save_tokenizer(folder, train_bpe(["Ada built it in 1871."], 258))
      >>> sorted(path.name for path in folder.iterdir())
      ['tokenizer.json', 'tokenizer_config.json']
      >>> load_tokenizer(folder).special_tokens
      {'bos_token': '<|bos|>', 'eos_token': '<|eos|>'}
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(folder / TOKENIZER))
    config = {
        **tokenizer.special_tokens,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.backend.encode_special_tokens:
        config["split_special_tokens"] = True
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for a setting whose value is of another type than it can have."""
    for name, value in config.items():
        if name in _SWITCHES:
            good, kind = isinstance(value, bool), "true or false"
        elif name in NAMES:
            content = value.get("content") if isinstance(value, dict) else value
            good, kind = isinstance(content, str), 'a text, or an object with a text as "content"'
        elif name == "chat_template":
            good, kind = isinstance(value, str | list | dict), "a text, or several with names"
        elif name == "tokenizer_class":
            good, kind = isinstance(value, str), "a text"
        else:
            continue
        if value is not None and not good:
            raise ValueError(
                f"{folder / CONFIG} (or {SPECIAL}): {name} must be {kind}, got {value!r}. Fetch "
                "the tokenizer's files again."
            )


def _eos_ids(folder: Path, named: int | None) -> tuple[int, ...]:
    """What ends a text: as generation is configured (several, perhaps), or the tokenizer's one."""
    return read_generation_config(folder).eos_ids or (() if named is None else (named,))


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template in a file of its own, or in the configuration: a text, or several with names."""
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(
                f"{folder / TEMPLATE}: not a text in UTF-8 ({error}). Fetch it again."
            ) from error
    template = (optional_json(folder / OLD_TEMPLATE) or config).get("chat_template")
    if isinstance(template, list):  # Those of other names are for tools, or for documents.
        named = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in named}.get("default")
    return template if isinstance(template, str) else None
