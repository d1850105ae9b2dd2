"""A tiny random checkpoint, its tokenizer and prompts, so that all can be tried offline."""

import json
import pydoc_data.topics
from pathlib import Path

import jax
import numpy as np

from experiments.tools.flags import UsageError
from icl_jax.interop import huggingface
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.records import atomic_file

VOCAB_SIZE = 384


def make_tiny(family: str, folder: Path, seed: int) -> None:
    """Writes the checkpoint of a family into a folder, with ``prompts.jsonl`` beside it."""
    topics = pydoc_data.topics.topics
    texts = [" ".join(topics[name].split()) for name in sorted(topics)]
    try:
        huggingface.make_tiny(family, folder, jax.random.key(seed), vocab_size=VOCAB_SIZE)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    save_tokenizer(folder, train_bpe(texts[:20], VOCAB_SIZE))
    random = np.random.default_rng(seed)
    lines = []
    for text in random.choice([text for text in texts if len(text) > 400], 4, replace=False):
        lines.append({"remove": text[:160], "keep": text[160:200]})
    with atomic_file(folder / "prompts.jsonl") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    print(
        f"A random {family} model is in {folder}. Try it:\n"
        f"  python -m experiments.checkpoint --checkpoint={folder} "
        f"--prompts={folder / 'prompts.jsonl'} --workdir=runs/{family} --generate=20"
    )
