"""A part of the parameters, and the rest."""

from typing import get_args

import jax
import jax.numpy as jnp
import optax
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.blocks.functional import first_kernels, functional
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import Stack
from icl_jax.descent.explicit import TrainsName
from icl_jax.descent.finetune import descend
from icl_jax.descent.parameters import SELECTIONS, kernel_of, merge, select


def stack_of(**changes):
    return build_stack(
        StackConfig(**{"width": 8, "num_heads": 2, "hidden_widths": (8,), **changes})
    )


def params_of(stack):
    return stack.init(jax.random.key(0), jnp.zeros((2, 3)))["params"]


STACK = stack_of(wiring="pre_norm", depth=2)
PARAMS = params_of(STACK)


def paths(part):
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves(part)}


def leaves(part):
    return jax.tree.leaves_with_path(part)


@pytest.mark.parametrize("chosen", sorted(SELECTIONS))
def test_parts_add_up_to_the_whole(chosen):
    part, rest = select(PARAMS, chosen)
    assert len(leaves(part)) + len(leaves(rest)) == len(leaves(PARAMS))
    assert paths(part).isdisjoint(paths(rest))
    again = merge(part, rest)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    for (path, got), (same, want) in zip(leaves(again), leaves(PARAMS), strict=True):
        assert path == same and got is want


def test_names_mean_what_they_say():
    # Equal layers lie on top of each other: a leaf is that of both.
    first, keys_and_values = (
        select(PARAMS, chosen)[0] for chosen in (first_kernels(STACK), "keys_and_values")
    )
    assert paths(first) == {"layers_0_0/mlp/layer_0/kernel"}
    assert paths(keys_and_values) == {
        f"layers_0_0/contextual_layer/{name}" for name in ("key", "value")
    }
    for part in (first, keys_and_values):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(part)} == {2}
    assert all("mlp" in path for path in paths(select(PARAMS, "mlp")[0]))
    assert all("embedding" not in path for path in paths(select(PARAMS, "blocks")[0]))
    assert not leaves(select(PARAMS, "everything")[1])


class OwnMLP(Gated):
    """An MLP whose first kernel is not called as anybody expects."""

    @property
    def input_kernels(self):
        return ("up", "gate")


@pytest.mark.parametrize(
    "mlp, name",
    [
        (Gated(hidden_width=8), "gate"),
        (Dense(hidden_widths=(8, 6)), "layer_0"),
        (Dense(hidden_widths=()), "down"),
        (OwnMLP(hidden_width=8), "up"),
    ],
)
def test_the_first_kernel_is_the_one_that_the_mlp_names_first(mlp, name):
    stack = Stack((Block(SoftmaxAttention(num_heads=2), mlp, wiring="pre_norm"),) * 2, width=8)
    params = params_of(stack)
    part, _ = select(params, first_kernels(stack))
    assert paths(part) == {f"layers_0_0/mlp/{name}/kernel"}
    block, block_params = functional(stack, params)[1]
    assert block.input_kernels == mlp.input_kernels and block.input_kernels[0] == name
    kernel_DH = kernel_of(block, block_params)
    assert kernel_DH.shape[0] == 8
    (chosen_RDH,) = jax.tree.leaves(part)
    assert jnp.array_equal(kernel_DH, chosen_RDH[1])


def test_experts_have_no_first_kernel_of_every_token():
    experts = Experts(num_experts=2, hidden_width=8)
    attention = SoftmaxAttention(num_heads=2)
    mixed = Stack((Block(attention, experts), Block(attention, Gated(hidden_width=8))), width=8)
    part, _ = select(params_of(mixed), first_kernels(mixed))
    assert paths(part) == {"layers_1_0/mlp/gate/kernel"} or paths(part) == {
        "layers_0_1/mlp/gate/kernel"
    }
    alone = Stack((Block(attention, experts),), width=8)
    with pytest.raises(ValueError, match="nothing in params meets"):
        select(params_of(alone), first_kernels(alone))


def test_a_choice_may_be_a_function_of_the_path():
    part, _ = select(PARAMS, lambda path: path[0] == "head")
    assert paths(part) == {"head/kernel", "head/bias"}


def test_only_the_part_descends():
    part, rest = select(PARAMS, "keys_and_values")

    def loss(part):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(merge(part, rest)))

    final = descend(loss, part, optax.adam(0.1), num_steps=2).final
    assert paths(final) == paths(part)
    key = merge(final, rest)["layers_0_0"]["contextual_layer"]
    before = PARAMS["layers_0_0"]["contextual_layer"]
    assert not jnp.array_equal(key["key"], before["key"])
    assert jnp.array_equal(key["query"], before["query"])


def test_a_choice_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chosen must be one of"):
        select(PARAMS, "biases")
    with pytest.raises(ValueError, match="nothing in params meets.*layers_0_0"):
        select(PARAMS, lambda path: False)


def test_what_descends_by_name_is_a_selection_or_the_first_kernels():
    assert set(get_args(TrainsName)) == {"first_kernel", *SELECTIONS}
    with pytest.raises(ValueError, match=r"'first_kernel'.*select\(params, first_kernels\(model"):
        select(PARAMS, "first_kernel")
