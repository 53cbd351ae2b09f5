"""The outputs of the commands. To add one, write its sink in a file here and a line in a table below.

The command line takes its option and help from the class. `tokenloss.sinks` has what `__all__` lists: sinks that write
files, and their interface.
"""

from __future__ import annotations

from tokenloss._evaluation.sink import Block, Column, Schema, Sink
from tokenloss._output.divergence_page import DivergencePage
from tokenloss._output.divergence_plot import DivergencePlot
from tokenloss._output.loss_page import HtmlPage
from tokenloss._output.loss_plot import LossPlot
from tokenloss._output.span_page import SpanPage
from tokenloss._output.table_files import SequenceTable, TokenTable

__all__ = [
    "Block", "Column", "DivergencePage", "DivergencePlot", "HtmlPage", "LossPlot", "Schema", "SequenceTable", "Sink",
    "SpanPage", "TokenTable",
]  # fmt: skip

# outputs are written in this order
SCORE_OUTPUTS: tuple[type[Sink], ...] = (TokenTable, SequenceTable, LossPlot, HtmlPage)
COMPARE_OUTPUTS: tuple[type[Sink], ...] = (TokenTable, SequenceTable, DivergencePlot, DivergencePage)
TEXT_OUTPUTS: tuple[type[Sink], ...] = (TokenTable, SequenceTable, SpanPage)  # of `compare --text`
