"""A compiled context as peft and transformers run it, in a process without icl_jax."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("torch", exc_type=ImportError)
pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("peft", exc_type=ImportError)

from icl_jax.interop.huggingface import make_tiny  # noqa: E402
from icl_jax.interop.peft import save_static_adapter  # noqa: E402
from icl_jax.interop.saving import save  # noqa: E402
from icl_jax.language.compile import (  # noqa: E402
    compile_context,
    static_logits,
    static_weights,
)
from icl_jax.language.prompt import full_logits  # noqa: E402
from icl_jax.patches.fit import Fit  # noqa: E402
from tests.helpers import relative_error  # noqa: E402

RNG = np.random.default_rng(8)
CONTEXT = RNG.integers(3, 96, 14)
QUERIES = [RNG.integers(3, 96, 5) for _ in range(6)]
TOKENS = RNG.integers(3, 96, 9).astype(np.int64)

#: Nothing of ours is imported here; the checkout is not even on the path.
THEIRS = """
import sys
import numpy as np, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, tokens, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(
    base, dtype=torch.float32, attn_implementation="eager"
)
if adapter != "none":
    model = PeftModel.from_pretrained(model, adapter)
with torch.no_grad():
    logits = model.eval()(torch.as_tensor(np.load(tokens)[None])).logits[0]
np.save(out, logits.double().numpy())
assert not [name for name in sys.modules if name.split(".")[0] in ("icl_jax", "jax")]
"""


def theirs(tmp_path, base, adapter="none"):
    np.save(tmp_path / "tokens.npy", TOKENS)
    out = tmp_path / "logits.npy"
    command = [sys.executable, "-c", THEIRS, base, adapter, tmp_path / "tokens.npy", out]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path, env=environment, timeout=300)
    return np.load(out)


@pytest.mark.wide(6)
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma3", "falcon", "granite"])
def test_an_adapter_and_a_checkpoint_give_our_patched_logits(family, tmp_path):
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    run = (checkpoint.model, checkpoint.params)
    patches = compile_context(*run, CONTEXT, QUERIES, bos=2, fit=Fit(rank=4), weight=1e-2)
    read = np.arange(len(TOKENS))
    want = static_logits(*run, TOKENS, read, patches)
    assert relative_error(full_logits(*run, TOKENS, read), want) > 1e-2  # The patches do something.
    save_static_adapter(tmp_path / "adapter", checkpoint, patches)
    got = theirs(tmp_path, tmp_path / "tiny", tmp_path / "adapter")
    assert relative_error(got, want) < 1e-4
    merged = static_weights(*run, patches)
    save(tmp_path / "merged", checkpoint.model, merged, checkpoint.config)
    assert relative_error(theirs(tmp_path, tmp_path / "merged"), want) < 1e-4
