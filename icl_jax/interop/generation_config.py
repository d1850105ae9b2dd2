"""``generation_config.json``: how the makers of a checkpoint mean text to be written with it.

It is read, and nothing of it is applied here: who generates applies what it can, and names the
rest (``ignored``), so that no setting is left out in silence.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_jax.interop.json_files import optional_json
from icl_jax.interop.options import Options

GENERATION = "generation_config.json"

#: Settings that choose among tokens only where tokens are drawn, and what they are without effect.
_DRAWING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}

#: Others that change what is written, and what they are without effect.
_OTHERS: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "max_length": 20,
    "max_new_tokens": None,
    "stop_strings": None,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "token_healing": False,
    "num_return_sequences": 1,
    "early_stopping": False,
    "max_time": None,
    "renormalize_logits": False,
}

#: Fields of ``GenerationConfig``, and what chooses no token: where it is run, what is handed back
#: beside the text, and helpers that write the same text sooner.
_READ = (
    "do_sample temperature top_k top_p min_p repetition_penalty max_new_tokens "
    "eos_token_id bos_token_id pad_token_id"
).split()
_HARMLESS = (
    "decoder_start_token_id use_mtp use_cache cache_implementation cache_config max_cache_len "
    "remove_invalid_values output_attentions output_hidden_states output_scores output_logits "
    "return_dict_in_generate return_legacy_cache is_assistant num_assistant_tokens "
    "num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens "
    "max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind "
    "assistant_ensemble_weight speculation_type compile_config disable_compile "
    "continuous_batching_config low_memory prefill_chunk_size transformers_version"
).split()


@dataclass(frozen=True)
class GenerationConfig:
    """The settings that a checkpoint comes with; None where its files have none.

    Attributes:
      do_sample: whether tokens are drawn; otherwise the most probable one is taken.
      temperature: by which logits are divided before a draw.
      top_k: draw from so many most probable tokens; 0 for all.
      top_p: draw from the fewest that have so much probability together.
      min_p: draw from those that have so much of the most probable one's probability.
      repetition_penalty: by which the logits of tokens that are there already are divided.
      max_new_tokens: the most to write.
      eos_ids: of the tokens that end a text; empty for none.
      bos_id: of the token that begins one.
      pad_id: of the token that fills batches.
      others: name and value of each further setting that changes what is written, in order; and of
        each that is not known here, which may.
    """

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    pad_id: int | None = None
    others: tuple[tuple[str, Any], ...] = ()

    def ignored(self, applied: Collection[str] = ()) -> tuple[str, ...]:
        """``name = value`` of each setting that would change the text and is not applied.

        Args:
          applied: names of settings that the caller applies (or replaces by its own).
        """
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        }
        given |= {"max_new_tokens": self.max_new_tokens, **dict(self.others)}
        if not self.do_sample:
            given = {name: value for name, value in given.items() if name not in _DRAWING}
        neutral = {**_DRAWING, **_OTHERS}
        settings = {"do_sample": True} if self.do_sample else {}
        settings |= {
            name: value
            for name, value in given.items()
            if value is not None and value != neutral.get(name)
        }
        return tuple(f"{name} = {value}" for name, value in settings.items() if name not in applied)


def stop_tokens(
    config: GenerationConfig, others: Collection[int], *, vocab_size: int, folder: Path
) -> tuple[int, ...]:
    """The tokens that end a text: those of a checkpoint's configuration, and its tokenizer's.

    Asked for where a text is written, not where a checkpoint is loaded: configuration classes
    write their own default where a small model has fewer tokens, and nothing else minds.

    Raises:
      ValueError: the model has no such token, so that no text could end with it.
    """
    ids = tuple(sorted({*config.eos_ids, *others}))
    if ids and ids[-1] >= vocab_size:
        raise ValueError(
            f"{folder}: eos_token_id = {ids[-1]} ({GENERATION}, config.json or the tokenizer's "
            f"files) is no token of the model's vocabulary of {vocab_size}: no text could end with "
            "it. Correct it, or say yourself which tokens end a text: stop=[...]."
        )
    return ids


def read_generation_config(folder: str | Path) -> GenerationConfig:
    """The settings of a checkpoint's folder; those of its config.json where it has no file of them.

    Raises:
      ValueError: a file is damaged, or a setting has a value that it cannot have.
    """
    folder = Path(folder)
    model = Options(optional_json(folder / "config.json"), str(folder / "config.json"))
    options = model
    if (folder / GENERATION).exists():
        options = Options(optional_json(folder / GENERATION), str(folder / GENERATION))
    names = [*_DRAWING, *_OTHERS]
    if options is not model:  # Whose other options are those of the model.
        known = {*names, *_HARMLESS}
        names += [name for name in options.config if name not in known and name[0:1] != "_"]
    others = [name for name in names if name not in _READ and options.has(name)]
    return GenerationConfig(
        do_sample=options.boolean("do_sample", default=False),
        temperature=_positive(options, "temperature"),
        top_k=_whole(options, "top_k"),
        top_p=_positive(options, "top_p", most=1.0),
        min_p=_positive(options, "min_p", most=1.0),
        repetition_penalty=_penalty(options),
        max_new_tokens=_whole(options, "max_new_tokens"),
        eos_ids=_ids(options if options.has("eos_token_id") else model, "eos_token_id"),
        bos_id=next(iter(_ids(options, "bos_token_id")), None),
        pad_id=next(iter(_ids(options, "pad_token_id")), None),
        others=tuple((name, options.either(name)) for name in others),
    )


def _ids(options: Options, key: str) -> tuple[int, ...]:
    """A token id, or several."""
    found = options.either(key, default=())
    ids = found if isinstance(found, list | tuple) else [found]
    if not all(type(token) is int and -1 <= token < 2**31 for token in ids):
        raise ValueError(
            f"{options.where}: {key} must be token ids, whole numbers of 0 or more (-1 for none), "
            f"got {found}."
        )
    return tuple(token for token in ids if token >= 0)  # -1 stands for none in some files.


def _penalty(options: Options) -> float | None:
    found = _positive(options, "repetition_penalty")
    if found == 0:  # By which logits would be divided.
        raise options.unsupported("repetition_penalty", found, "above 0")
    return found


def _positive(options: Options, key: str, most: float | None = None) -> float | None:
    found = options.optional_number(key)
    if found is not None and (found < 0 or (most is not None and found > most)):
        raise options.unsupported(key, found, f"0 to {most}" if most else "0 or more")
    return found


def _whole(options: Options, key: str) -> int | None:
    found = options.optional_integer(key)
    if found is not None and found < 0:
        raise options.unsupported(key, found, "0 or more")
    return found
