"""An implementation for some shapes as a function that JAX transforms like the plain product."""

from collections.abc import Callable

import jax

from icl_jax.dims import Array
from icl_jax.kernels.product import reference

Product = Callable[[Array, Array], Array]


def special(compute: Product, can: Callable[[Array, Array], bool]) -> Product:
    """``compute`` with the derivative of the plain product; batches that do not fit are plain.

    Args:
      compute: ``rows W`` for rows and kernels for which ``can`` is true.
      can: asked of a batch of rows as a whole: a batch makes few rows many.
    """

    @jax.custom_batching.custom_vmap
    def computed(rows: Array, kernel_DH: Array) -> Array:
        return compute(rows, kernel_DH)

    @computed.def_vmap
    def _batched(
        axis_size: int, in_batched: list[bool], rows: Array, kernel_DH: Array
    ) -> tuple[Array, bool]:
        rows_batched, kernel_batched = in_batched
        if kernel_batched:
            axes = (0 if rows_batched else None, 0)
            return jax.vmap(reference.product, axes)(rows, kernel_DH), True
        return (product if can(rows, kernel_DH) else reference.product)(rows, kernel_DH), True

    @jax.custom_jvp
    def product(rows: Array, kernel_DH: Array) -> Array:
        return computed(rows, kernel_DH)

    @product.defjvp
    def _derivative(
        primals: tuple[Array, Array], tangents: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        rows, kernel_DH = primals
        rows_dot, kernel_dot_DH = tangents
        change = reference.product(rows_dot, kernel_DH) + reference.product(rows, kernel_dot_DH)
        return product(rows, kernel_DH), change

    return product
