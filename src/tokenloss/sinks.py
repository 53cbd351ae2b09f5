"""Outputs of `evaluate` and the comparisons of files: tables of tokens or sequences, pages and plots."""

from tokenloss._output import *  # noqa: F403 -- its `__all__` lists them, so that a new sink needs no line here
from tokenloss._output import __all__ as __all__
