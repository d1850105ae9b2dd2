"""A bank survives a file, pickle, orbax and flax, and still patches."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.interop.banks import load_bank, save_bank
from icl_jax.patches.bank import compact_bank
from icl_jax.patches.extraction import patched_forward, stack_patches
from tests.helpers import LAYERS, MLPS, WIDTH, normal, random_params

LOCAL = Block(LAYERS["attention_grouped"], MLPS["gated"], "sandwich", "rms")
OTHER = Block(LAYERS["state_space"], MLPS["dense_bias"], "parallel", "layer")
BLOCKS = (LOCAL.clone(), LOCAL.clone(), OTHER.clone())
STACK = Stack(BLOCKS, width=WIDTH)
PARAMS = random_params(STACK, 0, jnp.zeros((2, 3), jnp.float32))
LAYERS_OF = functional(STACK, PARAMS)
HIDDEN_TD = STACK.apply({"params": PARAMS}, normal(1, 6, 3, dtype="float32"), method="embed")


def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.wide(2)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("compact", (False, True))
def test_a_file_gives_back_the_bank(tmp_path, dtype, compact):
    bank = stack_patches(LAYERS_OF, HIDDEN_TD.astype(dtype), [0, 5])
    bank = compact_bank(bank) if compact else bank
    loaded = load_bank(save_bank(tmp_path / "bank.safetensors", bank))
    same(loaded, bank)
    want = patched_forward(LAYERS_OF, HIDDEN_TD.astype(dtype), bank)
    got = patched_forward(LAYERS_OF, HIDDEN_TD.astype(dtype), loaded)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]


def test_a_batch_of_banks_is_a_bank(tmp_path):
    stream_BTD = jnp.stack([HIDDEN_TD, 2 * HIDDEN_TD])
    banks = jax.vmap(lambda h: stack_patches(LAYERS_OF, h, [0, 5]))(stream_BTD)
    same(load_bank(save_bank(tmp_path / "banks", banks)), banks)


def test_other_ways_of_keeping_trees_keep_banks(tmp_path):
    bank = stack_patches(LAYERS_OF, HIDDEN_TD, [0, 5])
    same(pickle.loads(pickle.dumps(bank)), bank)
    leaves, tree = jax.tree.flatten(bank)
    state = serialization.from_bytes(leaves, serialization.to_bytes(leaves))
    same(jax.tree.unflatten(tree, [jnp.asarray(one) for one in state]), bank)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", bank)
        checkpointer.wait_until_finished()
        same(checkpointer.restore(tmp_path / "orbax", bank), bank)


def test_files_that_are_no_bank_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="load_bank: .*none: no such file"):
        load_bank(tmp_path / "none")
    (tmp_path / "text").write_text("not a tensor")
    with pytest.raises(ValueError, match="load_bank: .*text is damaged"):
        load_bank(tmp_path / "text")
    import safetensors.numpy

    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other holds no bank of icl_jax"):
        load_bank(tmp_path / "other")
