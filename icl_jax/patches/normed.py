"""The output side of a token patch where a norm stands on the MLP's output (Gemma 2 and 3, OLMo 2).

``out = h + s * o / sqrt(mean(o^2) + eps)`` with ``o = a W_down``: nothing but the gain ``s`` and
the down kernel can carry the residual change ``r``, and the norm takes away the length of
whatever the kernel adds. Two patches:

scale     ``ds = r / (o / rms(o))``, entry by entry (Goldwaser et al., arXiv 2511.17864). Divides by
          entries of a normalised vector, some of which are always near zero: exact in a run that
          repeats ``o`` bit for bit, worthless in one that does not.
balanced  a rank-1 patch of the down kernel sets the direction of ``o``, one scalar on the gain its
          length. Divides by entries of the gain only; where these are near zero, they are moved.

Why, with numbers of a real model: docs/theory.md.
"""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.output import DownPatch, added, down_patch, wide
from icl_jax.patches.pairs import two_product, two_sum
from icl_jax.patches.vectors import vector_norm
from icl_jax.shown import short
from icl_jax.stack.settled import as_stored

#: The largest entry that a balanced patch asks of a normed vector, whose mean square is 1: gains so
#: near zero that they would need more (zero included) are moved.
LARGEST_ENTRY = 1024.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputNorm:
    """A root-mean-square norm on the output of an MLP.

    Attributes:
      gain_D: (D,), ``s``.
      epsilon: added to the mean square, in squared units of the MLP's output.

    Examples:
      >>> norm = OutputNorm(gain_D=jnp.array([1.0, 2.0]), epsilon=0.0)
      >>> unchanged = ScalePatch(jnp.zeros(2))
      >>> apply_normed(jnp.array([3.0, -3.0]), jnp.ones(1), norm, unchanged).tolist()
      [1.0, -2.0]
    """

    gain_D: Array
    epsilon: float = field(metadata={"static": True})

    __repr__ = short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScalePatch:
    """``s -> s + ds``.

    Attributes:
      gain_delta_D: (D,), ``ds``, in units of the gain.

    Examples:
      >>> norm, patch = OutputNorm(jnp.array([1.0, 2.0]), 0.0), ScalePatch(jnp.array([0.5, 0.0]))
      >>> apply_normed(jnp.array([3.0, -3.0]), jnp.ones(1), norm, patch).tolist()
      [1.5, -2.0]
    """

    gain_delta_D: Array

    __repr__ = short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BalancedPatch:
    """``W_down -> W_down + outer(v, o' - o)`` and ``s -> ratio s + ds``.

    Attributes:
      down: the patch of the down kernel; it keeps the root mean square of ``o``.
      gain_ratio: (), by which the gain is multiplied.
      gain_delta_D: (D,), zero except where the gain is zero (no ratio moves it) and, with a
        remainder, what rounding has left.

    Examples:
      >>> norm = OutputNorm(jnp.array([1.0, 1.0]), 0.0)
      >>> output, hidden = jnp.array([3.0, -3.0]), jnp.array([1.0])
      >>> patch = balanced_patch(output, hidden, jnp.array([1.0, -1.0]), norm)  # twice as much
      >>> float(patch.gain_ratio.round(4)), patch.down.delta_D.round(4).tolist()
      (2.0, [3.0, -3.0])
      >>> apply_normed(output, hidden, norm, patch).round(4).tolist()  # where it was (1, -1)
      [2.0, -2.0]
    """

    down: DownPatch
    gain_ratio: Array
    gain_delta_D: Array

    __repr__ = short


def scale_patch(output_D: Array, change_D: Array, norm: OutputNorm) -> ScalePatch:
    """The scale patch of a kept position.

    Args:
      output_D: (D,), ``o``, the MLP's output before the norm.
      change_D: (D,), ``r``, what has to be added to the block's output.
      norm: the norm on the output.

    Returns:
      ``ds``; infinite where an entry of ``o`` is zero and ``r`` is not.

    Examples:
      >>> norm = OutputNorm(jnp.array([1.0, 2.0]), 0.0)
      >>> output, change = jnp.array([3.0, 1.0]), jnp.array([0.5, -0.5])
      >>> patch = scale_patch(output, change, norm)
      >>> plain = norm.gain_D * output / jnp.sqrt(jnp.mean(output**2))
      >>> jnp.round(apply_normed(output, jnp.ones(2), norm, patch) - plain, 4).tolist()
      [0.5, -0.5]

    Source: Goldwaser et al. (arXiv 2511.17864).
    """
    checks.same_shape("scale_patch", output_D=output_D, change_D=change_D)
    normed_D = _normed(wide(output_D), norm.epsilon)
    change_D = change_D.astype(normed_D.dtype)
    return ScalePatch(jnp.where(change_D == 0, jnp.zeros_like(change_D), change_D / normed_D))


def balanced_patch(
    output_D: Array,
    hidden_H: Array,
    change_D: Array,
    norm: OutputNorm,
) -> BalancedPatch:
    """The balanced patch of a kept position.

    ``tau = r + s o / sqrt(mean(o^2) + eps)``, ``w = tau / g``, ``o' = rms(o) w``,
    ``ratio = sqrt(rms(w)^2 + eps / rms(o)^2)``, where ``g = s`` unless an entry of ``w`` would be
    beyond ``LARGEST_ENTRY``: there ``|g|`` is as large as it has to be, and ``ds = ratio (g - s)``.

    No root finding, and no division by activations. The length of ``o'`` is free, since the norm
    takes it away; at this one an entry that keeps its share of the output keeps its size, too, and
    so its rounding, whatever the others do.

    Args:
      output_D: (D,), ``o``, the MLP's output before the norm.
      hidden_H: (H,), ``a``, the down kernel's input.
      change_D: (D,), ``r``, what has to be added to the block's output.
      norm: the norm on the output.

    Returns:
      The patch, in float32 or wider; ``with_remainder`` adds what its rounding has left.

    Raises:
      ValueError: shapes that do not fit, or (outside jit) ``hidden_H`` of length zero.

    Examples:
      >>> norm = OutputNorm(jnp.array([1.0, 2.0]), 0.0)
      >>> output, hidden = jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])
      >>> patch = balanced_patch(output, hidden, jnp.array([0.5, -0.5]), norm)
      >>> plain = norm.gain_D * output / jnp.sqrt(jnp.mean(output**2))
      >>> jnp.round(apply_normed(output, hidden, norm, patch) - plain, 4).tolist()
      [0.5, -0.5]

    Source: worked out for this library; docs/theory.md.
    """
    checks.same_shape("balanced_patch", output_D=output_D, change_D=change_D)
    wide_D = wide(output_D)
    normed_D = _normed(wide_D, norm.epsilon)
    gain_D = norm.gain_D.astype(wide_D.dtype)
    target_D = change_D.astype(wide_D.dtype) + gain_D * normed_D

    least_D = jnp.abs(target_D) / LARGEST_ENTRY
    moved_D = jnp.where(jnp.abs(gain_D) < least_D, jnp.copysign(least_D, gain_D), gain_D)
    movable_D = moved_D != 0
    divisor_D = jnp.where(movable_D, moved_D, jnp.ones_like(moved_D))
    wanted_D = jnp.where(movable_D, target_D / divisor_D, normed_D)
    length, wanted_length = _rms(wide_D), _rms(wanted_D)
    length = jnp.where(length == 0, jnp.ones_like(length), length)
    # In the dtype that the norm reads in: there is no rounding here that a later use could miss.
    down = down_patch(hidden_H.astype(wide_D.dtype), wanted_D * length - wide_D)
    ratio = jnp.sqrt(wanted_length**2 + norm.epsilon / length**2)

    return BalancedPatch(down, ratio, ratio * (moved_D - gain_D))


def with_remainder(
    patch: BalancedPatch,
    output_D: Array,
    hidden_H: Array,
    norm: OutputNorm,
    residual_D: Array,
    target_D: Array,
) -> BalancedPatch:
    """The patch whose ``ds`` also takes what rounding has left of the block's output.

    ``ds += (target - (h + n' (ratio s + ds))) / n'``, entry by entry, with the very sum that a
    patched run has which reads ``n'`` to the bit: the same rows in one program (``normed_sum``). A
    compact patch adds to ``o`` with another rounding. Left are entries whose ``n' ds`` is above the
    output itself.

    Args:
      patch: a balanced patch.
      output_D, hidden_H, norm: what it was made of.
      residual_D: (D,), ``h``, what the normed output is added to.
      target_D: (D,), the block's output in the run with everything, as it is stored.

    Examples:
      >>> norm = OutputNorm(jnp.array([1.0, 2.0]), 0.0)
      >>> output, hidden = jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])
      >>> residual, target = jnp.array([0.3, 0.7]), jnp.array([1.9, 0.1])
      >>> plain = norm.gain_D * output / jnp.sqrt(jnp.mean(output**2))
      >>> patch = balanced_patch(output, hidden, target - residual - plain, norm)
      >>> patch = with_remainder(patch, output, hidden, norm, residual, target)
      >>> total, low = normed_sum(residual, output, hidden, norm, patch)
      >>> bool(jnp.all(total + low == target))
      True

    Source: worked out for this library; docs/theory.md.
    """
    total_D, low_D = normed_sum(residual_D, output_D, hidden_H, norm, patch)
    missing_D = (wide(target_D).astype(total_D.dtype) - total_D) - low_D
    reached_D = _reached(output_D, hidden_H, norm, patch)
    divisor_D = jnp.where(reached_D == 0, jnp.ones_like(reached_D), reached_D)
    step_D = jnp.where(reached_D == 0, jnp.zeros_like(missing_D), missing_D / divisor_D)
    return dataclasses.replace(patch, gain_delta_D=patch.gain_delta_D + step_D)


def normed_sum(
    residual_D: Array,
    output_D: Array,
    hidden_H: Array,
    norm: OutputNorm,
    patch: ScalePatch | BalancedPatch,
) -> tuple[Array, Array]:
    """The block's output ``h + n' s'`` (D,) as a pair: to be added, and rounded once.

    In float32 or wider, as norms are computed: a stream of bfloat16 that is rounded once, after the
    sum, is the full run's to the bit, where two roundings would not do. So is one of float32: given
    ``n'``, what is computed as pairs (``patches.pairs``) has no other rounding, and no compiler
    makes another number of it by joining a product with the sum behind it.

    Examples:
      >>> norm = OutputNorm(jnp.array([1.0, 2.0]), 0.0)
      >>> output, residual = jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])
      >>> patch = scale_patch(output, jnp.array([0.5, -0.5]), norm)
      >>> total, low = normed_sum(residual, output, jnp.ones(2), norm, patch)
      >>> plain = norm.gain_D * output / jnp.sqrt(jnp.mean(output**2))
      >>> jnp.round(total + low - residual - plain, 4).tolist()
      [0.5, -0.5]
    """
    normed_D, low_D = _patched(output_D, hidden_H, norm, patch)
    total_D, lower_D = two_sum(wide(residual_D).astype(normed_D.dtype), normed_D)
    return total_D, lower_D + low_D


def apply_normed(
    output_D: Array, hidden_H: Array, norm: OutputNorm, patch: ScalePatch | BalancedPatch
) -> Array:
    """The normed output (D,) of an MLP with the patched gain (and down kernel).

    Examples:
      >>> norm = OutputNorm(jnp.array([1.0, 2.0]), 0.0)
      >>> output = jnp.array([3.0, -3.0])  # (1, -1) behind the norm
      >>> apply_normed(output, jnp.ones(1), norm, ScalePatch(jnp.array([0.5, 0.0]))).tolist()
      [1.5, -2.0]
    """
    normed_D, low_D = _patched(output_D, hidden_H, norm, patch)
    return (normed_D + low_D).astype(output_D.dtype)


def change_to(target_D: Array, output_D: Array, norm: OutputNorm) -> Array:
    """``r`` (D,), by which the normed output has to change to be ``target_D``."""
    wide_D = wide(output_D)
    plain_D = norm.gain_D.astype(wide_D.dtype) * _normed(wide_D, norm.epsilon)
    return target_D.astype(wide_D.dtype) - plain_D


def amplification(
    output_D: Array, norm: OutputNorm, patch: ScalePatch | BalancedPatch, reached_D: Array
) -> Array:
    """How much of a relative error of the MLP's output is one of the block's output, ().

    ``|s'| (rms(o) / rms(o')) / |out|``, with the patched gain ``s'`` and the output ``o'`` that its
    norm reads: the relative error of ``out`` when every entry of ``o`` is off by one unit of its
    root mean square. A patched run that repeats the extraction bit for bit never sees it; an open
    loop multiplies it from layer to layer.

    Args:
      output_D: (D,), ``o``, the MLP's output before the norm.
      norm: the norm on the output.
      patch: the patch.
      reached_D: (D,), ``out``, the block's output.
    """
    wide_D = wide(output_D)
    gain_D = norm.gain_D.astype(wide_D.dtype)
    shrunk = jnp.ones((), wide_D.dtype)
    if isinstance(patch, BalancedPatch):
        gain_D = gain_D * patch.gain_ratio
        shrunk = _rms(wide_D) / _rms(wide_D + patch.down.delta_D.astype(wide_D.dtype))
    return vector_norm(gain_D + patch.gain_delta_D) * shrunk / vector_norm(reached_D)


def gain_change(patch: ScalePatch | BalancedPatch, norm: OutputNorm) -> Array:
    """By how much (D,) the gain changes, in float32 or wider."""
    if isinstance(patch, ScalePatch):
        return patch.gain_delta_D
    gain_D = norm.gain_D.astype(patch.gain_delta_D.dtype)
    return (patch.gain_ratio - 1) * gain_D + patch.gain_delta_D


def smallest_normed(output_D: Array) -> Array:
    """``min |o / rms(o)|`` (), what a scale patch divides by."""
    wide_D = output_D.astype(accumulator(output_D.dtype))
    return jnp.min(jnp.abs(wide_D)) / _rms(wide_D)


def _rms(wide_D: Array) -> Array:
    return jnp.sqrt(jnp.mean(wide_D * wide_D))


def _normed(wide_D: Array, epsilon: float) -> Array:
    """``o / sqrt(mean(o^2) + eps)``."""
    return wide_D / jnp.sqrt(jnp.mean(as_stored(wide_D * wide_D)) + epsilon)


def _with_down(wide_D: Array, hidden_H: Array, patch: DownPatch) -> Array:
    return wide_D + added(hidden_H, patch).astype(wide_D.dtype)


def _reached(
    output_D: Array, hidden_H: Array, norm: OutputNorm, patch: ScalePatch | BalancedPatch
) -> Array:
    """``n'`` (D,), what the patched gain multiplies."""
    wide_D = wide(output_D)
    if isinstance(patch, BalancedPatch):
        wide_D = _with_down(wide_D, hidden_H, patch.down)
    return as_stored(_normed(wide_D, norm.epsilon))


def _patched(
    output_D: Array, hidden_H: Array, norm: OutputNorm, patch: ScalePatch | BalancedPatch
) -> tuple[Array, Array]:
    """``n' (ratio s + ds)`` (D,) as a pair."""
    reached_D = _reached(output_D, hidden_H, norm, patch)
    gain_D = norm.gain_D.astype(reached_D.dtype)
    low_D = jnp.zeros_like(gain_D)
    if isinstance(patch, BalancedPatch):
        gain_D, low_D = two_product(gain_D, patch.gain_ratio)
    gain_D, lower_D = two_sum(gain_D, patch.gain_delta_D.astype(gain_D.dtype))
    normed_D, lowest_D = two_product(reached_D, gain_D)
    return normed_D, lowest_D + reached_D * (lower_D + low_D)
