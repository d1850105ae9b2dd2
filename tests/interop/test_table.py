"""Key tables: each layout against an explicit formula for its indices, and views that write."""

import numpy as np
import pytest

from icl_jax.interop import table
from icl_jax.interop.table import Piece, Tensor, piece, tensor

HEADS, GROUPS, FEATURES, WIDTH = 4, 2, 3, 5

#: Layout -> (view, stored shape, shape of the parameter, index of the parameter -> stored index).
LAYOUTS = {
    "identity": (table.identity, (4, 5), (4, 5), lambda i, j: (i, j)),
    "linear": (table.linear, (4, 5), (5, 4), lambda i, o: (o, i)),
    "heads_in": (
        table.heads_in(HEADS, FEATURES),
        (12, WIDTH),
        (WIDTH, HEADS, FEATURES),
        lambda d, a, f: (a * FEATURES + f, d),
    ),
    "heads_in of a bias": (
        table.heads_in(HEADS, FEATURES),
        (12,),
        (HEADS, FEATURES),
        lambda a, f: (a * FEATURES + f,),
    ),
    "head_bias": (
        table.head_bias(HEADS, FEATURES),
        (12,),
        (HEADS, FEATURES),
        lambda a, f: (a * FEATURES + f,),
    ),
    "heads_out": (
        table.heads_out(HEADS, FEATURES),
        (WIDTH, 12),
        (HEADS, FEATURES, WIDTH),
        lambda a, f, d: (d, a * FEATURES + f),
    ),
    "conv1d_heads": (
        table.conv1d_heads(HEADS, FEATURES, 1, 3),
        (WIDTH, 36),
        (WIDTH, HEADS, FEATURES),
        lambda d, a, f: (d, 12 + a * FEATURES + f),
    ),
    "conv1d_heads of a bias": (
        table.conv1d_heads(HEADS, FEATURES, 2, 3),
        (36,),
        (HEADS, FEATURES),
        lambda a, f: (24 + a * FEATURES + f,),
    ),
    "conv1d_out": (
        table.conv1d_out(HEADS, FEATURES),
        (12, WIDTH),
        (HEADS, FEATURES, WIDTH),
        lambda a, f, d: (a * FEATURES + f, d),
    ),
    "packed_heads": (
        table.packed_heads((HEADS, GROUPS, GROUPS), FEATURES, 2),
        (24, WIDTH),
        (WIDTH, GROUPS, FEATURES),
        lambda d, g, f: ((6 + g) * FEATURES + f, d),
    ),
    "packed_heads of a bias": (
        table.packed_heads((HEADS, 1, 1), FEATURES, 1),
        (18,),
        (1, FEATURES),
        lambda g, f: (12 + f,),
    ),
    "interleaved_heads": (
        table.interleaved_heads(HEADS, FEATURES, 1),
        (36, WIDTH),
        (WIDTH, HEADS, FEATURES),
        lambda d, a, f: ((a * 3 + 1) * FEATURES + f, d),
    ),
    "interleaved_heads of a bias": (
        table.interleaved_heads(HEADS, FEATURES, 2),
        (36,),
        (HEADS, FEATURES),
        lambda a, f: ((a * 3 + 2) * FEATURES + f,),
    ),
    "rows": (table.rows(2, 5, table.linear), (6, 4), (4, 3), lambda i, o: (o + 2, i)),
    "columns": (table.columns(1, 4), (2, 6), (2, 3), lambda i, j: (i, j + 1)),
    "columns of rows": (
        table.columns(12, 24, table.heads_out(HEADS, FEATURES)),
        (WIDTH, 36),
        (HEADS, FEATURES, WIDTH),
        lambda a, f, d: (d, 12 + a * FEATURES + f),
    ),
}


def numbered(*shape):
    """An array whose entries are all different."""
    return np.arange(np.prod(shape)).reshape(shape)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_reads_the_entries_that_its_name_says(name):
    view, stored_shape, shape, index = LAYOUTS[name]
    stored = numbered(*stored_shape)
    got = view(stored)
    assert got.shape == shape
    for place in np.ndindex(shape):
        assert got[place] == stored[index(*place)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_through_a_view_lands_in_the_tensor(name):
    view, stored_shape, shape, _ = LAYOUTS[name]
    stored, values = np.full(stored_shape, -1), numbered(*shape)
    Piece(("kernel",), view).of(stored)[...] = values
    np.testing.assert_array_equal(view(stored), values)
    assert np.sum(stored >= 0) == values.size


def test_the_groups_of_a_fused_tensor_hold_queries_then_a_key_then_a_value():
    stored = numbered(GROUPS * 4 * FEATURES, WIDTH)
    query_DAF = np.full((WIDTH, HEADS, FEATURES), -1)
    pieces = grouped()
    for part in pieces[:GROUPS]:
        query_DAF[part.index] = part.of(stored)
    key_DGF, value_DGF = (part.of(stored) for part in pieces[GROUPS:])
    for d, a, f in np.ndindex(query_DAF.shape):
        group, within = divmod(a, HEADS // GROUPS)
        assert query_DAF[d, a, f] == stored[(group * 4 + within) * FEATURES + f, d]
    for d, g, f in np.ndindex(key_DGF.shape):
        assert key_DGF[d, g, f] == stored[(g * 4 + 2) * FEATURES + f, d]
        assert value_DGF[d, g, f] == stored[(g * 4 + 3) * FEATURES + f, d]


@pytest.mark.parametrize("trailing", ((), (WIDTH,)), ids=("bias", "kernel"))
def test_the_pieces_of_all_groups_cover_the_tensor_once(trailing):
    stored = np.zeros((GROUPS * 4 * FEATURES, *trailing), int)
    query = np.zeros((*trailing, HEADS, FEATURES), int)
    for part in grouped():
        part.of(stored)[...] += 1
        if part.path[-1] == "query":
            query[part.index] += 1
    assert np.all(stored == 1) and np.all(query == 1)


def grouped():
    return table.grouped_pieces(
        "a/query", "a/key", "a/value", num_heads=HEADS, num_groups=GROUPS, features=FEATURES
    )


def test_a_view_that_copies_is_refused():
    def queries(stored):
        return stored.reshape(GROUPS, 4, FEATURES, WIDTH)[:, :2].reshape(HEADS, FEATURES, WIDTH)

    with pytest.raises(ValueError, match=r"a/query.*shape \(24, 5\) is a copy.*one piece per part"):
        piece("a/query", queries).of(numbered(24, WIDTH))


def test_paths_are_written_with_slashes():
    got = tensor("x.weight", (2, 3), "mlp/up/kernel", table.linear, index=1, offset=1.0)
    assert got == Tensor(
        "x.weight", (2, 3), (Piece(("mlp", "up", "kernel"), table.linear, 1, 1.0),)
    )
    assert tensor("y", (2,), "norm/scale").pieces[0].view is table.identity
