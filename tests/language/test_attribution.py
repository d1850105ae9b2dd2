"""Who wrote a prompt's update, for prompts of many lengths in one program."""

import jax
import numpy as np
import pytest

from icl_jax.blocks.functional import functional
from icl_jax.dynamics.attribution import attribute_block, contribution_shares, remainder_share
from icl_jax.language import attribution
from icl_jax.language.attribution import attribute
from icl_jax.stack.block import apply_block
from tests.helpers import eps
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 24).astype(np.int32)
MANY, KEPT = [TOKENS[:18], TOKENS, TOKENS[5:22]], [[3, 9, 17], [0, 12, 22, 23], [1, 16]]


def by_hand(model, params, tokens_T, kept, row):
    """Layer after layer, without padding."""
    stream_TD = model.apply({"params": params}, tokens_T, method="embed")
    shares, remainders = [], []
    for block, layer in functional(model, params):
        found = attribute_block(block, layer, stream_TD, kept)
        one = jax.tree.map(lambda leaf: leaf[row], found)  # noqa: B023
        shares.append(contribution_shares(one))
        remainders.append(remainder_share(one))
        stream_TD = apply_block(block, layer, block.contextual(layer, stream_TD))
    return np.stack(shares), np.stack(remainders)


@pytest.mark.slow
@pytest.mark.wide(2)
@pytest.mark.parametrize("name", ("rotary", "encoder"))
def test_a_batch_is_every_prompt_by_hand(name):
    model, params = MODELS[name], params_of(name, "float64")
    many = attribute(model, params, MANY, KEPT)
    for found, tokens_T, kept in zip(many, MANY, KEPT, strict=True):
        shares_LAT, remainder_L = by_hand(model, params, tokens_T, kept, -1)
        assert found.shares_LAT.shape == (2, 4, len(tokens_T))
        bound = eps("float64", 60, condition=1000)
        np.testing.assert_allclose(found.shares_LAT, shares_LAT, rtol=bound, atol=bound)
        np.testing.assert_allclose(found.remainder_L, remainder_L, rtol=bound, atol=bound)
        total_L = np.sum(found.shares_LAT, axis=(1, 2)) + found.remainder_L
        np.testing.assert_allclose(total_L, 1, rtol=bound)
        assert not np.any(found.shares_LAT[:, :, kept]) and np.any(found.shares_LAT)


def test_lengths_of_a_bucket_share_a_program_and_rows_do_too():
    model, params = MODELS["rotary"], params_of("rotary")
    attribution._attribute.clear_cache()
    for length in (17, 20, 31):
        tokens_T, kept = np.resize(TOKENS, length), [0, 4, length - 1]
        last, first = (attribute(model, params, tokens_T, kept, row=row) for row in (-1, 1))
        assert not np.allclose(last.shares_LAT, first.shares_LAT)
    assert attribution._attribute._cache_size() == 1


def test_what_cannot_be_attributed_is_refused():
    run = (MODELS["rotary"], params_of("rotary"))
    with pytest.raises(ValueError, match=r"attribute: row must be one of the 2 kept positions"):
        attribute(*run, MANY, KEPT, row=2)
    with pytest.raises(ValueError, match="parallel block"):
        attribute(MODELS["parallel"], params_of("parallel"), TOKENS, [0, 23])
