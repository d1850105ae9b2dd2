"""One question per file: both sides in one process, a ratio, and a JSON record of it."""
