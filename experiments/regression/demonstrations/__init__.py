"""Which examples of an in-context regression count, and how much each teaches."""
