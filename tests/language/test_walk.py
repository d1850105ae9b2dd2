"""A forward pass step by step is the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.functional import functional
from icl_jax.language.observed import observe
from icl_jax.language.walk import walk_through
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 12).astype(np.int32)


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", ("learned_positions", "rotary", "encoder", "parallel"))
def test_every_step_is_the_one_of_the_run(name):
    model, params = MODELS[name], params_of(name, "float64")
    walk = walk_through(model, params, TOKENS)
    sites = {
        "residual": walk.layers.residual_TD,
        "mixed": walk.layers.attention.mixed_TD,
        "mlp_input": walk.layers.mlp_input_TD,
        "hidden": walk.layers.hidden_TH,
        "output": walk.layers.output_TD,
    }
    seen = observe(
        model, params, TOKENS, capture=("embedding", "final", *(f"layers.*.{s}" for s in sites))
    )
    for site, values in sites.items():
        want = seen.activations[f"layers.*.{site}"]
        np.testing.assert_allclose(values, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(walk.embedding_TD, seen.activations["embedding"])
    np.testing.assert_allclose(walk.final_TD, seen.activations["final"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(walk.logits_TV, seen.logits_TV, rtol=1e-9, atol=1e-9)


def test_attention_is_scores_weights_and_values():
    model, params = MODELS["learned_positions"], params_of("learned_positions", "float64")
    walk = walk_through(model, params, TOKENS)
    steps = jax.tree.map(lambda leaf: leaf[1], walk.layers.attention)
    scores_ATT = np.einsum("taf,jaf->atj", steps.query_TAF, steps.key_TGF)
    np.testing.assert_allclose(steps.scores_ATT, scores_ATT, rtol=1e-9, atol=1e-9)
    masked = np.where(np.tril(np.ones((12, 12), bool)), scores_ATT, -np.inf)
    weights_ATT = np.exp(masked) / np.exp(masked).sum(-1, keepdims=True)
    np.testing.assert_allclose(steps.weights_ATT, weights_ATT, rtol=1e-9)
    heads_TAF = np.einsum("atj,jaf->taf", weights_ATT, steps.value_TGF)
    np.testing.assert_allclose(steps.heads_TAF, heads_TAF, rtol=1e-9, atol=1e-9)
    _, layer = functional(model, params)[1]
    attention = layer["contextual_layer"]
    mixed_TD = np.einsum("taf,afd->td", heads_TAF, attention["out"])
    mixed_TD = mixed_TD + np.asarray(attention["out_bias"])[None]
    np.testing.assert_allclose(steps.mixed_TD, mixed_TD, rtol=1e-9, atol=1e-9)
    joined_TD = walk.layers.residual_TD[1] + mixed_TD
    np.testing.assert_allclose(walk.layers.joined_TD[1], joined_TD, rtol=1e-9, atol=1e-9)
    output_TD = joined_TD + walk.layers.mlp_output_TD[1]
    np.testing.assert_allclose(walk.layers.output_TD[1], output_TD, rtol=1e-9, atol=1e-9)


def test_prompts_of_one_length_are_mapped_and_bad_tokens_refused():
    model, params = MODELS["rotary"], params_of("rotary")
    many = jnp.stack([jnp.asarray(TOKENS), jnp.asarray(TOKENS[::-1])])
    walks = jax.vmap(lambda tokens_T: walk_through(model, params, tokens_T))(many)
    alone = walk_through(model, params, TOKENS[::-1])
    np.testing.assert_allclose(walks.logits_TV[1], alone.logits_TV, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="walk_through"):
        walk_through(model, params, np.array([VOCAB]))
