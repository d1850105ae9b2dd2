"""All prefixes of prompts in one program: each is what a run of that prefix alone gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.language.prefixes import prefix_logits
from icl_jax.language.prompt import full_logits
from tests.helpers import eps, relative_error
from tests.language.models import MODELS, VOCAB, params_of
from tests.language.test_batch import longrope

TOKENS = np.random.default_rng(2).integers(0, VOCAB, 19).astype(np.int32)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "encoder"])
def test_every_prefix_is_as_if_it_were_read_alone(name):
    run = (MODELS[name], params_of(name))
    found_TV = prefix_logits(*run, TOKENS)
    assert found_TV.shape == (19, VOCAB)
    prompts = [np.append(TOKENS[:count], TOKENS[-1]) for count in range(19)]
    want = full_logits(*run, prompts, [[len(one) - 1] for one in prompts])
    assert relative_error(found_TV, jnp.concatenate(want)) < eps("float32", 60, condition=20)
    # The control: what is read makes a difference, after every token.
    apart = [relative_error(*pair) for pair in zip(found_TV[:-1], found_TV[1:], strict=True)]
    assert min(apart) > 1e-2


def test_prompts_side_by_side_and_some_prefixes_of_each():
    run = (MODELS["rotary"], params_of("rotary"))
    tokens, after = [TOKENS, TOKENS[3:14], TOKENS[:1]], [[0, 4, 18], [10], [0]]
    bound = eps("float32", 60, condition=20)
    for one, some, found in zip(tokens, after, prefix_logits(*run, tokens, after), strict=True):
        assert relative_error(found, prefix_logits(*run, one)[np.array(some)]) < bound
    for one, found in zip(tokens, prefix_logits(*run, tokens), strict=True):
        assert relative_error(found, prefix_logits(*run, one)) < bound


def test_models_whose_prefixes_share_no_pass_are_refused():
    with pytest.raises(ValueError, match="prefix_logits: .*longrope.* Give full_logits each"):
        prefix_logits(longrope(99), params_of("rotary"), TOKENS)
    with pytest.raises(ValueError, match="prefix_logits: .*reads what comes behind"):
        prefix_logits(MODELS["encoder"], params_of("encoder"), TOKENS)
    with pytest.raises(ValueError, match="prefix_logits: after position 19 is outside"):
        prefix_logits(MODELS["rotary"], params_of("rotary"), TOKENS, [3, 19])
