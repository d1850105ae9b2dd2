"""The two ends of a language model: token ids into the residual stream, and logits out of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.sharding import on_host


def embed(
    model: LanguageModel, params: Params, tokens_T: Array, positions_T: Array | None = None
) -> Array:
    """``LanguageModel.embed``, (T, D)."""
    stream_TD: Any = model.apply(
        {"params": params}, tokens_T, positions_T=positions_T, method="embed"
    )
    return stream_TD


def readout(model: LanguageModel, params: Params, stream_KD: Array) -> Array:
    """``LanguageModel.readout``, (K, V)."""
    logits_KV: Any = model.apply({"params": params}, stream_KD, method="readout")
    return logits_KV


def finite(logits: Array) -> Array:
    """Whether logits (..., V) are numbers, (...): no NaN, no +inf, and not all -inf (a mask)."""
    return jnp.all(logits < jnp.inf, axis=-1) & jnp.any(logits > -jnp.inf, axis=-1)


def check_finite(
    where: str,
    finite: Array | np.ndarray,
    what: str = "the logits of row {} (prompt, then position) are",
) -> None:
    """Raises where rows of logits, or of ``what`` else, are not ``finite`` (...); silent in jit.

    Raises:
      NumericalError: naming ``where`` and the first row.
    """
    if not checks.is_concrete(finite):
        return
    bad = np.argwhere(~on_host(finite))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        raise checks.NumericalError(
            f"{where}: {what.format(index)} not finite. Look for NaN or infinity in the weights "
            "(or in an edit), or for activations that leave the range of the dtype; bfloat16 and "
            "float32 have a wider one than float16."
        )


def check_update(where: str, numbers: Array) -> None:
    """Raises NumericalError where what is said of a layer's update, (B, L, ...), is not finite."""
    if checks.is_concrete(numbers):
        axes = tuple(range(2, numbers.ndim))
        finite_BL = np.all(np.isfinite(on_host(numbers)), axis=axes)
        check_finite(where, finite_BL, "the update at {} (prompt, then layer) is")


def or_nan(possible: Array, results: Any) -> Any:
    """A tree of arrays; NaN throughout, where it has numbers, unless ``possible`` ().

    What cannot be is refused where it can be read. Inside jit, where it cannot, JAX would take the
    nearest row for one that is not there, and the numbers would look right.
    """

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(possible, leaf, jnp.asarray(jnp.nan, leaf.dtype))

    return jax.tree.map(one, results)


def states(model: LanguageModel, params: Params, stream_TD: Array) -> Array:
    """``LanguageModel.states``, (T, D)."""
    states_TD: Any = model.apply({"params": params}, stream_TD, method="states")
    return states_TD


def head(model: LanguageModel, params: Params, states_KD: Array) -> Array:
    """``LanguageModel.logits``, (K, V)."""
    logits_KV: Any = model.apply({"params": params}, states_KD, method="logits")
    return logits_KV


def room(model: LanguageModel) -> int | None:
    """The most tokens that the model can read and is meant for; None where nothing limits them."""
    limits = (model.num_positions, model.max_positions)
    return min((limit for limit in limits if limit is not None), default=None)


def token_ids(
    where: str, model: LanguageModel, tokens_T: Any, *, extra: int = 0
) -> np.ndarray | Array:
    """Token ids as int32, checked; JAX would read an id outside the table as another one.

    Args:
      where: the caller, for the error.
      model: the model.
      tokens_T: (T,), at least one token id: an array, a list, or anything that numpy reads.
      extra: how many more positions will be needed.

    Raises:
      ValueError: no tokens, an id outside the vocabulary, more tokens than the model has positions
        for or is meant for.
      TypeError: not integers.
    """
    tokens_T = checks.integers(where, "tokens_T", tokens_T)
    checks.rank(where, "tokens_T", tokens_T, 1, "(T)")
    if not tokens_T.shape[0]:
        raise ValueError(f"{where}: tokens_T is empty; a prompt has at least one token.")
    if isinstance(tokens_T, np.ndarray):
        check_vocabulary(where, "tokens_T", model, tokens_T)
    _check_room(where, model, tokens_T.shape[0] + extra, "tokens")
    return tokens_T.astype(np.int32)


def check_vocabulary(where: str, name: str, model: LanguageModel, ids: np.ndarray) -> None:
    """Raises ValueError for token ids of any shape that are none of the model's."""
    wrong = ids[(ids < 0) | (ids >= model.vocab_size)]
    if wrong.size:
        raise ValueError(
            f"{where}: {name} must lie in [0, {model.vocab_size}), the vocabulary, got "
            f"{wrong[:5].tolist()}. Use the tokenizer of this checkpoint."
        )


def check_position_ids(
    where: str, model: LanguageModel, length: int, positions_T: Any, *, extra: int = 0
) -> None:
    """Raises where position ids of one prompt cannot be, or the model has no room for the last.

    Args:
      where: the caller, for the error.
      model: the model.
      length: T, of the prompt.
      positions_T: (T,), or None for 0..T-1.
      extra: how many more positions will be needed behind the last one.

    Raises:
      ValueError, TypeError: as ``checks.places``; (outside jit) more positions than the model has.
    """
    checks.places(where, length, positions_T)
    if positions_T is not None and checks.is_concrete(positions_T):
        _check_room(where, model, int(np.asarray(positions_T)[-1]) + 1 + extra, "positions")


def _check_room(where: str, model: LanguageModel, needed: int, what: str) -> None:
    if model.num_positions is not None and needed > model.num_positions:
        raise ValueError(
            f"{where}: {needed} {what} are needed, and the model has only {model.num_positions} "
            "positions. Shorten the prompt or write less."
        )
    if model.max_positions is not None and needed > model.max_positions:
        raise ValueError(
            f"{where}: {needed} {what} are needed, and the model is meant for at most "
            f"{model.max_positions} (its max_positions). Shorten the prompt or write less; to go "
            "beyond what it was made for, use model.clone(max_positions=None)."
        )
