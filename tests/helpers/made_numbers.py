"""Numbers that are made of integers alone: the same on every machine."""

import numpy as np


def numbers(count, seed):
    """Sums of four uniform numbers, made of integers alone, between -16 and 16."""
    word = np.arange(seed, seed + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return sum(((word >> np.uint64(16 * k)) & np.uint64(0xFFFF)).astype(np.float64) / 8192 - 4 for k in range(4))
