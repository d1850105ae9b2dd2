"""What does not fit is listed by name before a number is read; what fits is read bit for bit."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from icl_jax.interop import assemble
from icl_jax.interop.huggingface import load, parameter_shapes
from icl_jax.interop.options import Options
from icl_jax.interop.registry import families
from icl_jax.interop.safetensors import MappedTensors
from icl_jax.interop.stacking import stacked_table
from icl_jax.interop.table import Piece, Tensor, linear, piece, tensor
from tests.interop.test_family_options import GOLDEN, write_folder

BFLOAT16 = ml_dtypes.bfloat16
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


@functools.cache
def golden(family):
    return load(GOLDEN / family)


def rewrite(folder, family, change, **options):
    """A golden checkpoint whose tensors went through ``change``, and with other options."""
    tensors = dict(MappedTensors(GOLDEN / family))
    change(tensors)
    config = json.loads((GOLDEN / family / "config.json").read_text())
    write_folder(folder, tensors, {**config, **options})


def assert_same_as_golden(folder, family):
    jax.tree.map(np.testing.assert_array_equal, load(folder).params, golden(family).params)


@pytest.fixture
def unread(monkeypatch):
    """No tensor may be read."""

    def never(self, name):
        raise AssertionError(f"{name} was read")

    # Changing a checkpoint reads it, so this comes afterwards.
    return lambda: monkeypatch.setattr(MappedTensors, "__getitem__", never)


def missing(tensors):
    del tensors[Q_PROJ], tensors["lm_head.weight"]


def extra(tensors):
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), BFLOAT16)
    tensors["score.weight"] = np.zeros((2, 32), BFLOAT16)


def transposed(tensors):
    tensors[DOWN] = np.ascontiguousarray(tensors[DOWN].T)


def cut_short(tensors):
    tensors[Q_PROJ] = tensors[Q_PROJ][:-8]


def quantized(tensors):
    tensors[DOWN] = np.zeros((32, 48), np.int8)


def twice(tensors):
    tensors["norm.weight"] = tensors["model.norm.weight"]


MISFITS = {
    missing: [f"2 missing: lm_head.weight, {Q_PROJ}"],
    extra: ["2 extra: model.layers.3.mlp.up_proj.weight, score.weight"],
    transposed: [f"1 wrong: {DOWN} is (48, 32), expected (32, 48)"],
    cut_short: [f"1 wrong: {Q_PROJ} is (24, 32), expected (32, 32)"],
    quantized: [f"1 wrong: {DOWN} has dtype int8, expected floating point"],
    twice: ["1 stored twice: norm.weight (also model.norm.weight)"],
}


def all_at_once(tensors):
    for change in (missing, extra, transposed, twice):
        change(tensors)


MISFITS[all_at_once] = [
    text for change in (missing, extra, transposed, twice) for text in MISFITS[change]
]


@pytest.mark.parametrize("change", MISFITS, ids=lambda change: change.__name__)
def test_tensors_that_do_not_fit_are_listed_and_none_is_read(change, tmp_path, unread):
    rewrite(tmp_path, "llama", change)
    unread()
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    want = "; ".join(MISFITS[change])
    assert str(error.value) == (
        f"{tmp_path}: the tensors do not fit config.json: {want}. Are they of one checkpoint?"
    )


def test_an_expert_that_is_missing_is_named(tmp_path, unread):
    expert = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    rewrite(tmp_path, "mixtral", lambda tensors: tensors.pop(expert))
    unread()
    with pytest.raises(ValueError, match=f"config.json: 1 missing: {expert}. Are"):
        load(tmp_path)


def test_a_long_list_ends_in_a_count(tmp_path):
    def add(tensors):
        tensors.update({f"x.{i}": np.zeros(1, BFLOAT16) for i in range(23)})

    rewrite(tmp_path, "llama", add)
    with pytest.raises(ValueError, match=r"23 extra: x.0, x.1, .* and 3 more\. Are they"):
        load(tmp_path)


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_buffers_of_older_files_and_names_without_a_prefix_are_fine(family, tmp_path):
    def older(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.").removeprefix("transformer.")] = tensors.pop(name)
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.uint8)
        tensors["h.0.attn.masked_bias"] = np.zeros((), np.float32)

    rewrite(tmp_path, family, older)
    assert_same_as_golden(tmp_path, family)


def untie(tensors):
    tensors["lm_head.weight"] = np.array(tensors["transformer.wte.weight"])


def test_a_tied_head_may_be_stored_again(tmp_path):
    rewrite(tmp_path, "gpt2", untie)
    assert_same_as_golden(tmp_path, "gpt2")
    assert "head_kernel" not in golden("gpt2").params


def test_a_tied_head_that_differs_in_a_bit_is_refused(tmp_path):
    def change(tensors):
        untie(tensors)
        tensors["lm_head.weight"].view(np.uint16)[-1, -1] ^= 1

    rewrite(tmp_path, "gpt2", change)
    with pytest.raises(ValueError, match="lm_head.weight differs from transformer.wte.weight. Set"):
        load(tmp_path)
    # The way out that the message names.
    rewrite(tmp_path, "gpt2", change, tie_word_embeddings=False)
    head = load(tmp_path).params["head_kernel"]
    assert jnp.sum(head != golden("gpt2").params["embedding"].T) == 1


def test_a_head_of_its_own_must_be_there(tmp_path):
    rewrite(tmp_path, "gpt2", lambda tensors: None, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="config.json: 1 missing: lm_head.weight. Are"):
        load(tmp_path)


# Falcon's groups and Mixtral's experts make a parameter of several pieces.
@pytest.mark.parametrize("family", ("falcon", "gemma3", "gpt2", "mixtral"))
def test_any_rectangle_of_a_parameter_is_read_in_chunks_of_any_size(family, monkeypatch):
    checkpoint, tensors = golden(family), MappedTensors(GOLDEN / family)
    layered = families()[family].table(checkpoint.model, Options(checkpoint.config))
    table = stacked_table(layered, checkpoint.model)
    plan = assemble.plan(family, table, parameter_shapes(checkpoint.model))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(assemble, "_CHUNK", 150)
    for path, whole in assemble.flatten(checkpoint.params).items():
        bounds = [np.sort(rng.choice(size + 1, 2, replace=False)) for size in whole.shape]
        slices = tuple(slice(int(start), int(stop)) for start, stop in bounds)
        names = {one.name: one.name for one in table}
        got = assemble.region(plan[path], names, tensors, slices, whole.dtype)
        np.testing.assert_array_equal(got, np.asarray(whole)[slices], err_msg=str(path))


SHAPES = {("a",): (4, 6), ("b",): (6,), ("experts",): (2, 3)}
FITTING = (
    tensor("a", (6, 4), "a", linear),
    tensor("b", (6,), "b"),
    tensor("e.0", (3,), "experts", index=0),
    tensor("e.1", (3,), "experts", index=1),
)


def with_other(*tensors):
    """``FITTING`` with some tensors replaced."""
    others = {one.name: one for one in tensors}
    return tuple(others.get(one.name, one) for one in FITTING)


MISMATCHES = {
    "a transposed view": (
        with_other(tensor("a", (6, 4), "a")),
        ["a -> a: the piece has shape (6, 4), its place (4, 6)"],
    ),
    "no such parameter": (
        with_other(tensor("b", (6,), "c/d")),
        [
            "b -> c/d: the model has no such parameter",
            "b: 0 of 6 entries are used",
            "b: 0 of 6 entries are filled",
        ],
    ),
    "an expert too few": (FITTING[:-1], ["experts: 3 of 6 entries are filled"]),
    "a parameter too few": (FITTING[1:], ["a: 0 of 24 entries are filled"]),
    "a part of a tensor": (
        with_other(Tensor("b", (9,), (Piece(("b",), lambda stored: stored[:6]),))),
        ["b: 6 of 9 entries are used"],
    ),
    "a tensor twice": (
        with_other(Tensor("b", (6,), (piece("b"), piece("b")))),
        ["b: 12 of 6 entries are used", "b: 12 of 6 entries are filled"],
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_table_covers_the_parameters_exactly(name):
    assert set(assemble.plan("here", FITTING, SHAPES)) == set(SHAPES)
    table, problems = MISMATCHES[name]
    with pytest.raises(ValueError) as error:
        assemble.plan("here", table, SHAPES)
    assert str(error.value) == (
        "here: the key table and the model's parameters do not match: "
        f"{', '.join(problems)}. Use the configuration that the parameters were made with."
    )


def test_nested_mappings_come_apart_and_together():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    leaves = {("a", "b"): 1, ("a", "c", "d"): 2, ("e",): 3}
    assert assemble.flatten(tree) == leaves and assemble.unflatten(leaves) == tree
