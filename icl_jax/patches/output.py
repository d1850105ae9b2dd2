"""The output side of a token patch: giving a residual stream its change back.

Where a skip goes around the MLP, the context has also changed the residual stream itself, by
``r = h_S - h_K``. The input factor cannot restore that: it has to be added after the MLP, by the
output bias or by the down kernel.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.low_rank import LowRank, outer
from icl_jax.patches.pairs import two_product, two_sum
from icl_jax.patches.token import dual_vector
from icl_jax.patches.vectors import vector_norm
from icl_jax.shown import short
from icl_jax.stack.settled import as_stored

#: Which weights carry the residual change. ``auto``: the bias where the block ends in one, the
#: balanced patch with its remainder where a root-mean-square norm stands on the MLP's output, else
#: the down kernel.
OutputPolicy = Literal["auto", "bias", "down", "scale", "balanced", "balanced+remainder"]
OUTPUT_POLICIES = ("auto", "bias", "down", "scale", "balanced", "balanced+remainder")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BiasPatch:
    """``b' -> b' + r``: a steering vector.

    Attributes:
      delta_D: (D,), ``r = h_S - h_K``, in units of the residual stream.

    Examples:
      >>> patch = BiasPatch(jnp.array([2.0, 3.0]))
      >>> apply_output(jnp.array([1.0, 1.0]), jnp.zeros(5), patch).tolist()  # whatever was hidden
      [3.0, 4.0]
    """

    delta_D: Array

    __repr__ = short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DownPatch:
    """``W_down -> W_down + outer(v, r)`` with ``v = a / |a|^2``.

    Attributes:
      v_H: (H,), the dual vector of the hidden activations ``a`` that enter the down kernel; None in
        a compact patch, which takes ``a`` from the run that it is applied in.
      delta_D: (D,), ``r``, in units of the residual stream: ``h_S - h_K``, and what rounding would
        leave of the block's output (``down_change``).
      hidden_norm: (), ``|a|``, in units of activations.

    Examples:
      >>> patch = DownPatch(jnp.array([0.0, 0.5]), jnp.array([1.0, 3.0]), jnp.array(2.0))
      >>> output = jnp.zeros(2)
      >>> apply_output(output, jnp.array([0.0, 2.0]), patch).tolist()  # its own activations
      [1.0, 3.0]
      >>> apply_output(output, jnp.array([7.0, 0.0]), patch).tolist()  # others, at a right angle
      [0.0, 0.0]
    """

    v_H: Array | None
    delta_D: Array
    hidden_norm: Array

    __repr__ = short


def bias_patch(change_D: Array) -> BiasPatch:
    """The output patch ``db' = r`` of a block whose MLP ends in a bias.

    Examples:
      >>> bias_patch(jnp.array([2.0, 3.0])).delta_D.tolist()
      [2.0, 3.0]

    Source: Dherin et al. 2025 (arXiv 2507.16003), appendix on skip connections.
    """
    checks.rank("bias_patch", "change_D", change_D, 1, "(D)")
    checks.floating("bias_patch", "change_D", change_D)
    return BiasPatch(change_D)


def down_patch(hidden_H: Array, change_D: Array) -> DownPatch:
    """The output patch ``dW_down = outer(a / |a|^2, r)``: rank 1, least Frobenius norm.

    Args:
      hidden_H: (H,), ``a``, the down kernel's input in the patched run.
      change_D: (D,), ``r``, what has to be added to the block's output.

    Raises:
      ValueError: not two vectors, or (outside jit) ``hidden_H`` has length zero.
      TypeError: the dtypes differ or are not floating point.

    Examples:
      >>> patch = down_patch(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0]))
      >>> as_matrix(down_update(patch)).tolist()
      [[0.0, 0.0], [0.5, 1.5]]

    Source: Goldwaser et al. (arXiv 2511.17864); [D] has only the bias form.
    """
    checks.rank("down_patch", "change_D", change_D, 1, "(D)")
    checks.same_dtype("down_patch", hidden_H=hidden_H, change_D=change_D)
    return DownPatch(dual_vector(hidden_H), change_D, vector_norm(hidden_H))


def down_change(target_D: Array, residual_D: Array, output_D: Array) -> Array:
    """``r`` (D,), which added to ``h_K + o`` in ``r``'s dtype gives the target, up to one rounding.

    Up to rounding it is ``h_S - h_K``. Measured from the sum that the patched run really has, it
    also holds what the rounding of ``z``, ``a`` and ``o`` has left: then a stream of bfloat16 that
    is rounded once, after the sum, is that of the full run to the bit.

    Args:
      target_D: (D,), the block's output in the run with everything, as it is stored.
      residual_D: (D,), ``h_K``, what the MLP's output is added to.
      output_D: (D,), ``o``, the MLP's output in the patched run, before the patch.

    Returns:
      ``target - (h_K + o)``, in float32 or wider.

    Examples:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> residual, output, rest = (jax.random.normal(key, (8,), jnp.bfloat16) for key in keys)
      >>> target = residual + output + rest
      >>> change = down_change(target, residual, output)
      >>> patched = residual.astype(jnp.float32) + output.astype(jnp.float32) + change
      >>> bool(jnp.all(patched.astype(jnp.bfloat16) == target))
      True

    Source: worked out for this library; docs/theory.md has it with numbers.
    """
    return wide(target_D) - (wide(residual_D) + wide(output_D))


def with_down_remainder(
    patch: DownPatch, hidden_H: Array, target_D: Array, residual_D: Array, output_D: Array
) -> DownPatch:
    """The patch whose ``r`` also takes what rounding has left of the block's output.

    ``r += (target - (h_K + o + (a . v) r)) / (a . v)``, with the very sum that a patched run has
    which reads ``a`` to the bit: then a stream of float32 that is rounded once (``down_sum``) is
    that of the full run to the bit, too, but for entries whose ``r`` is above the target itself. A
    compact patch has another rounding of ``a . v``.

    Args:
      patch: of the down kernel.
      hidden_H: (H,), ``a``, what it was made for.
      target_D, residual_D, output_D: as in ``down_change``.

    Examples:
      >>> hidden, output = jnp.array([0.3, 0.7]), jnp.array([0.1, 0.2])
      >>> residual, target = jnp.array([0.3, 0.7]), jnp.array([1.9, 1.1])
      >>> patch = down_patch(hidden, down_change(target, residual, output))
      >>> patch = with_down_remainder(patch, hidden, target, residual, output)
      >>> total, low = down_sum(residual, output, hidden, patch)
      >>> bool(jnp.all(total + low == target))
      True

    Source: worked out for this library; docs/theory.md.
    """
    total_D, low_D = down_sum(residual_D, output_D, hidden_H, patch)
    missing_D = (wide(target_D) - total_D) - low_D
    step_D = missing_D / down_strength(hidden_H, patch)
    return dataclasses.replace(patch, delta_D=patch.delta_D + step_D.astype(patch.delta_D.dtype))


def down_sum(
    residual_D: Array, output_D: Array, hidden_H: Array, patch: DownPatch
) -> tuple[Array, Array]:
    """The block's output ``h + o + (a . v) r`` (D,) as a pair: to be added, and rounded once.

    Given ``a . v``, it is computed as pairs (``patches.pairs``) and has no other rounding, and no
    compiler makes another number of it by joining a product with the sum behind it.

    Examples:
      >>> residual, output = jnp.array([1.0, 1.0]), jnp.array([0.0, 1e-9])
      >>> patch = down_patch(jnp.array([0.0, 2.0]), jnp.array([2.0, 0.0]))
      >>> total, low = down_sum(residual, output, jnp.array([0.0, 2.0]), patch)
      >>> total.tolist(), low.tolist()
      ([3.0, 1.0], [0.0, 9.999999717180685e-10])
    """
    strength = down_strength(hidden_H, patch)
    added_D, low_D = two_product(strength, patch.delta_D.astype(strength.dtype))
    total_D, lower_D = two_sum(wide(residual_D), wide(output_D))
    total_D, lowest_D = two_sum(total_D, added_D)
    return total_D, lowest_D + (lower_D + low_D)


def down_amplification(change_D: Array, stream_D: Array) -> Array:
    """How much of a relative error of the hidden activations is one of the stream, ().

    ``|r| / |h|``: the patched kernel gives ``r`` with the strength ``a . v`` of what comes. A
    patched run that repeats the extraction bit for bit never sees it; an open loop multiplies it
    from layer to layer.

    Args:
      change_D: (D,), ``r``.
      stream_D: (D,), ``h_S``, the residual stream that the MLP's output is added to.
    """
    return vector_norm(change_D) / vector_norm(stream_D)


def compact_down(patch: DownPatch) -> DownPatch:
    """The same patch without its H-vector.

    On its own token the input-patched kernels give ``a`` again, so ``|a|`` is all that has to be
    kept: a bank shrinks from H + D to D + 1 numbers per position and layer.
    """
    return dataclasses.replace(patch, v_H=None)


def down_update(patch: DownPatch) -> LowRank:
    """The update of the down kernel (H, D) as factors.

    Raises:
      ValueError: a compact patch, which does not hold the vector.

    Examples:
      >>> patch = down_patch(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0]))
      >>> (jnp.array([0.0, 2.0]) @ as_matrix(down_update(patch))).tolist()
      [1.0, 3.0]
    """
    if patch.v_H is None:
        raise ValueError(
            "down_update: a compact patch does not hold v = a / |a|^2; take the update from the "
            "bank before compact_bank."
        )
    return outer(patch.v_H, patch.delta_D)


def apply_output(output_D: Array, hidden_H: Array, patch: BiasPatch | DownPatch) -> Array:
    """The MLP's output (D,) with the patched bias or down kernel, given its hidden activations.

    Examples:
      >>> patch = bias_patch(jnp.array([2.0, 3.0]))
      >>> apply_output(jnp.array([1.0, 1.0]), jnp.array([5.0]), patch).tolist()
      [3.0, 4.0]
    """
    if isinstance(patch, BiasPatch):
        return output_D + patch.delta_D
    return (wide(output_D) + added(hidden_H, patch)).astype(output_D.dtype)


def added(hidden_H: Array, patch: DownPatch) -> Array:
    """``(a . v) r`` (D,), what the patched down kernel adds, in float32 or wider.

    Rounded, whatever it is added to: a product that a compiler joins with the sum behind it is
    another number, and not joined everywhere.
    """
    strength = down_strength(hidden_H, patch)
    return as_stored(strength * patch.delta_D.astype(strength.dtype))


def down_strength(hidden_H: Array, patch: DownPatch) -> Array:
    """``a . v`` (), which is 1 on the patch's own token, in float32 or wider."""
    if patch.v_H is not None:
        dtype = accumulator(hidden_H.dtype)
        return jnp.sum(as_stored(hidden_H.astype(dtype) * patch.v_H.astype(dtype)))
    unit_H = hidden_H.astype(patch.hidden_norm.dtype) / patch.hidden_norm
    return jnp.sum(as_stored(unit_H * unit_H))


def wide(values: Array) -> Array:
    """What a model stores of some values, in float32 or wider."""
    return as_stored(values).astype(accumulator(values.dtype))
