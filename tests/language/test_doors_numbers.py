"""Where nobody can look, what cannot be gives NaN; where one can, NaN is refused by name."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax import checks
from icl_jax.language.activations import attend
from icl_jax.language.compile import compile_context, ordinary_sums
from icl_jax.language.contributions import group_updates
from icl_jax.language.observed import observe
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.walk import walk_through
from icl_jax.patches.bank import check_patchable
from tests.language.doors import CALLED, KEEPING, MODEL, PARAMS, READING, RUN, TOKENS
from tests.language.models import VOCAB


def test_a_token_outside_the_vocabulary_is_no_number_inside_jit():
    tokens = jnp.asarray(TOKENS).at[4].set(VOCAB)
    for kept in ([4, 11], [2, 11]):
        found = jax.jit(lambda tokens, kept=kept: full_logits(MODEL, PARAMS, tokens, kept))(tokens)
        # Whoever stands at it or behind it has read it (and others may: 0 times NaN is NaN).
        assert np.all(np.isnan(found[np.array(kept) >= 4]))


def test_a_negative_token_is_no_number_inside_jit():
    for call in (full_logits, alone_logits):
        found = jax.jit(lambda tokens, call=call: call(MODEL, PARAMS, tokens, [4, 11]))(
            jnp.asarray(TOKENS).at[4].set(-1)
        )
        assert np.all(np.isnan(found))


def test_a_token_that_is_removed_is_never_read_inside_jit():
    logits = jax.jit(lambda tokens: alone_logits(MODEL, PARAMS, tokens, [2, 11]))
    np.testing.assert_array_equal(logits(jnp.asarray(TOKENS).at[4].set(VOCAB)), logits(TOKENS))
    assert np.all(np.isnan(logits(jnp.asarray(TOKENS).at[2].set(VOCAB))))


def test_kept_positions_are_checked_inside_jit_where_they_can_be_read():
    for name in ("full_logits", "alone_logits", "prefix_logits", "prompt_patches", "attribute"):
        for kept in ([2, 99], np.array([5, 2])):
            with pytest.raises(ValueError, match=f"{name}: {CALLED.get(name, 'kept')}"):
                jax.jit(lambda tokens, name=name, kept=kept: KEEPING[name](*RUN, tokens, kept))(
                    TOKENS
                )


@pytest.mark.parametrize("name", ("full_logits", "alone_logits", "prefix_logits", "attribute"))
def test_traced_kept_positions_that_cannot_be_give_no_numbers(name):
    def numbers(kept):
        found = KEEPING[name](*RUN, TOKENS, kept)
        return found.shares_LAT if name == "attribute" else found

    traced = jax.jit(numbers)
    np.testing.assert_allclose(traced(jnp.array([2, 11])), numbers([2, 11]), atol=1e-5)
    for bad in ([2, 99], [2, 12], [5, 2], [2, 2], [-1, 2]):
        assert np.all(np.isnan(traced(jnp.array(bad))))
    # One prompt's fault is not another's.
    two = jax.jit(lambda kept_BK: KEEPING[name](*RUN, TOKENS[None].repeat(2, 0), kept_BK))
    leaves = [jax.tree.leaves(one)[0] for one in two(jnp.array([[5, 2], [2, 11]]))]
    assert np.all(np.isnan(leaves[0])) and not np.any(np.isnan(leaves[1]))


def test_patches_of_traced_kept_positions_that_cannot_be_are_none():
    bank = jax.jit(lambda kept: prompt_patches(*RUN, TOKENS, kept))(jnp.array([5, 2]))
    with pytest.raises(checks.NumericalError, match="check_patchable"):
        check_patchable(bank)
    good = prompt_patches(*RUN, TOKENS, [2, 11])
    for call in (
        lambda bank: patched_logits(*RUN, TOKENS, bank),
        lambda bank: observe(*RUN, TOKENS, bank=bank).logits_TV,
    ):
        traced = jax.jit(lambda kept, call=call: call(replace(good, kept_K=kept)))
        np.testing.assert_allclose(traced(good.kept_K), call(good), atol=1e-5)
        for bad in ([11, 2], [2, 12]):
            assert np.all(np.isnan(traced(jnp.array(bad))))


def test_a_traced_position_that_cannot_be_is_looked_at_in_vain():
    look = jax.jit(lambda position: attend(*RUN, TOKENS, position))
    assert not np.any(np.isnan(look(11).logits_V))
    for bad in (12, -1):
        found = look(bad)
        assert np.all(np.isnan(found.logits_V)) and np.all(np.isnan(found.weights_LAT))


#: What gives out a model's answers; the others do not ask the final norm.
ANSWERING = (
    *("full_logits", "alone_logits", "prefix_logits", "patched_logits", "prompt_weights"),
    *("observe", "attend"),
    *("generate", "patched_generate", "observed_generate", "walk_through"),
)


@pytest.mark.parametrize("name", (*READING, "walk_through"))
def test_a_nan_in_a_weight_is_refused(name):
    read = READING.get(name, lambda model, params, tokens, _: walk_through(model, params, tokens))
    gains = {name: leaf.at[0].set(jnp.nan) for name, leaf in PARAMS["norm_final"].items()}
    if name in ANSWERING:
        with pytest.raises(checks.NumericalError, match=f"{name}: the .*logits.* are not finite"):
            read(MODEL, {**PARAMS, "norm_final": gains}, TOKENS, [2, 11])
    else:  # It is nowhere in what is given out.
        read(MODEL, {**PARAMS, "norm_final": gains}, TOKENS, [2, 11])
    first = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), PARAMS["layers_0_0"])
    with pytest.raises(checks.NumericalError, match="finite|has length nan"):
        read(MODEL, {**PARAMS, "layers_0_0": {**first}}, TOKENS, [2, 11])


def test_what_is_inside_is_no_answer_where_a_weight_is_nan():
    key = next(name for name in PARAMS if name.startswith("layers"))
    layer = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), PARAMS[key])
    broken = {**PARAMS, key: layer}
    groups_NT = np.eye(12, dtype=bool)[3:5]
    for name, call in {
        "group_updates": lambda: group_updates(MODEL, broken, TOKENS, [2, 11], groups_NT),
        "ordinary_sums": lambda: ordinary_sums(MODEL, broken, [TOKENS]),
        "compile_context": lambda: compile_context(MODEL, broken, TOKENS[:4], [TOKENS[4:]]),
    }.items():
        with pytest.raises(checks.NumericalError, match=f"{name}: .* not finite"):
            call()
