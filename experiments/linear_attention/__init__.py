"""Stacks of linear attention beside the steps of gradient descent that they may take."""
