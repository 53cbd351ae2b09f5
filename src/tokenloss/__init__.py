"""Scores language-model predictions on a CPU, exactly and at the speed of memory.

Losses, as a mean, a sum, or of each token
    cross_entropy_loss      from probabilities, as scikit-learn's log_loss
    nll_loss                from log-probabilities
    cross_entropy           from logits, as torch.nn.functional.cross_entropy
    cross_entropy_and_grad  from logits, with the gradient
    linear_cross_entropy    from hidden states and their projection onto the vocabulary

Every token
    token_scores            loss, entropy, rank and most likely classes
    linear_token_scores     the same from hidden states
    class_log_probs         log-probabilities of given classes
    next_token              aligns a causal model's logits with the ids that they predict
    windows                 cuts a text that is longer than a context, and scores each token once

Arrays
    softmax                 probabilities from logits
    log_softmax             log-probabilities from logits
    logsumexp               logarithm of the sum of exponentials

Sums with errors
    LossMeter               mean loss and perplexity over any number of batches, with their errors
    sequence_losses         loss of each document, answer or text
    calibration             whether predicted probabilities match outcomes, and the temperature that fits best

Two models on the same tokens
    compare                 perplexities, KL divergence and changes of probability, with their errors
    ComparisonMeter         the same, block by block, of any number of candidates
    draft_acceptance        what a target model accepts of a draft's tokens, and the speed-up
    kl_divergence           only the divergence, or also others, such as total variation
    linear_compare          compare, from hidden states
    linear_kl_divergence    kl_divergence, from hidden states
    mismatch                a trainer's log-probabilities compared with its sampling engine's
    topk_divergence_bound   a lower bound on the divergence, from lists of the most likely classes

Bytes of tokens, and two models with different tokens
    token_bytes             how many bytes each id of a tokenizer writes, for bits per byte
    compare_texts           bits per byte of two models on the same text, and where in it they differ

Files and engines, as the commands `tokenloss score` and `tokenloss compare`
    evaluate                scores files, servers' responses, or blocks that an engine yields
    compare_files           compares models by their files of scores, responses or log-probabilities
    compare_samples         compares models by the samples that lm-evaluation-harness logged

Settings and warnings
    show_config             instruction set and number of threads
    ShiftWarning            targets seem to need a shift by one token
    NormWarning             hidden states seem to lack the final norm
    KindWarning             logits seem to be probabilities

Modules
    tokenloss.results       types of what these return, which all have summary(), to_dict() and columns()
    tokenloss.sinks         files that evaluate and compare_files write
    tokenloss.formats       openers: what files contain, as values
    tokenloss.page          pages of tokens, in HTML
    tokenloss.plots         plots, by matplotlib
    tokenloss.testing       assert_close, for tests of kernels and of quantized models
    tokenloss.dask          the same of Dask arrays, and on clusters

help(tokenloss.cross_entropy) shows a function's options, errors and examples.
"""

from importlib import import_module as _import_module

from tokenloss._core.version import __version__ as __version__

# by module, the public names that it has; `__init__.pyi` tells type checkers the same
_NAMES = {
    "_comparison.comparison": ("compare",),
    "_comparison.comparison_meter": ("ComparisonMeter",),
    "_comparison.drafts": ("draft_acceptance",),
    "_comparison.linear_compare": ("linear_compare",),
    "_comparison.mismatch": ("mismatch",),
    "_core.config": ("show_config",),
    "_core.errors": ("KindWarning", "NormWarning", "ShiftWarning"),
    "_evaluation.compare_files": ("compare_files",),
    "_evaluation.compare_samples": ("compare_samples",),
    "_evaluation.compare_texts": ("compare_texts",),
    "_evaluation.evaluate": ("evaluate",),
    "_scores.class_log_probs": ("class_log_probs",),
    "_scores.divergence": ("kl_divergence", "topk_divergence_bound"),
    "_scores.linear": ("linear_cross_entropy", "linear_kl_divergence", "linear_token_scores"),
    "_scores.losses": ("cross_entropy", "cross_entropy_and_grad", "cross_entropy_loss", "nll_loss"),
    "_scores.softmax": ("log_softmax", "logsumexp", "softmax"),
    "_scores.token_scores": ("token_scores",),
    "_statistics.calibration": ("calibration",),
    "_statistics.meter": ("LossMeter",),
    "_statistics.sequences": ("next_token", "sequence_losses"),
    "_statistics.windows": ("windows",),
    "formats.tokenizers.reader": ("token_bytes",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_PUBLIC_MODULES = ("dask", "formats", "page", "plots", "results", "sinks", "testing")

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562), so that a script loads what it needs."""
    if name in _PUBLIC_MODULES:
        try:
            return _import_module(f"tokenloss.{name}")
        except ImportError as error:  # without Dask: help() and others that look at all names must go on
            raise AttributeError(error) from error
    if name not in _MODULES:
        raise AttributeError(f"module 'tokenloss' has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"tokenloss.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """All public names, including those not used yet, without the modules of the implementation."""
    special = (name for name in globals() if name.startswith("__"))
    return sorted({*special, *_MODULES, *_PUBLIC_MODULES})
