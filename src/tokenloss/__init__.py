"""Scores language-model predictions on a CPU, exactly and at the speed of memory."""

from tokenloss._class_log_probs import class_log_probs
from tokenloss._core.config import show_config
from tokenloss._core.version import __version__ as __version__
from tokenloss._evaluation.compare_responses import compare_responses
from tokenloss._evaluation.compare_samples import compare_samples
from tokenloss._evaluation.results import Evaluation, NormWarning, ShiftWarning
from tokenloss._linear_compare import linear_compare
from tokenloss._softmax import log_softmax, logsumexp, softmax
from tokenloss.comparison import Comparison, ComparisonMeter, compare
from tokenloss.divergence import TopkDivergence, kl_divergence, topk_divergence_bound
from tokenloss.evaluation import evaluate
from tokenloss.file_comparison import compare_files
from tokenloss.linear import linear_cross_entropy, linear_kl_divergence, linear_token_scores
from tokenloss.losses import cross_entropy, cross_entropy_and_grad, cross_entropy_loss, nll_loss
from tokenloss.meter import LossMeter
from tokenloss.responses import ResponseComparison
from tokenloss.samples import SampleComparison, SampleMetric
from tokenloss.scores import TokenScores, token_scores
from tokenloss.sequences import SequenceLosses, next_token, sequence_losses

__all__ = [
    "Comparison",
    "ComparisonMeter",
    "Evaluation",
    "LossMeter",
    "NormWarning",
    "ResponseComparison",
    "SampleComparison",
    "SampleMetric",
    "SequenceLosses",
    "ShiftWarning",
    "TokenScores",
    "TopkDivergence",
    "class_log_probs",
    "compare",
    "compare_files",
    "compare_responses",
    "compare_samples",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_loss",
    "evaluate",
    "kl_divergence",
    "linear_compare",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "linear_token_scores",
    "log_softmax",
    "logsumexp",
    "next_token",
    "nll_loss",
    "sequence_losses",
    "show_config",
    "softmax",
    "token_scores",
    "topk_divergence_bound",
]
