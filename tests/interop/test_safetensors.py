"""safetensors: views against the library's own reader, every damage named, a writer it reads."""

import json

import ml_dtypes
import numpy as np
import pytest

from icl_jax.interop.safetensors import (
    DTYPES,
    INDEX,
    SINGLE,
    MappedTensors,
    read_header,
    write_tensors,
)

library = pytest.importorskip("safetensors.numpy")

#: Scalars, nothing at all, odd sizes that leave what follows unaligned.
SHAPES = {"scalar": (), "empty": (0, 3), "vector": (7,), "matrix": (3, 5)}


def random_tensors(seed=0):
    """A tensor of every dtype and shape."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}.{kind}": np.asarray(100 * rng.random(shape)).astype(dtype)
        for name, shape in SHAPES.items()
        for kind, dtype in DTYPES.items()
    }


def write(file, tensors, **kwargs):
    specs = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    write_tensors(file, specs, tensors.__getitem__, **kwargs)


def write_shards(folder, *shards, weight_map=None):
    """Shards a, b, ... with an index."""
    names = {}
    for letter, tensors in zip("abc", shards, strict=False):
        file = f"model-{letter}.safetensors"
        write(folder / file, tensors)
        names.update(dict.fromkeys(tensors, file))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map or names}))


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


def test_what_is_written_comes_back_bit_for_bit(tmp_path):
    tensors = random_tensors()
    write(tmp_path / SINGLE, tensors)
    mapped = MappedTensors(tmp_path)
    assert_same(mapped, tensors)
    assert len(mapped) == len(tensors) and "matrix.BF16" in mapped


def test_the_library_reads_what_is_written(tmp_path):
    # Those that its numpy reader has a dtype for.
    tensors = {k: v for k, v in random_tensors().items() if v.dtype.isbuiltin == 1}
    assert len(tensors) == 48
    write(tmp_path / SINGLE, tensors)
    assert_same(library.load_file(tmp_path / SINGLE), tensors)


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {k: v for k, v in random_tensors().items() if v.dtype.isbuiltin == 1}
    library.save_file(tensors, tmp_path / SINGLE, metadata={"format": "np"})
    assert_same(MappedTensors(tmp_path), tensors)


def test_a_tensor_that_is_not_aligned_is_read(tmp_path):
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [1, 7]},
            "c": {"dtype": "F64", "shape": [2], "data_offsets": [7, 23]},
        }
    ).encode()
    b, c = np.asarray([1, -2, 3], ml_dtypes.bfloat16), np.asarray([0.1, 0.2])
    data = b"\x05" + b.tobytes() + c.tobytes()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + data)
    mapped = MappedTensors(tmp_path)
    np.testing.assert_array_equal(mapped["b"].astype(np.float32), [1, -2, 3])
    np.testing.assert_array_equal(mapped["c"], c)


def test_tensors_are_views_that_cannot_be_written_and_survive_a_release(tmp_path):
    values = np.arange(5000, dtype=np.float32).astype(ml_dtypes.bfloat16)
    write(tmp_path / SINGLE, {"a": values, "empty": values[:0], "z": values + values})
    mapped = MappedTensors(tmp_path)
    view = mapped["a"]
    assert view.base is not None and np.shares_memory(view, mapped["a"])
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    for name in mapped:
        mapped.release(name)
    np.testing.assert_array_equal(view, values)
    np.testing.assert_array_equal(mapped["z"], values + values)


def test_the_metadata_is_what_transformers_asks_for(tmp_path):
    import safetensors

    for metadata, want in ((None, {"format": "pt"}), ({"a": "b"}, {"a": "b"})):
        write(tmp_path / SINGLE, {"x": np.zeros(3)}, metadata=metadata)
        with safetensors.safe_open(tmp_path / SINGLE, framework="numpy") as file:
            assert file.metadata() == want
        assert set(read_header(tmp_path / SINGLE)) == {"x"}


def test_shards_are_one_checkpoint(tmp_path):
    tensors = random_tensors()
    names = sorted(tensors)
    first, second = ({name: tensors[name] for name in names[i::2]} for i in range(2))
    write_shards(tmp_path, first, second)
    assert_same(MappedTensors(tmp_path), tensors)


ONE = {"x": np.arange(40.0), "y": np.zeros((2, 3), np.float32)}

DAMAGE = {
    "truncated by a byte": lambda raw: raw[:-1],
    "half of it": lambda raw: raw[: len(raw) // 2],
    "truncated in the header": lambda raw: raw[:50],
    "nothing": lambda raw: b"",
    "a byte too many": lambda raw: raw + b"x",
    "no JSON": lambda raw: raw[:8] + b"?" + raw[9:],
    "a pointer of git LFS": lambda raw: b"version https://git-lfs.github.com/spec/v1\nsize 5\n",
    "a header of 2^60 bytes": lambda raw: (2**60).to_bytes(8, "little") + raw[8:],
    "overlapping tensors": lambda raw: raw.replace(b"[0,320]", b"[0,328]"),
    "a shape of another size": lambda raw: raw.replace(b"[40]", b"[41]"),
    "an unknown dtype": lambda raw: raw.replace(b'"F64"', b'"F65"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_before_anything_is_read(tmp_path, damage):
    file = tmp_path / SINGLE
    write(file, ONE)
    raw = file.read_bytes()
    file.write_bytes(DAMAGE[damage](raw))
    assert file.read_bytes() != raw
    size = file.stat().st_size
    with pytest.raises(ValueError, match=f"{SINGLE}: truncated or damaged.*has {size} bytes.*agai"):
        MappedTensors(tmp_path)


def test_a_name_that_a_header_has_twice_is_refused(tmp_path):
    # The library keeps the last entry in silence.
    entry = '"x": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}'
    header = f"{{{entry}, {entry}}}".encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match=f"{SINGLE}: the header names these twice: x"):
        MappedTensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_shards(tmp_path, ONE, {"y": ONE["y"], "z": ONE["x"]})
    with pytest.raises(ValueError, match=r"model-b.safetensors: these.*model-a.safetensors too: y"):
        MappedTensors(tmp_path)


def test_missing_shards_are_listed(tmp_path):
    write_shards(tmp_path, {"a": ONE["x"]}, {"b": ONE["x"]}, {"c": ONE["x"]})
    (tmp_path / "model-a.safetensors").unlink()
    (tmp_path / "model-c.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3 shards.*model-a.*, model-c.safetensors"):
        MappedTensors(tmp_path)


def test_a_tensor_that_is_in_no_shard_is_named(tmp_path):
    file = "model-a.safetensors"
    write_shards(tmp_path, ONE, weight_map={"x": file, "y": file, "gone": file})
    with pytest.raises(ValueError, match="lists tensors that no shard has: gone"):
        MappedTensors(tmp_path)


@pytest.mark.parametrize("shard", ("../model.safetensors", "/etc/x.safetensors", 3))
def test_shards_lie_in_the_folder(tmp_path, shard):
    write_shards(tmp_path, ONE, weight_map={"x": shard})
    with pytest.raises(ValueError, match="is not the name of a file in the folder"):
        MappedTensors(tmp_path)


@pytest.mark.parametrize("index", ("{}", '{"weight_map": {}}', '{"weight_map": [1]}'))
def test_an_index_without_a_map_is_refused(tmp_path, index):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ValueError, match="has no weight_map"):
        MappedTensors(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "extra.pt").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="extra.pt, pytorch_model.bin but.*nothing is unpi"):
        MappedTensors(tmp_path)


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"neither {SINGLE} nor {INDEX}. If all .*Convert once"
    ):
        MappedTensors(tmp_path)
    write(tmp_path / "adapter_model.safetensors", ONE)
    with pytest.raises(FileNotFoundError, match=r"It has adapter_model.safetensors."):
        MappedTensors(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        MappedTensors(tmp_path / "nowhere")


def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path):
    for made in (np.zeros(4), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match=r"tensor x must be float64 \(3,\), got"):
            write_tensors(tmp_path / SINGLE, {"x": (np.float64, (3,))}, lambda name, m=made: m)
    with pytest.raises(ValueError, match="dtype complex128, which safetensors cannot hold"):
        write(tmp_path / SINGLE, {"x": np.zeros(3, complex)})
