"""Checkpoints: loaded in any dtype, written in one step, the same after any number of rounds."""

import json
import pickle
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.interop import huggingface, saving
from icl_jax.interop.assemble import flatten, unflatten
from icl_jax.interop.huggingface import load, make_tiny, param_dtype, parameter_shapes
from icl_jax.interop.registry import families
from icl_jax.interop.safetensors import INDEX, SINGLE, MappedTensors
from icl_jax.interop.saving import save
from tests.interop.test_family_options import GOLDEN, write_folder

TOKENS = np.random.default_rng(7).integers(0, 96, 10).astype(np.int32)
DTYPES = ("float32", "bfloat16", "float16", "float64")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama", jax.random.key(0))


def logits(checkpoint):
    return np.asarray(jax.jit(checkpoint.model.apply)({"params": checkpoint.params}, TOKENS))


def assert_same(got, want):
    """The same tree, dtypes and numbers."""
    assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda leaf: leaf.dtype, want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def save_again(folder, checkpoint, **options):
    return save(folder, checkpoint.model, checkpoint.params, checkpoint.config, **options)


def is_norm(path):
    return any("norm" in name for name in path)


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("stored", ("float32", "bfloat16"))
def test_every_number_is_the_stored_one_in_the_dtype_asked_for(tiny, stored, wanted, tmp_path):
    folder = save_again(tmp_path / "stored", tiny, dtype=stored)
    assert {entry.dtype for entry in MappedTensors(folder).entries.values()} == {np.dtype(stored)}
    found = flatten(load(folder, dtype=wanted).params)
    for path, leaf in flatten(tiny.params).items():
        small = is_norm(path) and np.dtype(wanted).itemsize < 4
        want = np.asarray(leaf).astype(stored).astype("float32" if small else wanted)
        assert found[path].dtype == want.dtype, path
        np.testing.assert_array_equal(found[path], want, err_msg=str(path))


# Transposed kernels, gains less one, experts.
@pytest.mark.wide(3)
@pytest.mark.parametrize("family", ("gpt2", "gemma3", "mixtral"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float64"))
def test_a_round_changes_nothing(family, dtype, tmp_path):
    first = load(GOLDEN / family, dtype=dtype)
    second = load(save_again(tmp_path / "again", first), dtype=dtype)
    assert_same(second.params, first.params)
    assert (second.model, second.family, second.folder) == (
        first.model,
        family,
        tmp_path / "again",
    )
    np.testing.assert_array_equal(logits(second), logits(first))


def test_the_dtype_is_that_of_most_stored_numbers(tmp_path):
    tensors = dict(MappedTensors(GOLDEN / "llama"))
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float64)
    config = json.loads((GOLDEN / "llama" / "config.json").read_text())
    write_folder(tmp_path, tensors, {**config, "dtype": "float16"})
    params = load(tmp_path).params
    assert params["head_kernel"].dtype == params["embedding"].dtype == jnp.bfloat16
    assert params["norm_final"]["scale"].dtype == jnp.float32


def test_only_norms_stay_wide():
    half = np.dtype(np.float16)
    for path in (("norm_final", "scale"), ("layers_0_0", "norm_1", "bias"), ("a", "query_norm")):
        assert param_dtype(path, half) == np.float32
        assert param_dtype(path, np.dtype(np.float64)) == np.float64
    assert param_dtype(("layers_0_0", "mlp", "normal"), half) == half


@pytest.mark.parametrize("dtype", ("int32", "bool", "complex64", "float8_e4m3fn"))
def test_a_dtype_that_nothing_is_computed_in_is_refused(dtype):
    with pytest.raises(ValueError, match=f"load: dtype must be one of float32, .* got {dtype}"):
        load(GOLDEN / "llama", dtype=np.dtype(dtype))


def test_what_is_no_dtype_is_refused_before_anything_is_fetched(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "checkpoint_folder", None)
    for bad in ("zzz", 5, "int8"):
        with pytest.raises(ValueError, match=f"load: dtype must be one of float32, .* got {bad}"):
            load(GOLDEN / "llama", dtype=bad)
        with pytest.raises(ValueError, match=f"save: dtype must be one of float32, .* got {bad}"):
            save(tmp_path / "new", tiny.model, tiny.params, tiny.config, dtype=bad)
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_checkpoint_needs_a_key(tmp_path):
    with pytest.raises(TypeError, match="make_tiny: key must be one PRNG key, got 0. Make it"):
        make_tiny("llama", tmp_path / "tiny", 0)
    assert list(tmp_path.iterdir()) == []


def test_float64_needs_jax_to_have_it(tmp_path):
    folder = save_again(tmp_path / "wide", load(GOLDEN / "llama", dtype=jnp.float64))
    with jax.enable_x64(False):
        for options in ({}, {"dtype": jnp.float64}):
            with pytest.raises(ValueError, match="float64 need jax_enable_x64.*or give dtype"):
                load(folder, **options)
        assert load(folder, dtype=jnp.float32).params["embedding"].dtype == jnp.float32


def test_several_files_are_the_same_checkpoint_as_one(tiny, tmp_path):
    limit = 20_000
    folder = save_again(tmp_path / "sharded", tiny, max_shard_bytes=limit)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count > 3 and not (folder / SINGLE).exists()
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    entries = MappedTensors(folder).entries
    assert {name: entry.file.name for name, entry in entries.items()} == index["weight_map"]
    sizes = [sum(e.stop - e.start for e in entries.values() if e.file.name == f) for f in files]
    assert sum(sizes) == index["metadata"]["total_size"] and max(sizes) <= limit
    assert_same(load(folder).params, tiny.params)


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tiny, tmp_path):
    folder = save_again(tmp_path / "sharded", tiny, max_shard_bytes=1)
    assert len(list(folder.glob("*.safetensors"))) == len(MappedTensors(folder)) == 30
    assert_same(load(folder).params, tiny.params)


class TestSaving:
    def test_an_empty_folder_is_filled_and_parents_are_made(self, tiny, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        for folder in (tmp_path / "a" / "b", tmp_path / "c" / "d"):
            assert save_again(folder, tiny) == folder
            assert {path.name for path in folder.iterdir()} == {"config.json", SINGLE}
            assert list(folder.parent.iterdir()) == [folder]

    def test_what_is_there_is_never_replaced(self, tiny, tmp_path):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes").write_text("mine")
        for name in ("file", "full"):
            with pytest.raises(FileExistsError, match=f"{name} is not empty. Choose another fold"):
                save_again(tmp_path / name, tiny)
        assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes").read_text()
        assert {path.name for path in tmp_path.rglob("*")} == {"file", "full", "notes"}

    @pytest.mark.parametrize("interrupted", (OSError, KeyboardInterrupt))
    def test_an_interrupted_save_leaves_nothing(self, tiny, tmp_path, monkeypatch, interrupted):
        written = []
        original = saving.write_tensors

        def fails_later(file, *args):
            original(file, *args)
            written.append(file)
            if len(written) == 2:
                # Until it is complete, it is not there under its name.
                assert not (tmp_path / "new").exists()
                raise interrupted("the disk is full")

        monkeypatch.setattr(saving, "write_tensors", fails_later)
        with pytest.raises(interrupted):
            save_again(tmp_path / "new", tiny, max_shard_bytes=20_000)
        assert len(written) == 2 and list(tmp_path.iterdir()) == []

    def test_parameters_of_another_model_are_refused_and_named(self, tiny, tmp_path):
        leaves = flatten(tiny.params)
        del leaves["embedding",]
        up = ("layers_0_0", "mlp", "up", "kernel")
        leaves[up] = leaves[up].swapaxes(1, 2)
        leaves["tail",] = leaves["norm_final", "scale"]
        with pytest.raises(ValueError, match="^family llama: the key table and") as error:
            save(tmp_path / "new", tiny.model, unflatten(leaves), tiny.config)
        for problem in (
            "model.embed_tokens.weight -> embedding: the model has no such parameter",
            "mlp/up/kernel: the piece has shape (1, 32, 48), its place (1, 48, 32)",
            "tail: 0 of 32 entries are filled",
        ):
            assert problem in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_an_architecture_that_is_not_supported_is_refused(self, tiny, tmp_path):
        with pytest.raises(ValueError, match='model_type = "rwkv" is not supported.*Supported are'):
            save(tmp_path / "new", tiny.model, tiny.params, {"model_type": "rwkv"})
        assert list(tmp_path.iterdir()) == []

    def test_weights_are_stored_as_floating_point(self, tiny, tmp_path):
        with pytest.raises(ValueError, match="save: dtype must be one of float32, .* got int32"):
            save_again(tmp_path / "new", tiny, dtype=jnp.int32)

    def test_the_configuration_names_the_dtype_of_the_weights(self, tiny, tmp_path):
        config = {**tiny.config, "torch_dtype": "float32"}
        save(tmp_path / "new", tiny.model, tiny.params, config, dtype=np.dtype(jnp.bfloat16))
        written = json.loads((tmp_path / "new" / "config.json").read_text())
        assert written == {**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
        assert config["torch_dtype"] == "float32"  # The caller's stays.

    def test_a_tokenizer_comes_along_and_nothing_else(self, tiny, tmp_path):
        source = tmp_path / "source"
        source.mkdir()
        tokenizer = {"tokenizer.json", "merges.txt", "chat_template.jinja"}
        others = {SINGLE, INDEX, "config.json", "pytorch_model.bin", "tokenization_x.py"}
        for name in tokenizer | others:
            (source / name).write_text(f"source's {name}")
        folder = save_again(tmp_path / "new", tiny, tokenizer=source)
        assert {path.name for path in folder.iterdir()} == {*tokenizer, "config.json", SINGLE}
        assert (folder / "merges.txt").read_text() == "source's merges.txt"
        assert load(folder).config["model_type"] == "llama"

    def test_a_tokenizer_that_is_not_there_is_named(self, tiny, tmp_path):
        with pytest.raises(FileNotFoundError, match="typo: no such folder"):
            save_again(tmp_path / "new", tiny, tokenizer=tmp_path / "typo")
        assert list(tmp_path.iterdir()) == []


class TestMakingATinyOne:
    def test_the_key_decides_every_number(self, tiny, tmp_path):
        again = make_tiny("llama", tmp_path / "again", jax.random.key(0))
        assert_same(again.params, tiny.params)
        other = make_tiny("llama", tmp_path / "other", jax.random.key(1), dtype=jnp.bfloat16)
        for path, leaf in flatten(other.params).items():
            assert leaf.dtype == (jnp.float32 if is_norm(path) else jnp.bfloat16)
            assert not np.array_equal(leaf, flatten(tiny.params)[path])

    def test_no_parameter_is_as_it_was_initialised(self, tmp_path):
        # GPT-2 has biases and norms of both kinds.
        made = make_tiny("gpt2", tmp_path / "gpt2", jax.random.key(0), vocab_size=70)
        for path, leaf in flatten(made.params).items():
            assert len(np.unique(leaf)) > 0.9 * leaf.size, path
        assert made.config["vocab_size"] == 70
        assert made.params["embedding"].shape == (70, 32)
        assert families()["gpt2"].tiny()["vocab_size"] == 96

    def test_what_cannot_be_made_is_refused(self, tiny, tmp_path):
        known = ", ".join(families())
        with pytest.raises(ValueError, match=f"family must be one of {known}, got 'gpt9'"):
            make_tiny("gpt9", tmp_path / "new", jax.random.key(0))
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FileExistsError, match="llama is not empty"):
            make_tiny("llama", tiny.folder, jax.random.key(0))


def test_shapes_are_those_of_the_parameters(tiny):
    shapes = {path: leaf.shape for path, leaf in flatten(tiny.params).items()}
    assert parameter_shapes(tiny.model) == shapes


def test_quantized_weights_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "llama", tmp_path / "llama")
    file = tmp_path / "llama" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError) as error:
        load(tmp_path / "llama")
    assert str(error.value).startswith(
        f'{file}: quantization_config = {{"quant_method": "gptq"}} is not supported; supported: '
        "unquantized weights; dequantise them once"
    )
    file.write_text(json.dumps({**config, "quantization_config": None}))
    assert load(tmp_path / "llama").family == "llama"


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_pickled_weights_are_never_opened(tmp_path):
    exploded = tmp_path / "exploded"
    folder = tmp_path / "llama"
    shutil.copytree(GOLDEN / "llama", folder)
    for name in ("pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(str(exploded))))
    assert load(folder).family == "llama"  # Beside safetensors they don't matter.
    (folder / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin.* nothing is unpickled here"):
        load(folder)
    assert not exploded.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes()).close()
    assert exploded.exists()  # It would have.


def test_without_safetensors_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"safetensors is not installed.*icl_jax\[huggingface\]"):
        load(GOLDEN / "llama")
