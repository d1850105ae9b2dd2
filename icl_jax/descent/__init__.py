"""What gradient descent on the same examples gives: the yardstick of a context's update."""
