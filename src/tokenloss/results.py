"""The types of results, for annotations and isinstance: what the functions and meters of the package return."""

from tokenloss._comparison.comparison import Comparison
from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.drafts import DraftAcceptance
from tokenloss._comparison.mismatch import Mismatch
from tokenloss._comparison.responses import ResponseComparison
from tokenloss._comparison.samples import SampleComparison, SampleMetric
from tokenloss._comparison.text_comparison import BytesRate, TextComparison, TextSpan
from tokenloss._core.estimate import Estimate
from tokenloss._evaluation.results import Evaluation, Evaluations
from tokenloss._scores.divergence import Divergences, TopkDivergence
from tokenloss._scores.token_scores import TokenScores
from tokenloss._statistics.gates import Verdict, Verdicts
from tokenloss._statistics.reliability import Calibration
from tokenloss._statistics.sequences import SequenceLosses

__all__ = [
    "BytesRate", "Calibration", "Comparison", "Comparisons", "Divergences", "DraftAcceptance", "Estimate", "Evaluation",
    "Evaluations", "Mismatch", "ResponseComparison", "SampleComparison", "SampleMetric", "SequenceLosses",
    "TextComparison", "TextSpan", "TokenScores", "TopkDivergence", "Verdict", "Verdicts",
]  # fmt: skip
