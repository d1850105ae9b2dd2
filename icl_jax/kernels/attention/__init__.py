"""Attention in linear memory: ``attend``, ``accumulate``, and what two of them merge to.

Reading order: ``shapes`` (who sees what), ``products`` and ``reference`` (the arithmetic, with the
whole matrix), ``rows`` (the same, a block of rows at a time), ``pallas_tpu`` and ``cudnn`` (the
kernels of two platforms), ``api`` (which one is taken, and why another one is not).
"""

from icl_jax.kernels.attention.api import accumulate, attend, explain, why_not
from icl_jax.kernels.attention.products import scores, sloped, soft_capped, weighted_sum
from icl_jax.kernels.attention.reference import merge
from icl_jax.kernels.attention.shapes import Sees, gaps, mask, of_rows

__all__ = [
    "Sees",
    "accumulate",
    "attend",
    "explain",
    "gaps",
    "mask",
    "merge",
    "of_rows",
    "scores",
    "sloped",
    "soft_capped",
    "weighted_sum",
    "why_not",
]
