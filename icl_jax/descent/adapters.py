"""Low-rank adapters of kernels, to be trained: LoRA, the descent that a static patch stands beside.

An adapter of a kernel ``W`` (..., D, H) is ``LowRank`` with the same leading axes: ``W + A^T B``,
``A`` (..., R, D) drawn, ``B`` (..., R, H) zero, so that a descent begins at the plain model.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.low_rank import LowRank

#: Path of a kernel in the parameters -> its adapter.
Adapters = dict[tuple[str, ...], LowRank]


def new_adapters(key: Array, params: Params, names: Collection[str], rank: int) -> Adapters:
    """Adapters of the kernels of some modules, as a descent begins with them.

    Args:
      key: of the draws of ``A``, uniform with variance 1 / (3 D), as PEFT draws them.
      params: nested dictionaries; a kernel is at ``(..., name, "kernel")``.
      names: of the modules, such as ``("gate", "up", "down")``.
      rank: R.

    Raises:
      ValueError: a rank below 1, or no such kernel.
      TypeError: no PRNG key.

    Examples:
      >>> params = {"up": {"kernel": jnp.ones((4, 6))}, "down": {"kernel": jnp.ones((6, 4))}}
      >>> adapters = new_adapters(jax.random.key(0), params, ("up",), rank=2)
      >>> for path, update in adapters.items():
      ...     print(path, update.left_RD.shape, update.right_RH.shape)
      ('up', 'kernel') (2, 4) (2, 6)

    Source: Hu et al. (arXiv 2106.09685), LoRA.
    """
    checks.prng_key("new_adapters", "key", key)
    checks.positive_int("new_adapters", "rank", rank)
    found = {
        path: leaf
        for path, leaf in _leaves(params)
        if len(path) > 1 and path[-1] == "kernel" and path[-2] in names
    }
    if not found:
        raise ValueError(
            f"new_adapters: params has no kernel of {', '.join(names)}. Name the modules whose "
            "kernels are to be adapted."
        )
    adapters = {}
    for number, (path, kernel) in enumerate(sorted(found.items())):
        *lead, width, outputs = kernel.shape
        bound = width**-0.5
        left = jax.random.uniform(
            jax.random.fold_in(key, number), (*lead, rank, width), kernel.dtype, -bound, bound
        )
        adapters[path] = LowRank(left, jnp.zeros((*lead, rank, outputs), kernel.dtype))
    return adapters


def with_adapters(params: Params, adapters: Adapters) -> Params:
    """The parameters with ``W + A^T B`` in the place of each adapted kernel ``W``.

    Raises:
      ValueError: an adapter of no kernel of ``params``, or one of another shape than its kernel.

    Examples:
      >>> params = {"up": {"kernel": jnp.ones((2, 3))}}
      >>> adapters = new_adapters(jax.random.key(0), params, ("up",), rank=1)
      >>> with_adapters(params, adapters)["up"]["kernel"].tolist()  # as it was, before a step
      [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    changed, kernels = params, dict(_leaves(params))
    for path, adapter in adapters.items():
        _check_adapter(path, kernels.get(path), adapter)
        update = jnp.matmul(
            jnp.swapaxes(adapter.left_RD, -1, -2),
            adapter.right_RH,
            precision=jax.lax.Precision.HIGHEST,
        )
        changed = _replaced(changed, path, update)
    return changed


def _check_adapter(path: tuple[str, ...], kernel: Array | None, adapter: LowRank) -> None:
    name = "/".join(path)
    if kernel is None:
        raise ValueError(f"with_adapters: params has no kernel {name}.")
    (*lead, rank, width), (*right_lead, right_rank, outputs) = (
        adapter.left_RD.shape,
        adapter.right_RH.shape,
    )
    if (lead, rank) != (right_lead, right_rank) or kernel.shape != (*lead, width, outputs):
        raise ValueError(
            f"with_adapters: the adapter of {name} must be (..., R, D) and (..., R, H) for its "
            f"kernel {kernel.shape}, got {adapter.left_RD.shape} and {adapter.right_RH.shape}."
        )


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for name, one in tree.items() for leaf in _leaves(one, (*path, name))]


def _replaced(tree: Any, path: tuple[str, ...], update: Array) -> Any:
    if not path:
        return tree + update.astype(tree.dtype)
    first, *rest = path
    return {**tree, first: _replaced(tree[first], tuple(rest), update)}
