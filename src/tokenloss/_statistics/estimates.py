"""Estimates: standard errors, and intervals of any confidence, from independent tokens or sequences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from tokenloss._core.estimate import Estimate
from tokenloss._core.exact import exp
from tokenloss._statistics.distributions import TAIL, binomial_interval, student_quantile
from tokenloss._statistics.ratio import interval_above_0

if TYPE_CHECKING:
    from tokenloss._statistics.ratio import ExactRatio

# a union of single values, which stubtest recognizes
Method: TypeAlias = Literal["mean"] | Literal["signed"] | Literal["exp"] | Literal["exp signed"] | Literal["share"]
_WORST = 0.5  # the fraction of the tokens of an unseen kind of text that may differ from other texts


class Reach(NamedTuple):
    """A statistic, its interval, and about how many texts a verdict on a limit needs; inf if no number is enough."""

    value: float
    low: float
    high: float
    needed: float = math.inf


class Measure(NamedTuple):
    """A mean and its independent parts, from which its standard error and its interval follow."""

    mean: float
    independent: ExactRatio
    unit: str = "tokens"
    # of values >= 0, or of any sign; the exponential of either; or a fraction of `n_tokens`
    method: Method = "mean"
    n_tokens: int = 0
    excess: float | None = None  # of a calibration error, which is from 0 to 1: the most that chance adds to it

    def reach(self, tail: float = TAIL, limit: float | None = None) -> Reach:
        """The statistic's interval, with this probability beyond each end."""
        if self.method == "share":
            return self._share_reach(tail, limit)
        mean, is_exp, is_signed = self.mean, self.method.startswith("exp"), self.method.endswith("signed")
        low = high = math.nan
        needed = math.inf
        if math.isfinite(mean):
            stderr, factor = self.independent.stderr, self.independent.factor(tail)
            radius = stderr * factor
            low, high = (mean - radius, mean + radius) if is_signed else interval_above_0(mean, stderr, factor)
            if limit is not None:
                bound = limit if not is_exp else math.log(limit) if limit else -math.inf
                distance = abs(bound - mean)
                if not is_signed and mean > 0:
                    radius, distance = radius / mean, abs(math.log(bound / mean)) if bound > 0 else math.inf
                needed = needed_count(self.independent.count, radius, distance, tail)
        if self.excess is not None:
            low, high = max(low - self.excess, 0.0), min(high, 1.0)
        if is_exp:
            value, low, high = math.nan if mean == -math.inf else exp(mean), exp(low), exp(high)
            return Reach(value, low, high, needed)
        return Reach(mean, low, high, needed)

    def _share_reach(self, tail: float, limit: float | None) -> Reach:
        """The reach of a fraction of tokens, by the binomial distribution, whose ends stay between 0 and 1.

        It assumes the number of independent tokens that would have its standard error, with the error's degrees of
        freedom (Korn and Graubard, Survey Methodology 24, 1998), though at most all tokens. If few tokens differ from
        the others, the error does not show how texts differ: the ends allow for a kind of text, absent from the sample,
        in which the fraction `_WORST` of the tokens does.
        """
        share, independent, needed = self.mean, self.independent, math.inf
        number, texts = independent.effective_count, independent.count
        if math.isnan(share) or texts == 1 < self.n_tokens:
            return Reach(share, math.nan, math.nan)
        if texts < self.n_tokens:
            variance = independent.stderr**2
            number = min(float(self.n_tokens), share * (1 - share) / variance if variance else math.inf)
            number *= (student_quantile(tail, self.n_tokens - 1) / independent.factor(tail)) ** 2
        low, high = binomial_interval(share, number, tail)
        if limit is not None:
            radius = share - low if limit < share else high - share
            needed = needed_count(texts, radius, abs(limit - share), tail, 2 if 0 < share < 1 else 1)
        if texts == self.n_tokens:
            return Reach(share, low, high, needed)
        # a kind of text that makes up more than 1 - tail ** (1 / texts) of all is in all but `tail` of the samples
        unseen = -_WORST * math.expm1(math.log(tail) / independent.effective_count)
        if limit is not None and 0 < (rest := 1 - limit if limit < share else limit) < _WORST:
            needed = max(needed, math.log(tail) / math.log1p(-rest / _WORST) * texts / independent.effective_count)
        return Reach(share, min(low, 1 - unseen), max(high, unseen), needed)

    @property
    def stderr(self) -> float:
        """The standard error of the statistic."""
        stderr = self.independent.stderr
        return exp(self.mean) * stderr if self.method.startswith("exp") else stderr

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the statistic."""
        return self.reach()[1:3]

    def estimate(self) -> Estimate:
        """The statistic with its errors."""
        return Estimate(exp(self.mean) if self.method.startswith("exp") else self.mean, self)


def needed_count(count: int, radius: float, distance: float, tail: float, power: int = 2) -> float:
    """About how many texts narrow an interval to this distance, if it has this radius with `count` texts."""
    if not distance or not math.isfinite(radius):
        return math.inf
    if count < 2 or power == 1:
        return count * radius / distance
    most, now = distance / radius if radius else math.inf, student_quantile(tail, count - 1) / math.sqrt(count)
    low, high = count, 2 * count
    while student_quantile(tail, high - 1) / math.sqrt(high) > most * now:
        low, high = high, 2 * high
        if high > 1e15:
            return math.inf
    while high - low > 1 + low // 1000:
        middle = (low + high) // 2
        is_wide = student_quantile(tail, middle - 1) / math.sqrt(middle) > most * now
        low, high = (middle, high) if is_wide else (low, middle)
    return high
