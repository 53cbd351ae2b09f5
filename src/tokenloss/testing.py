"""Assertions for people's own tests, of kernels, engines and quantised models."""

from tokenloss._evaluation.closeness import assert_close

__all__ = ["assert_close"]
