from tokenloss import formats as formats
from tokenloss import page as page
from tokenloss import plots as plots
from tokenloss import results as results
from tokenloss import sinks as sinks
from tokenloss import testing as testing
from tokenloss._comparison.comparison import compare as compare
from tokenloss._comparison.comparison_meter import ComparisonMeter as ComparisonMeter
from tokenloss._comparison.drafts import draft_acceptance as draft_acceptance
from tokenloss._comparison.linear_compare import linear_compare as linear_compare
from tokenloss._comparison.mismatch import mismatch as mismatch
from tokenloss._core.config import show_config as show_config
from tokenloss._core.errors import KindWarning as KindWarning
from tokenloss._core.errors import NormWarning as NormWarning
from tokenloss._core.errors import ShiftWarning as ShiftWarning
from tokenloss._core.version import __version__ as __version__
from tokenloss._evaluation.compare_files import compare_files as compare_files
from tokenloss._evaluation.compare_samples import compare_samples as compare_samples
from tokenloss._evaluation.compare_texts import compare_texts as compare_texts
from tokenloss._evaluation.evaluate import evaluate as evaluate
from tokenloss._scores.class_log_probs import class_log_probs as class_log_probs
from tokenloss._scores.divergence import kl_divergence as kl_divergence
from tokenloss._scores.divergence import topk_divergence_bound as topk_divergence_bound
from tokenloss._scores.linear import linear_cross_entropy as linear_cross_entropy
from tokenloss._scores.linear import linear_kl_divergence as linear_kl_divergence
from tokenloss._scores.linear import linear_token_scores as linear_token_scores
from tokenloss._scores.losses import cross_entropy as cross_entropy
from tokenloss._scores.losses import cross_entropy_and_grad as cross_entropy_and_grad
from tokenloss._scores.losses import cross_entropy_loss as cross_entropy_loss
from tokenloss._scores.losses import nll_loss as nll_loss
from tokenloss._scores.softmax import log_softmax as log_softmax
from tokenloss._scores.softmax import logsumexp as logsumexp
from tokenloss._scores.softmax import softmax as softmax
from tokenloss._scores.token_scores import token_scores as token_scores
from tokenloss._statistics.calibration import calibration as calibration
from tokenloss._statistics.meter import LossMeter as LossMeter
from tokenloss._statistics.sequences import next_token as next_token
from tokenloss._statistics.sequences import sequence_losses as sequence_losses
from tokenloss._statistics.windows import windows as windows
from tokenloss.formats.tokenizers.reader import token_bytes as token_bytes

__all__ = [
    "ComparisonMeter",
    "KindWarning",
    "LossMeter",
    "NormWarning",
    "ShiftWarning",
    "calibration",
    "class_log_probs",
    "compare",
    "compare_files",
    "compare_samples",
    "compare_texts",
    "cross_entropy",
    "cross_entropy_and_grad",
    "cross_entropy_loss",
    "draft_acceptance",
    "evaluate",
    "kl_divergence",
    "linear_compare",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "linear_token_scores",
    "log_softmax",
    "logsumexp",
    "mismatch",
    "next_token",
    "nll_loss",
    "sequence_losses",
    "show_config",
    "softmax",
    "token_bytes",
    "token_scores",
    "topk_divergence_bound",
    "windows",
]
