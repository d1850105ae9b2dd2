"""The output side of a token patch where a norm stands on the MLP's output (Gemma 2 and 3, OLMo 2).

``out = h + s * o / sqrt(mean(o^2) + eps)`` with ``o = a W_down``: nothing but the gain ``s`` and
the down kernel can carry the residual change ``r``, and the norm takes away the length of
whatever the kernel adds. Two patches:

scale     ``ds = r / (o / rms(o))``, entry by entry (Goldwaser et al., arXiv 2511.17864). Divides by
          entries of a normalised vector, some of which are always near zero.
balanced  a rank-1 patch of the down kernel sets the direction of ``o``, one scalar on the gain its
          length. Divides by entries of the gain only.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator, as_stored
from icl_jax.patches.output import DownPatch, apply_output, down_patch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputNorm:
    """A root-mean-square norm on the output of an MLP.

    Attributes:
      gain_D: (D,), ``s``.
      epsilon: added to the mean square, in squared units of the MLP's output.
    """

    gain_D: Array
    epsilon: float = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScalePatch:
    """``s -> s + ds``.

    Attributes:
      gain_delta_D: (D,), ``ds``, in units of the gain.
    """

    gain_delta_D: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BalancedPatch:
    """``W_down -> W_down + outer(v, o' - o)`` and ``s -> ratio s + ds``.

    Attributes:
      down: the patch of the down kernel; it keeps the root mean square of ``o``.
      gain_ratio: (), by which the gain is multiplied.
      gain_delta_D: (D,), zero except where the gain is zero (no ratio moves it) and, with a
        remainder, what rounding has left.
    """

    down: DownPatch
    gain_ratio: Array
    gain_delta_D: Array


def scale_patch(output_D: Array, change_D: Array, norm: OutputNorm) -> ScalePatch:
    """The scale patch of a kept position.

    Args:
      output_D: (D,), ``o``, the MLP's output before the norm.
      change_D: (D,), ``r``, what has to be added to the block's output.
      norm: the norm on the output.

    Returns:
      ``ds``; infinite where an entry of ``o`` is zero and ``r`` is not.

    Source: Goldwaser et al. (arXiv 2511.17864).
    """
    checks.same_shape("scale_patch", output_D=output_D, change_D=change_D)
    normed_D = _normed(output_D, norm.epsilon)
    change_D = change_D.astype(normed_D.dtype)
    return ScalePatch(jnp.where(change_D == 0, jnp.zeros_like(change_D), change_D / normed_D))


def balanced_patch(
    output_D: Array,
    hidden_H: Array,
    change_D: Array,
    norm: OutputNorm,
    *,
    remainder: bool = False,
) -> BalancedPatch:
    """The balanced patch of a kept position.

    ``tau = r + s o / sqrt(mean(o^2) + eps)``, ``w = tau / s``, ``o' = w rms(o) / rms(w)``,
    ``ratio = rms(w) sqrt(rms(o)^2 + eps) / rms(o)``. No root finding, and no division by
    activations.

    Args:
      output_D: (D,), ``o``, the MLP's output before the norm.
      hidden_H: (H,), ``a``, the down kernel's input.
      change_D: (D,), ``r``, what has to be added to the block's output.
      norm: the norm on the output.
      remainder: whether ``ds`` also takes what rounding has left of ``tau`` in every entry.

    Raises:
      ValueError: shapes that do not fit, or (outside jit) ``hidden_H`` of length zero.

    Source: worked out for this library; the scale patch of Goldwaser et al. where ``s`` is zero.
    """
    checks.same_shape("balanced_patch", output_D=output_D, change_D=change_D)
    normed_D = _normed(output_D, norm.epsilon)
    gain_D = norm.gain_D.astype(normed_D.dtype)
    target_D = change_D.astype(normed_D.dtype) + gain_D * normed_D

    movable_D = gain_D != 0
    divisor_D = jnp.where(movable_D, gain_D, jnp.ones_like(gain_D))
    wanted_D = jnp.where(movable_D, target_D / divisor_D, normed_D)
    wide_D = output_D.astype(normed_D.dtype)
    length, wanted_length = _rms(wide_D), _rms(wanted_D)
    # What is stored is rounded once, here: a later use has to see the same numbers.
    down = as_stored(
        down_patch(hidden_H, (wanted_D * (length / wanted_length) - wide_D).astype(output_D.dtype))
    )
    ratio = wanted_length * jnp.sqrt(length**2 + norm.epsilon) / length

    reached_D = _normed(apply_output(output_D, hidden_H, down), norm.epsilon)
    missing_D = target_D - ratio * gain_D * reached_D
    exact_D = (missing_D == 0) | (reached_D == 0)
    if not remainder:
        exact_D |= movable_D
    step_D = missing_D / jnp.where(reached_D == 0, jnp.ones_like(reached_D), reached_D)
    return BalancedPatch(down, ratio, jnp.where(exact_D, jnp.zeros_like(step_D), step_D))


def apply_normed(
    output_D: Array, hidden_H: Array, norm: OutputNorm, patch: ScalePatch | BalancedPatch
) -> Array:
    """The normed output (D,) of an MLP with the patched gain (and down kernel)."""
    if isinstance(patch, BalancedPatch):
        patched_D = apply_output(output_D, hidden_H, patch.down)
        normed_D = _normed(patched_D, norm.epsilon)
        gain_D = norm.gain_D.astype(normed_D.dtype) * patch.gain_ratio
    else:
        normed_D = _normed(output_D, norm.epsilon)
        gain_D = norm.gain_D.astype(normed_D.dtype)
    return (normed_D * (gain_D + patch.gain_delta_D)).astype(output_D.dtype)


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


def _normed(output_D: Array, epsilon: float) -> Array:
    """``o / sqrt(mean(o^2) + eps)`` in float32 or wider."""
    wide_D = output_D.astype(accumulator(output_D.dtype))
    return wide_D / jnp.sqrt(jnp.mean(wide_D * wide_D) + epsilon)
