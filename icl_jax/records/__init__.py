"""One folder per run: what was asked for, with which versions, and what came out.

    config.json      the experiment's name and its complete configuration
    provenance.json  versions, device, and what the caller adds (a commit, say)
    *.json           summaries: plain JSON, finite numbers only
    *.npz            arrays: what goes in comes out, dtype included

Metrics are the business of ``training.metrics``. Every file is replaced in one step, so a killed
run leaves whole files only, and a stage whose file is there (``run.has("convergence.npz")``) is a
stage that is done. While a process has a run open, a ``.lock`` keeps other processes out.
"""

from icl_jax.records.errors import WorkdirError, unwritable
from icl_jax.records.files import atomic_file
from icl_jax.records.lock import FolderLock, lock_folder
from icl_jax.records.opening import PROCESS_LOG, open_run
from icl_jax.records.plain import parsed, plain, read_plain
from icl_jax.records.run import Run

__all__ = [
    "PROCESS_LOG",
    "FolderLock",
    "Run",
    "WorkdirError",
    "atomic_file",
    "lock_folder",
    "open_run",
    "parsed",
    "plain",
    "read_plain",
    "unwritable",
]
