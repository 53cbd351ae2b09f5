"""Samples of lm-evaluation-harness: what `--log_samples` writes, a line of JSON for each document."""

from __future__ import annotations


def is_samples(path: str) -> bool:
    """Whether a file of JSON holds samples, by the keys of its first record."""
    raise NotImplementedError
