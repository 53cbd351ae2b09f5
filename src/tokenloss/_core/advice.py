"""Advice: messages about mistakes that metrics hint at, and the gates whose metrics a mistake makes meaningless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.errors import KindWarning, NormWarning, ShiftWarning, named
from tokenloss._core.text import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ZERO_ADVICE = (
    "a probability of 0 for a target makes its loss and the perplexity infinite; raise such probabilities first, "
    "in both models, for example with np.clip(p, 1e-12, 1), as cross_entropy_loss and tokenloss score do"
)
_SHIFT_ADVICE = "the targets fit far better one row earlier: they seem to be the input ids of a causal model"
_NO_SHIFT_ADVICE = "the targets fit far better without the shift: they seem to be the next tokens already"
_NORM_ADVICE = "the hidden states seem to lack the model's final norm, judging by their size; store them after it"
_KIND_ADVICE = "scores look like probabilities, but are read as logits"
_REPEAT_ADVICE = (
    "two files have the same targets, but are treated as parts of one text; if they belong to two models, name them, "
    "as in A=a.npz B=b.npz, or evaluate them one by one"
)
_PADDING_ADVICE = "as padding does: store attention_mask, or set their targets to the value of"
_CERTAIN_ADVICE = (
    "every token has a probability of exactly 1: such log-probabilities are computed at temperature 0, and say nothing "
    "about the model"
)
_MIN_CERTAIN = 5  # tokens; fewer may all be certain by chance

# prefixes of the names of gates: those on metrics that need the right targets, and all
_OF_TARGETS = "max_perplexity", "max_loss", "min_greedy_accuracy", "max_abs_logprob", "max_ece"
_OF_ALL = "max_", "min_"


class Advice(NamedTuple):
    """A message about a mistake, the category of its warning, and the prefixes of the names of gates that it voids."""

    message: str
    category: type[Warning] = UserWarning
    voids: tuple[str, ...] = ()


def not_finite_notes(facts: dict[str, Any], count: int, quantity: str) -> Iterator[str]:
    """Messages about tokens whose loss or divergence is nan or infinite."""
    for name, words in ("n_nan", f"a {quantity} of nan"), ("n_infinite", f"an infinite {quantity}"):
        if number := facts.get(name):
            yield f"{number:,} of {count_of(count, 'token')} {'has' if number == 1 else 'have'} {words}"


def white_space_notes(count: int, n_bytes: int) -> Iterator[str]:
    """A message about the number of bytes of white space that are in no token, if it is not 0."""
    if count:
        yield (
            f"{count:,} of {count_of(n_bytes, 'byte')} are white space in no token: the model does not have to predict "
            "it, so bits per byte are too low to compare with a model that does"
        )


def advice(facts: dict[str, Any]) -> Iterator[Advice]:
    """Advice about the mistakes that metrics hint at."""
    if facts.get("fits_better_shifted"):
        ways = f"shift them ({named('shift', True)}), or confirm that they are right ({named('shift', False)})"
        yield Advice(f"{_SHIFT_ADVICE}; {ways}", ShiftWarning, _OF_TARGETS)
    if facts.get("fits_better_unshifted"):
        yield Advice(f"{_NO_SHIFT_ADVICE}; leave out {named('shift', True)}", ShiftWarning, _OF_TARGETS)
    if facts.get("norm_seems_missing"):
        yield Advice(_NORM_ADVICE, NormWarning, _OF_ALL)
    if facts.get("seems_probs"):
        way = f"give {named('kind')} and {named('base_kind')} to say what they are"
        yield Advice(f"{_KIND_ADVICE}; {way}", KindWarning, _OF_ALL)
    if facts.get("targets_repeat"):
        yield Advice(_REPEAT_ADVICE, voids=_OF_ALL)
    if padding := facts.get("padding"):
        place = f"{padding['file']}: " if padding["file"] else ""
        words = f"{padding['count']:,} of {count_of(facts['count'], 'scored token')}"
        words = f"{place}{words} repeat the special token {padding['token']} before them, {_PADDING_ADVICE}"
        yield Advice(f"{words} {named('ignore_index')}", voids=_OF_ALL)
    yield from map(Advice, white_space_notes(facts.get("n_bytes_without_token", 0), facts.get("n_bytes", 0)))
    if facts.get("has_zero"):
        yield Advice(ZERO_ADVICE)
    yield from map(Advice, facts.get("notes", ()))
    if facts.get("loss") == 0 and facts["count"] >= _MIN_CERTAIN:
        yield Advice(_CERTAIN_ADVICE, voids=_OF_ALL)


def void_of(facts: dict[str, Any], gate: str) -> str:
    """The reason why the metric of a gate is meaningless; "" if it is not."""
    reasons = [one.message for one in advice(facts) if gate.startswith(one.voids)]
    if (number := facts.get("n_sentinels", 0)) and gate.startswith(_OF_TARGETS):
        reasons.append(f"it leaves out {count_of(number, 'token')} with a sentinel in place of minus infinity")
    return "; ".join(reasons)
