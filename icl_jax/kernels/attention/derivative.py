"""A kernel's derivatives are those of the row blocks, of every order and in both modes."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np

from icl_jax.dims import Array
from icl_jax.kernels.attention import rows
from icl_jax.kernels.attention.shapes import Sees


def by_rows(
    forward: Callable[..., tuple[Array, Array]],
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None,
    sinks_A: Array | None,
    platform: str,
) -> tuple[Array, Array]:
    """``forward(query, key, value, sees, cap=, sinks_A=)``, differentiated as ``rows.attend`` is.

    A kernel has no derivative of its own. Its tangent is the tangent of the same function computed
    by blocks of rows; in reverse mode JAX transposes that, a block at a time and recomputed, so
    memory stays linear in the sequence. ``sees`` is filled.
    """
    # Arrays go in as arguments, since a function with a rule must not close over traced ones; what
    # is known while tracing stays outside, where it stays known.
    traced: dict[str, Any] = {}
    known: dict[str, Any] = {}
    for item in fields(sees):
        array = getattr(sees, item.name)
        if isinstance(array, jax.Array):
            traced[item.name] = array
        elif isinstance(array, np.ndarray):
            known[item.name] = array

    def seen(traced: dict[str, Any]) -> Sees:
        return replace(sees, **known, **traced)

    @jax.custom_jvp
    def run(query_MAF: Array, key_TGF: Array, value_TGF: Array, sinks_A: Any, traced: Any) -> Any:
        return forward(query_MAF, key_TGF, value_TGF, seen(traced), cap=cap, sinks_A=sinks_A)

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> Any:
        *inputs, traced = primals

        def by_blocks(query_MAF: Array, key_TGF: Array, value_TGF: Array, sinks_A: Any) -> Any:
            sees = seen(traced)
            return rows.attend(
                query_MAF, key_TGF, value_TGF, sees, cap=cap, sinks_A=sinks_A, platform=platform
            )

        _, tangents = jax.jvp(by_blocks, tuple(inputs), tuple(tangents[:4]))
        return run(*primals), tangents

    return run(query_MAF, key_TGF, value_TGF, sinks_A, traced)
