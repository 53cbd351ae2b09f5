"""`calibration` against a slow oracle, scikit-learn and closed forms; its intervals against simulations."""

import functools
import math

import numpy as np
import pytest

from tokenloss import calibration, compare, cross_entropy
from tokenloss._core import _core
from tokenloss._statistics.reliability import Tokens

RNG = np.random.default_rng(5)
SOURCES = "ece", "mce", "brier", "accuracy", "mean_confidence", "aurc", "d2", "loss"


def sample(n, classes, scale=1.0, rng=RNG):
    """Logits, and targets that are drawn from their softmax; logits are then multiplied by a scale."""
    logits = 1.5 * rng.normal(size=(n, classes))
    return scale * logits, (logits + rng.gumbel(size=logits.shape)).argmax(-1)


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def oracle(probs, targets, weights=None, bins=15, binning="equal_mass"):
    """The statistics by their definitions, token by token."""
    weights = np.ones(len(targets)) if weights is None else weights
    total = math.fsum(weights)

    def error(prediction, event):
        edges = np.linspace(0, 1, bins + 1)
        edges = np.quantile(prediction, edges) if binning == "equal_mass" else edges
        sums = {}
        for p, y, w in zip(prediction.tolist(), event.tolist(), weights.tolist(), strict=True):
            number = sum(p > edge for edge in edges[1:-1].tolist())
            of_gap, of_mass = sums.get(number, (0.0, 0.0))
            sums[number] = of_gap + w * (y - p), of_mass + w
        gaps = [abs(gap) for gap, _ in sums.values()]
        return math.fsum(gaps) / total, max(abs(gap) / mass for gap, mass in sums.values())

    confidence, right = probs.max(-1), probs.argmax(-1) == targets
    own = np.arange(len(targets)), targets
    nll = -np.log(probs[own])
    mass = np.bincount(targets, weights)[targets] / total
    ece, mce = error(confidence, right)
    risk = [
        math.fsum(weights[confidence >= c] * ~right[confidence >= c]) / math.fsum(weights[confidence >= c])
        for c in confidence
    ]
    return {
        "ece": ece, "mce": mce, "brier": weights @ ((probs - np.eye(probs.shape[1])[targets]) ** 2).sum(-1) / total,
        "accuracy": weights @ right / total, "mean_confidence": weights @ confidence / total,
        "aurc": weights @ risk / total, "d2": 1 - (weights @ nll) / (weights @ -np.log(mass)),
        "loss": weights @ nll / total,
        "classwise_ece": np.mean([error(p, targets == k)[0] for k, p in enumerate(probs.T)]),
    }  # fmt: skip


@pytest.mark.parametrize("binning", ["equal_mass", "equal_width"])
@pytest.mark.parametrize(("n", "classes", "dtype"), [(400, 3, "f8"), (300, 10, "f4"), (200, 40, "f8"), (90, 600, "f2")])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_a_slow_oracle(n, classes, dtype, binning, weighted):
    logits, targets = sample(n, classes, 2.0)
    logits = logits.astype(dtype)
    weights = RNG.integers(1, 4, size=n).astype(float) if weighted else None
    result = calibration(logits, targets, sample_weight=weights, bins=7, binning=binning, temperature=False, brier=True)
    expected = oracle(softmax(logits.astype(float)), targets, weights, 7, binning)
    for name in (*SOURCES, *(["classwise_ece"] * (classes <= 10))):
        assert getattr(result, name) == pytest.approx(expected[name], abs=1e-13 if dtype == "f8" else 1e-6), name
    other = "ece_equal_width" if binning == "equal_width" else "ece_equal_mass"
    assert getattr(result, other) == result.ece
    assert result.temperature is None
    assert (result.classwise_ece is None) == (result.brier_resolution is None) == (classes > 10)
    if classes <= 10:
        parts = result.brier_reliability - result.brier_resolution + result.brier_uncertainty + result.brier_within_bins
        assert parts == pytest.approx(result.brier, abs=1e-14)


def test_parts_of_the_brier_score_by_hand():
    """Of forecasts 0.2 and 0.8, that come true in 1 of 4 and in 3 of 4 cases: the same for both classes."""
    probs, targets = np.repeat([0.2, 0.8], 4), [0, 0, 0, 1, 1, 1, 1, 0]
    result = calibration(probs, targets, kind="probs", bins=2)
    assert result.brier_reliability == pytest.approx(2 * 0.05**2)
    assert result.brier_resolution == pytest.approx(2 * 0.25**2)
    assert result.brier_uncertainty == pytest.approx(2 * 0.25)
    assert result.brier_within_bins == pytest.approx(0, abs=1e-15)
    assert result.ece == pytest.approx(0.05)
    assert result.bins["count"].tolist() == [4, 4]


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    curves = pytest.importorskip("sklearn.calibration")
    logits, targets = sample(3000, 2, 1.7)
    probs = softmax(logits)[:, 1]
    for binning, strategy in (("equal_mass", "quantile"), ("equal_width", "uniform")):
        result = calibration(probs, targets == 1, kind="probs", bins=12, binning=binning, temperature=False)
        frequencies, means = curves.calibration_curve(targets, probs, n_bins=12, strategy=strategy)
        assert result.bins["accuracy"] == pytest.approx(frequencies, abs=1e-14)
        assert result.bins["confidence"] == pytest.approx(means, abs=1e-14)
        assert result.brier == pytest.approx(2 * np.mean((probs - targets) ** 2), abs=1e-14)
        assert result.d2 == pytest.approx(metrics.d2_log_loss_score(targets, probs), abs=1e-13)
        assert result.accuracy == metrics.accuracy_score(targets, probs > 0.5)
    assert calibration(probs, targets, kind="probs").brier / 2 == pytest.approx(
        metrics.brier_score_loss(targets, probs)
    )


@pytest.mark.slow
def test_agrees_with_netcal_and_torchmetrics_where_they_are_right():
    """Both have bins of equal width; with a confidence of exactly 1, torchmetrics has another bin for it."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    logits, targets = sample(3000, 5, 1.7, np.random.default_rng(4))
    probs = softmax(logits).astype("f4")
    result = calibration(probs, targets, kind="probs", bins=12, binning="equal_width", temperature=False)
    given = torch.tensor(probs), torch.tensor(targets)
    # netcal, which needs much to be installed, was run once: version 1.4
    for norm, ours, netcal in (("l1", result.ece, 0.13665745525558792), ("max", result.mce, 0.1978376173711085)):
        measured = float(functional.multiclass_calibration_error(*given, 5, n_bins=12, norm=norm))
        assert ours == pytest.approx(measured, abs=1e-5)
        assert ours == pytest.approx(netcal, abs=1e-6)
    y = (targets == 2).astype(int)
    binary = calibration(probs[:, 2], y, kind="probs", bins=12, binning="equal_width", temperature=False)
    measured = float(functional.binary_calibration_error(torch.tensor(probs[:, 2]), torch.tensor(y), n_bins=12))
    assert binary.ece == pytest.approx(measured, abs=1e-5)
    sure, right = np.array([0.95, 1.0, 1.0, 1.0]), np.array([0, 1, 1, 1])  # one bin: |3/4 - mean| in any definition
    ours = calibration(sure, right, kind="probs", bins=10, binning="equal_width", temperature=False).ece
    assert ours == pytest.approx(sure.mean() - 0.75)


@pytest.mark.parametrize("classes", [3, 30, 900])
def test_kinds_layouts_and_masks_make_no_difference(classes):
    logits, targets = sample(60, classes)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    call = functools.partial(calibration, brier=True)
    expected = call(logits, targets)
    for scores, kind in ((log_probs, "log_probs"), (np.exp(log_probs), "probs")):
        assert_close(call(scores, targets, kind=kind), expected, 1e-11)
    padded = np.full((80, classes), np.nan)
    padded[10:70] = logits
    ids = np.pad(targets, 10, constant_values=-100)
    where = ids >= 0
    shaped = np.asfortranarray(padded.reshape(8, 10, classes)), ids.reshape(8, 10)
    for same in (
        call(padded, ids), call(*shaped), call(np.moveaxis(shaped[0], -1, 1), shaped[1], axis=1),
        call(padded, np.where(where, ids, 0), where=where, ignore_index=None),
        call(padded, np.where(where, ids, 0), sample_weight=where.astype(float)),
        call(logits.astype(">f8"), targets, workers=2),
    ):  # fmt: skip
        assert_close(same, expected, 1e-15)
    for _ in range(3):  # no bit depends on the order
        order = RNG.permutation(60)
        assert call(logits[order], targets[order]) == expected


def assert_close(result, expected, error):
    ours, theirs = result.to_dict(), expected.to_dict()
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"bins", "binning", "temperature_note"}:
        if theirs[name] is None:
            assert ours[name] is None
            continue
        assert ours[name] == pytest.approx(theirs[name], abs=error, rel=1e-5 if error > 1e-15 else 1e-12), name


@pytest.mark.parametrize("name", _core.backends())
def test_every_instruction_set_gives_the_same_bits(name, monkeypatch):
    logits, targets = sample(40, 700)
    logits[3, :600] = -np.inf
    expected, before = calibration(logits.astype("f4"), targets, brier=True), _core.backend_in_use()
    _core.use_backend(name)
    try:
        assert calibration(logits.astype("f4"), targets, brier=True) == expected
    finally:
        _core.use_backend(before)


def test_moments_of_rows():
    """Logits of -inf have no probability, and rows with nan or +inf none at all."""
    wide = np.pad([[0.0, -math.inf, 1.0]], ((0, 0), (0, 9)), constant_values=-math.inf)
    own = softmax(wide)[0]
    assert calibration(wide, [2], brier=True).brier == pytest.approx(own[0] ** 2 + (1 - own[2]) ** 2, abs=1e-15)
    assert calibration(wide, [2]).brier == calibration(wide, [2], brier=True).brier  # as second moments are known
    assert calibration(wide, [2], temperature=False).brier is None
    rows = np.array([[0.0, -math.inf, 1.0], [500.0, -500.0, 0.0], [math.nan, 0.0, 1.0], [math.inf, 0.0, 0.0]])
    p = softmax(rows[:1])[0]
    assert calibration(rows[:1], [2]).brier == pytest.approx(p[0] ** 2 + (1 - p[2]) ** 2, abs=1e-15)
    assert calibration(rows[:1], [1]).loss == math.inf
    assert math.isnan(calibration(rows[:1], [1]).temperature)
    assert calibration(rows[1:2], [1]).brier == 2
    for row in rows[2:]:
        result = calibration(row[None], [1])
        assert all(math.isnan(getattr(result, name)) for name in ("ece", "brier", "loss", "temperature"))
        assert result.bins["count"].size == 0


def test_nothing_is_nan():
    for options in ({"where": False}, {"ignore_index": 0}, {"sample_weight": 0.0}):
        result = calibration([[1.0, 2.0]], [0], **options)
        assert result.count == 0
        assert all(math.isnan(getattr(result, name)) for name in (*SOURCES, "temperature", "scaled_loss"))
    one = calibration([[1.0, 2.0]], [1], segment_ids=[7])
    assert one.ece == pytest.approx(1 - one.mean_confidence)
    assert math.isnan(one.ece.stderr)


def test_confidence_of_1_is_in_the_last_bin():
    bins = calibration([[0.0, 1e4], [0.0, 0.0]], [1, 0], binning="equal_width").bins
    assert bins["low"].tolist() == pytest.approx([7 / 15, 14 / 15])
    assert bins["confidence"].tolist() == [0.5, 1.0]
    assert calibration([[0.0, 1e4]] * 3, [1, 1, 0]).ece == pytest.approx(1 / 3)  # one bin, as all are equal


def test_errors_are_clustered_by_sequence():
    """A model whose texts are all right or all wrong knows as much as its number of texts."""
    texts = RNG.integers(2, size=40)
    logits = np.tile([0.0, 1.0], (40, 25, 1))
    targets = np.repeat(texts[:, None], 25, 1)
    result = calibration(logits, targets, kind="logits", segment_ids=np.arange(40)[:, None], bins=1)
    gap = texts - 1 / (1 + math.exp(-1))
    assert result.ece == pytest.approx(abs(gap.mean()))
    assert result.ece.stderr == pytest.approx(gap.std(ddof=1) / math.sqrt(40))
    assert (result.ece.unit, result.n_sequences) == ("sequences", 40)
    assert result.bins["accuracy_stderr"][0] == pytest.approx(result.accuracy.stderr)
    assert calibration(logits, targets, kind="logits", bins=1).ece.stderr < result.ece.stderr / 4
    loose = calibration(
        logits, targets, kind="logits", segment_ids=np.full((40, 1), -1), bins=1
    )  # tokens in no sequence
    assert loose.ece.stderr == pytest.approx(calibration(logits, targets, kind="logits", bins=1).ece.stderr)


def test_debiased_error_is_that_of_resampled_bins():
    """The folded normal distribution in place of the samples of Kumar, Liang and Ma (2019)."""
    logits, targets = sample(2000, 4, 1.1)
    result = calibration(logits, targets, temperature=False)
    share, rng = result.bins["count"] / 2000, np.random.default_rng(0)
    gaps = result.bins["accuracy"] - result.bins["confidence"]
    confidence, right = softmax(logits).max(-1), logits.argmax(-1) == targets
    label = np.searchsorted(result.bins["high"][:-1], confidence)
    errors = np.array([np.std((right - confidence)[label == k], ddof=1) for k in range(15)])
    drawn = gaps + rng.normal(size=(20_000, 15)) * errors / np.sqrt(result.bins["count"])
    bias = (abs(drawn) @ share).mean() - abs(gaps) @ share
    assert result.ece_debiased == pytest.approx(result.ece - bias, abs=2e-4)


# -- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "scale"), [(2, 3.0), (5, 0.2), (40, 1.0), (700, 8.0)])
def test_temperature_is_where_the_loss_is_least(classes, scale):
    logits, targets = sample(500, classes, scale)
    result = calibration(logits, targets, segment_ids=np.arange(500) // 4)
    for factor in (1 - 1e-4, 1 + 1e-4):
        assert cross_entropy(logits, targets, logit_scale=factor / result.temperature) > result.scaled_loss
    assert result.scaled_loss == pytest.approx(cross_entropy(logits, targets, logit_scale=1 / result.temperature))
    assert abs(result.temperature - scale) < 4 * result.temperature.stderr
    low, high = result.temperature.interval
    assert low < result.temperature < high
    assert "not fitted" not in result.summary()
    scaled = calibration(logits / result.temperature, targets)
    assert scaled.ece == pytest.approx(result.scaled_ece, abs=1e-9)
    assert scaled.temperature == pytest.approx(1, abs=1e-6)
    # the sandwich error, in NumPy
    z = logits / result.temperature
    p = softmax(z)
    score = ((p * z).sum(-1) - z[np.arange(500), targets]).reshape(125, 4).sum(-1)
    information = ((p * z**2).sum(-1) - (p * z).sum(-1) ** 2).sum()
    stderr = math.sqrt(125 / 124 * (score**2).sum()) / information * result.temperature
    assert result.temperature.stderr == pytest.approx(stderr, rel=1e-3)


def test_temperatures_at_the_ends():
    assert calibration([[0.0, 1.0], [3.0, 0.0]], [1, 0]).temperature == 0  # all are right
    assert calibration([[0.0, 1.0], [3.0, 0.0]], [0, 1]).temperature == math.inf  # all are wrong
    assert calibration([[1.0, 1.0], [3.0, 3.0]], [0, 1]).temperature == 1  # it does not matter
    rare = np.tile([0.0, 1.0], (10**5, 1))  # one of which is wrong: the log-odds are those of 1 in 10**5
    result = calibration(
        np.pad(rare, ((0, 0), (0, 1)), constant_values=-9), (np.arange(10**5) != 7).astype(int), kind="logits"
    )
    assert result.temperature == pytest.approx(1 / math.log(10**5 - 1), rel=1e-4)


def test_closed_form_of_a_logistic_model():
    """Of logits 0 and 2 in n tokens, k of which are right, the temperature is 2 over the log-odds of k in n."""
    result = calibration(np.tile([0.0, 2.0], (100, 1)), (np.arange(100) < 80).astype(int))
    assert result.temperature == pytest.approx(2 / math.log(4), rel=1e-6)
    rate = 0.8  # the error of the log-odds is that of a proportion over p (1 - p)
    assert result.temperature.stderr == pytest.approx(
        math.sqrt(rate * (1 - rate) / 99) / (rate * (1 - rate)) / math.log(4) * result.temperature, rel=1e-3
    )
    assert result.scaled_ece == pytest.approx(0, abs=1e-6)


# -- input that is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"bins": 0}, ValueError, "bins is 0; it must be an integer from 1 to 10000"),
        ({"bins": 2.5}, TypeError, "bins is 2.5; it must be an integer"),
        ({"binning": "mass"}, ValueError, "binning is 'mass'; it must be 'equal_mass' or 'equal_width'"),
        ({"targets": [0, 3]}, IndexError, r"targets\[1\] = 3 is out of range \[0, 2\)"),
        ({"targets": [0.0, 1.0]}, TypeError, "targets has dtype float64"),
        ({"segment_ids": [0, 1, 2]}, ValueError, r"segment_ids has shape \(3,\)"),
        ({"sample_weight": [-1.0, 1.0]}, ValueError, r"sample_weight\[0\] is -1.0"),
        ({"where": [1, 0]}, TypeError, "where has dtype int64"),
        ({"kind": "odds"}, ValueError, "kind is 'odds'"),
        ({"kind": "probs", "scores": [0.2, 1.5]}, ValueError, r"scores\[1, 1\] = 1.5 is not a probability"),
        ({"kind": "probs", "scores": [[0.2, 0.5], [0.5, 0.5]]}, ValueError, "adds up to 0.7"),
        ({"scores": [0.2, 0.5]}, ValueError, "targets has shape"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    arguments = {"scores": [[0.0, 2.0], [3.0, 0.0]], "targets": [0, 1]} | options
    with pytest.raises(error, match=words):
        calibration(arguments.pop("scores"), arguments.pop("targets"), **arguments)


# -- simulations -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_temperature_of_a_logistic_model_is_recovered():
    """Within 3 standard errors in 99 % of the samples, and by its interval in 95 %; with and without sequences."""
    rng = np.random.default_rng(1)
    for texts, length in ((1000, 1), (60, 20)):
        far = missed = 0
        for _ in range(100):
            logits, targets = sample(texts * length, 12, 2.5, rng)
            result = calibration(logits, targets, segment_ids=np.arange(texts * length) // length).temperature
            far += abs(result - 2.5) > 3 * result.stderr
            missed += not result.interval[0] <= 2.5 <= result.interval[1]
        assert far <= 5  # 1 is expected
        assert missed <= 13  # 5 are expected, and the standard deviation is 2.2


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "texts", "length"), [(1.0, 400, 1), (2.0, 400, 1), (1.3, 40, 20)])
def test_intervals_hold_the_true_calibration_error(scale, texts, length):
    """The true one is that of a large sample in as many bins; texts differ in how well the model knows them."""
    rng = np.random.default_rng(2)

    def draw(n):
        logits = 1.5 * rng.normal(size=(n, length, 3))
        noise = 1.0 + 0.3 * rng.normal(size=(n, 1, 1)) if length > 1 else 1.0
        targets = (noise * logits + rng.gumbel(size=logits.shape)).argmax(-1)
        return scale * logits.reshape(-1, 3), targets.reshape(-1), np.arange(n * length) // length

    large = draw(400_000 // length)
    truth = calibration(large[0], large[1], bins=10, temperature=False)
    missed = np.zeros(4, int)
    means = []
    for _ in range(100):
        logits, targets, ids = draw(texts)
        result = calibration(logits, targets, segment_ids=ids, bins=10, temperature=False)
        names = "ece", "mce", "aurc", "d2"
        missed += [
            not getattr(result, name).interval[0] <= getattr(truth, name) <= getattr(result, name).interval[1]
            for name in names
        ]
        means.append((float(result.ece), float(result.ece_debiased)))
    assert missed.max() <= 13, missed  # 5 are expected, and the standard deviation is 2.2
    plain, debiased = abs(np.mean(means, 0) - truth.ece)  # where the model is calibrated, a part of the bias is left
    assert debiased < max(0.7 * plain, 0.01)


def test_weights_of_tokens_without_sequences():
    """The error of a weighted mean is that of a ratio of sums."""
    values, weights = RNG.normal(size=50), RNG.random(50)
    measure = Tokens(50, weights).mean(values)
    residuals = weights * (values - measure.mean)
    assert measure.stderr == pytest.approx(math.sqrt(50 / 49 * (residuals**2).sum()) / weights.sum())


def test_arrays_are_compared_with_their_calibrations():
    logits, targets = sample(60, 4)
    ids, probs = np.arange(60) // 5, softmax(2 * logits)
    result = compare(logits, probs, targets, kind="probs", base_kind="logits", segment_ids=ids, calibration=True)
    assert result.calibration == calibration(probs, targets, kind="probs", segment_ids=ids)
    assert result.base_calibration == calibration(logits, targets, segment_ids=ids)
    packed = compare(
        logits.reshape(4, 15, 4),
        logits.reshape(4, 15, 4),
        targets.reshape(4, 15),
        cu_seqlens=range(0, 61, 5),
        calibration=True,
    )
    assert packed.calibration == result.base_calibration
    assert compare(logits, logits, targets).calibration is None
    with pytest.raises(ValueError, match="calibration needs targets"):
        compare(logits, logits, calibration=True)
