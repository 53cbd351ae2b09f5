"""Assertions for your own tests of kernels, engines and quantized models."""

from tokenloss._evaluation.closeness import assert_close

__all__ = ["assert_close"]
