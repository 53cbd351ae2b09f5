"""Files of scores and of responses: one small reader for each format. No reader loads a whole file."""

from tokenloss._core._core import KINDS
from tokenloss.formats.hidden_states import open_hidden_states
from tokenloss.formats.readers import open_scores
from tokenloss.formats.responses import Response, ResponsesFile, open_responses
from tokenloss.formats.scores_file import ScoresFile

__all__ = [
    "KINDS",
    "Response",
    "ResponsesFile",
    "ScoresFile",
    "open_hidden_states",
    "open_responses",
    "open_scores",
]
