"""Language models: real checkpoints, and small ones of our own."""
