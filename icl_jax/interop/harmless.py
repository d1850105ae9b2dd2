"""Options of a ``config.json`` that change nothing of what is computed here, and why.

An option that no family reads must be one of these, or a checkpoint is refused: what is not known
could mean anything. A family adds its own (``HARMLESS`` of its module, name -> reason or ``Only``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icl_jax.interop.options import Keys, Options


@dataclass(frozen=True)
class Only:
    """An option that is harmless with some values, and would change the model with another.

    Attributes:
      values: those that change nothing.
    """

    values: tuple[Any, ...]


Reasons = Mapping[str, str | Only]

_BY_REASON: dict[str, tuple[str, ...]] = {
    "says which family it is": ("architectures", "model_type"),
    "says who wrote the file, and with what": (
        "_commit_hash",
        "_model_name_or_path",
        "_name_or_path",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
    ),
    "names Python files, which are never run": ("auto_map", "custom_pipelines"),
    "the weights have dtypes of their own": ("dtype", "torch_dtype", "use_bfloat16"),
    "another way to compute the same numbers": (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_experts_implementation",
        "_flash_attn_2_enabled",
        "attn_implementation",
        "cache_implementation",
        "chunk_size_feed_forward",
        "experts_implementation",
        "gradient_checkpointing",
        "pretraining_tp",
        "torchscript",
        "use_cache",
        "use_flash_attn",
        "use_flash_attention",
    ),
    "how weights begin, before training": ("initializer_factor", "initializer_range"),
    "drops numbers in training only": (
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "classifier_dropout",
        "embd_pdrop",
        "hidden_dropout",
        "hidden_dropout_prob",
        "resid_pdrop",
    ),
    "adds to the loss of training, or is given beside the logits": (
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "router_aux_loss_coef",
    ),
    "what a classifier makes of the model, or a task": (
        "finetuning_task",
        "id2label",
        "label2id",
        "num_labels",
        "prefix",
        "problem_type",
        "task_specific_params",
    ),
    "what the tokenizer does": ("model_max_length", "tokenizer_class"),
    "how text is generated": (
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    ),
    "the longest prompt that the model was trained for": ("max_position_embeddings",),
    "says how scaled positions were trained": ("finetuned",),
}

#: What no family needs to know, but with these values.
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "is_causal": (True,),
    "is_decoder": (False, True),  # A decoder is one whatever it says.
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "pruned_heads": ({},),
    "tie_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}

#: Name -> reason, of all families.
COMMON: Reasons = {
    **{name: reason for reason, names in _BY_REASON.items() for name in names},
    **{name: Only(values) for name, values in _ONLY.items()},
}


def refuse_unread(options: Options, harmless: Reasons | None = None) -> None:
    """Refuses a configuration with an option that was not read and is not known to be harmless.

    Args:
      options: that a family has built a model from.
      harmless: what the family adds to ``COMMON``.

    Raises:
      ValueError: naming the options and their values.
    """
    known = {**COMMON, **(harmless or {})}
    unknown = {}
    for path, value in options.unread().items():
        rule = known.get(path[-1])
        if isinstance(rule, Only):
            if not _is_one_of(value, rule.values):
                raise options.unsupported(_dotted(path), value, rule.values)
        elif rule is None and not path[-1].endswith("_token_id"):
            unknown[path] = value
    if unknown:
        first = next(iter(unknown))
        rest = [_dotted(path) for path in unknown if path != first]
        beside = f" (nor are {', '.join(rest)})" if rest else ""
        raise options.unsupported(
            _dotted(first),
            unknown[first],
            f"options that the family reads, and this one is not known{beside}. It could change "
            "what the model computes. If you know that it does not, take it out of the file",
        )


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    # With the type of truth values, because 0 == False in Python but not in JSON.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _dotted(path: Keys) -> str:
    return ".".join(path)
