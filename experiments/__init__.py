"""One file per question: ``python -m experiments.NAME --help`` says what it asks and expects."""
