"""What `tokenloss.evaluate` writes: files with a row for each token or sequence, pages and plots."""

from tokenloss._outputs._base import Output as Sink
from tokenloss._outputs._base import TokenBlock
from tokenloss._outputs.html_page import HtmlPage
from tokenloss._outputs.plot import LossPlot
from tokenloss._outputs.token_table import SequenceTable, TokenTable

__all__ = ["HtmlPage", "LossPlot", "SequenceTable", "Sink", "TokenBlock", "TokenTable"]
