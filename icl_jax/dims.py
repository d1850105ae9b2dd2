"""The glossary: what the letters at the end of an array's name mean, and what all files share.

A name such as ``kernel_DH`` is read "kernel, of shape (D, H)"; the order of the letters is the
order of the axes. Trees, scalars, configurations and callables carry no suffix. Which side of the
context an array belongs to is a word: ``full_`` (everything is there) and ``kept_`` (only the kept
positions are).

    B  prompts in a batch
    N  examples, or context tokens: what the query is given
    M  prefixes of a context: M = N + 1, the empty one included
    T  positions of a token sequence: context and query
    K  kept positions of a sequence
    C  channels of a token before it is embedded
    D  model width: the residual stream, and what enters the MLP's first kernels
    H  hidden width of the MLP
    O  width of the output
    A  attention heads
    G  heads of keys and values, where they are fewer (grouped queries)
    F  features of one head
    L  layers
    E  experts of a mixture
    V  tokens of a vocabulary
    R  rank: the number of outer products in a low-rank update
    S  steps of a descent; seeds; resamples
    P  points of a descent: P = S + 1, the start included
    Q  queries that two learners are both asked
    X  what is swept: learning rates, updates to compare
    Y  the other side of X
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

#: A pytree of arrays: the parameters of a block or of a stack.
Params = Any

#: ``apply_fn(params, *arrays) -> arrays``: a model as a pure function.
ApplyFn = Callable[..., Any]


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which a reduction over ``dtype`` runs: float32, or wider where that is."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)
