"""Prompts of real rows."""

import sys

import jax
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from icl_jax.tasks.tabular import FEATURES, Diabetes, load_split


def _rows(prompt):
    """Inputs and targets of all T = N + 1 rows of the only prompt of a batch."""
    inputs = np.vstack([prompt.inputs_ND[0], prompt.query_D])
    return inputs, np.append(prompt.targets_N[0], prompt.query_target)


def test_the_splits_are_the_whole_table_and_share_no_row():
    raw, _ = load_diabetes(return_X_y=True, scaled=False)
    halves = [load_split(split)[0] for split in ("train", "test")]
    assert [half.shape for half in halves] == [(221, 10), (221, 10)]
    both = np.vstack(halves)
    # Standardising is one affine map per column, so it keeps the order of the table's rows.
    table = both[np.lexsort(both.T)]
    raw = raw[np.lexsort(raw.T)]
    np.testing.assert_allclose(
        (table - table.mean(0)) / table.std(0), (raw - raw.mean(0)) / raw.std(0), atol=1e-9
    )
    assert len(np.unique(both, axis=0)) == 442


def test_training_rows_are_standardised_and_test_rows_use_the_same_units():
    for array in load_split("train"):
        np.testing.assert_allclose(array.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(array.std(0), 1, atol=1e-12)
    for array in load_split("test"):
        assert np.all(np.abs(array.mean(0)) < 0.25) and np.all(np.abs(array.std(0) - 1) < 0.25)
        assert np.all(array.mean(0) != 0)


def test_the_table_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        load_split("train")[0][0, 0] = 1.0


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_prompt_shows_distinct_rows_of_its_split_up_to_one_sign_per_column(draw, split):
    features, targets = load_split(split)
    prompt = draw(Diabetes(10, split), num_prompts=1, num_examples=30)
    inputs, labels = _rows(prompt)
    # Absolute values forget signs, sorting forgets the order of columns.
    known = np.sort(np.abs(features), axis=1)
    seen = np.sort(np.abs(inputs), axis=1)
    matches = np.array([np.flatnonzero(np.all(known == row, axis=1)) for row in seen])
    assert matches.shape == (31, 1)
    rows = matches[:, 0]
    assert len(set(rows.tolist())) == 31
    assert len(np.unique(np.sign(labels * targets[rows]))) == 1
    np.testing.assert_array_equal(np.abs(labels), np.abs(targets[rows]))
    for column in inputs.T:
        signed = [np.array_equal(column, s * features[rows, f]) for s in (1, -1) for f in range(10)]
        assert sum(signed) == 1


def test_all_rows_but_the_query_fit_into_a_context(draw):
    prompt = draw(Diabetes(1), num_prompts=1, num_examples=220)
    _, labels = _rows(prompt)
    np.testing.assert_array_equal(np.sort(np.abs(labels)), np.sort(np.abs(load_split("train")[1])))
    with pytest.raises(ValueError, match=r"num_examples must be at most 220 .*'train' has 221"):
        Diabetes(1).sample(jax.random.key(0), num_examples=221)


def test_columns_restrict_what_is_drawn(draw):
    features, _ = load_split("train")
    prompts = draw(Diabetes(2, columns=("bmi", "s5")), num_prompts=1000, num_examples=50)
    allowed = np.abs(features[:, [FEATURES.index("bmi"), FEATURES.index("s5")]])
    first_BN = np.abs(prompts.inputs_ND[..., 0])
    is_bmi, is_s5 = (np.isin(first_BN, allowed[:, i]).all(1) for i in (0, 1))
    assert np.all(is_bmi != is_s5)
    assert abs(is_bmi.mean() - 0.5) < 4 * 0.5 / 1000**0.5


def test_features_and_target_are_flipped_as_often_as_not_each_by_itself(draw):
    features, targets = load_split("train")
    bmi = features[:, FEATURES.index("bmi")]
    prompts = draw(Diabetes(1, columns=("bmi",)), num_prompts=400, num_examples=1)
    known = np.abs(np.stack([bmi, targets], axis=1))
    seen = np.abs(np.stack([prompts.query_D[:, 0], prompts.query_target], axis=1))
    rows = np.argmax(np.all(seen[:, None] == known[None], axis=2), axis=1)
    np.testing.assert_array_equal(seen, known[rows])
    flips = np.sign([prompts.query_D[:, 0] * bmi[rows], prompts.query_target * targets[rows]])
    # Signs of mean zero, and their product too: each mean deviates by 1 / sqrt(400).
    for signs in (*flips, flips[0] * flips[1]):
        assert abs(signs.mean()) < 4 / 20


def test_without_examples_zero_is_the_best_guess_and_with_them_it_is_not(draw):
    prompts = draw(Diabetes(2, columns=("bmi", "s5")), num_prompts=1000, num_examples=50)
    targets_B = prompts.query_target
    for column in prompts.query_D.T:
        assert abs(np.mean(column * targets_B)) < 4 * np.std(column * targets_B) / 1000**0.5
    fits_B = np.array(
        [
            query @ np.linalg.lstsq(inputs, labels, rcond=None)[0]
            for inputs, labels, query in zip(
                prompts.inputs_ND, prompts.targets_N, prompts.query_D, strict=True
            )
        ]
    )
    assert np.mean((fits_B - targets_B) ** 2) < 0.7 * np.mean(targets_B**2)


def test_bad_columns_and_splits_are_refused():
    with pytest.raises(ValueError, match=r"split must be one of 'train', 'test', got 'all'"):
        Diabetes(2, "all")
    with pytest.raises(ValueError, match=r"columns must be one of 'age', .*got 'weight'"):
        Diabetes(1, columns=("weight",))
    with pytest.raises(ValueError, match=r"columns must not repeat"):
        Diabetes(1, columns=("bmi", "bmi"))
    with pytest.raises(ValueError, match=r"input_width must be at most 10, .*got 11"):
        Diabetes(11)
    with pytest.raises(ValueError, match=r"split must be one of"):
        load_split("all")


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "icl_jax\[experiments\]"'):
        load_split.__wrapped__("train")
