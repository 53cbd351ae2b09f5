"""The outputs of the command. Another one needs a file here and a line in a table below."""

from __future__ import annotations

from tokenloss._evaluation.sink import Sink
from tokenloss._output.html_page import DivergencePage, HtmlPage
from tokenloss._output.json_object import JsonObject
from tokenloss._output.plot_files import DivergencePlot, LossPlot
from tokenloss._output.sample_tables import SampleTables
from tokenloss._output.terminal import ComparisonTables, ResponseTables, SummaryTables
from tokenloss._output.token_table import ComparedTokenTable, SequenceTable, TokenTable

# in the order in which they are written; the last one only if no other prints
SCORE_OUTPUTS: tuple[type[Sink], ...] = (TokenTable, SequenceTable, LossPlot, HtmlPage, JsonObject, SummaryTables)
COMPARE_OUTPUTS: tuple[type[Sink], ...] = (
    ComparedTokenTable, DivergencePlot, DivergencePage, JsonObject, ComparisonTables,
)  # fmt: skip
SAMPLE_OUTPUTS: tuple[type[Sink], ...] = (JsonObject, SampleTables)
RESPONSE_OUTPUTS: tuple[type[Sink], ...] = (JsonObject, ResponseTables)
