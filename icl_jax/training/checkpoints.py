"""Checkpoints of a pytree of arrays, by step: written whole or not at all, and read back exactly.

A thin layer over orbax. It writes into a temporary folder and renames it when everything is there,
so a process killed in between leaves nothing that could be taken for a checkpoint.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from icl_jax.records import WorkdirError


class Checkpoints:
    """The checkpoints in one folder; a context manager, because orbax holds threads.

    Leaves are jax arrays. Orbax refuses typed PRNG keys: store ``jax.random.key_data(key)``, or a
    step from which ``fold_in`` makes the key again.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Opens ``folder``, made where there is none, and removes what a killed run left halfway.

        Args:
          folder: where the checkpoints are.
          keep: how many of them stay; older ones are deleted.
        """
        self._folder = folder.absolute()  # Orbax refuses relative paths.
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
        """Writes ``tree`` as the checkpoint of ``step``, and returns when it is on disk."""
        self._manager.save(step, args=ocp.args.StandardSave(tree))

    def restore(self, step: int, target: Any) -> Any:
        """Reads the checkpoint of ``step``.

        Args:
          step: one that was saved.
          target: a pytree of arrays or ``jax.ShapeDtypeStruct`` with the structure, shapes and
            dtypes that the checkpoint must have; its shardings are the ones that come back.

        Returns:
          The saved pytree, bit for bit.

        Raises:
          WorkdirError: the checkpoint has other leaves, shapes or dtypes; the message names them.
        """
        # Asked first, because orbax casts other dtypes without a word.
        saved = dict(_describe(self._manager.item_metadata(step).tree))
        expected = dict(_describe(target))
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
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))


def _describe(tree: Any) -> Iterator[tuple[str, str]]:
    """Dotted name and ``dtype[shape]`` of every leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        yield name, f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
