"""LoRA adapters: where they begin, what they add, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.descent.adapters import new_adapters, with_adapters
from icl_jax.patches.low_rank import LowRank, as_matrix
from tests.helpers import normal, relative_error

PARAMS = {
    "layers_0_0": {
        "mlp": {"up": {"kernel": normal(0, 3, 8, 12)}, "down": {"kernel": normal(1, 3, 12, 8)}},
        "norm": {"scale": normal(2, 3, 8)},
    },
    "head": {"kernel": normal(3, 8, 5)},
}
UP = ("layers_0_0", "mlp", "up", "kernel")


def test_a_descent_begins_at_the_plain_model_and_everywhere_at_once():
    adapters = new_adapters(jax.random.key(0), PARAMS, ("up", "down"), 2)
    assert sorted(path[2] for path in adapters) == ["down", "up"]
    for one, two in zip(*map(jax.tree.leaves, (with_adapters(PARAMS, adapters), PARAMS)),
                        strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, two)
    left = adapters[UP].left_RD
    assert left.shape == (3, 2, 8) and jnp.all(jnp.abs(left) <= 8**-0.5) and jnp.std(left) > 0.1


def test_each_layer_has_the_product_of_its_own_factors_added():
    update = LowRank(normal(5, 3, 2, 8), normal(6, 3, 2, 12))
    got = with_adapters(PARAMS, {UP: update})["layers_0_0"]["mlp"]["up"]["kernel"]
    for layer in range(3):
        one = LowRank(update.left_RD[layer], update.right_RH[layer])
        want_DH = PARAMS["layers_0_0"]["mlp"]["up"]["kernel"][layer] + as_matrix(one)
        assert relative_error(got[layer], want_DH) < 1e-14


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="params has no kernel of gate"):
        new_adapters(jax.random.key(0), PARAMS, ("gate",), 2)
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got 0"):
        new_adapters(jax.random.key(0), PARAMS, ("up",), 0)
