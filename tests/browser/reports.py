"""Makes a small report of every experiment, and of a sweep, for the browser to look at.

    python -m tests.browser.reports FOLDER [NAME ...]

Each at ``--quick`` or smaller, those of a checkpoint with a tiny random one, two beside each other;
those that need real trained models, and the sweep's, from records that are made up (records.py).
``.ci/run`` does it, and then ``REPORTS=FOLDER python -m pytest -m browser tests/browser``.
"""

import argparse
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.browser import records

ROOT = Path(__file__).parents[2]
#: The folder of the tiny model, which has a tokenizer and prompts.
TINY = "tiny"
SHORT = "--learner.training.num_steps=60"
#: Experiment -> its flags. ``paper`` makes the reports of the experiments that it joins, too.
QUICK: Mapping[str, Sequence[str]] = {
    "paper": ["--quick", "--num_prompts=20", "--learner.training.num_steps=100"],
    "composition": ["--quick", "--num_prompts=8", "--new=4", SHORT],
    "demonstrations": ["--quick", "--num_prompts=6", "--draws=2", SHORT],
    "reusable": ["--quick", "--num_prompts=4", SHORT],
    "garg": ["--quick", "--num_prompts=50", SHORT],
    "von_oswald": ["--quick", "--learner.training.num_steps=100"],
    "depth": ["--quick", "--num_prompts=100", "--learner.training.num_steps=100"],
    "sorting": ["--quick", "--training.num_steps=100"],
    "language_model": ["--quick", "--training.num_steps=30", "--vocab_size=300"],
}
#: Those that are given the tiny model.
OF_TINY: Mapping[str, Sequence[str]] = {
    "checkpoint": [
        "--prompts={tiny}/prompts.jsonl",
        "--max_prompts=2",
        "--generate=4",
        "--export=checkpoint",
    ],
    "prompt_page": ["--text=Ada built the lighthouse in 1871. Who built it? It was built by"],
    "compile": ["--quick", "--context={tiny}/context.txt"],
    "classification": [
        "--quick",
        "--num_prompts=4",
        "--num_search_prompts=2",
        "--num_rates=3",
        "--num_examples=1",
    ],
}

#: Those of which only the report is made.
RECORDED: Mapping[str, Callable[[Path], None]] = {
    "real": records.of_real,
    "kept": records.of_kept,
    "real_composition": records.of_composition,
    "real_demonstrations": records.of_demonstrations,
    "sweep": records.of_sweep,
}
NAMES = (*QUICK, *OF_TINY, *RECORDED)


def commands(folder: Path) -> dict[str, list[str]]:
    """Experiment -> the arguments of ``python -m``, its report going to a folder of its name."""
    tiny = folder / TINY
    of_tiny = {
        name: [f"--checkpoint={tiny}", *(flag.format(tiny=tiny) for flag in flags)]
        for name, flags in OF_TINY.items()
    }
    return {
        name: [f"experiments.{name}", f"--workdir={folder / name}", *flags]
        for name, flags in {**QUICK, **of_tiny}.items()
    }


def environment(compiled: Path) -> dict[str, str]:
    """Compiled in a hurry, as numbers do not matter here, and once for all commands."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
    }


def run(arguments: Sequence[str], env: Mapping[str, str]) -> float:
    """Seconds that a module took.

    Raises:
      RuntimeError: it failed; what it said on standard error is in the message.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return time.monotonic() - began


def main(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Makes those of the names, and says what each took."""
    folder = folder.absolute()
    env = environment(folder / "compiled")
    if set(names) & set(OF_TINY):
        run(["experiments.checkpoint", "--make_tiny=llama", f"--workdir={folder / TINY}"], env)
        (folder / TINY / "context.txt").write_text("Ada built the lighthouse in 1871. " * 3)
    with ThreadPoolExecutor(2) as pool:
        found = {name: one for name, one in commands(folder).items() if name in names}
        for name, seconds in zip(
            found, pool.map(functools.partial(run, env=env), found.values()), strict=True
        ):
            print(f"{name}: {seconds:.0f} s", flush=True)
    for name in RECORDED:
        if name in names:
            RECORDED[name](folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("tests.browser.reports")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"there is no report {min(unknown)!r}. There are {', '.join(NAMES)}.")
    main(asked.folder, asked.names or NAMES)
