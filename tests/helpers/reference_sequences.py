"""The oracle of sequences and of their errors: every figure from a list of groups, in rational numbers."""

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from reference import divide, exact_sum, float64, mean, rounded, square_root

from tokenloss._scores.token_scores import COLUMNS
from tokenloss.results import TokenScores

LN2 = Fraction(math.log(2))
FIGURES = [
    "count", "n_sequences", "is_clustered", "n_bytes", "n_words", "total", "loss", "stderr", "perplexity",
    "perplexity_interval", "bits_per_token", "bits_per_byte", "bits_per_byte_stderr", "word_perplexity",
    "word_perplexity_interval", "sequence_loss", "sequence_loss_stderr",
]  # fmt: skip


def factor_of_two(a, b):
    """How many standard errors a 95 % interval reaches, of two sequences of these lengths.

    The error over the difference of the sequences' means has a Cauchy distribution.
    """
    apart, cotangent = (a - b) / (a + b), 1 / math.tan(0.05 * math.pi)
    return (cotangent + math.sqrt(cotangent**2 + 1 + apart**2)) * (a + b) ** 2 / (4 * a * b)


def ends_above_0(mean, reach):
    """Ends of the interval of a mean of values of at least 0: the logarithm of the mean, plus or minus an error."""
    return tuple(math.exp(math.log(mean) + sign * reach / mean) for sign in (-1, 1))


def interval_misses(factor, lengths):
    """How often intervals of so many standard errors miss the mean, for normal means of sequences of these lengths.

    By Imhof's integral over all eigenvalues of the quadratic form.
    """
    integrate = pytest.importorskip("scipy.integrate")
    share = np.asarray(lengths) / np.sum(lengths)
    number = len(share)
    residuals = np.diag(share) - np.outer(share, share)  # of sums from those that the mean gives, by means
    form = factor**2 * number / (number - 1) * residuals.T @ residuals - np.outer(share, share)
    values = np.linalg.eigvalsh(form)
    values = values[abs(values) > 1e-14 * abs(values).max()] / abs(values).max()

    def integrand(u):
        angle = np.arctan(values * u).sum() / 2
        return math.sin(angle) / (u * math.exp(np.log1p((values * u) ** 2).sum() / 4))

    steps = np.concatenate([[0], np.geomspace(0.1, 1e6, 15)])
    parts = [integrate.quad(integrand, low, high, limit=400)[0] for low, high in itertools.pairwise(steps)]
    return 0.5 - sum(parts) / math.pi


def expected_losses(nll, *, where=None, segment_ids=None, cu_seqlens=None, sample_weight=None):
    """Fields of each sequence, of which the tokens are added one by one."""
    nll = float64(nll)
    kept = np.broadcast_to(True if where is None else where, nll.shape).ravel()
    weights = None if sample_weight is None else np.broadcast_to(float64(sample_weight), nll.shape).ravel()
    if weights is not None:
        kept = kept & (weights > 0)
    if segment_ids is not None:
        owners = [int(each) for each in np.broadcast_to(segment_ids, nll.shape).ravel().tolist()]
        ids = sorted({each for each in owners if each >= 0})
        shape = (len(ids),)
    elif cu_seqlens is not None:
        lengths = np.diff([int(each) for each in cu_seqlens])
        owners, ids, shape = np.repeat(np.arange(len(lengths)), lengths).tolist(), range(len(lengths)), lengths.shape
    else:
        shape = nll.shape[:-1]
        ids = range(math.prod(shape))
        owners = np.repeat(np.arange(len(ids)), nll.shape[-1]).tolist()
    tokens = {each: [] for each in ids}
    for k, (owner, loss) in enumerate(zip(owners, nll.ravel().tolist(), strict=True)):
        if kept[k] and owner >= 0:
            tokens[owner].append((loss, 1.0 if weights is None else float(weights[k])))
    sums = [exact_sum(w * x for x, w in part) for part in tokens.values()]
    count = [len(part) for part in tokens.values()]
    weight = [exact_sum(w for _, w in part) for part in tokens.values()]
    return SimpleNamespace(
        sequence=np.array(list(ids), np.int64).reshape(shape),
        count=np.array(count, np.int64).reshape(shape),
        nll=np.array(sums, np.float64).reshape(shape),
        sample_weight=None if weights is None else np.array(weight, np.float64).reshape(shape),
        loss=np.array([divide(s, w) for s, w in zip(sums, weight, strict=True)]).reshape(shape),
    )


def scores_of(nll, kept=True, is_greedy=False):
    """Token scores of which only the losses, the mask and the likeliest class matter."""
    nll = np.asarray(nll, np.float64)
    kept, is_greedy = (np.broadcast_to(mask, nll.shape).copy() for mask in (kept, is_greedy))
    others = {name: np.ones(nll.shape, column.dtype) for name, column in COLUMNS.items() if not column.is_top}
    return TokenScores(**others | {"nll": nll, "is_greedy": is_greedy, "kept": kept})


class Meter:
    """A list of groups: sequences, or loose tokens, which are groups of one."""

    def __init__(self):
        self.groups, self.loose_bytes, self.loose_words = [], 0, 0

    def add_tokens(self, losses, weights=None, n_bytes=0, n_words=0):
        weights = [1.0] * len(losses) if weights is None else weights
        for x, w in zip(losses, weights, strict=True):
            if w:
                knows = {"knows_bytes": bool(n_bytes), "knows_words": bool(n_words)}
                group = SimpleNamespace(tokens=[(x, w)], is_sequence=False, n_bytes=None, n_words=None, **knows)
                self.groups.append(group)
        self.loose_bytes += n_bytes
        self.loose_words += n_words

    def add_sequence(self, losses, weights=None, n_bytes=None, n_words=None):
        tokens = [(x, w) for x, w in zip(losses, [1.0] * len(losses) if weights is None else weights, strict=True) if w]
        if tokens:
            knows = {"knows_bytes": n_bytes is not None, "knows_words": n_words is not None}
            group = SimpleNamespace(tokens=tokens, is_sequence=True, n_bytes=n_bytes, n_words=n_words, **knows)
            self.groups.append(group)

    @property
    def sequences(self):
        return [group for group in self.groups if group.is_sequence]

    @property
    def count(self):
        return sum(len(group.tokens) for group in self.groups)

    @property
    def n_sequences(self):
        return len(self.sequences)

    @property
    def is_clustered(self):
        return bool(self.sequences) and len(self.groups) > 1

    @property
    def n_bytes(self):
        return self.loose_bytes + sum(group.n_bytes or 0 for group in self.groups)

    @property
    def n_words(self):
        return self.loose_words + sum(group.n_words or 0 for group in self.groups)

    def _known(self, unit):
        """The number of bytes or words; 0 if it is known of some groups and not of all."""
        known = {getattr(group, f"knows_{unit}") for group in self.groups}
        return 0 if len(known) == 2 else getattr(self, f"n_{unit}")

    @property
    def total(self):
        return exact_sum(w * x for group in self.groups for x, w in group.tokens)

    @property
    def weight(self):
        return sum(map(_weight, self.groups))

    @property
    def loss(self):
        tokens = [token for group in self.groups for token in group.tokens]
        weight = sum(Fraction(w) for _, w in tokens)
        return mean([w * x for x, w in tokens], weight) if weight else math.nan

    def _error(self, sizes):
        """Error of the groups' sum over the sum of these sizes, from the sample of groups."""
        sums, groups = [Fraction(_sum(group)) for group in self.groups], len(self.groups)
        ratio = sum(sums) / sum(sizes)
        spread = sum((s - ratio * size) ** 2 for s, size in zip(sums, sizes, strict=True))
        return square_root(Fraction(groups, groups - 1) * spread / sum(sizes) ** 2)

    @property
    def stderr(self):
        if self.count < 2 or not math.isfinite(self.total):
            return math.nan
        if len(self.groups) == 1:
            tokens = self.groups[0].tokens
            apart = Meter()
            apart.add_tokens(*zip(*tokens, strict=True))
            return apart.stderr
        return self._error([_weight(group) for group in self.groups])

    def _error_by(self, name, total):
        """Error of the sum over bytes or words, in nats."""
        sizes = [getattr(group, name) for group in self.groups]
        if not total:
            return math.nan
        if len(self.groups) > 1 and None not in sizes:
            return self._error(sizes)
        return self.stderr * float(self.weight) / total

    @property
    def perplexity(self):
        return _exp(self.loss)

    @property
    def bits_per_byte(self):
        n_bytes = self._known("bytes")
        return float(Fraction(self.total) / n_bytes / LN2) if n_bytes else math.nan

    @property
    def bits_per_byte_stderr(self):
        return self._error_by("n_bytes", self._known("bytes")) / math.log(2)

    @property
    def word_perplexity(self):
        return _exp(self.total / self._known("words")) if self._known("words") else math.nan

    @property
    def sequence_loss(self):
        losses = [Fraction(divide(_sum(group), float(_weight(group)))) for group in self.sequences]
        return rounded(sum(losses) / len(losses)) if losses else math.nan

    @property
    def sequence_loss_stderr(self):
        if len(self.sequences) < 2:
            return math.nan
        losses = [Fraction(divide(_sum(group), float(_weight(group)))) for group in self.sequences]
        center, number = sum(losses) / len(losses), len(losses)
        return square_root(sum((loss - center) ** 2 for loss in losses) / (number - 1) / number)


def _exp(x):
    return math.exp(x) if not x > 709 else math.inf


def _sum(group):
    return exact_sum(w * x for x, w in group.tokens)


def _weight(group):
    """Number of tokens, or the sum of their weights, rounded once as a sequence holds it."""
    return Fraction(math.fsum(w for _, w in group.tokens))
