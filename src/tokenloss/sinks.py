"""What `tokenloss.evaluate` and `tokenloss.compare_files` write: files of tokens or sequences, pages and plots."""

from tokenloss._evaluation.sink import Candidate, ComparedBlock, TokenBlock
from tokenloss._evaluation.sink import Output as Sink
from tokenloss._outputs.html_page import DivergencePage, HtmlPage
from tokenloss._outputs.plot import DivergencePlot, LossPlot
from tokenloss._outputs.token_table import ComparedTokenTable, SequenceTable, TokenTable

__all__ = [
    "Candidate", "ComparedBlock", "ComparedTokenTable", "DivergencePage", "DivergencePlot", "HtmlPage", "LossPlot",
    "SequenceTable", "Sink", "TokenBlock", "TokenTable",
]  # fmt: skip
