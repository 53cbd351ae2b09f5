"""What `tokenloss.evaluate` and `tokenloss.compare_files` write: files of tokens or sequences, pages and plots."""

from tokenloss._evaluation.sink import Candidate, ComparedBlock, Sink, TokenBlock
from tokenloss._output.html_page import DivergencePage, HtmlPage
from tokenloss._output.plot_files import DivergencePlot, LossPlot
from tokenloss._output.token_table import ComparedTokenTable, SequenceTable, TokenTable

__all__ = [
    "Candidate", "ComparedBlock", "ComparedTokenTable", "DivergencePage", "DivergencePlot", "HtmlPage", "LossPlot",
    "SequenceTable", "Sink", "TokenBlock", "TokenTable",
]  # fmt: skip
