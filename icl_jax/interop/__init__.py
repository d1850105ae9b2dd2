"""Weights in other people's formats: Hugging Face checkpoints in, patched checkpoints out.

Reading order: ``table`` (a family of models is a key table over the one Flax transformer),
``options`` (``config.json``, checked), ``dtypes``, ``safetensors`` (files mapped, never
unpickled), ``hub`` (where the files are), ``huggingface`` (load), ``saving`` (save).
Nothing in blocks or patches imports this.
"""
