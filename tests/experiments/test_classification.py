"""experiments.classification on a tiny random checkpoint: what is asked, measured and refused."""

import dataclasses
import functools
import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language.classification import run as classification
from experiments.language.classification.sides import (
    BY_ORDER,
    Answers,
    answers,
    compares_kernels,
    fine_tuned,
    label_tokens,
    measures,
    questions,
    random_part,
    update_cosines,
)
from experiments.tools.flags import UsageError
from experiments.tools.trained import trained_part
from icl_jax.blocks.functional import layer_places
from icl_jax.descent.explicit import ExplicitConfig
from icl_jax.descent.parameters import select
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.interop.tokenizer import Encoded, load_tokenizer, save_tokenizer, train_bpe
from icl_jax.language.activations import Attended, attend
from icl_jax.optimizers import OptimizerConfig
from icl_jax.patches.low_rank import as_matrix
from icl_jax.patches.token import token_update
from icl_jax.records import Run, WorkdirError
from icl_jax.tasks.classification import LABELS, Classification

pytestmark = pytest.mark.slow

WORDS = LABELS["wine"]
EXPLICIT = ExplicitConfig(OptimizerConfig("adam"), trains="keys_and_values")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny("llama", folder, jax.random.key(0), vocab_size=320)
    prompts = Classification("wine").sample(np.random.default_rng(1), 20, 4)
    texts = [text for prompt in prompts for text in prompt.demonstrations]
    save_tokenizer(folder, train_bpe([*texts, " first second third"] * 3, 320))
    return folder


@pytest.fixture(scope="module")
def asked(folder):
    prompts = Classification("wine").sample(np.random.default_rng(0), 3, 2)
    return prompts, questions(load_tokenizer(folder), prompts, WORDS)


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def test_a_question_is_the_text_of_its_prompt(folder, asked):
    prompts, together = asked
    tokenizer = load_tokenizer(folder)
    for index, prompt in enumerate(prompts):
        one = jax.tree.map(lambda leaf: np.asarray(leaf[index]), together)  # noqa: B023
        context = tokenizer.decode(one.context_T[: one.context_last + 1])
        shown = [
            f"{text} -> {WORDS[label]}\n"
            for text, label in zip(prompt.demonstrations, prompt.labels, strict=True)
        ]
        assert context == "".join(shown) + f"{prompt.query} ->"
        assert tokenizer.decode(one.query_Q[: one.query_last + 1]) == f"{prompt.query} ->"
        for text, tokens_U, last in zip(
            prompt.demonstrations, one.examples_NU, one.example_lasts_N, strict=True
        ):
            assert tokenizer.decode(tokens_U[: last + 1]) == f"{text} ->"
        tokens_C = label_tokens(tokenizer, WORDS)
        np.testing.assert_array_equal(one.labels_N, tokens_C[list(prompt.labels)])


def test_tokens_of_the_context_are_where_they_are_said_to_be(folder, asked):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.adds_bos
    for index in range(3):
        one = jax.tree.map(lambda leaf: np.asarray(leaf[index]), asked[1])  # noqa: B023
        texts = [*zip(one.examples_NU, one.example_lasts_N, one.example_places_NU, strict=True)]
        for tokens_U, last, places_U in (*texts, (one.query_Q, one.query_last, one.query_places_Q)):
            # BOS and the padding stand nowhere.
            np.testing.assert_array_equal(
                places_U >= 0, (np.arange(len(places_U)) <= last) & (np.arange(len(places_U)) > 0)
            )
            shown = places_U >= 0
            np.testing.assert_array_equal(one.context_T[places_U[shown]], tokens_U[shown])
        everything = np.concatenate([one.example_places_NU.ravel(), one.query_places_Q])
        everything = everything[everything >= 0]
        assert list(everything) == sorted(set(everything))


def test_labels_that_begin_alike_are_refused(folder):
    with pytest.raises(ValueError, match="the labels first, first begin with the same token"):
        label_tokens(load_tokenizer(folder), ("first", "first", "third"))


def test_a_label_that_the_arrow_swallows_is_refused():
    class Greedy:
        """One token for the arrow and what is behind it."""

        def encode(self, text, *, add_special=True):
            pieces = ["x", text[1:]]
            ids = np.array([hash(piece) % 997 for piece in pieces], np.int32)
            return Encoded(ids, np.zeros((2, 2), np.int32))

    with pytest.raises(ValueError, match="joins the label 'second' to the arrow"):
        label_tokens(Greedy(), ("second",))


@pytest.mark.parametrize("layer_causal", (False, True))
def test_descent_lowers_the_loss_of_the_demonstrations(folder, asked, layer_causal):
    checkpoint, question = load(folder), first(asked[1])
    explicit = dataclasses.replace(
        EXPLICIT, batch="full", num_steps=20, layer_causal=layer_causal, trains="mlp"
    )
    args = (checkpoint.model, checkpoint.params, explicit, question)
    after = jax.jit(lambda: fine_tuned(*args, 0.01))()
    before, rest = select(checkpoint.params, "mlp")
    lesson = dataclasses.replace(
        question,
        query_Q=question.examples_NU[0],
        query_last=question.example_lasts_N[0],
    )
    parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), before, after)
    found = jax.jit(lambda: answers(*args[:3], lesson, parts))()
    losses = -jax.nn.log_softmax(found.tuned.logits_V)[:, question.labels_N[0]]
    assert losses[1] < losses[0] - 0.1
    # The weights as they were are the zero-shot run.
    np.testing.assert_allclose(
        found.tuned.logits_V[0], found.zero_shot.logits_V, rtol=1e-4, atol=1e-6
    )


def test_a_model_is_as_near_to_itself_as_can_be(folder, asked):
    checkpoint, question = load(folder), first(asked[1])
    part, _ = select(checkpoint.params, "mlp")
    parts = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.5 * leaf]), part)
    explicit = dataclasses.replace(EXPLICIT, trains="mlp")

    def compare():
        found = answers(checkpoint.model, checkpoint.params, explicit, question, parts)
        # As if the context were nothing but the query, and the query its own demonstration.
        steps_Q = jnp.arange(len(question.query_Q), dtype=jnp.int32)
        places_Q = jnp.where(question.query_places_Q >= 0, steps_Q, -1)
        alone = dataclasses.replace(
            question, query_places_Q=places_Q, example_places_NU=places_Q[None]
        )
        dual_WLNU = jnp.sum(found.tuned.weights_LAT, axis=2)[:, :, None]
        found = found._replace(in_context=found.zero_shot, dual_WLNU=dual_WLNU)
        return measures(found, alone, explicit, 5)

    found = jax.jit(compare)()
    assert abs(found["kl"][0]) < 1e-6 < found["kl"][1]
    assert found["total_variation"][0] < 1e-6 and found["top_k_overlap"][0] == 1
    for name in ("attention_similarity", "attention_rank_correlation"):
        np.testing.assert_allclose(found[name][0], 1, rtol=1e-5)
        assert found[name][1] < 1


def test_what_cannot_change_is_not_compared(folder, asked):
    # The first layer's attention is read before any MLP; every other layer counts.
    checkpoint, question = load(folder), first(asked[1])
    for trains, left_out in (("mlp", 1), ("keys_and_values", 0)):
        part, _ = trained_part(checkpoint.model, checkpoint.params, trains)
        explicit = dataclasses.replace(EXPLICIT, trains=trains)
        parts = jax.tree.map(lambda leaf: (1.5 * leaf)[None], part)

        def compare(explicit=explicit, parts=parts):
            found = answers(checkpoint.model, checkpoint.params, explicit, question, parts)
            moved_LD = found.tuned.outputs_LD[0] - found.zero_shot.outputs_LD
            return measures(found, question, explicit, 5)["layers"], moved_LD

        layers_WL, moved_LD = jax.jit(compare)()
        assert layers_WL.shape == (1, len(checkpoint.model.blocks) - left_out)
        changed_L = jnp.linalg.norm(moved_LD, axis=-1) > 1e-4
        np.testing.assert_array_equal(changed_L, np.arange(len(changed_L)) >= left_out)


def test_descents_attention_is_the_inner_product_of_what_attention_reads(folder, asked):
    checkpoint, question = load(folder), first(asked[1])
    part, _ = trained_part(checkpoint.model, checkpoint.params, EXPLICIT.trains)
    parts = jax.tree.map(lambda leaf: leaf[None], part)
    args = (checkpoint.model, checkpoint.params, EXPLICIT, question, parts)
    found = jax.jit(lambda: answers(*args))()
    read_LD = found.zero_shot.inputs_LTD[:, question.query_last]
    example = jax.jit(lambda: attend(*args[:2], question.examples_NU[1], 0))()
    expected_LU = jnp.einsum("lud,ld->lu", example.inputs_LTD, read_LD)
    np.testing.assert_allclose(found.dual_WLNU[0, :, 1], expected_LU, rtol=1e-4, atol=1e-4)


def test_updates_of_the_first_kernel_are_compared_layer_by_layer(folder, asked):
    checkpoint, question = load(folder), first(asked[1])
    model, params = checkpoint.model, checkpoint.params
    explicit = dataclasses.replace(EXPLICIT, trains="first_kernel")
    assert compares_kernels(model, explicit) and not compares_kernels(model, EXPLICIT)
    before, rest = trained_part(model, params, "first_kernel")
    runs = [
        jax.jit(attend, static_argnums=0)(model, params, *query).mlp_inputs_LD
        for query in (
            (question.context_T, question.context_last),
            (question.query_Q, question.query_last),
        )
    ]

    places = layer_places(model.blocks)

    def moved(path, leaf, sign):
        kernels = []
        for row, kernel_DH in enumerate(leaf):
            layer = places.index((path[0].key, row))
            full_D, kept_D = (run_LD[layer] for run_LD in runs)
            update = token_update(full_D, kept_D, kernel_DH)
            kernels.append(kernel_DH + sign * as_matrix(update))
        return jnp.stack(kernels)

    # The context's own update, its opposite, and something else.
    parts = [
        jax.tree.map_with_path(functools.partial(moved, sign=sign), before) for sign in (1, -1)
    ]
    parts.append(random_part(jax.random.key(0), before, parts[0]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

    def compare():
        found = answers(model, params, explicit, question, stacked)
        return update_cosines(model, params, found, stacked)

    same, opposite, random = jax.jit(compare)()
    np.testing.assert_allclose([same, opposite], [1, -1], rtol=1e-3)
    assert abs(random) < 0.3


def test_random_weights_are_as_far(folder):
    before, _ = select(load(folder).params, "mlp")
    after = jax.tree.map(lambda leaf: 1.1 * leaf, before)
    walk = random_part(jax.random.key(0), before, after)
    for a, b, c in zip(*(jax.tree.leaves(tree) for tree in (before, after, walk)), strict=True):
        np.testing.assert_allclose(jnp.linalg.norm(c - a), jnp.linalg.norm(b - a), rtol=1e-4)


def test_every_measure_has_its_nulls_and_a_finished_run_is_read_back(folder, tmp_path, monkeypatch):
    config = classification.Config(
        checkpoint=str(folder),
        num_examples=2,
        num_prompts=4,
        num_search_prompts=2,
        num_rates=3,
        explicit=EXPLICIT,
    )
    classification.run(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(found["measures"]) == {
        "kl",
        "total_variation",
        "top_k_overlap",
        "update_similarity",
        "attention_similarity",
        "attention_rank_correlation",
    }
    for measure in found["measures"].values():
        assert {"value", "interval", "untrained", "shuffled", "random", "another", "margin"} <= set(
            measure
        )
    assert {"zero_shot", "in_context", "descent", "untrained_descent"} <= set(found["losses"])
    assert all(0 <= value <= 1 for value in found["accuracies"].values())
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert page.count("<svg") >= 1
    assert "another prompt's" in page and "another task" not in page
    monkeypatch.setattr(classification, "measure", None)
    again = classification.run(config, tmp_path / "run").summary
    assert again["measures"] == found["measures"]
    # Without an order of the demonstrations in the attention there is nothing to tell of it.
    records = Run(tmp_path / "run")
    arrays = records.load_arrays("arrays.npz")
    unseen = f"measures.{BY_ORDER}.value"
    records.save_arrays("arrays.npz", {**arrays, unseen: np.full(4, np.nan)})
    told = classification.run(config, tmp_path / "run").summary["measures"]
    assert set(found["measures"]) - set(told) == {BY_ORDER}
    del arrays[unseen]
    records.save_arrays("arrays.npz", arrays)
    with pytest.raises(WorkdirError, match=f"nothing was saved for {unseen}"):
        classification.run(config, tmp_path / "run")


def test_a_layer_that_does_not_see_the_demonstrations_has_no_order_of_them(asked):
    question = first(asked[1])
    length, size = len(question.context_T), question.example_places_NU.shape
    rng = np.random.default_rng(0)

    def seen(weights_LAT, count=length):
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
        return Attended(
            draw(2, 8), weights_LAT, draw(2, 1, count), draw(2, count, 8), draw(2, 8), draw(9)
        )

    weights_LAT = jnp.asarray(rng.random((2, 1, length)), jnp.float32).at[0].set(0.0)
    alone = len(question.query_Q)
    tuned = jax.tree.map(lambda leaf: leaf[None], seen(jnp.ones((2, 1, alone)), alone))
    # The second layer pays what descent pays; the first pays nothing.
    dual_WLNU = jnp.broadcast_to(
        weights_LAT[1, 0][question.example_places_NU][None, None], (1, 2, *size)
    )
    found = Answers(seen(weights_LAT), seen(weights_LAT), tuned, dual_WLNU)
    zero_shot = seen(jnp.ones((2, 1, alone)), alone)
    values = measures(found._replace(zero_shot=zero_shot), question, EXPLICIT, 3)
    np.testing.assert_allclose(values["attention_rank_correlation"], [1.0], rtol=1e-6)


def test_a_model_that_cannot_be_asked_is_refused_before_any_work(tmp_path):
    make_tiny("bert", tmp_path / "bert", jax.random.key(0))
    save_tokenizer(tmp_path / "bert", train_bpe(["first second third -> low mid high"] * 3, 300))
    for name, said in (("bert", "a bert model has no head"), ("nowhere", "nowhere")):
        config = classification.Config(checkpoint=str(tmp_path / name))
        with pytest.raises(UsageError, match=said):
            classification.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--checkpoint is missing"):
        classification.run(classification.Config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="labels must be 3 words for data=wine"):
        classification.Config(labels=("a", "b"))
    with pytest.raises(ValueError, match="num_features must be at most 10"):
        classification.Config(data="diabetes", num_features=11)
