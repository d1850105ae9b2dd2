"""Keys of a long context: both ways are attention, and the page shows what was compiled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from icl_jax.kernels.attention.api import attend
from icl_jax.kernels.attention.shapes import Sees
from launch import long_context

LAYERS = {"llama-3.2-1b": 16, "gemma-3-27b": 62}


@pytest.mark.parametrize("way", long_context.WAYS)
def test_rows_meet_all_keys_before_them(way):
    keys = jax.random.split(jax.random.key(0), 3)
    query_TAF, key_TGF, value_TGF = (
        jax.random.normal(key, (32, count, 8), jnp.float32)
        for key, count in zip(keys, (4, 2, 2), strict=True)
    )
    expected_TAF, _ = attend(query_TAF, key_TGF, value_TGF, Sees())
    mesh = Mesh(np.array(jax.devices()[:8]), ("context",), axis_types=(AxisType.Auto,))
    found_TAF = jax.jit(long_context.divided(way, mesh))(query_TAF, key_TGF, value_TGF)
    np.testing.assert_allclose(found_TAF, expected_TAF, atol=1e-6)
    # The control: without the others' keys it is another thing.
    alone = np.concatenate(
        [
            attend(query_TAF[at : at + 4], key_TGF[at : at + 4], value_TGF[at : at + 4], Sees())[0]
            for at in range(0, 32, 4)
        ]
    )
    assert np.abs(alone - expected_TAF).max() > 0.1


def test_the_page_shows_what_was_compiled():
    rows = json.loads(long_context.ROWS.read_text())
    page = long_context.PAGE.read_text()
    shown = page.partition(long_context.BEGIN)[2].partition(long_context.END)[0].strip()
    assert shown == long_context.table(rows)
    assert [(row["topology"], row["chips"], row["model"], row["length"]) for row in rows[::3]] == [
        *long_context.CASES
    ]
    for gathered, ring, whole in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        # What the choice in ``icl_jax.kernels.attention.over_mesh`` rests on.
        assert ring["sent"] == pytest.approx(gathered["sent"], rel=0.01)
        assert ring["temporaries"] < gathered["temporaries"] < whole["temporaries"]
        # Every layer gathers its keys and values.
        assert whole["way"] == "the whole" and whole["fits"]
        assert whole["sent"] >= LAYERS[whole["model"]] * gathered["sent"]
