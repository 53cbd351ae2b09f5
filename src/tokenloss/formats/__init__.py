"""Openers for each kind of content, which return sources; no reader loads a whole file."""

from tokenloss._core._core import KINDS
from tokenloss.formats.logprobs import Logprobs, open_logprobs
from tokenloss.formats.responses import Response, Responses, open_responses
from tokenloss.formats.samples import Samples, open_samples
from tokenloss.formats.scores import Scores, open_hidden_states, open_scores
from tokenloss.formats.scores_file import ScoresFile
from tokenloss.formats.sketch import Sketch, open_sketch, write_sketch
from tokenloss.formats.sources import Blocks, Source, blocks

__all__ = [
    "KINDS",
    "Blocks",
    "Logprobs",
    "Response",
    "Responses",
    "Samples",
    "Scores",
    "ScoresFile",
    "Sketch",
    "Source",
    "blocks",
    "open_hidden_states",
    "open_logprobs",
    "open_responses",
    "open_samples",
    "open_scores",
    "open_sketch",
    "write_sketch",
]
