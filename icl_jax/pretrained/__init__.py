"""Text in, text out: a checkpoint with its tokenizer as one object, a thin shell over ``language``.

prompts.py (text and what of it goes -> tokens and kept positions) -> pretrained.py (the verbs)
-> results.py (what they give, as text and as arrays); export.py
"""
