"""The oracle of the tests: every public function in the plainest way.

Every score is exact in float64. From there on exponentials and logarithms are taken in long double, or by gmpy2 where
long double is no wider than double, and rounded to float64 once. Sums are exact.
"""

import functools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np

if np.finfo(np.longdouble).nmant >= 63:

    def wide(values):
        return np.asarray(values, np.longdouble)

    exp, log, log1p, tanh, cosh = np.exp, np.log, np.log1p, np.tanh, np.cosh
else:
    import gmpy2

    gmpy2.get_context().precision = 80
    _one = gmpy2.mpfr(1)

    # gmpy2's arithmetic with nan and infinity raises floating-point flags, which NumPy would report as warnings
    np.seterr(invalid="ignore", over="ignore")

    def wide(values):
        return np.asarray(values).astype(object) * _one

    exp, log, log1p, tanh, cosh = (
        np.frompyfunc(function, 1, 1) for function in (gmpy2.exp, gmpy2.log, gmpy2.log1p, gmpy2.tanh, gmpy2.cosh)
    )


def statistic(result, name):
    """A statistic of a result, or of an oracle, by its name in files: "bits_per_byte_stderr" is an error of one."""
    if hasattr(result, name):
        return getattr(result, name)
    estimate, _, error = name.rpartition("_")
    return getattr(getattr(result, estimate or "loss"), error)


def float64(values):
    with np.errstate(invalid="ignore"):  # signalling nan
        return np.asarray(values).astype(np.float64)


def cross_entropy_loss(
    y_true,
    y_pred,
    *,
    epsilon=1e-12,
    axis=-1,
    weight=None,
    ignore_index=-100,
    where=None,
    reduction="mean",
    workers=None,
):
    def losses_of(row):
        return -log(wide(np.clip(row, epsilon, 1 - epsilon)))

    return _score(losses_of, y_pred, y_true, axis, weight, ignore_index, where, reduction)


def nll_loss(
    log_probs, targets, *, axis=-1, weight=None, ignore_index=-100, where=None, reduction="mean", workers=None
):
    return _score(lambda row: -wide(row), log_probs, targets, axis, weight, ignore_index, where, reduction)


def cross_entropy(
    logits,
    targets,
    *,
    axis=-1,
    weight=None,
    ignore_index=-100,
    where=None,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    reduction="mean",
    workers=None,
):
    def losses_of(row):
        return _losses_of_logits(row, logit_scale, softcap)

    if z_loss and reduction == "mean":
        z_loss = wide(z_loss) * _mean_class_weight(logits, targets, axis, weight, ignore_index, where)

    def penalty_of(row):
        if undefined(row):  # also where no class has mass
            return math.nan
        return wide(z_loss) * log_normalizer(row, logit_scale, softcap) ** 2 if z_loss else 0

    return _score(
        losses_of,
        logits,
        targets,
        axis,
        weight,
        ignore_index,
        where,
        reduction,
        label_smoothing,
        penalty_of,
    )


def cross_entropy_and_grad(
    logits,
    targets,
    *,
    axis=-1,
    weight=None,
    ignore_index=-100,
    where=None,
    label_smoothing=0.0,
    z_loss=0.0,
    logit_scale=1.0,
    softcap=None,
    reduction="mean",
    workers=None,
):
    """The gradient is of float64, whatever the dtype of the logits."""
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "logit_scale": logit_scale, "softcap": softcap}
    rows = list(_kept_rows(logits, targets, axis, weight, ignore_index, where, label_smoothing))
    divisor = exact_sum(row.divisor for row in rows) if reduction == "mean" else 1
    if reduction == "mean":
        z_loss = wide(z_loss) * _mean_class_weight(logits, targets, axis, weight, ignore_index, where)
    gradient = np.zeros(np.moveaxis(logits, axis, -1).shape)
    for row in rows:
        gradient[row.position] = _gradient_of_row(row.scores, row.shares, z_loss, logit_scale, softcap) / divisor
    options |= {"axis": axis, "weight": weight, "ignore_index": ignore_index, "where": where, "reduction": reduction}
    return cross_entropy(logits, targets, **options), np.moveaxis(gradient, -1, axis)


def _gradient_of_row(row, shares, z_loss, logit_scale, softcap):
    if undefined(row):
        return np.full(row.size, math.nan)
    powers = _powers(row, logit_scale, softcap)
    total, best = powers.sum(), row.argmax()
    others = total - powers
    others[best] = np.delete(powers, best).sum()
    gradient = (powers * (shares.sum() - shares) - others * shares) / total
    if z_loss:
        gradient += 2 * wide(z_loss) * log_normalizer(row, logit_scale, softcap) * powers / total
    with np.errstate(over="ignore"):
        slope = 1 if softcap is None else cosh(wide(row) * wide(logit_scale) / wide(softcap)) ** -2
    return gradient * slope * wide(logit_scale)


def logsumexp(logits, *, axis=-1, logit_scale=1.0, softcap=None, out=None, workers=None):
    logits = np.moveaxis(float64(logits), axis, -1)
    result = np.empty(logits.shape[:-1]) if out is None else out
    for position in np.ndindex(result.shape):
        result[position] = float(log_normalizer(logits[position], logit_scale, softcap))
    return result


def softmax(logits, *, axis=-1, logit_scale=1.0, softcap=None, out=None, workers=None):
    def probabilities_of(row):
        if undefined(row):
            return np.full(row.size, math.nan)
        powers = _powers(row, logit_scale, softcap)
        return powers / powers.sum()

    return _map_rows(probabilities_of, logits, axis)


def log_softmax(logits, *, axis=-1, logit_scale=1.0, softcap=None, out=None, workers=None):
    return _map_rows(lambda row: -_losses_of_logits(row, logit_scale, softcap), logits, axis)


def class_log_probs(logits, class_ids, *, axis=-1, where=None, logit_scale=1.0, softcap=None, workers=None):
    logits, class_ids = np.moveaxis(float64(logits), axis, -1), np.asarray(class_ids, np.int64)
    batch = logits.shape[:-1]
    class_ids = np.broadcast_to(class_ids, (*batch, class_ids.shape[-1]))
    where = np.broadcast_to(True if where is None else where, batch)
    result = np.full(class_ids.shape, math.nan)
    for position in np.ndindex(batch):
        if where[position]:
            losses = _losses_of_logits(logits[position], logit_scale, softcap)
            with np.errstate(over="ignore"):
                result[position] = -losses[class_ids[position]]
    return result


def token_scores(
    logits,
    targets,
    *,
    axis=-1,
    ignore_index=-100,
    where=None,
    logit_scale=1.0,
    softcap=None,
    top_k=0,
    workers=None,
):
    logits = np.moveaxis(float64(logits), axis, -1)
    batch = logits.shape[:-1]
    result = SimpleNamespace(
        nll=np.full(batch, math.nan),
        logsumexp=np.full(batch, math.nan),
        entropy=np.full(batch, math.nan),
        rank=np.full(batch, -1),
        argmax=np.full(batch, -1),
        is_greedy=np.zeros(batch, bool),
        kept=np.zeros(batch, bool),
        top_ids=np.full((*batch, top_k), -1) if top_k else None,
        top_logprobs=np.full((*batch, top_k), math.nan) if top_k else None,
    )
    for row in _kept_rows(logits, targets, -1, None, ignore_index, where):
        here, scores, target = row.position, row.scores, int(np.asarray(targets)[row.position])
        losses = _losses_of_logits(scores, logit_scale, softcap)
        order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]  # nans come last
        result.kept[here] = True
        result.nll[here] = float(losses[target])
        result.logsumexp[here] = float(log_normalizer(scores, logit_scale, softcap))
        result.entropy[here] = math.nan if undefined(scores) else _entropy(losses)
        result.rank[here] = (scores >= scores[target]).sum()
        result.argmax[here] = order[0] if order.size else -1
        result.is_greedy[here] = result.argmax[here] == target
        if top_k:
            best = order[:top_k]
            result.top_ids[here][: len(best)] = best
            result.top_logprobs[here][: len(best)] = -losses[best]
    result.count = int(result.kept.sum())
    result.loss = divide(exact_sum(result.nll[result.kept]), result.count)
    result.perplexity = math.exp(result.loss) if not result.loss > 709 else math.inf
    result.accuracy = divide(result.is_greedy.sum(), result.count)
    return result


def _entropy(losses):
    possible = losses[losses != math.inf]
    return abs(float((exp(-possible) * possible).sum()))  # never -0.0


def kl_divergence(base_logits, logits, *, axis=-1, where=None, reduction="mean", workers=None):
    base_logits, logits = (np.moveaxis(float64(array), axis, -1) for array in (base_logits, logits))
    batch = logits.shape[:-1]
    where = np.broadcast_to(True if where is None else where, batch)
    divergences = np.zeros(batch)
    for position in np.ndindex(batch):
        if where[position]:
            divergences[position] = _divergence(base_logits[position], logits[position])
    if reduction == "none":
        return divergences
    total = exact_sum(divergences[where])
    return total if reduction == "sum" else divide(total, where.sum())


def _divergence(base_row, row):
    if undefined(base_row) or np.isnan(row).any() or np.isposinf(row).any():
        return math.nan
    possible = base_row > -math.inf
    if np.isneginf(row[possible]).any():
        return math.inf
    base_losses, losses = _losses_of_logits(base_row)[possible], _losses_of_logits(row)[possible]
    return max(0.0, float((exp(-base_losses) * (losses - base_losses)).sum()))


def divergences(base_logits, logits, *, axis=-1):
    """All divergences of each row, by name."""
    base_logits, logits = (np.moveaxis(float64(array), axis, -1) for array in (base_logits, logits))
    result = {name: np.zeros(logits.shape[:-1]) for name in ("kl", "reverse_kl", "js", "tv", "hellinger")}
    for position in np.ndindex(logits.shape[:-1]):
        for name, value in _divergences(base_logits[position], logits[position]).items():
            result[name][position] = value
    return result


def _divergences(base_row, row):
    pair = {"kl": _divergence(base_row, row), "reverse_kl": _divergence(row, base_row)}
    if undefined(base_row) or undefined(row):
        return pair | dict.fromkeys(("js", "tv", "hellinger"), math.nan)
    logs = [-_losses_of_logits(one) for one in (base_row, row)]
    p, q = map(exp, logs)
    mean = log(np.where(p + q > 0, (p + q) / 2, 1))
    with np.errstate(invalid="ignore"):  # 0 (-inf)
        js = sum(np.where(one > 0, one * (log_one - mean), 0).sum() for one, log_one in zip((p, q), logs, strict=True))
    squares = ((exp(logs[0] / 2) - exp(logs[1] / 2)) ** 2).sum()
    return pair | {"js": float(js / 2), "tv": float(abs(p - q).sum() / 2), "hellinger": math.sqrt(float(squares / 2))}


def compare(
    base_logits, logits, targets, *, classes=None, axis=-1, ignore_index=-100, where=None, definitions="exact",
    workers=None,
):  # fmt: skip
    """Fields of each position; figures_of_comparison makes the figures. `left_out` holds shares of both models."""
    options = {"axis": axis, "ignore_index": ignore_index, "where": where}
    whole = [np.moveaxis(float64(array), axis, -1) for array in (base_logits, logits)]
    base_logits, logits = (np.moveaxis(array[..., :classes], -1, axis) for array in whole)
    base, scores = (token_scores(array, targets, **options) for array in (base_logits, logits))
    base_nll = base.nll
    kl = kl_divergence(base_logits, logits, axis=axis, where=scores.kept, reduction="none")
    base_top_p = np.zeros(kl.shape)
    left_out = np.zeros((2, *kl.shape))
    for position in np.ndindex(kl.shape):
        if scores.kept[position]:
            base_top_p[position] = _top_probability(whole[0][position][:classes], definitions)
            left_out[(slice(None), *position)] = [_share_from(rows[position], classes) for rows in whole]
    if definitions == "llama.cpp":
        base_nll = nll_loss(base_logits, targets, reduction="none", **options)
        base_logits, logits = (np.moveaxis(float64(array), axis, -1) for array in (base_logits, logits))
        for position in np.ndindex(kl.shape):
            if scores.kept[position]:
                kl[position] = _divergence_of_likely(base_logits[position], logits[position])
    base_nll, kl, base_top_p = (np.where(scores.kept, column, math.nan) for column in (base_nll, kl, base_top_p))
    return SimpleNamespace(
        nll=scores.nll,
        base_nll=base_nll,
        kl=kl,
        delta_p=float64(exp(-wide(scores.nll)) - exp(-wide(base_nll))),
        is_same_top=scores.kept & (scores.argmax == base.argmax) & (scores.argmax >= 0),
        kept=scores.kept,
        base_top_p=base_top_p,
        left_out=left_out,
    )


def _top_probability(row, definitions):
    """The probability of the most likely class; llama.cpp's rows hold log-probabilities."""
    if definitions == "llama.cpp":
        return min(1.0, float(exp(wide(row.max()))))
    return float(exp(-_losses_of_logits(row).min()))


def _share_from(row, classes):
    """The probability of the classes from this one on."""
    return 0.0 if classes is None else float(exp(-_losses_of_logits(row))[classes:].sum())


def _divergence_of_likely(base_log_probs, logits):
    """Sum the terms of a divergence whose base's log-probability, taken as it is, is above -16."""
    counted = ~(base_log_probs <= -16)
    logs, losses = wide(base_log_probs[counted]), _losses_of_logits(logits)[counted]
    return float((exp(logs) * (logs + losses)).sum())


def figures_of_comparison(tokens):
    """Figures named as in Comparison.to_dict, by the textbook, for two or more positions with finite numbers."""
    kept = np.asarray(tokens.kept)
    losses, base_losses, changes = LossMeter(), LossMeter(), LossMeter()
    losses.update(tokens.nll, kept)
    base_losses.update(tokens.base_nll, kept)
    changes.update(tokens.delta_p, kept)
    divergences, squares = LossMeter(), LossMeter()
    divergences.update(tokens.kl, kept)
    squares.update(tokens.delta_p**2, kept)
    variance, base_variance = (covariance_of_means(meter, meter) for meter in (losses, base_losses))
    covariance = covariance_of_means(losses, base_losses)
    perplexity, base_perplexity = losses.perplexity, base_losses.perplexity
    ratio = math.exp(losses.loss - base_losses.loss)
    log_ratio_variance = variance + base_variance - 2 * covariance
    a, b = Fraction(perplexity), Fraction(base_perplexity)
    rms = math.sqrt(squares.loss)
    same = np.asarray(tokens.is_same_top)[kept].mean()
    return {
        "count": losses.count,
        "perplexity": perplexity,
        "perplexity_stderr": perplexity * losses.stderr,
        "base_perplexity": base_perplexity,
        "base_perplexity_stderr": base_perplexity * base_losses.stderr,
        "correlation": divide(covariance, square_root(variance * base_variance)),
        "log_perplexity_ratio": losses.loss - base_losses.loss,
        "log_perplexity_ratio_stderr": square_root(log_ratio_variance),
        "perplexity_ratio": ratio,
        "perplexity_ratio_stderr": ratio * square_root(log_ratio_variance),
        "perplexity_difference": perplexity - base_perplexity,
        "perplexity_difference_stderr": square_root(a * a * variance + b * b * base_variance - 2 * a * b * covariance),
        "mean_kl": divergences.loss,
        "mean_kl_stderr": divergences.stderr,
        "finite_mean_kl": divergences.loss,
        "finite_mean_kl_stderr": divergences.stderr,
        "kl_quantiles": _quantiles(divergences, (1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0)),
        "mean_delta_p": changes.loss,
        "mean_delta_p_stderr": changes.stderr,
        "delta_p_quantiles": _quantiles(
            changes, (1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0)
        ),
        "rms_delta_p": rms,
        "rms_delta_p_stderr": divide(squares.stderr, 2 * rms) if rms else 0.0,
        "same_top": same,
        "same_top_stderr": math.sqrt(same * (1 - same) / (losses.count - 1)),
    }


def covariance_of_means(meter, other):
    """The covariance of two means, from the sample's, as a fraction."""
    n, pairs = meter.count, list(zip(map(Fraction, meter.losses), map(Fraction, other.losses), strict=True))
    means = [sum(values) / n for values in zip(*pairs, strict=True)]
    return sum((x - means[0]) * (y - means[1]) for x, y in pairs) / (n - 1) / n


def _quantiles(meter, fractions):
    return {f"{fraction:g}": float(np.quantile(meter.losses, fraction)) for fraction in fractions}


def undefined(row):
    """Whether a row of logits has no softmax."""
    return row.size == 0 or not np.isfinite(row.max())  # nan if any is, and the infinity of any or of all


def scaled(row, logit_scale=1.0, softcap=None):
    """Return logits as they are scored."""
    row = wide(row) * wide(logit_scale)
    return row if softcap is None else np.where(row == -math.inf, row, wide(softcap) * tanh(row / wide(softcap)))


def log_normalizer(row, logit_scale=1.0, softcap=None):
    """Return log(sum(exp(row)))."""
    if undefined(row):
        return -math.inf if np.isneginf(row).all() else math.nan
    return scaled(row, logit_scale, softcap).max() + log(_powers(row, logit_scale, softcap).sum())


def _remembered(function):
    """Remember the last results of a function of a row: tests score the same row in several layouts."""

    @functools.lru_cache(maxsize=256)
    def of_bits(bits, logit_scale, softcap):
        result = function(np.frombuffer(bits), logit_scale, softcap)
        result.flags.writeable = False
        return result

    @functools.wraps(function)
    def of_row(row, logit_scale=1.0, softcap=None):
        assert row.dtype == np.float64
        if row.size == 0 or row.size > 10_000:
            return function(row, logit_scale, softcap)
        return of_bits(row.tobytes(), logit_scale, softcap)

    return of_row


@_remembered
def _powers(row, logit_scale=1.0, softcap=None):
    """Return exponentials, that of the likeliest class being 1."""
    row = scaled(row, logit_scale, softcap)
    return exp(row - row.max())


@_remembered
def _losses_of_logits(row, logit_scale=1.0, softcap=None):
    """Return -log(softmax(row)), where the likeliest class has its own term left out of the sum."""
    if row.size == 0:
        return row
    if undefined(row):
        return np.full(row.size, math.nan)
    best, powers = row.argmax(), _powers(row, logit_scale, softcap)
    row = scaled(row, logit_scale, softcap)
    losses = log(powers.sum()) + (row[best] - row)
    losses[best] = log1p(np.delete(powers, best).sum())
    return losses


def _map_rows(function, logits, axis):
    logits = np.moveaxis(float64(logits), axis, -1)
    result = np.empty(logits.shape)
    for position in np.ndindex(logits.shape[:-1]):
        result[position] = function(logits[position])
    return np.moveaxis(result, -1, axis)


def _kept_rows(scores, targets, axis, weight, ignore_index, where, label_smoothing=0.0):
    """Yield each row that is kept: its scores, the target mass of each class, and its part of the divisor of a mean."""
    scores, targets = np.moveaxis(float64(scores), axis, -1), np.asarray(targets)
    batch, classes = scores.shape[:-1], scores.shape[-1]
    by_class = targets.ndim < scores.ndim
    if not by_class:
        targets = np.moveaxis(float64(targets), axis, -1)
    weight = np.ones(classes) if weight is None else float64(weight)
    where = np.broadcast_to(True if where is None else where, batch)
    for position in np.ndindex(batch):
        if not where[position] or (by_class and targets[position] == ignore_index):
            continue
        target = targets[position]
        shares = wide(np.arange(classes) == int(target) if by_class else target)
        if label_smoothing:
            shares = (1 - wide(label_smoothing)) * shares + wide(label_smoothing) / classes
        yield SimpleNamespace(
            position=position,
            scores=scores[position],
            shares=shares * wide(weight),
            counted=np.flatnonzero(shares),
            divisor=weight[int(target)] if by_class else 1.0,
        )


def divisor_of_mean(logits, targets, *, axis=-1, weight=None, ignore_index=-100, where=None, **others):
    return exact_sum(row.divisor for row in _kept_rows(logits, targets, axis, weight, ignore_index, where))


def _mean_class_weight(logits, targets, axis, weight, ignore_index, where):
    """By which a mean is divided more than by the number of rows: z-loss has no weight of a class."""
    divisors = [row.divisor for row in _kept_rows(logits, targets, axis, weight, ignore_index, where)]
    return wide(divide(exact_sum(divisors), len(divisors))) if divisors else 1


def _score(
    losses_of, scores, targets, axis, weight, ignore_index, where, reduction, label_smoothing=0.0, penalty_of=None
):
    losses, divisors = np.zeros(np.moveaxis(scores, axis, -1).shape[:-1]), []
    for row in _kept_rows(scores, targets, axis, weight, ignore_index, where, label_smoothing):
        terms, shares = losses_of(row.scores)[row.counted], row.shares[row.counted]
        terms = np.where((shares == 0) & (terms == math.inf), 0, terms)  # of a class without weight
        with np.errstate(over="ignore", invalid="ignore"):  # inf - inf
            loss = (shares * terms).sum()
            losses[row.position] = float(loss + (penalty_of(row.scores) if penalty_of else 0))
        divisors.append(row.divisor)
    if reduction == "none":
        return losses
    total = exact_sum(losses.ravel())
    return total if reduction == "sum" else divide(total, exact_sum(divisors))


def exact_sum(values):
    """Return the sum of floats, rounded once."""
    values = [float(value) for value in values]
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special)
    try:
        return math.fsum(values)
    except OverflowError:
        return rounded(sum(map(Fraction, values)))


def divide(dividend, divisor):
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(dividend) / np.float64(divisor))


def mean(values, number):
    """The sum of values over a number, rounded once."""
    if not all(map(math.isfinite, values)):
        return exact_sum(values)
    return rounded(sum(map(Fraction, values)) / Fraction(number))


def rounded(fraction):
    """Return the float nearest to a fraction."""
    try:
        return float(fraction)
    except OverflowError:
        return math.inf if fraction > 0 else -math.inf


def square_root(fraction):
    """Return the float nearest to the root of a fraction, near enough: at least 128 bits are taken of it."""
    if fraction == 0:
        return 0.0
    shift = max(0, 256 - fraction.numerator.bit_length() + fraction.denominator.bit_length()) // 2
    return rounded(Fraction(math.isqrt((fraction.numerator << 2 * shift) // fraction.denominator), 1 << shift))


class LossMeter:
    """A list of losses, and their statistics in rational numbers."""

    def __init__(self):
        self.losses, self.n_bytes, self.n_words = [], 0, 0

    def update(self, nll, where=None, n_bytes=0, n_words=0):
        nll = float64(nll)
        where = np.broadcast_to(True if where is None else where, nll.shape)
        self.losses += [float(nll[position]) for position in np.ndindex(nll.shape) if where[position]]
        self.n_bytes += n_bytes
        self.n_words += n_words

    @property
    def count(self):
        return len(self.losses)

    @property
    def total(self):
        return exact_sum(self.losses)

    @property
    def loss(self):
        if not self.count:
            return math.nan
        return mean(self.losses, self.count)

    @property
    def stderr(self):
        if self.count < 2 or not all(map(math.isfinite, self.losses)):
            return math.nan
        losses = [Fraction(loss) for loss in self.losses]
        mean = sum(losses) / self.count
        return square_root(sum((loss - mean) ** 2 for loss in losses) / (self.count - 1) / self.count)

    @property
    def perplexity(self):
        return self._exp(self.loss)

    @property
    def bits_per_token(self):
        return self.loss / math.log(2)

    @property
    def bits_per_byte(self):
        return self.total / math.log(2) / self.n_bytes if self.n_bytes else math.nan

    @property
    def word_perplexity(self):
        return self._exp(self.total / self.n_words) if self.n_words else math.nan

    @staticmethod
    def _exp(x):
        with np.errstate(over="ignore"):
            return float(np.exp(np.float64(x)))
