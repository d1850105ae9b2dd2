"""Checkpoints of a pytree of arrays, by step: written whole or not at all, and read back exactly.

A thin layer over orbax. It writes into a temporary folder and renames it when everything is there,
so a process killed in between leaves nothing that could be taken for a checkpoint. Checksums of its
files are added then, and compared before anything is read: orbax itself takes a flipped bit of an
array for the array.
"""

import contextlib
import errno
import hashlib
import json
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from icl_jax.records import WorkdirError, atomic_file, unwritable

CHECKSUMS = "checksums.json"


class Checkpoints:
    """The checkpoints in one folder; a context manager, because orbax holds threads.

    Leaves are jax arrays, typed PRNG keys among them (orbax refuses those: their data is stored).
    Ctrl-C waits until a checkpoint is on disk.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Opens ``folder``, made where there is none, and removes what a killed run left halfway.

        Args:
          folder: where the checkpoints are.
          keep: how many of them stay; older ones are deleted.

        Raises:
          WorkdirError: the folder cannot be opened or made.
        """
        self._folder = folder.absolute()  # Orbax refuses relative paths.
        with uninterrupted(), _named(f"the checkpoints in {self._folder} cannot be opened"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers=ocp.StandardCheckpointHandler(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    cleanup_tmp_directories=True,
                    # Small states: waiting is cheaper than a thread, and "saved" means on disk.
                    enable_async_checkpointing=False,
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    @property
    def folder(self) -> Path:
        """The folder, absolute."""
        return self._folder

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Writes ``tree`` as the checkpoint of ``step``, and returns when it is on disk.

        Raises:
          WorkdirError: there is no space left for it, or no permission.
        """
        with uninterrupted():
            try:
                self._manager.save(step, args=ocp.args.StandardSave(_without_keys(tree)))
                if jax.process_index() == 0:
                    sums = json.dumps(self._checksums(step), indent=1).encode()
                    with atomic_file(self._folder / str(step) / CHECKSUMS) as file:
                        file.write(sums)
            except OSError as error:
                raise unwritable(self._folder, error) from error
            except Exception as error:  # What tensorstore makes of the same.
                if "No space left" not in str(error):
                    raise
                full = OSError(errno.ENOSPC, "No space left on device")
                raise unwritable(self._folder, full) from error

    def newest_intact_step(self) -> int | None:
        """The step of the newest checkpoint whose files are what was written; None without any.

        Damaged ones after it are deleted, with a warning: training from it makes them again.

        Raises:
          WorkdirError: all are damaged.
        """
        damages: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            damage = self.damage(step)
            if damage is None:
                for bad in damages:
                    self._manager.delete(bad)
                if damages:
                    listed = "; ".join(f"step {bad}: {why}" for bad, why in damages.items())
                    warnings.warn(
                        f"damaged checkpoints in {self._folder} ({listed}): going on from step "
                        f"{step}.",
                        stacklevel=2,
                    )
                return step
            damages[step] = damage
        if damages:
            listed = "; ".join(f"step {step}: {why}" for step, why in damages.items())
            raise WorkdirError(
                f"every checkpoint in {self._folder} is damaged ({listed}). Put one back, or "
                f"delete the folder {self._folder} to train again from the start."
            )
        return None

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint; None when they are what was written.

        Of a checkpoint without checksums (a process killed between the two) nothing is known to be.
        """
        path = self._folder / str(step) / CHECKSUMS
        if not path.is_file():
            return None
        try:
            expected = json.loads(path.read_text())
            found = self._checksums(step)
            wrong = sorted(name for name in expected if found.get(name) != expected[name])
        except (OSError, ValueError, AttributeError, TypeError):
            return f"{CHECKSUMS} cannot be read"
        return f"{wrong[0]} is not what was written" if wrong else None

    def _checksums(self, step: int) -> dict[str, str]:
        folder = self._folder / str(step)
        sums = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != CHECKSUMS:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                sums[path.relative_to(folder).as_posix()] = digest
        return sums

    def restore(self, step: int, target: Any) -> Any:
        """Reads the checkpoint of ``step``.

        Args:
          step: one that was saved.
          target: a pytree of arrays or ``jax.ShapeDtypeStruct`` with the structure, shapes and
            dtypes that the checkpoint must have; its shardings are the ones that come back.

        Returns:
          The saved pytree, bit for bit.

        Raises:
          WorkdirError: the checkpoint is damaged, or has other leaves, shapes or dtypes; the
            message names them.
        """
        where = f"the checkpoint {self._folder / str(step)}"
        advice = "Delete that folder to go on from the one before"
        if (damage := self.damage(step)) is not None:
            raise WorkdirError(f"{where} is damaged ({damage}). {advice}.")
        stored = jax.eval_shape(_without_keys, target)
        # Asked first, because orbax casts other dtypes without a word.
        with _named(f"{where} cannot be read", advice):
            saved = dict(_describe(self._manager.item_metadata(step).tree))
        expected = dict(_describe(stored))
        differing = [
            f"{name}: {saved.get(name, 'absent')} -> {expected.get(name, 'absent')}"
            for name in {**saved, **expected}
            if saved.get(name) != expected.get(name)
        ]
        if differing:
            raise WorkdirError(
                f"Checkpoints.restore: the checkpoint of step {step} in {self._folder} holds "
                f"another state (saved -> expected: {'; '.join(differing)}). Restore it with the "
                "model, the optimizer and the precision that wrote it, or start in another folder."
            )
        placed = jax.tree.map(_placed_like, stored, target)
        with _named(f"{where} cannot be read", advice):
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(placed))
        return jax.tree.map(_as_key_like, restored, target)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off until the block has ended; other threads than the main one never get it."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    caught: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught:
            previous(*caught[0])


@contextlib.contextmanager
def _named(failure: str, advice: str = "Delete that folder to start again") -> Iterator[None]:
    """Turns what orbax and tensorstore raise on damaged folders into one error."""
    try:
        yield
    except WorkdirError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WorkdirError(f"{failure} ({reason[:200]}). {advice}.") from error


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    """Typed PRNG keys as the numbers that they are."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _placed_like(stored: jax.ShapeDtypeStruct, leaf: Any) -> Any:
    """What orbax is asked for: the leaf itself, which knows its devices, unless it is a key."""
    return jnp.zeros(stored.shape, stored.dtype) if _is_key(leaf) else leaf


def _as_key_like(restored: Any, leaf: Any) -> Any:
    if not _is_key(leaf):
        return restored
    return jax.random.wrap_key_data(restored, impl=jax.random.key_impl(leaf))


def _describe(tree: Any) -> Iterator[tuple[str, str]]:
    """Dotted name and ``dtype[shape]`` of every leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        yield name, f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
