"""Language models with and without their context: patches of a prompt, and patched generation.

    tokens, kept positions -> prompt.py (patches, logits of both runs) -> generation.py
    tokens, names of activations -> observed.py (read, edited, replaced; while text is written, too)

A context-free run keeps some tokens of a prompt, with their position ids, and never reads the
others; a bank of patches, one per kept position and layer, gives it the logits of the whole prompt.
"""
