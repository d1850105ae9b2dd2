"""One position from inside, against the model's own run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import layer_params
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.recurrent import GatedRecurrent
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.language.activations import attend

TOKENS = jnp.array([3, 1, 4, 1, 5, 9, 2, 6])


def make(layer):
    block = Block(layer, Gated(hidden_width=16, use_bias=False), wiring="pre_norm", norm="rms")
    model = LanguageModel(repeat(block, 2), vocab_size=12, width=8)
    return model, model.init(jax.random.key(0), TOKENS)["params"]


@pytest.fixture(scope="module")
def model():
    return make(SoftmaxAttention(num_heads=4, num_kv_heads=2, rotary=Rotary(50.0)))


def test_the_logits_are_those_of_the_position(model):
    found = jax.jit(lambda: attend(*model, TOKENS, 4))()
    logits_TV = model[0].apply({"params": model[1]}, TOKENS)
    np.testing.assert_allclose(found.logits_V, logits_TV[4], rtol=1e-5, atol=1e-6)


def test_weights_are_shares_of_what_stands_before(model):
    found = jax.jit(lambda: attend(*model, TOKENS, 4))()
    assert found.weights_LAT.shape == (2, 4, 8)
    np.testing.assert_allclose(jnp.sum(found.weights_LAT, axis=-1), 1, rtol=1e-5)
    assert not np.any(found.weights_LAT[..., 5:])


def test_the_softmax_of_the_scores_is_the_weights(model):
    found = jax.jit(lambda: attend(*model, TOKENS, 4))()
    shares_LAT = jax.nn.softmax(found.scores_LAT[..., :5], axis=-1)
    np.testing.assert_allclose(found.weights_LAT[..., :5], shares_LAT, rtol=1e-5)


def test_inputs_are_what_attention_reads(model):
    module, params = model
    found = jax.jit(lambda: attend(*model, TOKENS, 4))()
    stream_TD = module.apply({"params": params}, TOKENS, method="embed")
    normed_TD = stream_TD / jnp.sqrt(jnp.mean(stream_TD**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found.inputs_LTD[0], normed_TD, rtol=1e-3)


def test_mlp_inputs_are_what_the_mlp_reads(model):
    module, params = model
    found = jax.jit(lambda: attend(*model, TOKENS, 5))()
    stream_TD = module.apply({"params": params}, TOKENS, method="embed")
    midpoint = module.blocks[0].apply(
        {"params": layer_params(module, params, 0)}, stream_TD, method="contextual"
    )
    np.testing.assert_allclose(found.mlp_inputs_LD[0], midpoint.mlp_input_TD[5], rtol=1e-4)


def test_an_output_is_the_difference_that_the_layer_makes(model):
    module, params = model
    found = jax.jit(lambda: attend(*model, TOKENS, 7))()
    stream_TD = module.apply({"params": params}, TOKENS, method="embed")
    block = module.blocks[0]
    first = layer_params(module, params, 0)
    midpoint = block.apply({"params": first}, stream_TD, method="contextual")
    added_TD = midpoint.residual_TD - stream_TD
    np.testing.assert_allclose(found.outputs_LD[0], added_TD[7], rtol=1e-4, atol=1e-6)


def test_what_stands_behind_does_not_matter(model):
    longer = jnp.concatenate([TOKENS[:5], jnp.array([11, 11, 11])])
    first, second = (jax.jit(attend, static_argnums=0)(*model, t, 4) for t in (TOKENS, longer))
    np.testing.assert_array_equal(first.outputs_LD, second.outputs_LD)
    np.testing.assert_array_equal(first.logits_V, second.logits_V)


def test_a_layer_that_is_no_sum_over_heads_is_refused():
    with pytest.raises(TypeError):
        attend(*make(GatedRecurrent(state_width=8)), TOKENS, 4)
