"""What goes into a run's file comes out; half-written files never show, damaged ones are named."""

import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax import records
from icl_jax.records import Run, WorkdirError
from tests.records.opening import Inner, open_here

ARRAYS = {
    "bfloat16": jnp.asarray([[1.5, -2.0]], jnp.bfloat16),
    "float8": jnp.asarray([0.5, 1.0], jnp.float8_e4m3fn),
    "float32": jnp.asarray([1.0, jnp.nan, jnp.inf], jnp.float32),
    "float64": np.linspace(0.0, 1.0, 7).reshape(7, 1),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": jnp.arange(10, dtype=jnp.bfloat16)[::3],
    "bf16 scalar": jnp.asarray(3.0, jnp.bfloat16),
    "complex": np.asarray([1 + 2j]),
    "int8": np.asarray([-1, 2], np.int8),
    "flags": np.asarray([True, False]),
    "names": np.asarray(["query", "context"]),
    "empty": np.zeros((0, 3), np.float32),
    "file": np.asarray(1),
    "trained.losses/mean": np.asarray(2.0, np.float32),
}


def test_arrays_come_back_with_their_names_dtypes_shapes_and_bits(tmp_path):
    run = open_here(tmp_path)
    run.save_arrays("deep/er.npz", ARRAYS)
    loaded = run.load_arrays("deep/er.npz")
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        expected = np.asarray(array)
        assert loaded[name].dtype == expected.dtype, name
        assert loaded[name].shape == expected.shape, name
        assert loaded[name].tobytes() == expected.tobytes(), name


def test_the_same_arrays_make_the_same_file(tmp_path):
    run = open_here(tmp_path)
    run.save_arrays("a.npz", ARRAYS)
    run.save_arrays("b.npz", ARRAYS)
    assert run.path("a.npz").read_bytes() == run.path("b.npz").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [(jax.random.key(0), r"save jax.random.key_data\(bad\)"), ([{}], "bad is no array .list")],
)
def test_what_is_no_array_is_refused(tmp_path, value, message):
    run = open_here(tmp_path)
    with pytest.raises(TypeError, match=message):
        run.save_arrays("x.npz", {"bad": value})
    assert not run.has("x.npz")


def test_a_summary_of_numpy_and_jax_values_becomes_plain_json(tmp_path):
    run = open_here(tmp_path)
    summary = {
        "losses": jnp.asarray([1.5, 2.5], jnp.float32),
        "half": jnp.asarray(0.5, jnp.bfloat16),
        "count": np.int64(3),
        "good": np.bool_(True),
        "config": Inner(),
        "pairs": [(1, None), ("a", {"b": np.float32(0.25)})],
        "where": tmp_path,
    }
    run.save_json("summary.json", summary)
    assert run.load_json("summary.json") == {
        "losses": [1.5, 2.5],
        "half": 0.5,
        "count": 3,
        "good": True,
        "config": {"widths": [128], "rate": 0.1},
        "pairs": [[1, None], ["a", {"b": 0.25}]],
        "where": str(tmp_path),
    }


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), jnp.asarray([0.0, jnp.nan])])
def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path, bad):
    run = open_here(tmp_path)
    run.save_json("summary.json", {"old": 1})
    where = r"descent.losses\[1\]" + (r"\[1\]" if np.ndim(bad) else "")
    with pytest.raises(ValueError, match=f"^{where} is (nan|inf), which JSON cannot hold"):
        run.save_json("summary.json", {"descent": {"losses": [1.0, bad]}})
    assert run.load_json("summary.json") == {"old": 1}


def test_what_json_has_no_word_for_is_refused_by_name():
    with pytest.raises(TypeError, match="a.b is a set"):
        records.plain({"a": {"b": {1}}})
    with pytest.raises(TypeError, match="a has the key 3"):
        records.plain({"a": {3: 1}})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(RuntimeError), records.atomic_file(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "page.html"
    with records.atomic_file(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"


def test_who_reads_the_old_file_goes_on_reading_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with path.open() as reader:
        with records.atomic_file(path) as file:
            file.write(b"new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def noted(*args, name=name, original=original):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, noted)
    with records.atomic_file(tmp_path / "page.html") as file:
        file.write(b"new")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/config.json", ""])
def test_a_name_stays_inside_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="not a path inside the run folder"):
        Run(tmp_path).path(name)


def test_json_files_can_be_read_without_this_library(tmp_path):
    run = open_here(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == run.load_json("config.json")


@pytest.mark.parametrize("content", [b"{half", b"\xff\xfe", b"[]", b'{"versions": {}}'])
def test_a_damaged_provenance_is_named(tmp_path, content):
    open_here(tmp_path)
    (tmp_path / "provenance.json").write_bytes(content)
    with pytest.raises(WorkdirError, match=r"provenance.json is damaged \(.* Delete it: the same"):
        open_here(tmp_path)
    (tmp_path / "provenance.json").unlink()
    assert open_here(tmp_path).load_json("provenance.json")["earlier"] == []


def test_damaged_arrays_are_named_whatever_bit_is_flipped(tmp_path):
    run = open_here(tmp_path)
    run.save_arrays("arrays.npz", {"a": np.arange(6.0), "b": jnp.ones(3, jnp.bfloat16)})
    path, whole = run.path("arrays.npz"), run.path("arrays.npz").read_bytes()
    want = run.load_arrays("arrays.npz")
    for content in (b"", whole[:-1], whole[: len(whole) // 2], b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(WorkdirError, match=r"arrays.npz is damaged \(.* Delete it: the same"):
            run.load_arrays("arrays.npz")
    refused = 0
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        try:
            got = run.load_arrays("arrays.npz")
        except WorkdirError:
            refused += 1
        else:  # A time stamp, say: nothing that was written by us.
            assert {name: array.tobytes() for name, array in got.items()} == {
                name: array.tobytes() for name, array in want.items()
            }
    assert refused > len(whole) / 2
    path.unlink()
    with pytest.raises(FileNotFoundError):
        run.load_arrays("arrays.npz")


def test_a_damaged_summary_is_named(tmp_path):
    run = open_here(tmp_path)
    run.path("summary.json").write_text("{half")
    with pytest.raises(WorkdirError, match="summary.json is damaged"):
        run.load_json("summary.json")


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    run = open_here(tmp_path)
    run.save_json("summary.json", {"old": 1})

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for save, name in ((run.save_json, "summary.json"), (run.save_arrays, "arrays.npz")):
        with pytest.raises(WorkdirError, match=rf"{name} cannot be written \(No space.* Free some"):
            save(name, {"new": np.ones(2)})
    with pytest.raises(WorkdirError, match="Free some space there: the same command goes on"):
        open_here(tmp_path / "new")
    assert run.load_json("summary.json") == {"old": 1}
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("content", "why"),
    (
        ('{"v": 1, "v": 2}', '"v" comes twice in one object'),
        ('{"a": [{"v": 1, "\\u0076": 1}]}', '"v" comes twice in one object'),
        ('{"v": NaN}', "NaN is no number that JSON can hold"),
        ("[-Infinity]", "-Infinity is no number that JSON can hold"),
    ),
)
def test_json_that_was_never_written_here_is_damaged(tmp_path, content, why):
    run = open_here(tmp_path)
    run.path("summary.json").write_text(content)
    with pytest.raises(WorkdirError, match=rf"summary.json is damaged \({why}\)"):
        run.load_json("summary.json")


def test_a_name_with_a_nul_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="not a path inside the run folder"):
        Run(tmp_path).has("a\0b")
