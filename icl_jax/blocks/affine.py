"""The affine map ``x W + b``: one dense layer, in the dtype of its input."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax.dims import Array
from icl_jax.kernels.product import product

_LECUN = nn.initializers.lecun_normal()
_ZEROS = nn.initializers.zeros


def dense(inputs: Array, kernel: Array, bias: Array | None = None, *, axes: int = 1) -> Array:
    """``x W + b``: the last ``axes`` axes of ``inputs`` against the first ones of ``kernel``.

    Kernel and bias are cast to the input's dtype; a float32 product is a float32 product on every
    device.
    """
    # One plain product: sums over two axes at once are what compilers are slow at.
    lead, rest = inputs.shape[: inputs.ndim - axes], kernel.shape[axes:]
    width = math.prod(kernel.shape[:axes])
    outputs = product(
        inputs.reshape(*lead, width),
        kernel.astype(inputs.dtype).reshape(width, math.prod(rest)),
    ).reshape(*lead, *rest)
    if bias is None:
        return outputs
    ones = (1,) * (outputs.ndim - bias.ndim)
    return outputs + bias.astype(outputs.dtype).reshape(ones + bias.shape)


class Affine(nn.Module):
    """``x W + b`` with a kernel (D_in, ``width``) and, unless told otherwise, a bias.

    ``flax.linen.Dense`` promotes input and kernel to a common dtype; here the input decides, so one
    tree of float32 parameters serves float64 and bfloat16 runs.

    Attributes:
      width: of the output.
      use_bias: whether there is a bias.
      dtype: of the parameters.
    """

    width: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        kernel = self.param("kernel", _LECUN, (inputs.shape[-1], self.width), self.dtype)
        bias = self.param("bias", _ZEROS, (self.width,), self.dtype) if self.use_bias else None
        return dense(inputs, kernel, bias)


def rows_of(table: Array, indices: Array, *, or_nan: bool = False) -> Array:
    """``table[indices]``, also on a mesh with explicit axes, where JAX asks how that is to lie.

    Args:
      table: (G, ...).
      indices: of any shape, integers.
      or_nan: whether a row that the table does not have is NaN; otherwise the nearest is given.
    """
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        if not or_nan:
            return table[indices]
        return table.at[indices].get(mode="fill", wrap_negative_indices=False)
    if not indices.ndim:  # Of a slice, JAX forgets the answer under ``vmap``.
        return rows_of(table, indices[None], or_nan=or_nan)[0]
    mine, inner = jax.typeof(indices).sharding.spec, jax.typeof(table).sharding.spec[1:]
    spec = jax.sharding.PartitionSpec(*mine, *inner)
    mode = "fill" if or_nan else None
    found: Array = table.at[indices].get(
        mode=mode, out_sharding=spec, wrap_negative_indices=not or_nan
    )
    return found
