"""Pages of tokens, in HTML: each token in the color of its loss, or of the difference between two models."""

from tokenloss._output.divergence_page import write_comparison_page
from tokenloss._output.loss_page import write_page

__all__ = ["write_comparison_page", "write_page"]
