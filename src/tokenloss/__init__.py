"""Scores language-model predictions on a CPU, exactly and at the speed of memory."""

from tokenloss._config import choose_backend, show_config
from tokenloss.losses import cross_entropy, cross_entropy_loss, nll_loss
from tokenloss.meter import LossMeter
from tokenloss.softmax import logsumexp

__version__ = "0.1.0.dev0"

__all__ = [
    "LossMeter",
    "cross_entropy",
    "cross_entropy_loss",
    "logsumexp",
    "nll_loss",
    "show_config",
]

choose_backend()
del choose_backend
