"""The input side of a token patch: one factor for every kernel that reads the MLP's input.

For a kept position, ``z_S`` is the input of the MLP's first kernel when everything is there and
``z_K`` when only the kept positions are. ``E = I + outer(v, z_S - z_K)`` with ``v = z_K / |z_K|^2``
turns any kernel ``W`` into ``E W`` with ``z_K (E W) = z_S W``, whatever follows it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.low_rank import LowRank, outer
from icl_jax.patches.vectors import inner_product, largest_entry, vector_norm
from icl_jax.shown import short
from icl_jax.stack.settled import as_stored


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InputFactor:
    """The factor ``E = I + outer(v, delta)`` that multiplies each input kernel from the left.

    Two vectors, whatever the width and the number of the kernels (fc, gate, up, router, experts).

    Attributes:
      v_D: (D,), ``z_K / |z_K|^2``, in units of 1/activation.
      delta_D: (D,), ``z_S - z_K``, in units of activations.

    Examples:
      >>> factor = InputFactor(v_D=jnp.array([0.5, 0.0]), delta_D=jnp.array([-1.0, 2.0]))
      >>> matrix = jnp.eye(2) + jnp.outer(factor.v_D, factor.delta_D)  # E, which nobody builds
      >>> kept = jnp.array([2.0, 0.0])
      >>> (kept @ matrix).tolist(), apply_factor(kept, factor).tolist()
      ([1.0, 2.0], [1.0, 2.0])
    """

    v_D: Array
    delta_D: Array

    __repr__ = short


def dual_vector(input_D: Array) -> Array:
    """``v = z / |z|^2`` (D,): the shortest vector with ``z . v = 1``.

    A zero ``z`` has none: outside jit it is an error, inside it gives NaN, and never a quiet zero.

    Raises:
      ValueError: ``input_D`` is not one vector, is empty, or (outside jit) has length zero.
      TypeError: it is not floating point.
    """
    checks.rank("dual_vector", "input_D", input_D, 1, "(D)")
    checks.floating("dual_vector", "input_D", input_D)
    checks.non_zero_rows("dual_vector", "input_D", input_D)
    return _dual(input_D)


def _dual(input_D: Array) -> Array:
    wide_D = input_D.astype(accumulator(input_D.dtype))
    # Scaled by the largest entry: |z|^2 of a tiny or a huge z would underflow or overflow.
    size = largest_entry(wide_D)
    unit_D = wide_D / size
    return (unit_D / inner_product(unit_D, unit_D) / size).astype(input_D.dtype)


def input_factor(full_D: Array, kept_D: Array) -> InputFactor:
    """The input factor of one kept position.

    Args:
      full_D: (D,), ``z_S``, the MLP's input with the context.
      kept_D: (D,), ``z_K``, its input without.

    Returns:
      The pair ``(v, z_S - z_K)``.

    Raises:
      ValueError: the shapes differ or are not (D,), or (outside jit) ``kept_D`` has length zero.
      TypeError: the dtypes differ or are not floating point.

    Examples:
      >>> factor = input_factor(jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]))
      >>> factor.v_D.tolist(), factor.delta_D.tolist()
      ([0.5, 0.0], [-1.0, 2.0])

    Source: Dherin et al. 2025 (arXiv 2507.16003), Theorem 2.2, with the kernel taken out: their
      ``dW = outer(v, delta W)`` is ``E W - W`` for every kernel at once.
    """
    checks.same_shape("input_factor", full_D=full_D, kept_D=kept_D)
    checks.same_dtype("input_factor", full_D=full_D, kept_D=kept_D)
    return InputFactor(dual_vector(kept_D), full_D - kept_D)


def kernel_update(factor: InputFactor, kernel_DH: Array) -> LowRank:
    """The update ``dW = outer(v, delta W)`` of one kernel ``W`` (D, H), as factors.

    Raises:
      ValueError: the kernel is not a matrix with as many rows as the factor has entries.

    Examples:
      >>> factor = input_factor(jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]))
      >>> as_matrix(kernel_update(factor, jnp.eye(2))).tolist()
      [[-0.5, 1.0], [-0.0, 0.0]]
    """
    checks.rank("kernel_update", "kernel_DH", kernel_DH, 2, "(D, H)")
    checks.axis_size(
        "kernel_update", "kernel_DH", kernel_DH, 0, factor.delta_D.shape[-1], "the factor's width"
    )
    checks.same_dtype("kernel_update", factor=factor.delta_D, kernel_DH=kernel_DH)
    right_H = jnp.matmul(factor.delta_D, kernel_DH, precision=jax.lax.Precision.HIGHEST)
    return outer(factor.v_D, right_H)


def token_update(full_D: Array, kept_D: Array, kernel_DH: Array) -> LowRank:
    """The weight update of one token: ``z_K (W + dW) = z_S W`` exactly.

    Of all matrices with that property it is the one of least Frobenius norm (Dherin et al., v4).

    Args:
      full_D: (D,), the kernel's input with the context.
      kept_D: (D,), its input without the context.
      kernel_DH: (D, H), in the orientation ``y = z W``.

    Returns:
      ``dW = outer(v, (z_S - z_K) W)``, rank 1.

    Raises:
      ValueError, TypeError: as ``input_factor`` and ``kernel_update``.

    Examples:
      >>> with_context, without = jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])
      >>> kernel = jnp.array([[1.0, 0.0, 3.0], [0.0, 1.0, 1.0]])
      >>> update = token_update(with_context, without, kernel)
      >>> (without @ kernel + apply_update(without, update)).tolist()
      [1.0, 2.0, 5.0]
      >>> (with_context @ kernel).tolist()
      [1.0, 2.0, 5.0]

    Source: Dherin et al. 2025 (arXiv 2507.16003), Theorem 2.2.
    """
    return kernel_update(input_factor(full_D, kept_D), kernel_DH)


def apply_factor(input_D: Array, factor: InputFactor) -> Array:
    """``z E = z + (z . v) delta`` (D,): what the unpatched kernels have to read.

    ``(z E) W = z (E W)``, so a patched layer costs one product more than a plain one, however many
    kernels read ``z``.

    Raises:
      ValueError: not one vector, or one of another width than the factor's.
      TypeError: a list, or not floating point.

    Examples:
      >>> factor = input_factor(jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]))
      >>> apply_factor(jnp.array([2.0, 0.0]), factor).tolist()  # its own token
      [1.0, 2.0]
      >>> apply_factor(jnp.array([0.0, 3.0]), factor).tolist()  # one at a right angle
      [0.0, 3.0]
    """
    checks.rank("apply_factor", "input_D", input_D, 1, "(D)")
    checks.floating("apply_factor", "input_D", input_D)
    checks.same_shape("apply_factor", input_D=input_D, v_D=factor.v_D, delta_D=factor.delta_D)
    return _apply(input_D, factor)


def _apply(input_D: Array, factor: InputFactor) -> Array:
    strength = inner_product(input_D, factor.v_D)
    dtype = strength.dtype
    # Rounded by itself, as everywhere: a compiler may join a product with the sum behind it.
    step_D = as_stored(strength * factor.delta_D.astype(dtype))
    return (input_D.astype(dtype) + step_D).astype(input_D.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """How hard a patch has to work; reported with every patch, checked on the host.

    Attributes:
      kept_norm: (), ``|z_K|``, in units of activations; zero means that there is no patch.
      relative_change: (), ``|z_S - z_K| / |z_K|``.
      max_gain_change: (), ``max |ds|``, the largest change of an entry of the gain of a norm on the
        MLP's output; None in blocks without one.
      min_normalised: (), ``min |o / rms(o)|``, what a scale patch divides by; None likewise.
      residual: (), ``|z_K E - z_S| / |z_S|``, what the factor leaves in the arithmetic of its type:
        some eps where the patch is good; eps ``|z_K| / |z_S|`` where the context makes a long input
        short; 1 or NaN where ``1 / |z_K|`` leaves the range of the dtype.
      amplification: (), how much of a relative error inside the MLP is one of the block's output
        (``patches.normed.amplification`` with a norm on the MLP's output, without one
        ``patches.output.down_amplification``); None where a bias carries the residual change, or
        nothing does.

    Examples:
      >>> numbers = conditioning(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5]))  # a short z_K
      >>> float(numbers.kept_norm), round(float(numbers.relative_change), 3)
      (0.5, 3.606)
      >>> float(numbers.residual), numbers.amplification  # exact; no output patch was asked for
      (0.0, None)
    """

    kept_norm: Array
    relative_change: Array
    max_gain_change: Array | None = None
    min_normalised: Array | None = None
    residual: Array | None = None
    amplification: Array | None = None

    __repr__ = short


def conditioning(full_D: Array, kept_D: Array) -> Conditioning:
    """The conditioning numbers of ``input_factor(full_D, kept_D)``, in float32 or wider.

    Examples:
      >>> numbers = conditioning(jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0]))
      >>> float(numbers.kept_norm), round(float(numbers.relative_change), 3)
      (2.0, 1.118)
    """
    kept_norm, delta_D = vector_norm(kept_D), full_D - kept_D
    dtype = accumulator(full_D.dtype)
    # As it is stored: a compiler keeps what it has just computed wider than a patch does.
    patched_D = as_stored(_apply(kept_D, as_stored(InputFactor(_dual(kept_D), delta_D))))
    # In units of the full input: what rounding leaves of a tiny one would be no normal number.
    size = largest_entry(full_D.astype(dtype))
    patched_D, unit_D = patched_D.astype(dtype) / size, full_D.astype(dtype) / size
    residual = vector_norm(patched_D - unit_D) / vector_norm(unit_D)
    return Conditioning(kept_norm, vector_norm(delta_D) / kept_norm, residual=residual)
