"""Attention in linear memory: what it computes, and which implementation computes it."""

from typing import Any

import jax

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.kernels.attention import reference, rows
from icl_jax.kernels.attention.shapes import Sees, check, filled

#: By name, in the order in which they are asked.
IMPLEMENTATIONS = ("reference", "rows")

#: Up to so many bytes of weights the whole matrix is built: one block of rows is as large.
SMALL_BYTES = rows.BLOCK_BYTES["cpu"]

#: Up to so many rows, too: a step of decoding, whose matrix is no larger than the memory it reads.
FEW_ROWS = 16


def attend(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Softmax attention ``mixed_ma = sum_t p_amt value_t``, ``p_am = softmax_t(query_m . key_t)``.

    Scores are accumulated in float32 or wider (true float32 products), capped, masked, normalised,
    and rounded to the dtype of the values for the second product. For one prompt; batches go
    through ``jax.vmap``.

    Args:
      query_MAF: (M, A, F), queries that carry the scores' scale.
      key_TGF: (T, G, F); head a reads group ``a // (A / G)``.
      value_TGF: (T, G, F).
      sees: which rows see which columns.
      cap: scores s become ``cap tanh(s / cap)`` (Gemma 2).
      sinks_A: (A,), one more score per head, that takes its share of the weights and gives nothing
        (gpt-oss). It counts in the log-sum-exp.
      implementation: a name of ``IMPLEMENTATIONS`` to insist on; by ``explain`` when left out.

    Returns:
      Mixed values (M, A, F) in the dtype of the values, and the log-sum-exp of the scores (A, M) in
      float32 or wider, which ``merge`` wants. A row that sees nothing gets zeros and -inf.

    Raises:
      NotImplementedError: the named implementation cannot run this; the text says why, and names
        one that can.
    """
    check("attend", query_MAF, key_TGF, value_TGF, sees, cap=cap, sinks_A=sinks_A)
    arrays = (query_MAF, key_TGF, value_TGF)
    options: dict[str, Any] = {"cap": cap, "sinks_A": sinks_A}
    name = _chosen("attend", *arrays, sees, implementation=implementation, **options)
    sees = filled(sees, query_MAF.shape[0], key_TGF.shape[0])
    if name == "reference":
        return reference.attend(*arrays, sees, **options)
    return rows.attend(*arrays, sees, **options, platform=platform())


def accumulate(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    implementation: str | None = None,
) -> Array:
    """Linear attention ``mixed_ma = sum_t (query_m . key_t) value_t`` over what a row sees.

    Args:
      query_MAF: (M, A, F), queries that carry the scores' scale.
      key_TGF: (T, G, F).
      value_TGF: (T, G, F).
      sees: which rows see which columns.
      implementation: "reference" or "rows"; by size when left out.

    Returns:
      Mixed values (M, A, F) in the dtype of the values; zeros for a row that sees nothing.
    """
    check("accumulate", query_MAF, key_TGF, value_TGF, sees)
    arrays = (query_MAF, key_TGF, value_TGF)
    if implementation is None:
        implementation = "reference" if _is_small(query_MAF, key_TGF) else "rows"
    checks.one_of("accumulate", "implementation", implementation, ("reference", "rows"))
    sees = filled(sees, query_MAF.shape[0], key_TGF.shape[0])
    if implementation == "reference":
        return reference.accumulate(*arrays, sees)
    return rows.accumulate(*arrays, sees, platform=platform())


def platform() -> str:
    """What is compiled for: the platform of the mesh that is set, or else JAX's default.

    So a program compiled ahead of time on another machine takes the kernels of its target:
    ``with jax.set_mesh(mesh_of_the_topology): jax.jit(f).lower(...)``. A mesh that is set is part
    of what ``jit`` remembers programs by.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def why_not(
    name: str,
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
) -> str | None:
    """Why the named implementation cannot compute this here; None if it can."""
    checks.one_of("why_not", "name", name, IMPLEMENTATIONS)
    return None


def explain(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
) -> dict[str, str]:
    """Which implementation ``attend`` takes ("taken"), and why not each other one."""
    arrays = (query_MAF, key_TGF, value_TGF)
    reasons: dict[str, str] = {}
    taken = False
    for name in IMPLEMENTATIONS:
        reason = why_not(name, *arrays, sees, cap=cap, sinks_A=sinks_A)
        if reason is None and name == "reference" and not _is_small(query_MAF, key_TGF):
            reason = "builds the whole matrix of weights, which is large here"
        elif reason is None and taken:
            reason = "not needed"
        taken |= reason is None
        reasons[name] = reason or "taken"
    return reasons


def _chosen(where: str, *arguments: Any, implementation: str | None, **options: Any) -> str:
    if implementation is None:
        reasons = explain(*arguments, **options)
        return next(name for name, reason in reasons.items() if reason == "taken")
    checks.one_of(where, "implementation", implementation, IMPLEMENTATIONS)
    reason = why_not(implementation, *arguments, **options)
    if reason is not None:
        raise NotImplementedError(
            f"{where}: implementation={implementation!r} cannot run here: {reason}. "
            "implementation='rows' can."
        )
    return implementation


def _is_small(query_MAF: Array, key_TGF: Array) -> bool:
    num_rows, num_heads, _ = query_MAF.shape
    size = num_heads * num_rows * key_TGF.shape[0] * accumulator(query_MAF.dtype).itemsize
    return num_rows <= FEW_ROWS or size <= SMALL_BYTES
