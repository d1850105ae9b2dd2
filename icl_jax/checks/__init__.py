"""Argument checks with one wording: where, what was expected, what came, what to do.

Shapes and dtypes are static, so they are checked at trace time everywhere. Values are known only
outside ``jit``: the checks on values look when they can and stay silent on tracers, where the
caller reads the returned conditioning numbers instead.
"""

from icl_jax.checks.arrays import (
    axis_size,
    comparable,
    floating,
    is_concrete,
    mask,
    no_list,
    non_zero_rows,
    not_empty,
    rank,
    same_dtype,
    same_shape,
)
from icl_jax.checks.indices import (
    integers,
    kept_positions,
    places,
    positions,
    possible,
    token_list,
)
from icl_jax.checks.numbers import (
    at_least_two,
    is_number,
    is_whole,
    non_negative,
    number,
    one_of,
    positive,
    positive_int,
    positive_scalar,
    prng_key,
    prng_keys,
)

__all__ = [
    "at_least_two",
    "axis_size",
    "comparable",
    "floating",
    "integers",
    "is_concrete",
    "is_number",
    "is_whole",
    "kept_positions",
    "mask",
    "no_list",
    "non_negative",
    "non_zero_rows",
    "not_empty",
    "number",
    "NumericalError",
    "one_of",
    "places",
    "positions",
    "positive",
    "positive_int",
    "positive_scalar",
    "possible",
    "prng_key",
    "prng_keys",
    "rank",
    "same_dtype",
    "same_shape",
    "token_list",
]


class NumericalError(ValueError):
    """What a model computed cannot be used: it is not finite, or no patch for it exists."""
