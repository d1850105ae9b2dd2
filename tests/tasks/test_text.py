"""Real text: there, split without leaks, and cut into windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.tasks.text import all_windows, random_windows, reference_texts, split_texts

TOKENS_N = np.arange(100, dtype=np.int32)


def test_the_reference_is_english_and_long():
    texts = reference_texts()
    assert len(texts) > 50 and sum(map(len, texts.values())) > 300_000
    assert 'The "while" statement is used for repeated execution' in texts["while"]
    assert list(texts) == sorted(texts) and len(set(texts.values())) == len(texts)


def test_a_split_shares_no_text():
    texts = {str(index): f"text {index}" for index in range(25)}
    train, test = split_texts(texts, every=10)
    assert test == ("text 9", "text 19")
    assert set(train) | set(test) == set(texts.values()) and not set(train) & set(test)
    with pytest.raises(ValueError, match="3 texts with every=10 leave one side empty"):
        split_texts({"a": "x", "b": "y", "c": "z"})


def test_windows_are_stretches_from_everywhere():
    windows_BT = random_windows(jax.random.key(0), TOKENS_N, num_windows=4000, length=5)
    assert windows_BT.shape == (4000, 5) and windows_BT.dtype == jnp.int32
    starts_B = np.asarray(windows_BT[:, 0])
    np.testing.assert_array_equal(windows_BT, starts_B[:, None] + np.arange(5))
    assert set(starts_B.tolist()) == set(range(96))


def test_windows_follow_their_key():
    draws = [
        random_windows(jax.random.key(seed), TOKENS_N, num_windows=8, length=5)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(np.asarray(draws[0]) != np.asarray(draws[2]))


def test_all_windows_cover_the_text_once():
    windows_BT = all_windows(TOKENS_N, 7)
    np.testing.assert_array_equal(windows_BT.ravel(), TOKENS_N[:98])


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="a text of 100 tokens has no stretch of 101"):
        random_windows(jax.random.key(0), TOKENS_N, num_windows=1, length=101)
