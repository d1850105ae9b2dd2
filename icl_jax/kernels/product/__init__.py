"""A matrix product, ``rows W``: XLA's own, but for the few rows of a step of generation on a GPU.

``reference`` (the product), ``few_rows`` (sums in pieces), ``api`` (which one is taken).
"""

from icl_jax.kernels.product.api import product

__all__ = ["product"]
