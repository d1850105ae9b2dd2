"""Which weights descend: a part of a tree of parameters, and the rest of it.

A part is a tree of the same shape with None in place of what is not in it, which JAX and optax
take for nothing: gradients and optimiser states are made of the part alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from icl_jax import checks
from icl_jax.dims import Array, Params

#: ``chosen(path)``, of the names from the root of the tree to a leaf.
Chosen = Callable[[tuple[str, ...]], bool]

#: The usual choices in a stack of this library's blocks, by name. (First kernels are chosen by
#: ``blocks.functional.first_kernels``: what they are called the blocks know.)
SELECTIONS: Mapping[str, Chosen] = {
    "mlp": lambda path: "mlp" in path,
    "keys_and_values": lambda path: path[-1].split("_")[0] in ("key", "value"),
    "attention": lambda path: "contextual_layer" in path,
    "blocks": lambda path: any(name.startswith("layers_") for name in path),
    "everything": lambda path: True,
}


def select(params: Params, chosen: str | Chosen) -> tuple[Params, Params]:
    """``params`` as two parts: what is chosen, and the rest.

    Args:
      params: a tree of dicts.
      chosen: one of ``SELECTIONS``, or a function of a leaf's path, as ``first_kernels`` gives.

    Raises:
      ValueError: an unknown name, or a choice that nothing in ``params`` meets.

    Examples:
      >>> params = {"mlp": {"layer_0": {"kernel": jnp.ones(2)}}, "norm": {"scale": jnp.ones(3)}}
      >>> part, rest = select(params, "mlp")
      >>> [leaf.shape for leaf in jax.tree.leaves(part)]
      [(2,)]
    """
    if chosen == "first_kernel":
        raise ValueError(
            "select: chosen='first_kernel': which kernels those are the blocks know. Give "
            "select(params, first_kernels(model))."
        )
    if isinstance(chosen, str):
        checks.one_of("select", "chosen", chosen, tuple(SELECTIONS))
    meets = SELECTIONS[chosen] if isinstance(chosen, str) else chosen

    def is_chosen(path: tuple[Any, ...]) -> bool:
        return meets(tuple(str(getattr(entry, "key", entry)) for entry in path))

    part = jax.tree.map_with_path(lambda path, leaf: leaf if is_chosen(path) else None, params)
    rest = jax.tree.map_with_path(lambda path, leaf: None if is_chosen(path) else leaf, params)
    if not jax.tree.leaves(part):
        raise ValueError(
            f"select: nothing in params meets chosen={chosen!r}. Its leaves are "
            f"{', '.join(jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(params))}."
        )
    return part, rest


def merge(part: Params, rest: Params) -> Params:
    """The whole tree again from what ``select`` made of it.

    Examples:
      >>> params = {"mlp": {"layer_0": {"kernel": jnp.ones(2)}}, "norm": {"scale": jnp.ones(3)}}
      >>> part, rest = select(params, "mlp")
      >>> doubled = merge(jax.tree.map(lambda leaf: 2 * leaf, part), rest)
      >>> doubled["mlp"]["layer_0"]["kernel"].tolist(), doubled["norm"]["scale"].tolist()
      ([2.0, 2.0], [1.0, 1.0, 1.0])
    """
    return jax.tree.map(
        lambda mine, other: other if mine is None else mine,
        part,
        rest,
        is_leaf=lambda leaf: leaf is None,
    )


class ReadsInput(Protocol):
    """A block that says which of its MLP's kernels read the MLP's input."""

    @property
    def input_kernels(self) -> tuple[str, ...]:
        """Their names in the MLP's parameters."""


def kernel_of(block: ReadsInput, block_params: Params) -> Array:
    """The first kernel (D, H) of a block's MLP; the gate of a gated one."""
    return block_params["mlp"][block.input_kernels[0]]["kernel"]
