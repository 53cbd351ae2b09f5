"""Scores language-model predictions on a CPU, exactly and at the speed of memory."""

from importlib import import_module

from tokenloss._core.version import __version__ as __version__

# by module, the public names that it has; `__init__.pyi` tells type checkers the same
_NAMES = {
    "_comparison.comparison": ("Comparison", "ComparisonMeter", "compare"),
    "_comparison.comparisons": ("Comparisons",),
    "_comparison.linear_compare": ("linear_compare",),
    "_comparison.responses": ("ResponseComparison",),
    "_comparison.samples": ("SampleComparison", "SampleMetric"),
    "_core.config": ("show_config",),
    "_evaluation.compare_files": ("compare_files",),
    "_evaluation.evaluate": ("evaluate",),
    "_evaluation.results": ("Evaluation", "NormWarning", "ShiftWarning"),
    "_scores.class_log_probs": ("class_log_probs",),
    "_scores.divergence": ("TopkDivergence", "kl_divergence", "topk_divergence_bound"),
    "_scores.linear": ("linear_cross_entropy", "linear_kl_divergence", "linear_token_scores"),
    "_scores.losses": ("cross_entropy", "cross_entropy_and_grad", "cross_entropy_loss", "nll_loss"),
    "_scores.softmax": ("log_softmax", "logsumexp", "softmax"),
    "_scores.token_scores": ("TokenScores", "token_scores"),
    "_statistics.meter": ("LossMeter",),
    "_statistics.sequences": ("SequenceLosses", "next_token", "sequence_losses"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_PUBLIC_MODULES = ("dask", "formats", "page", "plots", "sinks")

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562), so that a script loads what it needs."""
    if name in _PUBLIC_MODULES:
        return import_module(f"tokenloss.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'tokenloss' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"tokenloss.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """All public names, those that were not used yet among them."""
    return sorted({*globals(), *_MODULES, *_PUBLIC_MODULES})
