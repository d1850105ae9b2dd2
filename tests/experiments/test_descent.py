"""Both sides of the comparison with descent, and what is reported of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.regression import learner
from experiments.regression.descent import run as descent
from experiments.regression.descent.report import (
    IN_FUNCTION_SPACE,
    IN_WEIGHT_SPACE,
    LOSSES,
    Arrays,
    Moved,
    Searched,
    losses_section,
    names,
)
from experiments.regression.descent.sides import (
    explicit_side,
    fine_tune,
    implicit,
    kernel_updates,
)
from experiments.regression.learner import Learner, LearnerConfig, predict
from experiments.tools.arrays import flatten, rebuild
from experiments.tools.comparisons import NULLS, with_nulls
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.functional import layer_params
from icl_jax.descent.explicit import ExplicitConfig
from icl_jax.descent.parameters import select
from icl_jax.measures.nulls import random_points
from icl_jax.optimizers import OptimizerConfig
from icl_jax.patches.low_rank import as_matrix
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import example_queries, prompt_tokens, query_token
from icl_jax.training.config import TrainingConfig, usual_optimizer

STACK = build_stack(
    StackConfig(wiring="pre_norm", depth=2, width=8, num_heads=2, hidden_widths=(16,))
)
PROMPT = LinearRegression(2).sample(jax.random.key(0), num_examples=4, dtype=jnp.float64)


@pytest.fixture(scope="module")
def params():
    made = STACK.init(jax.random.key(1), prompt_tokens(PROMPT))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), made)


@pytest.fixture(scope="module")
def context(params):
    return jax.jit(lambda: implicit(STACK, params, PROMPT, 1))()


@pytest.mark.slow
def test_the_implicit_side_is_the_learner_after_every_prefix(params, context):
    tokens_TC = prompt_tokens(PROMPT)
    for count in (0, 2, 4):
        seen = jnp.concatenate([tokens_TC[:count], tokens_TC[-1:]])
        want = predict(STACK, params, seen)
        np.testing.assert_allclose(context.side.predictions_P[count], want, rtol=1e-9)
    step = 1e-6

    def moved(sign):
        query_D = PROMPT.query_D.at[1].add(sign * step)
        return predict(STACK, params, prompt_tokens(dataclasses.replace(PROMPT, query_D=query_D)))

    slope = (moved(1) - moved(-1)) / (2 * step)
    np.testing.assert_allclose(context.side.sensitivities_PD[-1, 1], slope, rtol=1e-5)


def test_both_updates_of_a_layer_say_the_same_of_the_whole_context(context):
    anchored = jax.tree.map(lambda leaf: leaf[-1], context.updates)
    assert anchored.left_RD.shape == (1, 8) and context.peeled.left_RD.shape == (4, 8)
    assert jnp.linalg.norm(as_matrix(context.peeled)) > 1e-3


@pytest.mark.wide(2)
@pytest.mark.parametrize("batch", ("one", "full"))
def test_descent_is_a_loop_over_its_steps(params, batch):
    config = ExplicitConfig(OptimizerConfig("momentum"), trains="mlp", batch=batch, num_steps=3)
    got = jax.jit(lambda: fine_tune(STACK, params, config, PROMPT, 0.01))()
    chosen, _ = select(params, "mlp")
    mask = jax.tree.map(lambda leaf: leaf is not None, chosen, is_leaf=lambda leaf: leaf is None)

    def loss(params, rows):
        tokens, targets = example_queries(PROMPT)[rows], PROMPT.targets_N[rows]
        predicted = jax.vmap(lambda token_C: predict(STACK, params, token_C[None]))(tokens)
        return jnp.mean((predicted - targets) ** 2)

    optimizer = optax.sgd(0.01, momentum=0.9)
    gradients = jax.jit(jax.grad(loss))
    current, state = params, optimizer.init(params)
    for step in range(4 if batch == "one" else 3):
        rows = jnp.array([step] if batch == "one" else [0, 1, 2, 3])
        gradient = gradients(current, rows)
        gradient = jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g), gradient, mask)
        changes, state = optimizer.update(gradient, state)
        current = optax.apply_updates(current, changes)
    want, _ = select(current, "mlp")
    for mine, theirs in zip(jax.tree.leaves(got.final), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-12)
    side = explicit_side(STACK, params, config, got.points, PROMPT)
    alone = predict(STACK, current, query_token(PROMPT)[None])
    np.testing.assert_allclose(side.predictions_P[-1], alone, rtol=1e-8)
    assert not np.any(kernel_updates(STACK, got.points, 1)[0])
    assert np.any(kernel_updates(STACK, got.points, 1)[1])


def test_layer_causal_descent_moves_layers_on_their_own_losses(params):
    plain = ExplicitConfig(trains="blocks", layer_causal=False)
    causal = dataclasses.replace(plain, layer_causal=True)
    moved = [fine_tune(STACK, params, config, PROMPT, 0.01) for config in (plain, causal)]
    first, last = (
        [np.asarray(kernel_updates(STACK, each.points, layer)[1]) for each in moved]
        for layer in (0, 1)
    )
    # The last layer's loss is the learner's own; the first one's is not.
    np.testing.assert_allclose(last[0], last[1], rtol=1e-9)
    assert np.linalg.norm(first[0] - first[1]) > 0.1 * np.linalg.norm(first[0])


def test_a_random_walk_is_as_far_from_its_start_leaf_by_leaf(params):
    config = ExplicitConfig(trains="mlp")
    points = fine_tune(STACK, params, config, PROMPT, 0.01).points
    walk = random_points(jax.random.key(5), points)
    layers = range(len(STACK.blocks))
    by_layer = [[layer_params(STACK, one, i, axis=1) for i in layers] for one in (walk, points)]
    assert len(jax.tree.leaves(by_layer[1])) == len(layers) * len(jax.tree.leaves(points))
    for mine, theirs in zip(*map(jax.tree.leaves, by_layer), strict=True):
        far, wanted = (np.asarray(leaf - leaf[:1]) for leaf in (mine, theirs))
        lengths, expected = (np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (far, wanted))
        np.testing.assert_allclose(lengths, expected, rtol=1e-9)
        if far.ndim == 3:
            assert np.all(np.linalg.matrix_rank(far[1:], tol=1e-10) == 1)
            cosine = np.sum(far[-1] * wanted[-1]) / (lengths[-1] * expected[-1])
            assert abs(cosine) < 0.5


TINY = descent.Config(
    num_prompts=20,
    num_search_prompts=10,
    num_rates=4,
    explicit=ExplicitConfig(OptimizerConfig("adam"), trains="mlp", batch="full", num_steps=5),
    learner=LearnerConfig(
        num_examples=4,
        watch=False,
        stack=StackConfig(wiring="pre_norm", width=8, num_heads=2, hidden_widths=(16,)),
        training=TrainingConfig(
            num_steps=20, batch_size=8, steps_per_call=10, optimizer=usual_optimizer(warmup_steps=2)
        ),
    ),
)
KEYS = {"value", "interval", "margin", "margin_interval"} | set(NULLS)


@pytest.mark.slow
def test_every_measure_has_its_nulls_and_its_margin(tmp_path):
    descent.run(TINY, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["points"] == list(range(6)) and found["optimizer"] == "adam"
    assert len(found["training_loss"]) == 5
    assert set(found["measures"]) == {
        "prediction_difference",
        "sensitivity_cosine",
        "model_difference",
        "update_cosine",
        "peel_off_cosine",
        "norm_gap",
        "path_angle",
        "path_rank_gap",
    }
    assert 0 < found["measures"]["path_angle"]["value"] < 90
    ranks = found["path_ranks"]
    assert 1 < ranks["implicit"] <= 4 and 1 <= ranks["descent"] <= 5
    for measure in found["measures"].values():
        assert set(measure) == KEYS
        low, high = measure["interval"]
        assert low <= measure["value"] <= high
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") >= 3


def test_weights_that_do_not_move_have_no_angle(params):
    explicit = ExplicitConfig(trains="keys_and_values")
    config = dataclasses.replace(TINY, explicit=explicit)
    prompts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PROMPT)
    shapes = jax.eval_shape(
        lambda: descent.face_to_face(STACK, params, prompts, config, 0.1, jax.random.key(0))
    )
    assert "update_cosine" not in shapes["measures"] and shapes["moved"] is None
    assert shapes["measures"]["sensitivity_cosine"].nulls["another"].shape == (4, 2)


def test_settings_that_cannot_work_are_refused_before_any_work():
    with pytest.raises(ValueError, match="highest_rate=0.1 must be above lowest_rate=1.0"):
        dataclasses.replace(TINY, lowest_rate=1.0, highest_rate=0.1)
    with pytest.raises(ValueError, match="descent: num_rates must be at least 3, got 2"):
        dataclasses.replace(TINY, num_rates=2)
    with pytest.raises(ValueError, match="warmup_steps=50 must be below the number of steps, 4"):
        dataclasses.replace(
            TINY, explicit=ExplicitConfig(OptimizerConfig(warmup_steps=50), batch="one")
        )
    with pytest.raises(ValueError, match="trains must be one of"):
        ExplicitConfig(trains="norms")
    with pytest.raises(ValueError, match="batch must be one of"):
        ExplicitConfig(batch="half")
    with pytest.raises(ValueError, match="num_directions must be at most 4, .* got 5"):
        dataclasses.replace(TINY, num_directions=5)


def test_over_the_steps_of_a_full_batch_an_oracle_is_a_level():
    # As many steps as examples: nothing but the setting tells which axis an oracle has.
    tiny = LearnerConfig(num_examples=4)
    points, rng = 5, np.random.default_rng(0)
    losses = {name: rng.random((points, 3)) + 0.1 for name in LOSSES}
    searched = Searched(*np.zeros((3, 1)))
    arrays = Arrays(losses, {}, np.zeros(4), searched, searched, None)
    rates = ("learning_rate", "learning_rate_at_edge")
    drawn = {}
    for batch in ("one", "full"):
        config = descent.Config(
            learner=tiny, explicit=ExplicitConfig(batch=batch, num_steps=4), num_directions=1
        )
        summary = {f"{name}_loss": losses[name].mean(axis=1) for name in LOSSES}
        summary |= dict.fromkeys(rates, 0.1)
        section = losses_section(config, summary, arrays, "x")
        drawn[batch] = {row[0]: row[1:] for row in section.tables[0].rows}
    ridge = losses["ridge"].mean(axis=1)
    np.testing.assert_allclose(drawn["one"]["ridge regression"], [ridge[2], ridge[-1]])
    np.testing.assert_allclose(drawn["full"]["ridge regression"], [ridge[-1], ridge[-1]])
    assert drawn["one"]["fine-tuned"] == drawn["full"]["fine-tuned"]


def test_a_rate_is_not_searched_on_rows_of_the_test():
    config = LearnerConfig(task="diabetes", input_width=10, num_examples=4, watch=False)
    made = Learner(config, STACK, config.make_task(split="test"), {}, {}, {})
    rows = [
        {tuple(row) for row in np.asarray(draw(made, 0, 64).inputs_ND).reshape(-1, 10)}
        for draw in (learner.test_prompts, learner.search_prompts)
    ]
    assert all(len(part) > 50 for part in rows) and not rows[0] & rows[1]


def test_a_lost_null_or_loss_of_a_finished_run_is_an_error():
    """A report of a file without ``losses.shuffled`` would leave the null out."""
    losses = {name: np.ones((2, 3)) for name in LOSSES}
    moved = Moved(np.ones((1, 3)), np.ones((1, 3)), np.ones((1, 3)))
    measures = (*IN_FUNCTION_SPACE, *IN_WEIGHT_SPACE)
    values = {name: np.ones((1, 3)) for name in measures}
    searched = Searched(*np.zeros((3, 1)))
    made = Arrays(
        losses,
        with_nulls(values, dict.fromkeys(NULLS, values)),
        np.zeros(4),
        searched,
        searched,
        moved,
    )
    arrays = flatten(made)
    assert set(rebuild(Arrays, arrays, names(TINY)).losses) == set(LOSSES)
    for lost in ("losses.shuffled", "measures.update_cosine.nulls.random", "moved.norm_ratio"):
        left = {name: array for name, array in arrays.items() if name != lost}
        with pytest.raises(ValueError, match=f"nothing was saved for {lost}"):
            rebuild(Arrays, left, names(TINY))
    # Nothing of the kernel at all, where a kernel descends.
    left = {name: array for name, array in arrays.items() if not name.startswith("moved.")}
    with pytest.raises(ValueError, match="nothing was saved for moved"):
        rebuild(Arrays, left, names(TINY))
    still = dataclasses.replace(TINY, explicit=ExplicitConfig(trains="keys_and_values"))
    with pytest.raises(ValueError, match="measures.update_cosine is not asked for"):
        rebuild(Arrays, left, names(still))
