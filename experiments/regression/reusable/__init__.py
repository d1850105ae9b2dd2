"""What a context teaches, kept as weights for queries that were never seen with it."""
