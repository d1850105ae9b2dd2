"""A context compiled into a language model's weights: every kind of block, every form it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.language.compile import (
    compile_context,
    context_queries,
    ordinary_sums,
    static_logits,
    static_weights,
)
from icl_jax.language.prompt import full_logits
from icl_jax.language.study import own_queries, self_study
from icl_jax.patches.fit import Fit
from icl_jax.patches.static_patch import ranked, scale_static
from tests.helpers import eps, random_params, relative_error
from tests.language.models import MODELS, VOCAB

RNG = np.random.default_rng(3)
CONTEXT = RNG.integers(1, VOCAB, 9)
BOS = 0
#: What a kind of block can be given.
FITS = {"experts": Fit("exact", side="input"), "parallel": Fit("exact"), "rotary": Fit("exact")}


def loaded(name):
    model = MODELS[name]
    return model, random_params(model, 1, jnp.zeros((2,), jnp.int32))


def asked(count, length=2, seed=5):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB, length + number % 2) for number in range(count)]


def runs(model, params, queries, patches):
    """Logits at the queries' tokens: with the context, alone, and compiled."""
    lead = [BOS]
    kept = [np.arange(1, 1 + len(one)) for one in queries]
    whole = [np.concatenate([lead, CONTEXT, one]) for one in queries]
    full = full_logits(model, params, whole, [rows + len(CONTEXT) for rows in kept])
    tokens = [np.concatenate([lead, one]) for one in queries]
    alone = full_logits(model, params, tokens, kept)
    compiled = static_logits(model, params, tokens, kept, patches)
    return tuple(jnp.concatenate(each) for each in (full, alone, compiled))


@pytest.mark.wide(2)
@pytest.mark.parametrize("name", ["rotary", "parallel"])
def test_a_context_is_put_away_exactly_for_few_queries(name):
    model, params = loaded(name)
    queries = asked(4)
    patches = compile_context(model, params, CONTEXT, queries, bos=BOS, fit=FITS[name])
    full, alone, compiled = runs(model, params, queries, patches)
    assert relative_error(compiled, full) < 1e-3 * relative_error(alone, full)


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", ["sandwich", "experts", "learned_positions"])
def test_in_every_model_a_part_of_the_gap_is_closed(name):
    model, params = loaded(name)
    queries = asked(4)
    fit = FITS.get(name, Fit("ridge"))
    patches = compile_context(model, params, CONTEXT, queries, bos=BOS, fit=fit, weight=1e-3)
    full, alone, compiled = runs(model, params, queries, patches)
    assert relative_error(compiled, full) < 0.95 * relative_error(alone, full)


@pytest.mark.wide(4)
@pytest.mark.parametrize("name", ["rotary", "sandwich", "experts"])
def test_weights_with_the_patches_in_them_are_the_patched_model(name):
    model, params = loaded(name)
    queries = asked(3)
    fit = Fit(side="input") if name == "experts" else Fit(rank=3)
    patches = compile_context(model, params, CONTEXT, queries, bos=BOS, fit=fit)
    merged = static_weights(model, params, patches)
    tokens, read = np.arange(8), np.arange(8)
    got = full_logits(model, merged, tokens, read)
    want = static_logits(model, params, tokens, read, patches)
    assert relative_error(got, want) < eps("float32", 600)
    plain = full_logits(model, params, tokens, read)
    assert relative_error(plain, want) > 1e-2
    np.testing.assert_array_equal(
        static_logits(model, params, tokens, read, scale_static(patches, 0.0)), plain
    )


def test_the_first_token_and_other_texts_lengths_do_not_matter():
    model, params = loaded("rotary")
    queries = asked(3)
    patches = compile_context(model, params, CONTEXT, queries, bos=BOS, fit=Fit(rank=2))
    assert ranked(patches) == {"input": 2, "down": 2}
    # BOS sees nothing of a context, and is left alone.
    got = static_logits(model, params, np.array([BOS, 3]), np.array([0]), patches)
    want = full_logits(model, params, np.array([BOS, 3]), np.array([0]))
    assert relative_error(got, want) < 1e-5
    texts = [np.array([BOS, 3, 4]), np.array([BOS, 3, 4, 5, 6, 7])]
    short, long = static_logits(model, params, texts, [[1, 2], [1, 2]], patches)
    assert relative_error(short, long) < 1e-5


@pytest.mark.slow
def test_the_metric_of_ordinary_text_disturbs_it_less():
    model, params = loaded("rotary")
    texts = asked(40, length=6, seed=11)
    ordinary = ordinary_sums(model, params, texts, bos=BOS)
    other = [np.concatenate([[BOS], one]) for one in asked(8, length=6, seed=12)]
    read = [np.arange(1, len(one)) for one in other]
    plain = jnp.concatenate(full_logits(model, params, other, read))
    moved = {}
    for rung in ("ridge", "covariance"):
        patches = compile_context(
            model, params, CONTEXT, asked(2), bos=BOS, fit=Fit(rung), weight=1e-3, ordinary=ordinary
        )
        got = jnp.concatenate(static_logits(model, params, other, read, patches))
        moved[rung] = relative_error(got, plain)
    assert moved["covariance"] < moved["ridge"]


def test_queries_are_the_models_own_words_behind_the_context():
    model, params = loaded("rotary")
    stems = [[7], []]
    made = self_study(model, params, CONTEXT, stems, 3, jax.random.key(0), bos=BOS)
    assert [len(one) for one in made] == [4, 3] and made[0][0] == 7
    again = self_study(model, params, CONTEXT, stems, 3, jax.random.key(0), bos=BOS)
    np.testing.assert_array_equal(made[0], again[0])
    other = self_study(model, params, CONTEXT[::-1], stems, 3, jax.random.key(0), bos=BOS)
    assert any(not np.array_equal(one, two) for one, two in zip(made, other, strict=True))
    assert [one.tolist() for one in own_queries([5], 4)] == [[5]]
    covered = {token for one in own_queries(np.arange(17), 6) for token in one.tolist()}
    assert covered == set(range(17))


def test_queries_of_any_length_are_one_array_and_padding_is_not_fitted():
    model, params = loaded("rotary")
    made = context_queries(model, params, CONTEXT, asked(3), bos=BOS)
    assert made.anchored and made.full_BTD.shape[:2] == (3, 16)
    assert np.asarray(made.fitted_BK).sum(axis=1).tolist() == [2, 3, 2]
    assert not np.asarray(made.fitted_BK)[:, 0].any()
    np.testing.assert_array_equal(np.asarray(made.rows_BK)[0, :3], [0, 10, 11])
    assert not context_queries(model, params, CONTEXT, asked(3)).anchored
    encoder = loaded("encoder")
    assert not context_queries(*encoder, CONTEXT, asked(3), bos=BOS).anchored


def test_what_cannot_be_compiled_is_refused_with_the_reason():
    model, params = loaded("rotary")
    with pytest.raises(ValueError, match="queries is empty.*self_study"):
        compile_context(model, params, CONTEXT, [])
    with pytest.raises(ValueError, match=r"queries\[1\] is empty"):
        compile_context(model, params, CONTEXT, [[1], []])
    with pytest.raises(ValueError, match=rf"must lie in \[0, {VOCAB}\)"):
        compile_context(model, params, CONTEXT, [[VOCAB]])
    with pytest.raises(ValueError, match="stems is empty"):
        self_study(model, params, CONTEXT, [], 3, jax.random.key(0))
    with pytest.raises(ValueError, match="has experts.*Use side='input'"):
        compile_context(*loaded("experts"), CONTEXT, asked(2))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="the fit is not finite"):
        compile_context(model, broken, CONTEXT, asked(2))
    patches = compile_context(model, params, CONTEXT, asked(2), fit=Fit("thought"))
    with pytest.raises(ValueError, match="a thought vector is a bias, and this block ends in none"):
        static_weights(model, params, patches)
    biased, weights = loaded("learned_positions")
    thought = compile_context(biased, weights, CONTEXT, asked(2), fit=Fit("thought"))
    merged = static_weights(biased, weights, thought)
    got = full_logits(biased, merged, np.arange(4), np.arange(4))
    want = static_logits(biased, weights, np.arange(4), np.arange(4), thought)
    assert relative_error(got, want) < eps("float32", 600)
