"""The oracles against NumPy, loops and their own definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.oracles.closed_form import (
    ORACLES,
    averaging,
    bayes_ridge_weight,
    least_squares,
    nearest_neighbours,
    prefix_predictions,
    ridge,
    zero,
)

NAMES = tuple(ORACLES)


def _problem(num_examples, width, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((num_examples, width), (num_examples,), (width,))
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


@functools.cache
def _prefixes(name):
    return _compiled(functools.partial(prefix_predictions, ORACLES[name]))


@functools.cache
def _oracle(name):
    return _compiled(ORACLES[name])


def _compiled(function):
    # These run for microseconds, so we don't optimise them.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _slow(name, inputs, targets, query):
    """The definitions, in NumPy and float64."""
    if len(targets) == 0 or name == "zero":
        return 0.0
    if name == "averaging":
        return np.mean([y * x for x, y in zip(inputs, targets, strict=True)], axis=0) @ query
    if name == "least_squares":
        return query @ np.linalg.lstsq(inputs, targets, rcond=None)[0]
    if name == "ridge":
        return query @ np.linalg.solve(inputs.T @ inputs + np.eye(len(query)), inputs.T @ targets)
    order = sorted(range(len(targets)), key=lambda i: np.linalg.norm(inputs[i] - query))
    return np.mean([targets[i] for i in order[:3]])


@pytest.mark.parametrize("name", NAMES)
def test_every_prefix_agrees_with_the_definition(name):
    # Targets that are not linear: an interpolating and a smoothing fit differ.
    for inputs, targets, query in (_problem(12, 5), _problem(7, 2, seed=1), _problem(3, 5, seed=2)):
        expected = [_slow(name, inputs[:n], targets[:n], query) for n in range(len(targets) + 1)]
        np.testing.assert_allclose(_prefixes(name)(inputs, targets, query), expected, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_is_the_same_as_leaving_the_rows_out(name):
    inputs, targets, query = _problem(7, 2)
    present = np.array([0, 1, 1, 0, 1, 0, 1], bool)
    masked = _oracle(name)(inputs, targets, query, present_N=present)
    chosen = _oracle(name)(inputs[present], targets[present], query)
    np.testing.assert_allclose(masked, chosen, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_absent_rows_are_never_read(name):
    inputs, targets, query = _problem(7, 2)
    present = np.arange(7) < 2
    spoilt_inputs, spoilt_targets = inputs.copy(), targets.copy()
    spoilt_inputs[2:], spoilt_targets[2:] = np.nan, np.inf
    clean = _oracle(name)(inputs, targets, query, present_N=present)
    spoilt = _oracle(name)(spoilt_inputs, spoilt_targets, query, present_N=present)
    np.testing.assert_array_equal(spoilt, clean)
    if name != "zero":
        every = _oracle(name)(inputs, targets, query)
        assert abs(float(every - clean)) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_prefix_predictions_are_one_call_per_prefix(name):
    inputs, targets, query = _problem(7, 2)
    alone = [_oracle(name)(inputs[:n], targets[:n], query) for n in (0, 4, 7)]
    batched = np.asarray(_prefixes(name)(inputs, targets, query))
    np.testing.assert_allclose(batched[[0, 4, 7]], np.stack(alone), atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_jit_is_eager(name):
    inputs, targets, query = _problem(7, 2)
    eager = ORACLES[name](inputs, targets, query)
    np.testing.assert_allclose(_oracle(name)(inputs, targets, query), eager, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_context_gives_zero(name):
    empty = _oracle(name)(np.zeros((0, 2)), np.zeros((0,)), np.ones(2))
    assert empty.shape == () and empty == 0


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_a_batch_do_not_read_each_other(name):
    problems = [_problem(7, 2, seed=seed) for seed in range(3)]
    batch = [np.stack(arrays) for arrays in zip(*problems, strict=True)]
    together = _compiled(jax.vmap(ORACLES[name]))(*batch)
    alone = [_oracle(name)(*problem) for problem in problems]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_have_the_dtype_of_the_prompt(name):
    for dtype in (np.float32, np.float64):
        prediction = jax.eval_shape(ORACLES[name], *_problem(4, 2, dtype))
        assert (prediction.shape, prediction.dtype) == ((), dtype)


@pytest.mark.parametrize("width, num_examples", [(2, 50), (20, 200)])
def test_float32_least_squares_is_as_accurate_as_its_data_allow(width, num_examples):
    for seed in range(3):
        inputs, targets, query = _problem(num_examples, width, np.float32, seed)
        targets = inputs @ np.ones(width, np.float32)
        predictions = np.asarray(_prefixes("least_squares")(inputs, targets, query), np.float64)
        for n in range(1, num_examples + 1):
            wide = inputs[:n].astype(np.float64)
            weights = np.linalg.lstsq(wide, targets[:n].astype(np.float64), rcond=None)[0]
            # Backward stability: the error is eps times condition, times the length of the sums.
            # Normal equations have the square of the condition, up to 1e5 at n = D.
            scale = np.linalg.norm(weights) * np.linalg.norm(query)
            bound = np.finfo(np.float32).eps * np.linalg.cond(wide) * np.sqrt(n) * scale
            assert abs(predictions[n] - weights @ query) < 4 * bound


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_least_squares_takes_the_least_norm_where_examples_repeat_or_line_up(dtype):
    inputs, targets, query = _problem(30, 4, dtype)
    inputs[3:] = inputs[np.arange(27) % 3] * 2.0 ** (np.arange(27) % 5)[:, None].astype(dtype)
    targets[3:] = targets[np.arange(27) % 3] * 2.0 ** (np.arange(27) % 5).astype(dtype)
    weights = np.linalg.pinv(inputs[:3].astype(np.float64)) @ targets[:3].astype(np.float64)
    predictions = _prefixes("least_squares")(inputs, targets, query)[3:]
    np.testing.assert_allclose(predictions, weights @ query, rtol=200 * np.finfo(dtype).eps)


def test_least_squares_takes_a_copied_column_for_a_copy():
    # Rounding can leave 2.1 eps of the largest singular value here; NumPy's cutoff is 2 eps.
    inputs = np.array([[0.004922809079289436] * 2, [-0.5005545020103455] * 2], np.float32)
    targets, query = np.array([1.0, -0.5], np.float32), np.array([1.0, 0.0], np.float32)
    expected = query @ (np.linalg.pinv(inputs.astype(np.float64), rcond=1e-10) @ targets)
    fitted = _oracle("least_squares")(inputs, targets, query)
    np.testing.assert_allclose(fitted, expected, rtol=1e-5)


def test_least_squares_does_not_change_with_the_units():
    inputs, targets, query = _problem(6, 3, np.float32)
    tiny = np.float32(2.0**-40)
    fit = _oracle("least_squares")
    scaled = fit(inputs * tiny, targets, query * tiny)
    np.testing.assert_allclose(scaled, fit(inputs, targets, query), rtol=1e-5)


def test_all_zero_inputs_give_zero():
    for name in ("least_squares", "ridge", "averaging"):
        assert _oracle(name)(np.zeros((7, 2)), np.ones(7), np.ones(2)) == 0


def test_ridge_goes_from_least_squares_to_zero_as_its_weight_grows():
    inputs, targets, query = _problem(8, 3)
    target = _oracle("least_squares")(inputs, targets, query)
    near, between, far = (
        _compiled(functools.partial(ridge, weight=weight))(inputs, targets, query)
        for weight in (1e-12, 5.0, 1e12)
    )
    np.testing.assert_allclose(near, target, atol=1e-10)
    np.testing.assert_allclose(far, 0, atol=1e-10)
    assert abs(float(between - target)) > 1e-3 and abs(float(between)) > 1e-3


def test_the_bayes_weight_beats_half_and_double_of_it():
    rng = np.random.default_rng(0)
    noise_std, weight_std, width, num_examples = 1.5, 0.5, 4, 8
    inputs = rng.normal(size=(4000, num_examples, width))
    queries = rng.normal(size=(4000, width))
    weights = weight_std * rng.normal(size=(4000, width))
    noise = noise_std * rng.normal(size=(4000, num_examples))
    targets = np.einsum("bnd,bd->bn", inputs, weights) + noise
    truth = np.einsum("bd,bd->b", queries, weights)
    best = bayes_ridge_weight(noise_std=noise_std, weight_std=weight_std)
    assert best == 9.0

    def loss(weight):
        oracle = _compiled(jax.vmap(functools.partial(ridge, weight=weight)))
        return float(np.mean((oracle(inputs, targets, queries) - truth) ** 2))

    assert loss(best) < min(loss(best / 2), loss(best * 2))


def test_neighbours_are_counted_from_the_query():
    inputs = np.array([[0.0], [1.0], [2.0], [10.0]])
    targets = np.array([1.0, 2.0, 4.0, 100.0])
    for count, expected in ((1, 2.0), (3, 7 / 3), (9, 26.75)):
        oracle = _compiled(functools.partial(nearest_neighbours, num_neighbours=count))
        np.testing.assert_allclose(oracle(inputs, targets, np.array([1.4])), expected, rtol=1e-15)


def test_of_equally_close_examples_the_earlier_counts():
    # Short lists are sorted by insertion, which keeps their order by itself.
    inputs = np.array([[1.0], [-1.0]] * 100)
    assert _oracle("nearest_neighbours")(inputs, np.arange(200.0), np.zeros(1)) == 1


def test_disagreeing_arguments_are_named():
    inputs, targets, query = _problem(4, 2)
    with pytest.raises(ValueError, match=r"zero: inputs_ND must have 2 axes \(N, D\), got 3"):
        zero(inputs[None], targets, query)
    with pytest.raises(ValueError, match=r"averaging: axis 0 of targets_N must have 4 entries"):
        averaging(inputs, targets[:3], query)
    with pytest.raises(ValueError, match=r"ridge: axis 0 of query_D must have 2 entries"):
        ridge(inputs, targets, query[:1])
    with pytest.raises(TypeError, match=r"least_squares: the arguments must share one dtype"):
        least_squares(inputs, targets, query.astype(np.float32))
    with pytest.raises(TypeError, match=r"need float32 or float64, got bfloat16"):
        zero(*(jnp.asarray(array, jnp.bfloat16) for array in (inputs, targets, query)))
    with pytest.raises(TypeError, match=r"zero: present_N must be a boolean mask, got dtype int64"):
        zero(inputs, targets, query, present_N=jnp.ones(4, jnp.int64))
    with pytest.raises(ValueError, match=r"axis 0 of present_N must have 4 entries"):
        zero(inputs, targets, query, present_N=jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"prefix_predictions: inputs_ND must have 2 axes"):
        prefix_predictions(zero, inputs[None], targets, query)


def test_options_out_of_range_are_refused():
    problem = _problem(4, 2)
    with pytest.raises(ValueError, match=r"ridge: weight must be a finite number above 0, got 0"):
        ridge(*problem, weight=0)
    with pytest.raises(ValueError, match=r"num_neighbours must be an integer .*got 0"):
        nearest_neighbours(*problem, num_neighbours=0)
    with pytest.raises(ValueError, match=r"noise_std must be a finite number above 0, got 0"):
        bayes_ridge_weight(noise_std=0)


def _derivative_cases():
    """Prompts where a decomposition has no derivative: absent, repeated, orthonormal examples."""
    inputs, targets, query = _problem(7, 3, seed=5)
    repeated = inputs.copy()
    repeated[3] = repeated[1]
    equal = np.concatenate([np.eye(3), np.zeros((4, 3))])
    everything, few = np.ones(7, bool), np.arange(7) < 2
    return {
        "ordinary": (inputs, targets, query, everything),
        "few": (inputs, targets, query, few),
        "repeated": (repeated, targets, query, everything),
        "repeated alone": (repeated, targets, query, np.isin(np.arange(7), (1, 3))),
        "equal singular values": (equal, targets, query, everything),
        "none": (inputs, targets, query, np.zeros(7, bool)),
    }


def _closed_form(name, inputs, targets, query, present):
    """Prediction and gradients in targets and query, in NumPy: the weights are linear in both."""
    inputs, targets = inputs * present[:, None], targets * present
    if name == "ridge":
        inverse = np.linalg.inv(inputs.T @ inputs + np.eye(3)) @ inputs.T
    else:
        inverse = np.linalg.pinv(inputs)
    return query @ inverse @ targets, query @ inverse, inverse @ targets


@pytest.mark.parametrize("case", _derivative_cases())
@pytest.mark.parametrize("name", ["least_squares", "ridge"])
def test_gradients_in_labels_and_query_are_the_weights(name, case):
    inputs, targets, query, present = _derivative_cases()[case]
    oracle = functools.partial(ORACLES[name], present_N=present)
    value, by_targets, by_query = _closed_form(name, inputs, targets, query, present)
    got = jax.grad(oracle, argnums=(1, 2))(inputs, targets, query)
    np.testing.assert_allclose(oracle(inputs, targets, query), value, atol=1e-12)
    np.testing.assert_allclose(got[0], by_targets, atol=1e-11)
    np.testing.assert_allclose(got[1], by_query, atol=1e-11)
    forward = jax.jacfwd(oracle, argnums=1)(inputs, targets, query)
    np.testing.assert_allclose(forward, by_targets, atol=1e-11)


@pytest.mark.parametrize("case", _derivative_cases())
@pytest.mark.parametrize("name", ["least_squares", "ridge"])
def test_gradients_in_the_inputs_are_differences(name, case):
    inputs, targets, query, present = _derivative_cases()[case]
    oracle = functools.partial(ORACLES[name], present_N=present)
    gradient = np.asarray(jax.grad(oracle)(inputs, targets, query))
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~present])
    # Along a change that leaves the rank as it is: examples become mixtures of one another.
    mixing = np.eye(7) if name == "ridge" else present[:, None] * present
    rng = np.random.default_rng(0)
    move = (mixing * rng.normal(size=(7, 7))) @ inputs
    move[np.linalg.matrix_rank(inputs[present]) == 3] = rng.normal(size=3)
    ends = [
        _closed_form(name, inputs + step * move, targets, query, present)[0]
        for step in (1e-6, -1e-6)
    ]
    want = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(np.sum(gradient * move), want, rtol=1e-6, atol=1e-8)


def test_the_jacobian_of_all_prefixes_is_finite_and_closed():
    inputs, targets, query = _problem(6, 3, seed=7)
    for name in ("least_squares", "ridge"):
        jacobian = functools.partial(prefix_predictions, ORACLES[name])
        for derivative in (jax.jacrev, jax.jacfwd):
            got = derivative(jacobian, argnums=1)(inputs, targets, query)
            want = [
                _closed_form(name, inputs, targets, query, np.arange(6) < n)[1] for n in range(7)
            ]
            np.testing.assert_allclose(got, want, atol=1e-11)
        assert np.all(np.isfinite(jax.jacrev(jacobian)(inputs, targets, query)))


def test_a_ridge_weight_may_be_traced_and_has_a_gradient():
    inputs, targets, query = _problem(4, 6, seed=8)

    def predict(weight):
        return ridge(inputs, targets, query, weight=weight)

    inverse = np.linalg.inv(inputs.T @ inputs + 0.3 * np.eye(6))
    want = -query @ inverse @ inverse @ inputs.T @ targets
    np.testing.assert_allclose(jax.jit(predict)(0.3), predict(0.3), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(predict)(0.3), want, rtol=1e-9)
    sweep = jax.vmap(predict)(jnp.array([0.3, 2.0]))
    np.testing.assert_allclose(sweep, [predict(0.3), predict(2.0)], rtol=1e-12)
    for bad in (jnp.array(-1.0), jnp.array(jnp.nan), 0.0):
        with pytest.raises(ValueError, match="ridge: weight must be a finite number above 0"):
            predict(bad)
    with pytest.raises(ValueError, match="ridge: weight must have 0 axes"):
        predict(jnp.ones(2))


def test_a_learner_may_be_trained_through_the_sensitivity_of_an_oracle():
    # The weights are the derivative in the query; theirs in the inputs is one derivative more.
    inputs, targets, query = _problem(2, 3, seed=9)

    def size(inputs, oracle):
        weights = jax.grad(oracle, argnums=2)(inputs, targets, query)
        return jnp.sum(weights**2)

    for name, oracle in (("least_squares", least_squares), ("ridge", ridge)):
        got = np.asarray(jax.grad(size)(jnp.asarray(inputs), oracle))
        move = np.random.default_rng(1).normal(size=(2, 3))
        present = np.ones(2, bool)
        ends = [
            np.sum(_closed_form(name, inputs + step * move, targets, query, present)[2] ** 2)
            for step in (1e-6, -1e-6)
        ]
        np.testing.assert_allclose(np.sum(got * move), (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("count", (0, 1, 6))
@pytest.mark.parametrize("name", ORACLES)
def test_every_oracle_has_finite_gradients_that_are_differences(name, count):
    inputs, targets, query = (np.array(one) for one in _problem(6, 3, seed=11))
    inputs[0], present = query, np.arange(6) < count  # An example at the query itself, too.
    oracle = functools.partial(ORACLES[name], present_N=present)
    gradients = jax.grad(oracle, argnums=(0, 1, 2))(inputs, targets, query)
    assert all(np.all(np.isfinite(one)) for one in gradients)
    assert not np.any(gradients[0][~present]) and not np.any(gradients[1][~present])
    # Labels and query may move anywhere; the inputs are the subject of a test of its own.
    rng = np.random.default_rng(2)
    moves = (rng.normal(size=6), rng.normal(size=3))
    ends = [
        oracle(inputs, targets + step * moves[0], query + step * moves[1]) for step in (1e-6, -1e-6)
    ]
    got = np.sum(gradients[1] * moves[0]) + np.sum(gradients[2] * moves[1])
    np.testing.assert_allclose(got, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)
