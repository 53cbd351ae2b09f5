"""The outputs of the command. Another one needs a file here and a line in a table below."""

from __future__ import annotations

from tokenloss._evaluation.sink import Output
from tokenloss._outputs.html_page import DivergencePage, HtmlPage
from tokenloss._outputs.json_object import JsonObject
from tokenloss._outputs.plot import DivergencePlot, LossPlot
from tokenloss._outputs.sample_tables import SampleTables
from tokenloss._outputs.terminal import ComparisonTables, ResponseTables, SummaryTables
from tokenloss._outputs.token_table import ComparedTokenTable, SequenceTable, TokenTable

# in the order in which they are written; the last one only if no other prints
SCORE_OUTPUTS: tuple[type[Output], ...] = (TokenTable, SequenceTable, LossPlot, HtmlPage, JsonObject, SummaryTables)
COMPARE_OUTPUTS: tuple[type[Output], ...] = (
    ComparedTokenTable, DivergencePlot, DivergencePage, JsonObject, ComparisonTables,
)  # fmt: skip
SAMPLE_OUTPUTS: tuple[type[Output], ...] = (JsonObject, SampleTables)
RESPONSE_OUTPUTS: tuple[type[Output], ...] = (JsonObject, ResponseTables)
