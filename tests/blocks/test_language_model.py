"""Each attribute of the language model changes what it says it changes, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import repeat
from icl_jax.stack.run import forward
from tests.helpers import (
    LAYERS,
    MLPS,
    WIDTH,
    assert_close,
    assert_trees_close,
    compiled,
    normal,
    random_params,
    relative_error,
)

VOCAB = 11
TOKENS_T = jnp.array([3, 0, 7, 7, 10], jnp.int32)
POSITIONS_T = jnp.array([1, 2, 4, 5, 8], jnp.int32)

BLOCK = Block(LAYERS["attention_rotary"], MLPS["gated"], "pre_norm", "rms")
#: A decoder with everything left out that can be.
BASE = LanguageModel(repeat(BLOCK, 2), VOCAB, WIDTH)

ATTRIBUTES = {
    "base": {},
    "positions": dict(num_positions=9),
    "positions_after_others": dict(num_positions=9, position_offset=2),
    "types": dict(num_types=2),
    "embedding_norm": dict(embedding_norm=True, norm="layer", norm_epsilon=0.1),
    "embedding_scale": dict(embedding_scale=WIDTH**0.5),
    "no_final_norm": dict(final_norm=False),
    "layer_norm": dict(norm="layer"),
    "epsilon": dict(norm_epsilon=0.5),
    "own_head": dict(head="own"),
    "no_head": dict(head="none"),
    "head_bias": dict(head_bias=True),
    "logit_scale": dict(logit_scale=0.3),
    "soft_cap": dict(soft_cap=0.5),
    "encoder": dict(
        num_positions=9,
        num_types=2,
        embedding_norm=True,
        norm="layer",
        final_norm=False,
        head="none",
    ),
    "everything": dict(
        num_positions=9,
        num_types=1,
        embedding_norm=True,
        embedding_scale=3.0,
        norm="layer",
        head="own",
        head_bias=True,
        logit_scale=1.7,
        soft_cap=2.0,
    ),
}


@functools.cache
def with_params(name, seed=0):
    """A model, its float64 parameters, and its methods as compiled functions."""
    model = BASE.clone(**ATTRIBUTES[name])
    params = random_params(model, seed, jnp.zeros(2, jnp.int32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    @functools.partial(compiled, static_argnames="method")
    def apply(params, *args, method, **kwargs):
        return model.apply({"params": params}, *args, method=method, **kwargs)

    def call(*args, method=None, params=params, **kwargs):
        return apply(params, *args, method=method, **kwargs)

    return model, params, call


def reference_norm(model, params, x):
    if model.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + model.norm_epsilon) * params["scale"]
    return x + params["bias"] if model.norm == "layer" else x


def reference_embed(model, params, positions_T):
    p = jax.tree.map(np.asarray, params)
    rows = []
    for token, position in zip(TOKENS_T.tolist(), positions_T.tolist(), strict=True):
        row_D = model.embedding_scale * p["embedding"][token]
        if model.num_positions is not None:
            row_D = row_D + p["position_embedding"][model.position_offset + position]
        if model.num_types is not None:
            row_D = row_D + p["type_embedding"][0]
        rows.append(row_D)
    stream_TD = np.stack(rows)
    if model.embedding_norm:
        return reference_norm(model, p["norm_embedding"], stream_TD)
    return stream_TD


def reference_readout(model, params, stream_TD):
    p = jax.tree.map(np.asarray, params)
    if model.final_norm:
        stream_TD = reference_norm(model, p["norm_final"], stream_TD)
    if model.head == "none":
        return stream_TD
    logits_TV = stream_TD @ (p["embedding"].T if model.head == "tied" else p["head_kernel"])
    if model.head_bias:
        logits_TV = logits_TV + p["head_bias"]
    logits_TV = model.logit_scale * logits_TV
    if model.soft_cap is not None:
        logits_TV = model.soft_cap * np.tanh(logits_TV / model.soft_cap)
    return logits_TV


@pytest.mark.parametrize("name", ATTRIBUTES)
class TestEveryAttribute:
    def test_embedding_and_readout_equal_their_formulas(self, name):
        model, params, call = with_params(name)
        for positions_T in (None, POSITIONS_T):
            want_TD = reference_embed(
                model, params, jnp.arange(5) if positions_T is None else positions_T
            )
            got_TD = call(TOKENS_T, positions_T=positions_T, method="embed")
            assert_close(got_TD, want_TD, 30)
        stream_TD = normal(3, 5, WIDTH)
        want = reference_readout(model, params, np.asarray(stream_TD))
        assert_close(call(stream_TD, method="readout"), want, 30)

    def test_the_model_is_embedding_blocks_and_readout(self, name):
        model, params, call = with_params(name)
        layers = functional(model, params)
        stream_TD = jnp.asarray(reference_embed(model, params, POSITIONS_T))
        stream_TD = forward(layers, stream_TD, positions_T=POSITIONS_T)
        want = reference_readout(model, params, np.asarray(stream_TD))
        got = call(TOKENS_T, positions_T=POSITIONS_T)
        assert got.shape == (5, WIDTH if model.head == "none" else VOCAB)
        assert_close(got, want, 60)

    def test_has_the_parameters_that_it_needs_and_no_others(self, name):
        model, params, _ = with_params(name)
        names = {"embedding", "layers_0_0"}
        names |= {"position_embedding"} if model.num_positions else set()
        names |= {"type_embedding"} if model.num_types else set()
        names |= {"norm_embedding"} if model.embedding_norm else set()
        names |= {"norm_final"} if model.final_norm else set()
        names |= {"head_kernel"} if model.head == "own" else set()
        names |= {"head_bias"} if model.head_bias else set()
        assert set(params) == names

    def test_matters(self, name):
        model, params, call = with_params(name)
        got = call(TOKENS_T, positions_T=POSITIONS_T)
        # What another value of the attribute gives with the same parameters.
        others = {
            "num_positions": None,
            "num_types": None,
            "embedding_norm": False,
            "embedding_scale": 1.0,
            "norm_epsilon": 1e-6,
            "head_bias": False,
            "logit_scale": 1.0,
            "soft_cap": None,
        }
        for attribute in ATTRIBUTES[name]:
            if attribute in others:
                other = model.clone(**{attribute: others[attribute]})
                changed = other.apply({"params": params}, TOKENS_T, positions_T=POSITIONS_T)
                assert relative_error(changed, got) > 1e-3, attribute


class TestHeads:
    def test_a_tied_head_reads_with_the_embedding(self):
        _, params, call = with_params("base")
        _, own, own_call = with_params("own_head")
        same = {**params, "head_kernel": params["embedding"].T}
        assert_close(own_call(TOKENS_T, params=same), call(TOKENS_T), 60)
        assert own["head_kernel"].shape == (WIDTH, VOCAB)

    def test_a_change_of_the_embedding_of_an_unread_token_reaches_a_tied_head_only(self):
        for name, reaches in (("base", True), ("own_head", False)):
            _, params, call = with_params(name)
            changed = {**params, "embedding": params["embedding"].at[1].add(1.0)}
            differs_V = np.any(call(TOKENS_T, params=changed) != call(TOKENS_T), axis=0)
            np.testing.assert_array_equal(differs_V, (np.arange(VOCAB) == 1) & reaches)

    def test_without_a_head_the_last_states_come_out(self):
        _, params, call = with_params("no_head")
        _, _, logits = with_params("base")
        states_TD = call(TOKENS_T)
        want_TV = logits(TOKENS_T, params=params)
        assert_close(states_TD @ params["embedding"].T, want_TV, 60)

    def test_capped_logits_keep_their_order(self):
        _, params, call = with_params("soft_cap")
        capped_TV = call(TOKENS_T)
        plain_TV = with_params("base")[2](TOKENS_T, params=params)
        assert np.all(np.abs(capped_TV) < 0.5) and np.any(np.abs(plain_TV) > 0.5)
        np.testing.assert_array_equal(np.argsort(capped_TV), np.argsort(plain_TV))


class TestTokens:
    @pytest.mark.parametrize("name", ("base", "positions", "everything"))
    def test_padded_rows_do_not_matter(self, name):
        _, _, call = with_params(name)
        want = call(TOKENS_T, positions_T=POSITIONS_T)
        there = jnp.array([0, 2, 3, 5, 6])
        present_T = jnp.zeros(7, bool).at[there].set(True)
        positions_T = jnp.zeros(7, jnp.int32).at[there].set(POSITIONS_T)
        for filler in (0, 9):
            padded_T = jnp.full(7, filler, jnp.int32).at[there].set(TOKENS_T)
            got = call(padded_T, positions_T=positions_T, present_T=present_T)
            assert_close(got[there], want, 60)
            assert np.all(np.isfinite(got))
        unmasked = call(padded_T, positions_T=positions_T)
        assert relative_error(unmasked[there], want) > 1e-3

    def test_positions_count_from_zero_when_left_out(self):
        _, _, call = with_params("positions")
        want = call(TOKENS_T, positions_T=jnp.arange(5, dtype=jnp.int32))
        assert_close(call(TOKENS_T), want, 60)
        assert relative_error(call(TOKENS_T, positions_T=POSITIONS_T), want) > 1e-3

    def test_what_is_not_in_a_table_is_not_a_number(self):
        # Values are not checked inside jit; a row that is made up would be worse than none.
        _, _, call = with_params("positions")
        embedded_TD = call(TOKENS_T.at[1].set(VOCAB), method="embed")
        far_TD = call(TOKENS_T, positions_T=POSITIONS_T.at[1].set(9), method="embed")
        for stream_TD in (embedded_TD, far_TD):
            rows = np.all(np.isnan(stream_TD), axis=1)
            np.testing.assert_array_equal(rows, np.arange(5) == 1)

    def test_a_causal_model_does_not_read_ahead(self):
        _, _, call = with_params("everything")
        got, changed = call(TOKENS_T), call(TOKENS_T.at[-1].set(1))
        assert_close(changed[:-1], got[:-1], 60)
        assert relative_error(changed[-1], got[-1]) > 1e-3

    def test_prompts_of_a_batch_do_not_matter_to_each_other(self):
        model, params, call = with_params("everything")
        tokens_BT = jnp.stack([TOKENS_T, TOKENS_T[::-1]])
        got_BTV = compiled(jax.vmap(functools.partial(model.apply, {"params": params})))(tokens_BT)
        assert_close(got_BTV, jnp.stack([call(tokens_T) for tokens_T in tokens_BT]), 60)

    @pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
    def test_the_embedding_sets_the_dtype_of_the_arithmetic(self, dtype):
        model, params, call = with_params("everything")
        narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        got = call(TOKENS_T, params=narrow)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), narrow)
        # bfloat16 rounds after each of a few dozen operations in a row.
        assert_close(got, call(TOKENS_T, params=wide).astype(dtype), 60)


def test_initial_parameters_have_the_dtype_of_the_model():
    block = BLOCK.clone(
        contextual_layer=LAYERS["attention_rotary"].clone(dtype=jnp.bfloat16),
        mlp=MLPS["gated"].clone(dtype=jnp.bfloat16),
        dtype=jnp.bfloat16,
    )
    model = BASE.clone(blocks=(block,), dtype=jnp.bfloat16, **ATTRIBUTES["everything"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_T)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


def test_blocks_need_not_be_alike():
    encoder = Block(LAYERS["attention_bidirectional"], MLPS["dense_bias"], "post_norm", "layer")
    model = BASE.clone(blocks=(*repeat(BLOCK, 1), encoder))
    params = random_params(model, 0, jnp.zeros(2, jnp.int32))
    stream_TD = model.apply({"params": params}, TOKENS_T, method="embed")
    for block, layer in functional(model, params):
        stream_TD = block.module.apply({"params": layer}, stream_TD)
    want = model.apply({"params": params}, stream_TD, method="readout")
    assert_trees_close(model.apply({"params": params}, TOKENS_T), want, 60)


class TestErrors:
    @staticmethod
    def init(tokens_T=TOKENS_T, **attributes):
        jax.eval_shape(BASE.clone(**attributes).init, jax.random.key(0), tokens_T)

    def test_an_unknown_head_is_refused(self):
        wording = "LanguageModel: head must be one of 'tied', 'own', 'none', got 'linear'"
        with pytest.raises(ValueError, match=wording):
            self.init(head="linear")

    def test_an_unknown_norm_is_refused(self):
        with pytest.raises(ValueError, match="Norm: kind must be one of 'layer', 'layer_gain'"):
            self.init(norm="batch")

    @pytest.mark.parametrize("name", ("vocab_size", "width"))
    def test_sizes_are_positive(self, name):
        wording = f"LanguageModel: {name} must be an integer of at least 1, got 0"
        with pytest.raises(ValueError, match=wording):
            self.init(**{name: 0})

    def test_a_model_has_a_block(self):
        with pytest.raises(ValueError, match="LanguageModel: blocks is empty; a model has at leas"):
            self.init(blocks=())

    def test_a_batch_is_sent_to_vmap(self):
        with pytest.raises(ValueError, match=r"LanguageModel: tokens_T must have 1 axes \(T\), go"):
            self.init(TOKENS_T[None])
