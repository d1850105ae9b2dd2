"""The functions that take a prompt, by name."""

import numpy as np

from icl_jax.language.activations import attend
from icl_jax.language.attribution import attribute
from icl_jax.language.generation import generate, patched_generate
from icl_jax.language.observed import observe, observed_generate
from icl_jax.language.prefixes import prefix_logits
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.weights import prompt_weights
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 12).astype(np.int32)
MODEL, PARAMS = MODELS["rotary"], params_of("rotary")
RUN = (MODEL, PARAMS)


def patched(model, params, tokens, kept):
    bank = prompt_patches(MODEL, PARAMS, TOKENS, [2, 11])
    return patched_logits(model, params, tokens, bank)


WRITING = {
    "generate": generate,
    "patched_generate": patched_generate,
    "observed_generate": observed_generate,
}

#: By name: a function of model, parameters, tokens and kept positions.
KEEPING = {
    "full_logits": full_logits,
    "alone_logits": alone_logits,
    "prefix_logits": prefix_logits,
    "prompt_patches": prompt_patches,
    "prompt_weights": prompt_weights,
    "attribute": attribute,
    "patched_generate": lambda *run: patched_generate(*run, 3),
}
#: What a function calls them, where it does not call them kept.
CALLED = {"prefix_logits": "after"}
READING = {
    **KEEPING,
    "patched_logits": patched,
    "generate": lambda model, params, tokens, _: generate(model, params, tokens, 3),
    "observed_generate": lambda model, params, tokens, _: observed_generate(
        model, params, tokens, 3
    ),
    "observe": lambda model, params, tokens, _: observe(model, params, tokens),
    "attend": lambda model, params, tokens, _: attend(model, params, tokens, 2),
}
