"""What a statistician predicts from the same examples, in closed form: no descent, no context."""
