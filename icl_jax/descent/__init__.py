"""What learning from the same examples by other means gives: the yardsticks of a context's update.

``closed_form`` holds the oracles: predictors that need no iteration.
"""
