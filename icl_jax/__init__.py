"""icl_jax: how a prompt becomes weights."""
