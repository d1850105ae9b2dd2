"""A part of the parameters, and the rest."""

import jax
import jax.numpy as jnp
import optax
import pytest

from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.descent.finetune import descend
from icl_jax.descent.parameters import FIRST, SELECTIONS, merge, select


def params_of(**changes):
    stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(8,), **changes))
    return stack.init(jax.random.key(0), jnp.zeros((2, 3)))["params"]


PARAMS = params_of(wiring="pre_norm", depth=2)


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
    first, keys_and_values = (select(PARAMS, c)[0] for c in ("first_kernel", "keys_and_values"))
    assert paths(first) == {"layers_0_0/mlp/layer_0/kernel"}
    assert paths(keys_and_values) == {
        f"layers_0_0/contextual_layer/{name}" for name in ("key", "value")
    }
    for part in (first, keys_and_values):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(part)} == {2}
    gated = paths(select(params_of(mlp="gated"), "first_kernel")[0])
    assert gated == {"layers_0_0/mlp/gate/kernel"}
    assert all("mlp" in path for path in paths(select(PARAMS, "mlp")[0]))
    assert all("embedding" not in path for path in paths(select(PARAMS, "blocks")[0]))
    assert not leaves(select(PARAMS, "everything")[1])


def test_the_first_kernel_is_the_one_that_the_mlps_name_first():
    mlps = (Gated(hidden_width=1), Dense(hidden_widths=(1,)))
    assert {mlp.input_kernels[0] for mlp in mlps} == set(FIRST)


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
