"""Random cases of attention, and an oracle written with NumPy loops over rows and heads."""

from dataclasses import dataclass, fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from icl_jax.kernels.attention import Sees
from tests.helpers import normal


@dataclass(frozen=True)
class Case:
    """Arguments of ``attend``, all but the dtype."""

    rows: int
    columns: int
    groups: int
    heads_per_group: int
    features: int
    sees: Sees
    cap: float | None = None
    sinks: bool = False
    slopes: bool = False
    seed: int = 0

    def arrays(self, dtype: Any = jnp.float64) -> tuple[Any, Any, Any]:
        """Queries, keys and values; the scores are a few units large."""
        heads = self.groups * self.heads_per_group
        query_MAF = normal(self.seed, self.rows, heads, self.features, dtype=dtype)
        key_TGF = normal(self.seed + 1, self.columns, self.groups, self.features, dtype=dtype)
        value_TGF = normal(self.seed + 2, self.columns, self.groups, self.features, dtype=dtype)
        return query_MAF, key_TGF, value_TGF

    def options(self, dtype: Any = jnp.float64) -> dict[str, Any]:
        """Cap, sinks and slopes."""
        heads = self.groups * self.heads_per_group
        sinks_A = normal(self.seed + 3, heads, dtype=dtype) if self.sinks else None
        slopes_A = 0.2 * normal(self.seed + 4, heads, dtype=dtype) if self.slopes else None
        return {"cap": self.cap, "sinks_A": sinks_A, "slopes_A": slopes_A}


@st.composite
def cases(draw: Any, max_length: int = 40, sinks: bool = True) -> Case:
    """Whole sequences, probes of prefixes, and continuations of a memory; odd sizes."""
    kind = draw(st.sampled_from(("whole", "prefixes", "memory", "free")))
    columns = draw(st.integers(1, max_length))
    rows = {"whole": columns, "prefixes": columns + 1}.get(kind, draw(st.integers(1, max_length)))
    seed = draw(st.integers(0, 100))
    random = np.random.default_rng(seed)
    window = draw(st.none() | st.integers(1, 9))
    sees = Sees(window=window, causal=draw(st.booleans()) or kind == "prefixes")
    as_arrays = draw(st.sampled_from((np.asarray, jnp.asarray)))
    if kind == "prefixes":
        sees = replace(
            sees, row_slots_M=as_arrays(np.arange(rows, dtype=np.int32) - 1), itself=False
        )
    elif kind == "memory":
        rows = min(rows, columns)
        start = draw(st.integers(0, columns - rows))
        sees = replace(sees, row_slots_M=as_arrays(np.arange(rows, dtype=np.int32) + start))
    elif kind == "free":
        sees = replace(
            sees,
            row_slots_M=as_arrays(random.integers(0, columns, rows).astype(np.int32)),
            column_slots_T=as_arrays(random.permutation(columns).astype(np.int32)),
            row_positions_M=jnp.asarray(random.integers(0, columns, rows), jnp.int32),
            column_positions_T=jnp.asarray(random.integers(0, columns, columns), jnp.int32),
            itself=draw(st.booleans()),
        )
    if draw(st.booleans()):
        sees = replace(sees, present_T=jnp.asarray(random.random(columns) < 0.7))
    if draw(st.booleans()):
        sees = replace(sees, reach=jnp.asarray(random.integers(1, 12), jnp.int32))
    return Case(
        rows=rows,
        columns=columns,
        groups=draw(st.integers(1, 3)),
        heads_per_group=draw(st.integers(1, 3)),
        features=draw(st.sampled_from((1, 4, 7))),
        sees=sees,
        cap=draw(st.none() | st.floats(0.5, 5.0)),
        sinks=sinks and draw(st.booleans()),
        slopes=draw(st.booleans()),
        seed=seed,
    )


def entry(sees: Sees, name: str, index: int, otherwise: int) -> int:
    """One number of a record, or what stands in the place of what was left out."""
    array = getattr(sees, name)
    return otherwise if array is None else int(array[index])


def slots(sees: Sees, row: int, column: int) -> tuple[int, int]:
    """The slot of a row and that of a column."""
    return entry(sees, "row_slots_M", row, row), entry(sees, "column_slots_T", column, column)


def distance(sees: Sees, row: int, column: int) -> int:
    """How many position ids lie between a row and a column."""
    row_slot, column_slot = slots(sees, row, column)
    row_place = entry(sees, "row_positions_M", row, row_slot)
    return abs(row_place - entry(sees, "column_positions_T", column, column_slot))


def seen(sees: Sees, row: int, column: int) -> bool:
    """The definition of ``Sees``, in words of Python."""
    row_slot, column_slot = slots(sees, row, column)
    if sees.itself and row_slot == column_slot:
        return True
    if sees.present_T is not None and not bool(sees.present_T[column]):
        return False
    if sees.causal and column_slot > row_slot:
        return False
    windows = [size for size in (sees.window, sees.reach) if size is not None]
    return all(distance(sees, row, column) < int(size) for size in windows)


def mask(case: Case) -> np.ndarray:
    """``seen`` for all rows and columns (M, T)."""
    return np.array(
        [[seen(case.sees, m, t) for t in range(case.columns)] for m in range(case.rows)]
    )


def oracle(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Mixed values (M, A, F) and log-sum-exp (A, M) in float64, one row and head at a time."""
    query_MAF, key_TGF, value_TGF = map(np.asarray, case.arrays())
    sinks_A, slopes_A = case.options()["sinks_A"], case.options()["slopes_A"]
    num_heads, sees_MT = query_MAF.shape[1], mask(case)
    mixed_MAF = np.zeros((*query_MAF.shape[:2], value_TGF.shape[2]))
    log_sum_exp_AM = np.full((num_heads, case.rows), -np.inf)
    for m in range(case.rows):
        for a in range(num_heads):
            group = a // case.heads_per_group
            (columns,) = np.nonzero(sees_MT[m])
            scores = [float(query_MAF[m, a] @ key_TGF[t, group]) for t in columns]
            if slopes_A is not None:
                scores = [
                    score - float(slopes_A[a]) * distance(case.sees, m, t)
                    for t, score in zip(columns, scores, strict=True)
                ]
            if case.cap is not None:
                scores = [case.cap * np.tanh(score / case.cap) for score in scores]
            terms = [np.exp(score) for score in scores]
            total = sum(terms) + (0.0 if sinks_A is None else np.exp(float(sinks_A[a])))
            for t, term in zip(columns, terms, strict=True):
                mixed_MAF[m, a] += term / total * value_TGF[t, group]
            if total:
                log_sum_exp_AM[a, m] = np.log(total)
    return mixed_MAF, log_sum_exp_AM


def linear_oracle(case: Case) -> np.ndarray:
    """``accumulate`` in float64."""
    query_MAF, key_TGF, value_TGF = map(np.asarray, case.arrays())
    key_TAF = np.repeat(key_TGF, case.heads_per_group, axis=1)
    value_TAF = np.repeat(value_TGF, case.heads_per_group, axis=1)
    scores_AMT = np.einsum("maf,taf->amt", query_MAF, key_TAF) * mask(case)
    return np.einsum("amt,taf->maf", scores_AMT, value_TAF)


def dynamic(sees: Sees) -> Sees:
    """The same with JAX arrays, of which nothing is known while tracing."""
    arrays = {field.name: getattr(sees, field.name) for field in fields(sees)}
    arrays = {k: jnp.asarray(v) for k, v in arrays.items() if isinstance(v, np.ndarray)}
    return replace(sees, **arrays)
