"""A matrix product, ``rows W``: XLA's own, but for the few rows of a step of generation on a GPU.

``reference`` (the product), ``few_rows`` (sums in pieces), ``one_row`` (one row as two),
``special`` (how the last two are batched and differentiated), ``api`` (which one is taken).
"""

from icl_jax.kernels.product.api import in_turn, product

__all__ = ["in_turn", "product"]
