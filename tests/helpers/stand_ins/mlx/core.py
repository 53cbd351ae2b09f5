"""Arrays of MLX, as far as they are used."""

import numpy as np

float32 = np.float32


class array:  # noqa: N801 -- the name of the class
    """An array, which NumPy reads by the buffer protocol, here by its like."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def astype(self, dtype):
        return array(self.values.astype(dtype))

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)
