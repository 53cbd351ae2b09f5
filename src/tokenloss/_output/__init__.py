"""The outputs of the commands. To add one, write its sink in a file here and a line in a table below.

The command line takes its option and help from the class. `tokenloss.sinks` has what `__all__` lists: sinks that write
files, and their interface.
"""

from __future__ import annotations

from tokenloss._evaluation.sink import ComparedBlock, Sink, TokenBlock
from tokenloss._output.divergence_page import DivergencePage
from tokenloss._output.divergence_plot import DivergencePlot
from tokenloss._output.loss_page import HtmlPage
from tokenloss._output.loss_plot import LossPlot
from tokenloss._output.span_outputs import DocumentTable, SpanPage, SpanTable
from tokenloss._output.table_files import ComparedSequenceTable, ComparedTokenTable, SequenceTable, TokenTable

__all__ = [
    "ComparedBlock", "ComparedSequenceTable", "ComparedTokenTable", "DivergencePage", "DivergencePlot", "DocumentTable",
    "HtmlPage", "LossPlot", "SequenceTable", "Sink", "SpanPage", "SpanTable", "TokenBlock", "TokenTable",
]  # fmt: skip

# outputs are written in this order
SCORE_OUTPUTS: tuple[type[Sink], ...] = (TokenTable, SequenceTable, LossPlot, HtmlPage)
COMPARE_OUTPUTS: tuple[type[Sink], ...] = (
    ComparedTokenTable, ComparedSequenceTable, DivergencePlot, DivergencePage,
)  # fmt: skip
TEXT_OUTPUTS: tuple[type[Sink], ...] = (
    SpanTable,
    DocumentTable,
    SpanPage,
)  # of `compare --text`, by options of those above
