"""A language model's run with named activations read, edited or replaced.

The names are those of ``stack.sites`` (``layers.N.residual``, ``mixed``, ``mlp_input``, ``hidden``,
``output``) and, around the layers, (T, D) both,

    embedding   the residual stream in front of the first layer
    final       what the head reads: behind the last layer and the final norm

Functions of values: nothing is registered and nothing has to be taken off again.
"""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.batch import is_batch
from icl_jax.language.ends import (
    check_finite,
    check_position_ids,
    embed,
    finite,
    head,
    or_nan,
    states,
    token_ids,
)
from icl_jax.language.generation import write
from icl_jax.language.sampling import GREEDY, Sampling
from icl_jax.language.writing import ENDS
from icl_jax.patches.bank import Bank
from icl_jax.sharding import on_host
from icl_jax.shown import short
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.run import run_watched
from icl_jax.stack.sites import Edits, Seen, Watch, named, watch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observed:
    """A run, seen from inside.

    Attributes:
      logits_TV: (T, V), of every position; the last states (T, D) of an encoder.
      activations: name -> what was there and went on, (T, ...); of ``layers.*`` (L, T, ...).

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> seen = observe(model, params, tokens, capture=("layers.0.mlp_input", "final"))
      >>> seen.logits_TV.shape, sorted(seen.activations)
      ((10, 30), ['final', 'layers.0.mlp_input'])
    """

    logits_TV: Array
    activations: dict[str, Array]

    __repr__ = short


@dataclass(frozen=True)
class ObservedGeneration:
    """A text that was written, seen from inside.

    Attributes:
      tokens_N: (N,), the new token ids.
      activations: name -> (T + N - 1, ...), of the prompt's tokens and all new ones but the last,
        which was written and never read; of ``layers.*`` (L, T + N - 1, ...).

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> seen = observed_generate(model, params, tokens, 3, capture=("layers.*.residual",))
      >>> seen.tokens_N.shape, seen.activations["layers.*.residual"].shape  # the last is never read
      ((3,), (2, 12, 8))
    """

    tokens_N: np.ndarray
    activations: dict[str, Array]

    __repr__ = short


def observe(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    *,
    capture: Collection[str] = (),
    edit: Edits | None = None,
    positions_T: Array | np.ndarray | None = None,
    bank: Bank | None = None,
) -> Observed:
    """Runs a prompt, reading and changing what is named on the way; one program for any depth.

    Can be jitted, mapped over prompts and differentiated, through edits as well.

    Args:
      model: the model.
      params: its parameters.
      tokens_T: (T,), token ids; prompts of one length go through ``jax.vmap``.
      capture: names, see the top of this file.
      edit: name -> ``function(values_TD) -> values_TD``, or an array that takes the values' place,
        (T, D), or (D) for every row. An edit comes before the capture of the same name; edits of
        one place in the order in which they stand. A new function is a new program: use
        ``jax.tree_util.Partial(function, *arrays)``, of a function that stays, in a loop.
      positions_T: (T,), position ids; 0..T-1 when left out.
      bank: patches of this prompt: then the kept positions run alone, patched, and T is K.

    Raises:
      ValueError: bad tokens, no such name, an edit that gives another shape or dtype; (outside jit)
        logits that are not finite: then the error says which of the captured activations are not,
        and from which layer on.
      TypeError: an edit that is neither function nor array.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> capture = ("layers.1.mlp_input", "layers.*.residual")
      >>> seen = observe(model, params, tokens, capture=capture)
      >>> {name: array.shape for name, array in seen.activations.items()}
      {'layers.1.mlp_input': (10, 8), 'layers.*.residual': (2, 10, 8)}
      >>> def steered(v_D):
      ...     edit = {"layers.1.residual": lambda stream_TD: stream_TD + v_D}
      ...     return observe(model, params, tokens, edit=edit).logits_TV[-1, 7]
      >>> jax.grad(steered)(jnp.zeros(8)).shape
      (8,)
    """
    where = "observe"
    tokens_T = token_ids(where, model, tokens_T)
    check_position_ids(where, model, tokens_T.shape[0], positions_T)
    patches = possible = None
    if bank is not None:
        if positions_T is not None:
            raise ValueError(f"{where}: bank has position ids of its own; leave positions_T out.")
        kept_K = checks.kept_positions(where, bank.kept_K, tokens_T.shape[0])
        if not checks.is_concrete(kept_K):
            possible = checks.possible(kept_K, tokens_T.shape[0])
        tokens_T = jnp.asarray(tokens_T)[kept_K]
        positions_T, patches = bank.positions_K, bank.patches
    watching = watch(where, functional(model, params), capture, edit, ENDS)
    logits_TV, finite_T, seen = _observe(model, params, tokens_T, positions_T, patches, watching)
    activations = named(capture, watching, seen)
    try:
        check_finite(where, finite_T, "the logits at position {} are")
    except checks.NumericalError as error:
        raise checks.NumericalError(f"{error} {_where_it_begins(activations)}") from None
    if possible is not None:
        logits_TV, activations = or_nan(possible, (logits_TV, activations))
    return Observed(logits_TV, activations)


def _where_it_begins(activations: dict[str, Array]) -> str:
    """Which of the captured activations are not finite, and from which layer on."""
    found = []
    for name, values in activations.items():
        if not checks.is_concrete(values):
            continue  # Derivatives are being taken through it.
        finite = np.isfinite(np.asarray(on_host(values), np.float64))
        if finite.all():
            continue
        bad_L = ~finite.reshape(len(finite), -1).all(axis=1)
        found.append(f"{name} from layer {bad_L.argmax()} on" if "*" in name else name)
    if found:
        return f"Of what was captured, not finite: {', '.join(found)}."
    if read := [name for name, values in activations.items() if checks.is_concrete(values)]:
        return f"All of what was captured is finite: {', '.join(read)}."
    return "capture=('layers.*.residual',) says in which layer it begins."


@functools.partial(jax.jit, static_argnames="model")
def _observe(
    model: LanguageModel,
    params: Params,
    tokens_T: Array,
    positions_T: Array | None,
    patches: PerLayer[Any] | None,
    watching: Watch,
) -> tuple[Array, Array, Seen]:
    around = watching.outside()
    stream_TD, first = around.at("embedding", embed(model, params, tokens_T, positions_T), {})
    stream_TD, seen = run_watched(
        functional(model, params), stream_TD, patches, watching, positions_T
    )
    states_TD, last = around.at("final", states(model, params, stream_TD), first)
    logits_TV = head(model, params, states_TD)
    return logits_TV, finite(logits_TV), {**seen, **last}


def observed_generate(
    model: LanguageModel,
    params: Params,
    tokens: Any,
    num_tokens: int,
    *,
    capture: Collection[str] = (),
    edit: Edits | None = None,
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    stop: Collection[int] = (),
    progress: Callable[[], None] | None = None,
) -> Any:
    """``generate``, with activations read and changed in the prompt and at every new token.

    Args:
      model, params, tokens, num_tokens, sampling, key, stop, progress: as in ``generate``.
      capture: names, as in ``observe``.
      edit: as in ``observe``, row by row: of the prompt all rows are given at once (and rows behind
        it that nobody reads), then one row per new token. Arrays are (D).

    Returns:
      An ``ObservedGeneration``, or a list of them for several prompts.

    Raises:
      ValueError, TypeError: as ``generate`` and ``observe``.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> seen = observed_generate(model, params, tokens, 4, capture=("layers.1.mlp_input",))
      >>> len(seen.tokens_N), seen.activations["layers.1.mlp_input"].shape
      (4, (13, 8))
    """
    where = "observed_generate"
    watching = watch(where, functional(model, params), capture, edit, ENDS)
    written, text, prompts = write(
        where,
        model,
        params,
        tokens,
        num_tokens,
        sampling=sampling,
        key=key,
        stop=stop,
        progress=progress,
        watching=watching,
    )
    size = prompts.tokens_BT.shape[1]

    def rows(buffer: Array, length: int, new: int) -> Array:
        """The prompt's tokens and the new ones, without what lies between and behind them."""
        parts = (buffer[..., :length, :], buffer[..., size : size + new - 1, :])
        return jnp.concatenate(parts, axis=-2)

    each = []
    for number, (tokens_N, length) in enumerate(zip(written, prompts.length_B, strict=True)):
        seen = {
            one: rows(buffer[number], int(length), len(tokens_N))
            for one, buffer in text.seen.items()
        }
        each.append(ObservedGeneration(tokens_N, named(capture, watching, seen)))
    return each if is_batch(tokens) else each[0]
