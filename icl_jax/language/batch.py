"""Prompts of many lengths as arrays of few shapes, so that little has to be compiled.

A prompt is padded at its end, in a causal model behind everything that anybody reads. The rows of
the kept positions are padded by repeating the last one. What was added is cut off every result.
"""

import functools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array
from icl_jax.language.ends import or_nan, token_ids
from icl_jax.sharding import mapped_axes

#: The shortest bucket, and the length from which on buckets are half as far apart.
SHORTEST, HALVED = 16, 128


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """B prompts in one shape.

    Attributes:
      tokens_BT: (B, T), int32.
      length_B: (B,), how many of the tokens are there.
      kept_BK: (B, K), int32, the kept positions; the last one again where a prompt keeps fewer.
      num_kept_B: (B,), how many positions each prompt keeps.
    """

    tokens_BT: Any
    length_B: Any
    kept_BK: Any
    num_kept_B: Any


def bucket(count: int, limit: int | None = None) -> int:
    """The size that ``count`` is padded to: powers of two, from ``HALVED`` on also 1.5 of them.

    Args:
      count: how many there are.
      limit: the most that there may be; no bucket is larger.
    """
    checks.positive_int("bucket", "count", count)
    size = max(SHORTEST, 1 << (count - 1).bit_length())
    if size > HALVED and 4 * count <= 3 * size:
        size = size // 4 * 3
    return size if limit is None else max(count, min(size, limit))


def kept_bucket(count: int) -> int:
    """As ``bucket``, for kept positions: a power of two."""
    return 1 << (count - 1).bit_length()


def is_batch(tokens: Any) -> bool:
    """Whether ``tokens`` are several prompts: a list of token lists, or a (B, T) array."""
    if isinstance(tokens, jax.Array | np.ndarray):
        return tokens.ndim == 2
    # What is neither, such as None or a text, is told that it is no token ids.
    listed = hasattr(tokens, "__len__") and not isinstance(tokens, str | Set | Mapping)
    return listed and len(tokens) > 0 and np.ndim(tokens[0]) == 1


def pad_prompts(
    where: str,
    model: LanguageModel,
    tokens: Any,
    kept: Any,
    *,
    some_removed: bool = True,
    extra: int = 0,
    name: str = "kept",
) -> Prompts:
    """Checks prompts and pads them to one bucket.

    Args:
      where: the caller, for errors.
      model: whose prompts these are.
      tokens: one prompt (T,), or several of any lengths.
      kept: its kept positions (K,), or those of each prompt.
      some_removed: whether a prompt must lose a position.
      extra: how many more positions the model will need.
      name: of the kept positions, for errors.

    Raises:
      ValueError: no prompts; another number of kept sets; tokens or positions that cannot be.
      TypeError: tokens or positions that are not integers.
    """
    prompts, sets = (tokens, kept) if is_batch(tokens) else ([tokens], [kept])
    if not hasattr(sets, "__len__") or len(prompts) != len(sets):
        raise ValueError(
            f"{where}: {name} must hold the {name} positions of each of the {len(prompts)} "
            f"prompts, got {len(sets) if hasattr(sets, '__len__') else sets}."
        )
    ids = [token_ids(where, model, one, extra=extra) for one in prompts]
    positions = [
        checks.positions(where, one, len(prompt), some_removed=some_removed, name=name)
        for one, prompt in zip(sets, ids, strict=True)
    ]
    most = kept_bucket(max(len(one) for one in positions))
    return _padded(model, ids, positions, most)


def pad_whole(where: str, model: LanguageModel, tokens: Any, *, extra: int = 0) -> Prompts:
    """``pad_prompts``, of which all positions are kept."""
    prompts = tokens if is_batch(tokens) else [tokens]
    ids = [token_ids(where, model, one, extra=extra) for one in prompts]
    whole = [np.arange(len(one), dtype=np.int32) for one in ids]
    # As many rows as tokens: of every bucket of lengths there is one program.
    return _padded(model, ids, whole, _length(model, ids))


def _length(model: LanguageModel, ids: Sequence[Any]) -> int:
    return bucket(max(len(one) for one in ids), model.num_positions)


def _padded(
    model: LanguageModel, ids: Sequence[Any], positions: Sequence[Any], most: int
) -> Prompts:
    length = _length(model, ids)
    # The last token again: any token will do, except one whose embedding might be zero.
    return Prompts(
        _rows(ids, length),
        np.array([len(one) for one in ids], np.int32),
        _rows(positions, most),
        np.array([len(one) for one in positions], np.int32),
    )


def _rows(vectors: Sequence[Array | np.ndarray], length: int) -> Array | np.ndarray:
    """Vectors as rows of one length, on the host where their values are known there."""
    numpy: Any = np if all(map(checks.is_concrete, vectors)) else jnp
    return numpy.stack([numpy.pad(one, (0, length - len(one)), mode="edge") for one in vectors])


def or_nan_where_impossible(results: Any, prompts: Prompts) -> Any:
    """Leaves (B, ...), NaN where a prompt's kept positions, traced, cannot be; as ``or_nan``."""
    if checks.is_concrete(prompts.kept_BK):
        return results
    possible_B = jax.vmap(checks.possible)(prompts.kept_BK, prompts.length_B, prompts.num_kept_B)
    return over_prompts(or_nan, len(possible_B))(possible_B, results)


def presence(model: LanguageModel, length: Array, size: int) -> Array | None:
    """Which of ``size`` places (size,) are present; None where nobody looks behind itself."""
    if all(block.contextual_layer.causal for block in model.blocks):
        return None
    return jnp.arange(size, dtype=jnp.int32) < length


def padded_positions(model: LanguageModel, length: Array, size: int) -> Array | None:
    """Position ids (size,) of a padded prompt; None for 0..size-1, where padding counts no more.

    Where a layer asks how long the sequence is, what pads it stands where its last token does.
    """
    if not any(block.contextual_layer.reads_length for block in model.blocks):
        return None
    return jnp.minimum(jnp.arange(size, dtype=jnp.int32), jnp.asarray(length, jnp.int32) - 1)


def over_prompts(
    one: Callable[..., Any], count: int, in_axes: Any = 0, out_axes: Any = 0
) -> Callable[..., Any]:
    """``jax.vmap(one, in_axes, out_axes)`` of ``count`` prompts; one prompt is run by itself.

    A batch of one costs an axis in every operation, and a scatter for every row that is put into a
    memory; nobody has to pay for it. On the mesh that is set, if any, every device has its share of
    the prompts.
    """
    if count > 1:
        return jax.vmap(one, in_axes, out_axes, spmd_axis_name=mapped_axes("prompts", count))

    def cut(axis: int | None, tree: Any) -> Any:
        if axis is None:
            return tree
        return jax.tree.map(lambda leaf: jax.lax.index_in_dim(leaf, 0, axis, keepdims=False), tree)

    def joined(axis: int, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), tree)

    def alone(*prompts: Any) -> Any:
        axes = (in_axes,) * len(prompts) if isinstance(in_axes, int) else in_axes
        found = one(*_by_axis(cut, axes, prompts))
        return _by_axis(joined, out_axes, found)

    return alone


def _by_axis(change: Callable[[Any, Any], Any], axes: Any, tree: Any) -> Any:
    """``change(axis, part)`` of the parts of a tree, for axes that stand for what is below them."""
    return jax.tree.map(change, axes, tree, is_leaf=lambda axis: axis is None)


def unpadded(results: Any, prompts: Prompts, batched: bool) -> Any:
    """Each prompt's own result, without what was added to pad it.

    Args:
      results: a tree of leaves (B, K, ...), such as logits.
      prompts: what they are of.
      batched: whether a list is wanted, or the one prompt's.
    """
    counts = [int(count) for count in np.asarray(prompts.num_kept_B)]
    each = [cut_rows(results, number, count) for number, count in enumerate(counts)]
    return each if batched else each[0]


@functools.partial(jax.jit, static_argnames=("count", "axis"))
def cut_rows(results: Any, number: Array | int, count: int, axis: int = 0) -> Any:
    """Of prompt ``number``, the first ``count`` rows along ``axis`` of its leaves."""

    def cut(leaf: Array) -> Array:
        return jax.lax.slice_in_dim(leaf[number], 0, count, axis=axis)

    return jax.tree.map(cut, results)


@functools.partial(jax.jit, static_argnames=("count", "axis"))
def repeat_last_row(results: Any, count: int, axis: int = 0) -> Any:
    """Leaves with ``count`` rows along ``axis``: the last one again and again."""

    def pad(leaf: Array) -> Array:
        widths = [(0, 0)] * leaf.ndim
        widths[axis] = (0, count - leaf.shape[axis])
        return jnp.pad(leaf, widths, mode="edge")

    return jax.tree.map(pad, results)
