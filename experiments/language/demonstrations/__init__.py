"""Which demonstrations of a prompt a real model needs, and what they add to its weights."""
