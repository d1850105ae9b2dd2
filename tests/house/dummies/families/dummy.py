"""Mistral under another name: what the recipe of a family asks of its file."""

from icl_jax.interop.families import mistral

ARCHITECTURES = ("DummyForCausalLM", "dummy")
build, table = mistral.build, mistral.table


def tiny():
    """config.json of a tiny model."""
    return {**mistral.tiny(), "architectures": ["DummyForCausalLM"], "model_type": "dummy"}
