"""Attention in linear memory: what it computes, and which implementation computes it."""

from collections.abc import Callable
from typing import Any

import jax

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.kernels.attention import cudnn, over_mesh, pallas_tpu, reference, rows
from icl_jax.kernels.attention.derivative import by_rows
from icl_jax.kernels.attention.shapes import Sees, check, filled
from icl_jax.kernels.target import platform

#: By name, in the order in which they are asked.
IMPLEMENTATIONS = ("reference", "pallas_tpu", "cudnn", "rows")

#: Up to so many bytes of weights the whole matrix is built: blocks are not quicker there.
SMALL_BYTES = 4 * 2**20

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
    slopes_A: Array | None = None,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """Softmax attention ``mixed_ma = sum_t p_amt value_t``, ``p_am = softmax_t(query_m . key_t)``.

    Scores are accumulated in float32 or wider (true float32 products), lowered by distance, capped,
    masked, normalised, and rounded to the dtype of the values for the second product. For one
    prompt; batches go through ``jax.vmap``.

    Args:
      query_MAF: (M, A, F), queries that carry the scores' scale.
      key_TGF: (T, G, F); head a reads group ``a // (A / G)``.
      value_TGF: (T, G, F).
      sees: which rows see which columns.
      cap: scores s become ``cap tanh(s / cap)`` (Gemma 2).
      sinks_A: (A,), one more score per head, that takes its share of the weights and gives nothing
        (gpt-oss). It counts in the log-sum-exp.
      slopes_A: (A,), by how much a score falls per position id that the column is away from the
        row (ALiBi; Press et al., arXiv 2108.12409), before any cap.
      implementation: a name of ``IMPLEMENTATIONS`` to insist on; as ``explain`` says when left out,
        for the platform that is compiled for (see ``platform``). Insist on "pallas_tpu" to compile
        for a TPU without a mesh that says so. On a mesh of several TPUs that is set, each has its
        own heads (``over_mesh``).

    Returns:
      Mixed values (M, A, F) in the dtype of the values, and the log-sum-exp of the scores (A, M) in
      float32 or wider, which ``merge`` wants. A row that sees nothing gets zeros and -inf.

    Raises:
      NotImplementedError: the named implementation cannot run this; the text says why, and names
        one that can.
    """
    options: dict[str, Any] = {"cap": cap, "sinks_A": sinks_A, "slopes_A": slopes_A}
    check("attend", query_MAF, key_TGF, value_TGF, sees, **options)
    arrays = (query_MAF, key_TGF, value_TGF)
    name = _chosen("attend", *arrays, sees, implementation=implementation, **options)
    sees = filled(sees, query_MAF.shape[0], key_TGF.shape[0])
    if name == "reference":
        return reference.attend(*arrays, sees, **options)
    if name == "rows":
        return rows.attend(*arrays, sees, **options, platform=platform())
    kernel, own = {"pallas_tpu": (pallas_tpu.attend, "tpu"), "cudnn": (cudnn.attend, "cuda")}[name]
    if name == "pallas_tpu" and over_mesh.is_divided():
        kernel = over_mesh.by_heads(kernel)
    forward = kernel if implementation else _on_its_platform(kernel, own)
    # Neither kernel knows slopes, and ``why_not`` says so.
    return by_rows(forward, *arrays, sees, cap=cap, sinks_A=sinks_A, platform=platform())


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


def why_not(
    name: str,
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    slopes_A: Array | None = None,
) -> str | None:
    """Why the named implementation cannot compute this here; None if it can."""
    checks.one_of("why_not", "name", name, IMPLEMENTATIONS)
    options: dict[str, Any] = {"cap": cap, "sinks_A": sinks_A, "slopes_A": slopes_A}
    reason = _cannot(name, query_MAF, key_TGF, value_TGF, sees, **options)
    if reason is None and name == "pallas_tpu":
        return _no_tpu_for(query_MAF.shape[1], key_TGF.shape[1])
    return reason


def explain(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    slopes_A: Array | None = None,
) -> dict[str, str]:
    """Which implementation ``attend`` takes ("taken"), and why not each of the others.

    Arrays may be shapes (``jax.ShapeDtypeStruct``); nothing is computed.
    """
    reasons: dict[str, str] = {}
    options: dict[str, Any] = {"cap": cap, "sinks_A": sinks_A, "slopes_A": slopes_A}
    for name in IMPLEMENTATIONS:
        reason = why_not(name, query_MAF, key_TGF, value_TGF, sees, **options)
        if name == "reference" and not _is_small(query_MAF, key_TGF):
            reason = (
                f"builds the whole matrix of weights, {_matrix_bytes(query_MAF, key_TGF)} bytes "
                f"for more than {FEW_ROWS} rows; up to {SMALL_BYTES} it is taken"
            )
        if reason is None and "taken" in reasons.values():
            reason = "not needed"
        reasons[name] = "taken" if reason is None else reason
    return reasons


def _chosen(where: str, *arguments: Any, implementation: str | None, **options: Any) -> str:
    if implementation is None:
        reasons = explain(*arguments, **options)
        return next(name for name, reason in reasons.items() if reason == "taken")
    checks.one_of(where, "implementation", implementation, IMPLEMENTATIONS)
    # Not ``why_not``: a program for a TPU, or for several, may be made where none is seen.
    reason = _cannot(implementation, *arguments, **options)
    if reason is not None:
        raise NotImplementedError(
            f"{where}: implementation={implementation!r} cannot run here: {reason}. "
            "implementation='rows' can."
        )
    return implementation


def _cannot(
    name: str,
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None,
    sinks_A: Array | None,
    slopes_A: Array | None,
) -> str | None:
    """Why it could not even be insisted on."""
    if name == "pallas_tpu":
        return pallas_tpu.why_not(query_MAF, slopes_A=slopes_A)
    if name == "cudnn":
        sees = filled(sees, query_MAF.shape[0], key_TGF.shape[0])
        options: dict[str, Any] = {"cap": cap, "sinks_A": sinks_A, "slopes_A": slopes_A}
        reason = cudnn.why_not(query_MAF, value_TGF, sees, **options)
        return reason or _no_gpu_for(query_MAF.shape[2])
    return None


def _on_its_platform(kernel: Callable[..., Any], own: str) -> Callable[..., Any]:
    """The kernel where the program is compiled for its platform, row blocks on any other.

    (On a machine with a GPU, too, a program may be compiled for the CPU.)
    """

    def forward(
        query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees, **options: Any
    ) -> tuple[Array, Array]:
        arrays = (query_MAF, key_TGF, value_TGF)
        return jax.lax.platform_dependent(
            *arrays,
            **{own: lambda *arrays: kernel(*arrays, sees, **options)},
            default=lambda q, k, v: rows.attend(q, k, v, sees, **options, platform=platform()),
        )

    return forward


def _no_tpu_for(num_heads: int, num_groups: int) -> str | None:
    if platform() != "tpu":
        return f"runs on TPUs, and this program is for the platform {platform()!r}"
    if over_mesh.is_divided():
        return over_mesh.why_not(num_heads, num_groups)
    mesh = jax.sharding.get_abstract_mesh()
    num_devices = jax.device_count() if mesh.empty else mesh.size
    if num_devices > 1 and not mesh.are_all_axes_manual:
        return (
            f"is not divided by the compiler among {num_devices} devices: set a mesh of automatic "
            "axes (jax.set_mesh(icl_jax.make_mesh(...))), call attend inside jax.shard_map, or "
            "insist on it with implementation="
        )
    return None


def _no_gpu_for(features: int) -> str | None:
    if platform() != "gpu":
        return f"runs on NVIDIA GPUs, and this program is for the platform {platform()!r}"
    capability = getattr(jax.local_devices()[0], "compute_capability", "0.0")
    generation = int(str(capability).split(".")[0]) if str(capability)[0].isdigit() else 0
    if generation < (8 if features <= 128 else 9):
        return (
            f"wants a GPU of compute capability 8 (heads wider than 128: 9), got {capability} for "
            f"heads of {features}"
        )
    return None


def _matrix_bytes(query_MAF: Array, key_TGF: Array) -> int:
    num_rows, num_heads, _ = query_MAF.shape
    return num_heads * num_rows * key_TGF.shape[0] * accumulator(query_MAF.dtype).itemsize


def _is_small(query_MAF: Array, key_TGF: Array) -> bool:
    few = query_MAF.shape[0] <= FEW_ROWS
    return few or _matrix_bytes(query_MAF, key_TGF) <= SMALL_BYTES
