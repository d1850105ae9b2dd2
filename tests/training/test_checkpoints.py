"""Checkpoints come back bit for bit, the last few stay, and another state is refused by name."""

import errno
import gc
import os
import shutil
import signal
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.records import WorkdirError
from icl_jax.training.checkpoints import Checkpoints, uninterrupted
from icl_jax.training.step import TrainState


def make_state(width=3, dtype=jnp.float32):
    params = {
        "blocks": [{"kernel": jnp.arange(4.0 * width, dtype=dtype).reshape(4, width)}],
        "half": jnp.asarray([0.1, jnp.nan], jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    return TrainState(jnp.asarray(7, jnp.int32), params, optimizer.init(params))


def test_a_state_comes_back_bit_for_bit_from_another_manager(tmp_path):
    state = make_state(dtype=jnp.float64)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        restored = checkpoints.restore(7, jax.tree.map(jnp.zeros_like, state))
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_the_last_few_stay(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "30"]


def test_a_half_written_checkpoint_is_ignored_and_swept_away(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state)
    half = tmp_path / "20.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "10", half)
    (half / "commit_success.txt").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
        checkpoints.save(30, state)
        assert checkpoints.latest_step() == 30
    assert not half.exists()


def test_another_shape_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(width=3))
        with pytest.raises(WorkdirError) as caught:
            checkpoints.restore(7, make_state(width=5))
    message = str(caught.value)
    assert "params.blocks.0.kernel: float32[4,3] -> float32[4,5]" in message
    assert "half" not in message
    assert "start in another folder" in message


def test_another_dtype_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(dtype=jnp.float64))
        with pytest.raises(WorkdirError, match=r"kernel: float64\[4,3\] -> float32\[4,3\]"):
            checkpoints.restore(7, make_state())


def test_another_structure_is_refused_by_name(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, {"state": state})
        with pytest.raises(WorkdirError, match=r"state.step: int32\[\] -> absent"):
            checkpoints.restore(7, {"state": state.params})


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("here")) as checkpoints:
        checkpoints.save(1, make_state())
    assert (tmp_path / "here" / "1").is_dir()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def saved_twice(folder):
    state = make_state(dtype=jnp.float64)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(10, state)
        checkpoints.save(20, state)
    return state


def test_a_flipped_bit_in_any_file_is_noticed_and_the_checkpoint_before_taken(tmp_path):
    state = saved_twice(tmp_path / "run")
    names = [path.relative_to(tmp_path / "run") for path in files_of(tmp_path / "run" / "20")]
    assert any("d" in name.parts for name in names)  # Where the numbers are.
    for index, name in enumerate(names):
        folder = tmp_path / str(index)
        shutil.copytree(tmp_path / "run", folder)
        flip(folder / name)
        with Checkpoints(folder) as checkpoints:
            with pytest.raises(WorkdirError, match=r"20 is damaged \(.* Delete that folder"):
                checkpoints.restore(20, state)
            with pytest.warns(UserWarning, match="damaged checkpoints.*going on from step 10"):
                assert checkpoints.newest_intact_step() == 10
            restored = checkpoints.restore(10, state)
            assert checkpoints.latest_step() == 10
        assert all(
            np.asarray(got).tobytes() == np.asarray(want).tobytes()
            for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True)
        )


def test_checkpoints_that_are_all_damaged_are_refused(tmp_path):
    saved_twice(tmp_path)
    for step in ("10", "20"):
        flip(next(path for path in files_of(tmp_path / step / "default" / "d")))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(WorkdirError, match="every checkpoint in .* is damaged .*step 20.*step 10"),
    ):
        checkpoints.newest_intact_step()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]


# What orbax leaves of an event loop that failed is collected here, and not in another test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_checksums_what_orbax_cannot_read_is_named_in_one_line(tmp_path):
    # As a process leaves it that is killed between the checkpoint and its checksums.
    state = saved_twice(tmp_path / "run")
    for path in (tmp_path / "run").glob("*/checksums.json"):
        path.unlink()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.newest_intact_step() == 20
    for index, name in enumerate(("default/_METADATA", "default/manifest.ocdbt", "default/d")):
        folder = tmp_path / str(index)
        shutil.copytree(tmp_path / "run", folder)
        broken = folder / "20" / name
        shutil.rmtree(broken) if broken.is_dir() else broken.write_bytes(b"{half")
        with (
            Checkpoints(folder) as checkpoints,
            pytest.raises(WorkdirError, match="checkpoint .*20 cannot be read .* Delete that fold"),
        ):
            checkpoints.restore(20, state)
    gc.collect()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("UNKNOWN: Error writing: [OS error 28: ENOSPC No space left on device]"),
    ],
)
def test_a_full_disk_is_a_full_disk(tmp_path, monkeypatch, error):
    with Checkpoints(tmp_path) as checkpoints:

        def full(*args, **kwargs):
            raise error

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(WorkdirError, match="written .No space left on device.. Free some spac"):
            checkpoints.save(1, make_state())


def test_typed_keys_come_back_as_keys(tmp_path):
    tree = {"noise": jax.random.split(jax.random.key(5)), "fast": jax.random.key(6, impl="rbg")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        restored = checkpoints.restore(1, jax.tree.map(lambda key: key.copy(), tree))
    for name, keys in tree.items():
        assert restored[name].dtype == keys.dtype
        np.testing.assert_array_equal(
            jax.random.key_data(restored[name]), jax.random.key_data(keys)
        )


def test_ctrl_c_waits_in_the_main_thread_and_is_not_lost():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    thread = threading.Thread(target=lambda: done.append(uninterrupted().__enter__()))
    thread.start()
    thread.join()
    assert done == [1, None]
