"""Families that are not supported, and which supported one is nearest to each, and why not it.

For the error about an unknown architecture: names that look alike need not be relatives.
"""

import re

_STATE = (
    "qwen3_next",
    "its layers read the context through states of another kind than the delta rule's",
)
_MAMBA_1 = (
    "mamba2",
    "its state space is another one: every channel fades by a step and at rates of its own, and "
    "no norm stands in front of the kernel that leads back to the stream",
)
_LATENT = ("qwen2_moe", "its attention goes through latent keys and values")
_ENCODER = ("bert", "its names, positions or embeddings differ")

#: model_type -> the name of the nearest supported family, and what is different.
RELATIVES: dict[str, tuple[str, str]] = {
    "albert": _ENCODER,
    "bamba": _STATE,
    "codegen": (
        "gptj",
        "its queries, keys and values are one tensor, in the parts of four cores",
    ),
    "dbrx": ("mixtral", "it clips queries, keys and values, and its norms are layer norms"),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "distilbert": _ENCODER,
    "electra": _ENCODER,
    "falcon_h1": _STATE,
    "falcon_mamba": _MAMBA_1,
    "gpt_bigcode": ("gpt2", "all heads share one key and value"),
    "granitemoe": ("granite", "its layers have experts"),
    "granitemoehybrid": _STATE,
    "jamba": _STATE,
    "mamba": _MAMBA_1,
    "mpt": ("bloom", "its norms have no biases, and its queries, keys and values lie otherwise"),
    "nemotron_h": _STATE,
    "openai-gpt": ("gpt2", "its norms come after the skips"),
    "phimoe": ("mixtral", "its router chooses otherwise, and its norms are layer norms"),
    "roberta": _ENCODER,
    "rwkv": _STATE,
    "xlm-roberta": _ENCODER,
    "zamba": _STATE,
    "zamba2": _STATE,
}


def relative_of(name: str) -> tuple[str, str] | None:
    """The nearest family of a model_type or architecture, and the difference; None: not known."""
    stem = re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", "", name)
    known = {_plain(kind): relative for kind, relative in RELATIVES.items()}
    return known.get(_plain(stem))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
