"""The numbers of one prompt by name."""

import numpy as np

Arrays = dict[str, np.ndarray]
