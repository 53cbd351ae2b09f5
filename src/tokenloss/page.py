"""Pages of tokens, in HTML: each token in the colour of its loss, or of the difference between two models."""

from tokenloss._output.page import write_comparison_page, write_page

__all__ = ["write_comparison_page", "write_page"]
