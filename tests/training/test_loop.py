"""The loop against a plain one, what it keeps on disk, and how it stops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.records import WorkdirError
from icl_jax.training.checkpoints import Checkpoints
from icl_jax.training.loop import TrainingDivergedError, train
from icl_jax.training.metrics import read_rows
from icl_jax.training.step import TrainState, advance, initial_params, initial_state

KEY = jax.random.key(3)
ADAM = optax.adam(0.1)


def init(key):
    return {"weights_D": jax.random.normal(key, (4,), jnp.float64)}


def loss(params, key):
    inputs_BD = jax.random.normal(key, (8, 4), jnp.float64)
    errors_B = inputs_BD @ params["weights_D"] - jnp.sum(inputs_BD, axis=1)
    return jnp.mean(errors_B**2), {"worst": jnp.max(jnp.abs(errors_B))}


def quiet(init=init, loss=loss, optimizer=ADAM, key=KEY, **options):
    options = {"num_steps": 20, "steps_per_call": 5, "show_progress": False, **options}
    return train(init, loss, optimizer, key, **options)


def plain_loop(num_steps):
    """The definition: one step at a time, the data of step s from ``fold_in(data_key, s)``."""
    init_key, data_key = jax.random.split(KEY)
    params = init(init_key)
    opt_state = ADAM.init(params)
    losses, norms = [], []
    for step in range(num_steps):
        key = jax.random.fold_in(data_key, step)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, key)
        with jax.numpy_dtype_promotion("standard"):
            change, opt_state = ADAM.update(gradient, opt_state, params)
        params = optax.apply_updates(params, change)
        losses.append(value)
        norms.append(jnp.linalg.norm(gradient["weights_D"]))
    return params, np.asarray(losses), np.asarray(norms)


@pytest.mark.parametrize(("num_steps", "steps_per_call"), [(1, 5), (20, 5), (23, 5), (23, 1)])
def test_it_computes_what_a_plain_loop_computes(num_steps, steps_per_call):
    trained = quiet(num_steps=num_steps, steps_per_call=steps_per_call)
    params, losses, norms = plain_loop(num_steps)
    # Adam divides by gradients near zero at most once here; 23 steps keep 1e-12.
    chex.assert_trees_all_close(trained.params, params, rtol=1e-12)
    np.testing.assert_allclose(trained.metrics["loss"], losses, rtol=1e-12)
    np.testing.assert_allclose(trained.metrics["gradient_norm"], norms, rtol=1e-12)
    np.testing.assert_array_equal(trained.metrics["step"], np.arange(1, num_steps + 1))
    assert trained.metrics["worst"].shape == (num_steps,)


def test_the_key_decides_everything():
    first, again, other = quiet(), quiet(), quiet(key=jax.random.key(4))
    chex.assert_trees_all_equal(first.params, again.params)
    chex.assert_trees_all_equal(first.metrics, again.metrics)
    assert not np.any(first.params["weights_D"] == other.params["weights_D"])


def test_every_step_sees_fresh_data():
    still = quiet(optimizer=optax.set_to_zero())
    assert len(set(still.metrics["loss"].tolist())) == 20


def test_initial_params_are_where_it_starts():
    still = quiet(optimizer=optax.set_to_zero())
    chex.assert_trees_all_equal(still.params, initial_params(init, KEY))


def test_metrics_on_disk_are_the_ones_returned_and_steps_lead(tmp_path):
    trained = quiet(workdir=tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert list(rows[0]) == ["step", "loss", "gradient_norm", "worst"]
    for name, values in trained.metrics.items():
        assert [row[name] for row in rows] == values.tolist()


def test_a_checkpoint_is_taken_where_one_is_due_and_at_the_end(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, tree: taken.append(step))
    quiet(workdir=tmp_path, num_steps=23, checkpoint_every=7)
    assert taken == [10, 15, 23]


def test_it_goes_on_from_the_checkpoint(tmp_path):
    def higher(params, key):
        value, metrics = loss(params, key)
        return value + 100, metrics

    quiet(workdir=tmp_path, num_steps=10)
    longer = quiet(workdir=tmp_path, num_steps=20, loss=higher)
    assert np.all(longer.metrics["loss"][:10] < 100) and np.all(longer.metrics["loss"][10:] > 100)


def test_a_finished_run_is_read_back_without_a_single_step(tmp_path):
    def never(params, key):
        raise AssertionError("the loss was called")

    finished = quiet(workdir=tmp_path)
    again = quiet(workdir=tmp_path, loss=never)
    chex.assert_trees_all_equal(again.params, finished.params)
    chex.assert_trees_all_equal(again.metrics, finished.metrics)


def test_it_compiles_once_whatever_the_number_of_dispatches():
    # Two traces: one for the shapes of the metrics, one for the steps themselves.
    traced = chex.assert_max_traces(loss, n=2)
    quiet(loss=traced, num_steps=23)
    quiet(loss=traced, num_steps=40)


def test_weakly_typed_parameters_do_not_make_it_compile_again():
    def weak(key):
        return {**init(key), "scale": jax.lax.full((), 1.0)}

    def scaled(params, key):
        value, metrics = loss(params, key)
        return value * params["scale"].astype(value.dtype) ** 2, metrics

    assert jax.eval_shape(weak, KEY)["scale"].weak_type
    quiet(init=weak, loss=chex.assert_max_traces(scaled, n=2))


def test_resuming_compiles_nothing_anew(tmp_path):
    traced = chex.assert_max_traces(loss, n=2)
    quiet(loss=traced, workdir=tmp_path, num_steps=10)
    quiet(loss=traced, workdir=tmp_path, num_steps=23)


def test_a_dispatch_takes_over_the_memory_of_the_state():
    state = initial_state(init, ADAM, KEY)
    advance(state, KEY, 5, loss=loss, optimizer=ADAM, capacity=5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_parameters_of_any_dtype_keep_it():
    def mixed(key):
        return {"weights_D": init(key)["weights_D"], "half": jnp.ones((2,), jnp.bfloat16)}

    def loss_of_both(params, key):
        return loss(params, key)[0] + jnp.sum(params["half"] ** 2).astype(jnp.float64), {}

    trained = quiet(init=mixed, loss=loss_of_both, optimizer=optax.adamw(0.1))
    assert trained.params["half"].dtype == jnp.bfloat16
    assert trained.params["weights_D"].dtype == jnp.float64


def exploding(params, key):
    """Descent on a fourth power with steps that are too long: every one overshoots further."""
    return jnp.sum(params["weights_D"] ** 4), {}


def square_root(params, key):
    """Finite at zero, where its gradient is not."""
    return jnp.sqrt(jnp.sum(params["weights_D"] ** 2)), {}


def assert_kept_finite(folder, error):
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, error.step))
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == error.checkpoint
        if error.checkpoint is not None:
            params = {"weights_D": jnp.zeros((4,), jnp.float64)}
            state = TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params))
            target = {"state": state, "key": jax.random.key_data(KEY)}
            restored = checkpoints.restore(error.checkpoint, target)
            assert np.isfinite(restored["state"].params["weights_D"]).all()


def test_a_diverging_run_stops_and_says_what_to_do(tmp_path):
    with pytest.raises(TrainingDivergedError) as caught:
        quiet(
            loss=exploding,
            optimizer=optax.sgd(3.0),
            workdir=tmp_path,
            steps_per_call=1,
            checkpoint_every=2,
        )
    error, message = caught.value, str(caught.value)
    assert 3 <= error.step <= 10 and error.checkpoint in (error.step - 1, error.step - 2)
    assert f"diverged at step {error.step}: loss " in message
    assert f"at step {error.step - 1};" in message
    assert f"last good checkpoint: step {error.checkpoint} in {tmp_path / 'checkpoints'}" in message
    assert "Lower learning_rate" in message
    assert_kept_finite(tmp_path, error)


def test_a_gradient_that_is_not_finite_stops_it_too(tmp_path):
    with pytest.raises(TrainingDivergedError, match="step 1: loss 0, gradient norm nan") as caught:
        quiet(
            init=lambda key: {"weights_D": jnp.zeros((4,), jnp.float64)},
            loss=square_root,
            optimizer=optax.sgd(0.0),
            workdir=tmp_path,
        )
    assert caught.value.checkpoint is None
    assert "the loss before: none" in str(caught.value)
    assert_kept_finite(tmp_path, caught.value)


def test_parameters_that_overflow_at_the_very_last_step_are_not_checkpointed(tmp_path):
    with pytest.raises(TrainingDivergedError) as caught:
        quiet(optimizer=optax.scale(jnp.inf), num_steps=1, workdir=tmp_path)
    assert caught.value.step == 1
    assert_kept_finite(tmp_path, caught.value)


def test_another_key_does_not_go_on_with_this_run(tmp_path):
    quiet(workdir=tmp_path)
    with pytest.raises(WorkdirError, match="was trained from another key"):
        quiet(workdir=tmp_path, num_steps=30, key=jax.random.key(4))


def test_another_model_does_not_go_on_with_this_run(tmp_path):
    quiet(workdir=tmp_path)
    with pytest.raises(WorkdirError, match=r"weights_D: float64\[4\] -> float64\[5\]"):
        quiet(workdir=tmp_path, init=lambda key: {"weights_D": jnp.zeros((5,), jnp.float64)})


def test_other_metrics_do_not_go_on_in_this_file(tmp_path):
    quiet(workdir=tmp_path, num_steps=10)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(WorkdirError, match=r"the metrics .*'step'\], but the run has .*'worst'\]"):
        quiet(workdir=tmp_path, loss=lambda params, key: (loss(params, key)[0], {}))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_does_not_go_backwards(tmp_path):
    quiet(workdir=tmp_path)
    with pytest.raises(WorkdirError, match="at step 20 already, beyond num_steps=10"):
        quiet(workdir=tmp_path, num_steps=10)


def test_lost_metrics_are_noticed(tmp_path):
    quiet(workdir=tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(
        WorkdirError, match="metrics.jsonl does not hold one row for each step up to 20"
    ):
        quiet(workdir=tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["num_steps", "steps_per_call", "checkpoint_every"])
def test_counts_are_positive(name):
    with pytest.raises(ValueError, match=f"train: {name} must be an integer of at least 1, got 0"):
        quiet(**{name: 0})


def test_the_key_is_typed():
    with pytest.raises(TypeError, match=r"make it with jax.random.key\(seed\)"):
        quiet(key=jax.random.PRNGKey(0))


@pytest.mark.parametrize("name", ["step", "loss", "gradient_norm"])
def test_a_taken_metric_name_is_refused(name):
    with pytest.raises(ValueError, match=f"metric name '{name}' is taken"):
        quiet(loss=lambda params, key: (loss(params, key)[0], {name: jnp.zeros(())}))


def test_a_metric_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"'errors' must be a scalar, got shape \(3,\)"):
        quiet(loss=lambda params, key: (loss(params, key)[0], {"errors": jnp.zeros((3,))}))


def test_a_metric_may_be_not_finite(tmp_path):
    def with_nan(params, key):
        return loss(params, key)[0], {"ratio": jnp.full((), jnp.nan)}

    trained = quiet(loss=with_nan, workdir=tmp_path)
    assert np.isnan(trained.metrics["ratio"]).all()
    again = quiet(loss=with_nan, workdir=tmp_path)
    assert np.isnan(again.metrics["ratio"]).all()


def test_it_shows_a_few_lines_off_a_terminal_and_none_when_told_so(capfd):
    quiet(num_steps=50, show_progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert [line.split()[1] for line in shown.err.splitlines()] == [
        f"{n}/50" for n in range(5, 51, 5)
    ]
    quiet(num_steps=50)
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_the_newest_checkpoint_changes_no_number(tmp_path):
    whole = quiet(workdir=tmp_path / "whole", checkpoint_every=5)
    quiet(workdir=tmp_path / "run", num_steps=15, checkpoint_every=5)
    newest = tmp_path / "run" / "checkpoints" / "15" / "default" / "d"
    for path in newest.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="step 15: default/d/.* going on from step 10"):
        resumed = quiet(workdir=tmp_path / "run", checkpoint_every=5)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    chex.assert_trees_all_equal(resumed.metrics, whole.metrics)


#: Optimisers whose state holds a key, or that read the loss: by name, made anew for each training.
UNUSUAL = {
    "noisy_sgd": lambda: optax.noisy_sgd(0.05, 0.01, 0.5, key=jax.random.key(7)),
    "lbfgs": lambda: optax.lbfgs(),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.1),
    "momo": lambda: optax.contrib.momo(0.1),
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=2)
    ),
}


@pytest.mark.wide(6)
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_optimisers_train_and_resume_bit_for_bit(tmp_path, name):
    whole = quiet(optimizer=UNUSUAL[name]())
    quiet(optimizer=UNUSUAL[name](), num_steps=10, workdir=tmp_path)
    resumed = quiet(optimizer=UNUSUAL[name](), workdir=tmp_path)
    chex.assert_trees_all_equal(resumed.params, whole.params)
    chex.assert_trees_all_equal(resumed.metrics, whole.metrics)
    losses = whole.metrics["loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_one_optimizer_may_train_twice():
    # Its key is its own, and must not go with the state that the first step consumes.
    optimizer = UNUSUAL["noisy_sgd"]()
    chex.assert_trees_all_equal(
        quiet(optimizer=optimizer).params, quiet(optimizer=optimizer).params
    )
