"""Training an in-context learner: fresh prompts every step, killed at any moment, resumed exactly.

Reading order: ``loop`` (the step, and the calls that the host makes), ``config`` (an optimizer by
names and numbers), then what the loop leans on: ``checkpoints``, ``metrics`` and ``progress``.
"""
