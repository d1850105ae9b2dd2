"""Which implementation is taken, why another one is not, errors, and memory."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.kernels.attention import Sees, accumulate, api, attend, cudnn, explain, merge, why_not
from icl_jax.kernels.attention import rows as row_blocks
from icl_jax.kernels.attention.shapes import filled
from tests.helpers import compiled


def shapes(rows, columns=None, *, heads=4, groups=2, features=16, dtype=jnp.bfloat16):
    columns = rows if columns is None else columns
    return (
        jax.ShapeDtypeStruct((rows, heads, features), dtype),
        jax.ShapeDtypeStruct((columns, groups, features), dtype),
        jax.ShapeDtypeStruct((columns, groups, features), dtype),
    )


def taken(*arguments, **options):
    reasons = explain(*arguments, **options)
    (name,) = (name for name, reason in reasons.items() if reason == "taken")
    return name


def test_few_rows_and_small_matrices_are_computed_whole_and_others_by_blocks():
    assert taken(*shapes(256), Sees()) == "reference"
    assert taken(*shapes(1, 100_000), Sees()) == "reference"
    assert taken(*shapes(1024), Sees()) == "rows"
    reasons = explain(*shapes(1024), Sees())
    assert "16777216 bytes" in reasons["reference"]
    assert reasons["pallas_tpu"].startswith("runs on TPUs, and this program is for the platform")
    assert reasons["cudnn"].startswith("runs on NVIDIA GPUs")
    assert explain(*shapes(8), Sees())["rows"] == "not needed"


def on(platform, **device):
    """As if programs were compiled for one device of a platform."""
    local = mock.Mock(compute_capability="9.0", **device)
    return mock.patch.multiple(
        api.jax,
        default_backend=lambda: platform,
        device_count=lambda: 1,
        local_devices=lambda: [local],
    )


def test_each_accelerator_has_its_kernel():
    with on("gpu"):
        assert taken(*shapes(1024), Sees()) == "cudnn"
        assert taken(*shapes(1024, dtype=jnp.float32), Sees()) == "rows"
    with on("tpu"):
        assert taken(*shapes(1024), Sees()) == "pallas_tpu"
        assert taken(*shapes(1024, dtype=jnp.float64), Sees()) == "rows"
        assert "float64" in explain(*shapes(1024, dtype=jnp.float64), Sees())["pallas_tpu"]


def test_a_mesh_that_is_set_says_what_is_compiled_for():
    assert api.platform() == "cpu"
    mesh = mock.Mock(empty=False, abstract_device=mock.Mock(platform="cuda"))
    with mock.patch.object(api.jax.sharding, "get_abstract_mesh", lambda: mesh):
        assert api.platform() == "gpu"


def test_several_devices_share_the_heads_on_a_mesh_that_is_set_and_else_get_row_blocks():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = jax.P(None, "model")
    seen = []

    def inside(query_MAF, key_TGF, value_TGF):
        seen.append(explain(query_MAF, key_TGF, value_TGF, Sees())["pallas_tpu"])
        return query_MAF

    arguments = shapes(4096, heads=16, groups=8)
    with on("tpu"), mock.patch.object(api, "platform", lambda: "tpu"):
        with mock.patch.object(api.jax, "device_count", lambda: 8):
            assert "among 8 devices: set a mesh" in explain(*arguments, Sees())["pallas_tpu"]
        with jax.set_mesh(mesh):
            assert taken(*arguments, Sees()) == "pallas_tpu"
            odd = shapes(4096, heads=24, groups=3)
            assert "24 heads over 8 devices" in explain(*odd, Sees())["pallas_tpu"]
            jax.eval_shape(jax.shard_map(inside, in_specs=heads, out_specs=heads), *arguments)
    assert seen == ["taken"]


SHIFTED = np.arange(1025, dtype=np.int32) - 1

#: What cuDNN is told, or a word of why it is told nothing.
PATTERNS = {
    "whole": (1024, 1024, Sees(), cudnn.Pattern(0, True)),
    "everything": (1000, 1024, Sees(causal=False), cudnn.Pattern()),
    "window": (1024, 1024, Sees(window=7), cudnn.Pattern(0, True, 7)),
    "prefixes": (1025, 1024, Sees(SHIFTED, itself=False), cudnn.Pattern(1, True)),
    "prefixes_window": (
        1025,
        1024,
        Sees(SHIFTED, row_positions_M=SHIFTED + 1, itself=False, window=7),
        cudnn.Pattern(1, True, 6),
    ),
    "padding": (1024, 1024, Sees(present_T=np.ones(1024, bool)), "present_T"),
    "data": (1024, 1024, Sees(reach=jnp.asarray(3)), "windows that are data"),
    "both_ways": (1024, 1024, Sees(causal=False, window=3), "windows for causal rows"),
    "traced": (1024, 1024, Sees(jnp.arange(1024)), "NumPy arrays"),
    "continued": (1000, 1024, Sees(np.arange(1000) + 24), "behind rows that see nothing"),
    "positions": (
        1024,
        1024,
        Sees(row_positions_M=jnp.arange(1024), window=3),
        "positions of a window",
    ),
    "gaps": (
        1024,
        1024,
        Sees(row_positions_M=2 * np.arange(1024), window=3),
        "do not run along",
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_cudnn_is_told_what_it_can_say(name):
    rows, columns, sees, want = PATTERNS[name]
    got = cudnn.expressed(filled(sees, rows, columns))
    assert (want in got) if isinstance(want, str) else (got == want)
    with on("gpu"):
        assert (why_not("cudnn", *shapes(rows, columns), sees) is None) == (got == want)


def test_what_cudnn_is_told_is_what_is_seen():
    for rows, columns, sees, want in PATTERNS.values():
        if isinstance(want, str):
            continue
        row_M1, column_1T = np.arange(rows)[:, None] - want.empty, np.arange(columns)[None, :]
        told_MT = np.ones((rows, columns), bool)
        if want.causal:
            told_MT = column_1T <= row_M1
        if want.window is not None:
            told_MT &= column_1T > row_M1 - want.window
        seen_MT = row_blocks.reference.visible(filled(sees, rows, columns))
        np.testing.assert_array_equal(seen_MT, told_MT)


@pytest.mark.parametrize(
    "arguments, options, word",
    [
        (shapes(1024, dtype=jnp.float32), {}, "float32"),
        (shapes(1024), {"cap": 3.0}, "soft cap"),
        (shapes(1024), {"sinks_A": jnp.zeros(4, jnp.bfloat16)}, "sinks"),
        (shapes(1024), {"slopes_A": jnp.zeros(4, jnp.bfloat16)}, "ALiBi"),
        (shapes(1024, features=12), {}, "multiple of 8"),
    ],
)
def test_cudnn_is_not_taken_for_what_it_lacks(arguments, options, word):
    with on("gpu"):
        assert word in why_not("cudnn", *arguments, Sees(), **options)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_row_blocks_are_taken_for_scores_that_fall_with_the_distance(platform):
    with on(platform):
        reasons = explain(*shapes(2048), Sees(), slopes_A=jnp.zeros(4, jnp.float32))
    assert reasons["rows"] == "taken"
    for kernel in ("pallas_tpu", "cudnn"):
        assert "ALiBi" in reasons[kernel]


def test_insisting_on_what_cannot_run_says_why_and_what_can():
    arrays = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes(8)]
    with pytest.raises(
        NotImplementedError, match="'cudnn' cannot run here: runs on NVIDIA.*'rows'"
    ):
        attend(*arrays, Sees(), implementation="cudnn")
    doubles = [array.astype(jnp.float64) for array in arrays]
    with pytest.raises(NotImplementedError, match="bfloat16 and float32, got float64"):
        attend(*doubles, Sees(), implementation="pallas_tpu")
    with pytest.raises(ValueError, match="implementation must be one of 'reference'"):
        attend(*arrays, Sees(), implementation="flash")


ERRORS = {
    "rank": ((shapes(8)[0].update(shape=(8, 16)), *shapes(8)[1:]), Sees(), "query_MAF must have 3"),
    "features": ((*shapes(8)[:1], *shapes(8, features=4)[1:]), Sees(), "axis 2 of key_TGF"),
    "columns": ((*shapes(8)[:2], shapes(9)[2]), Sees(), "axis 0 of value_TGF"),
    "groups": (shapes(8, heads=3), Sees(), "2 heads of keys and values do not divide 3"),
    "nothing": ((shapes(8)[0], *shapes(0)[1:]), Sees(), "got M=8, T=0"),
    "slots": (shapes(8), Sees(np.arange(7)), "axis 0 of sees.row_slots_M"),
    "window": (shapes(8), Sees(window=0), "sees.window must be an integer of at least 1"),
    "reach": (shapes(8), Sees(reach=jnp.zeros(2)), "sees.reach must have 0 axes"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("function", [attend, accumulate])
def test_arguments_that_do_not_belong_together_are_named(function, name):
    arrays, sees, text = ERRORS[name]
    with pytest.raises(ValueError, match=text):
        function(*(jnp.zeros(array.shape, array.dtype) for array in arrays), sees)


def test_dtypes_that_do_not_belong_together_are_named():
    arrays = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes(8)]
    with pytest.raises(TypeError, match="must share one dtype"):
        attend(arrays[0].astype(jnp.float32), *arrays[1:], Sees())
    with pytest.raises(TypeError, match="sees.present_T must hold booleans"):
        attend(*arrays, Sees(present_T=jnp.zeros(8)))
    with pytest.raises(TypeError, match="sees.row_slots_M must hold integers"):
        attend(*arrays, Sees(jnp.zeros(8)))
    with pytest.raises(ValueError, match="cap must be a finite number above 0"):
        attend(*arrays, Sees(), cap=0.0)
    with pytest.raises(ValueError, match="axis 0 of sinks_A"):
        attend(*arrays, Sees(), sinks_A=jnp.zeros(3))
    with pytest.raises(ValueError, match="axis 0 of slopes_A"):
        attend(*arrays, Sees(), slopes_A=jnp.zeros(3))
    with pytest.raises(ValueError, match="merge: the arguments must share one shape"):
        merge(jnp.zeros((2, 1, 1)), jnp.zeros((1, 2)), jnp.zeros((3, 1, 1)), jnp.zeros((1, 2)))


def temporaries(function, length, columns=None):
    arguments = shapes(length, columns, dtype=jnp.float32, features=8)
    return compiled(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def shift(length):
    """Probes of all prefixes, the slots as arrays: nothing is known while tracing."""
    return jnp.arange(length, dtype=jnp.int32) - 1


def loss(*arrays, prefixes=False, linear=False, slopes=False):
    sees = Sees(shift(arrays[0].shape[0]), itself=False) if prefixes else Sees()
    if linear:
        return jnp.sum(jnp.sin(accumulate(*arrays, sees)))
    slopes_A = jnp.linspace(0.1, 1.0, arrays[0].shape[1], dtype=jnp.float32) if slopes else None
    mixed_MAF, log_sum_exp_AM = attend(*arrays, sees, slopes_A=slopes_A)
    return jnp.sum(jnp.sin(mixed_MAF)) + jnp.sum(jnp.cos(log_sum_exp_AM[:, 1:]))


@pytest.mark.wide(2)
@pytest.mark.parametrize(
    "kind, order",
    [
        ("whole", "values"),
        ("whole", "gradient"),
        ("prefixes", "values"),
        ("prefixes", "gradient"),
        ("prefixes", "tangent"),
        ("prefixes", "second"),
        ("linear", "gradient"),
        ("slopes", "values"),
        ("slopes", "gradient"),
    ],
)
def test_memory_is_linear_in_the_sequence(kind, order):
    values = partial(loss, **({} if kind == "whole" else {kind: True}))
    gradient = jax.grad(values, argnums=(0, 1, 2))
    function = {
        "values": values,
        "gradient": gradient,
        "tangent": lambda *arrays: jax.jvp(values, arrays, arrays)[1],
        "second": lambda *arrays: jax.jvp(gradient, arrays, arrays)[1],
    }[order]
    short, long = temporaries(function, 4096), temporaries(function, 8192)
    assert long <= 2.2 * short
    # One matrix of weights is 268 MB at 4,096.
    assert short < 128 * 2**20
