"""Leaving a group of tokens out: one run in one block, reruns in deeper stacks, and really."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.dynamics.leave_out import leave_out_block, leave_out_by_reruns
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, WIDTH, eps, make_model, normal

LENGTH = 7
#: Of two tokens, of one, of none, and of all but the query.
GROUPS = np.zeros((4, LENGTH), bool)
GROUPS[0, 1:3] = GROUPS[1, 4] = GROUPS[3, :-1] = True


def model(layer, depth=1, wiring="pre_norm"):
    return make_model(Block(LAYERS[layer], MLPS["dense_bias"], wiring, "rms"), depth, seed=1)


def really(layers, stream_TD, group_T):
    """The tokens taken out of the array; the others keep their position ids."""
    left = np.flatnonzero(~group_T)
    return forward(layers, stream_TD[left], positions_T=jnp.asarray(left))[-1]


@pytest.mark.wide(6)
@pytest.mark.parametrize(
    "layer",
    ("attention", "attention_rotary", "attention_bidirectional", "linear_attention",
     "attention_sloped"),
)  # fmt: skip
def test_one_run_of_a_block_is_really_leaving_each_group_out(layer):
    made = model(layer)
    stream_TD = normal(3, LENGTH, WIDTH)
    layers = made.layers
    block, params = layers[0]
    found_ND = leave_out_block(block, params, stream_TD, jnp.asarray(GROUPS))
    want_ND = np.stack([really(layers, stream_TD, group_T) for group_T in GROUPS])
    scale = np.abs(want_ND).max()
    bound = 40 * eps(stream_TD.dtype, LENGTH * WIDTH) * scale
    np.testing.assert_allclose(found_ND, want_ND, atol=bound)
    # Negative control: it is not the run with everything.
    assert np.abs(found_ND[0] - forward(layers, stream_TD)[-1]).max() > 1e-3 * scale


def test_reruns_are_really_leaving_out_at_any_depth_and_one_run_is_not():
    made = model("attention_rotary", depth=3)
    stream_TD = normal(3, LENGTH, WIDTH)
    found_ND = leave_out_by_reruns(made.layers, stream_TD, jnp.asarray(GROUPS), chunk=3)
    want_ND = np.stack([really(made.layers, stream_TD, group_T) for group_T in GROUPS])
    bound = 40 * eps(stream_TD.dtype, LENGTH * WIDTH) * np.abs(want_ND).max()
    np.testing.assert_allclose(found_ND, want_ND, atol=bound)


def test_what_cannot_be_left_out_is_refused():
    made = model("attention")
    stream_TD = normal(3, LENGTH, WIDTH)
    with pytest.raises(TypeError, match="groups_NT must be booleans"):
        leave_out_by_reruns(made.layers, stream_TD, jnp.ones((2, LENGTH)))
    with pytest.raises(ValueError, match="one per token"):
        leave_out_by_reruns(made.layers, stream_TD, jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"row must be one of the 7 positions"):
        leave_out_block(*made.layers[0], stream_TD, jnp.asarray(GROUPS), row=9)
