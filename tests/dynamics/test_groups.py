"""Groups of tokens in an update: their inner products, and the few that come nearest to it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.groups import (
    choose_by_update,
    group_cosines,
    group_gram,
    group_shares,
    group_sizes,
)
from tests.helpers import LAYERS, MLPS, WIDTH, make_model, normal

LENGTH = 7
GROUPS = np.zeros((3, LENGTH), bool)
GROUPS[0, 0:2] = GROUPS[1, 2] = GROUPS[2, 3:5] = True


@pytest.fixture(scope="module")
def attribution():
    made = make_model(Block(LAYERS["attention"], MLPS["dense"], "pre_norm", "rms"), seed=2)
    found = attribute_block(*made.layers[0], normal(3, LENGTH, WIDTH), [LENGTH - 1])
    return jax.tree.map(lambda leaf: leaf[0], found)


def test_the_products_are_those_of_the_parts_and_add_up_to_the_update(attribution):
    gram_XX = group_gram(attribution, jnp.asarray(GROUPS))
    tokens_TD = np.sum(attribution.contributions_ATD, axis=0)
    parts = [tokens_TD[group_T].sum(axis=0) for group_T in GROUPS]
    parts.append(tokens_TD[5:].sum(axis=0) + attribution.remainder_D)
    v_D = np.asarray(attribution.v_D)
    matrices = [np.outer(v_D, part).ravel() for part in parts]
    np.testing.assert_allclose(gram_XX, np.stack(matrices) @ np.stack(matrices).T, rtol=1e-4,
                               atol=1e-6 * float(gram_XX.max()))  # fmt: skip
    total = np.linalg.norm(np.sum(matrices, axis=0))
    np.testing.assert_allclose(np.sqrt(gram_XX.sum()), total, rtol=1e-4)
    np.testing.assert_allclose(np.sum(group_shares(gram_XX)), 1, rtol=1e-5)
    np.testing.assert_allclose(group_sizes(gram_XX)[1], np.linalg.norm(matrices[1]), rtol=1e-4)
    cosines_XX = np.asarray(group_cosines(gram_XX))
    np.testing.assert_allclose(np.diagonal(cosines_XX), 1, rtol=1e-5)


def cosine(vectors_ND, rest_D, chosen):
    total_D = vectors_ND.sum(axis=0) + rest_D
    part_D = vectors_ND[list(chosen)].sum(axis=0)
    return part_D @ total_D / np.linalg.norm(part_D) / np.linalg.norm(total_D)


def test_the_choice_is_the_greedy_one_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(5):
        vectors_ND, rest_D = rng.normal(size=(6, 4)), rng.normal(size=4)
        rows_XD = np.concatenate([vectors_ND, rest_D[None]])
        order_K, cosines_K = choose_by_update(jnp.asarray(rows_XD @ rows_XD.T), 3)
        chosen = []
        for step in range(3):
            left = [one for one in range(6) if one not in chosen]
            chosen.append(max(left, key=lambda one: cosine(vectors_ND, rest_D, [*chosen, one])))  # noqa: B023
            assert np.isclose(cosines_K[step], cosine(vectors_ND, rest_D, chosen))
        assert order_K.tolist() == chosen
        # The first is the best of one; greedy need not be the best of three, but is below it.
        best = max(cosine(vectors_ND, rest_D, s) for s in itertools.combinations(range(6), 3))
        assert cosines_K[-1] <= best + 1e-9


def test_a_group_that_adds_nothing_is_chosen_last():
    rows_XD = np.array([[0.0, 0.0], [1.0, 0.5], [0.5, 1.0], [0.0, 0.0]])
    order_K, _ = choose_by_update(jnp.asarray(rows_XD @ rows_XD.T), 3)
    assert order_K.tolist()[-1] == 0
    with pytest.raises(ValueError, match="count must be at most the 3 groups, got 4"):
        choose_by_update(jnp.eye(4), 4)
