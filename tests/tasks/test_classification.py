"""Real rows as prompts: what is told, what is not shared, what is refused."""

import sys

import numpy as np
import pytest

from icl_jax.tasks import classification
from icl_jax.tasks.classification import LABELS, LEVELS, Classification


def draw(name, split="train", seed=0, num_prompts=3, num_examples=5, **options):
    task = Classification(name, split=split, **options)
    return task.sample(np.random.default_rng(seed), num_prompts, num_examples)


@pytest.mark.parametrize("name", LABELS)
def test_a_prompt_tells_the_features_asked_for_and_a_class_that_exists(name):
    for prompt in draw(name, num_features=2):
        assert len(prompt.demonstrations) == len(prompt.labels) == 5
        for text in (*prompt.demonstrations, prompt.query):
            told = text.split(", ")
            assert len(told) == 2 and all(part.split()[-1] in LEVELS for part in told)
        assert {prompt.answer, *prompt.labels} <= set(range(len(LABELS[name])))


def test_the_seed_decides_and_the_halves_share_no_row():
    assert draw("wine", seed=1) == draw("wine", seed=1) != draw("wine", seed=2)
    sizes = [len(classification._texts("wine", 3, split)[0]) for split in ("train", "test")]
    assert sizes == [89, 89]


def test_the_features_told_say_much_about_the_class():
    # The class that is most frequent for a text in the training half is right in the other.
    for name, at_least in (("wine", 0.8), ("breast_cancer", 0.85), ("diabetes", 0.6)):
        texts, labels = classification._texts(name, 3, "train")
        usual = {
            text: np.bincount(labels[[t == text for t in texts]]).argmax() for text in set(texts)
        }
        tested, truth = classification._texts(name, 3, "test")
        right = [usual.get(t, 0) == label for t, label in zip(tested, truth, strict=True)]
        assert np.mean(right) > at_least, name
        assert np.mean(truth == np.bincount(labels).argmax()) < at_least - 0.05


def test_no_row_comes_twice_in_a_prompt():
    (prompt,) = draw("wine", num_prompts=1, num_examples=88, num_features=13)
    texts = classification._texts("wine", 13, "train")[0]
    assert sorted((*prompt.demonstrations, prompt.query)) == sorted(texts)


def test_what_cannot_be_drawn_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="name must be one of"):
        Classification("iris")
    with pytest.raises(ValueError, match="num_features must be at most 13 for 'wine', got 14"):
        Classification("wine", 14)
    with pytest.raises(ValueError, match="num_examples must be from 1 to 88 .* got 89"):
        draw("wine", num_examples=89)
    classification._table.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn, which is not installed.*experiments"):
        Classification("wine")
