"""The same numbers as torch, scikit-learn, SciPy, optax and statsmodels, with the options that both have."""

import ast
import itertools
import textwrap
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
from arrays import OPTIONS, REDUCTIONS, distributions, problem, scores_for

from tokenloss import (
    LossMeter,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    kl_divergence,
    log_softmax,
    logsumexp,
    nll_loss,
    sequence_losses,
    softmax,
    token_scores,
)

TOLERANCES = {np.float64: {"rtol": 1e-12, "atol": 1e-15}, np.float32: {"rtol": 2e-5, "atol": 2e-6}}
each_kind = pytest.mark.parametrize("kind", ["ids", "distributions"])
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def optax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("optax")


def logits_and_targets(rng, kind, dtype, shape, axis=1):
    """Logits and targets with the classes on torch's axis."""
    logits = scores_for("cross_entropy", rng, shape, dtype, axis)
    if kind == "distributions":
        return logits, distributions(rng, shape, axis, zeros=0).astype(dtype)
    targets = rng.integers(0, shape[axis], np.delete(shape, axis))
    targets.flat[::4] = -100
    return logits, targets


# torch


@each_kind
@each_dtype
@each_reduction
@pytest.mark.parametrize("shape", [(12, 7), (4, 7, 5), (2, 7, 3, 4)])
def test_torch_cross_entropy_and_its_gradient(kind, dtype, reduction, shape, rng, torch):
    for smoothing, weighted, ignored in itertools.product([0.0, 0.1, 1.0], [False, True], [-100, 3]):
        logits, targets = logits_and_targets(rng, kind, dtype, shape)
        options = {"label_smoothing": smoothing, "reduction": reduction}
        if kind == "ids":
            options["ignore_index"] = ignored
            targets[targets == -100] = ignored
        weight = rng.random(7).astype(dtype) + dtype(0.1) if weighted else None
        tensor = torch.tensor(logits, requires_grad=True)
        torch_weight = torch.tensor(weight) if weighted else None
        expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(targets), weight=torch_weight, **options)
        expected.sum().backward()
        loss, gradient = cross_entropy_and_grad(logits, targets, axis=1, weight=weight, **options)
        np.testing.assert_allclose(loss, expected.detach().numpy(), **TOLERANCES[dtype])
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), **TOLERANCES[dtype])
        np.testing.assert_array_equal(cross_entropy(logits, targets, axis=1, weight=weight, **options), loss)


@each_dtype
@each_reduction
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 3])
def test_torch_nll_loss(dtype, reduction, weighted, ignored, rng, torch):
    logits, targets = logits_and_targets(rng, "ids", dtype, (4, 7, 5))
    targets[targets == -100] = ignored
    log_probs, weight = log_softmax(logits, axis=1), rng.random(7).astype(dtype) if weighted else None
    options = {"ignore_index": ignored, "reduction": reduction}
    torch_weight = torch.tensor(weight) if weighted else None
    expected = torch.nn.functional.nll_loss(torch.tensor(log_probs), torch.tensor(targets), torch_weight, **options)
    actual = nll_loss(log_probs, targets, axis=1, weight=weight, **options)
    np.testing.assert_allclose(actual, expected.numpy(), **TOLERANCES[dtype])


@pytest.mark.parametrize("kind", ["ids", "distributions"])
def test_torch_where_nothing_is_kept_or_possible(kind, torch):
    logits = np.array([[0.0, 1.0, -np.inf], [2.0, 1.0, 0.5]])
    targets = np.array([2, 0]) if kind == "ids" else np.array([[0.5, 0, 0.5], [1, 0, 0]])
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(tensor, torch.tensor(targets), reduction="none")
    expected.sum().backward()
    loss, gradient = cross_entropy_and_grad(logits, targets, reduction="none")
    if kind == "ids":  # torch has nan for 0 * inf
        np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-14)
    nothing = torch.nn.functional.cross_entropy(tensor, torch.tensor([-100, -100]))
    assert np.isnan(nothing.item())
    assert np.isnan(cross_entropy(logits, [-100, -100]))


@each_dtype
def test_torch_softmax_family(dtype, rng, torch):
    logits, others = scores_for("cross_entropy", rng, (2, 6, 50), dtype)
    tensor, other = torch.tensor(logits), torch.tensor(others)
    np.testing.assert_allclose(softmax(logits), torch.softmax(tensor, -1).numpy(), **TOLERANCES[dtype])
    np.testing.assert_allclose(log_softmax(logits, axis=0), torch.log_softmax(tensor, 0).numpy(), **TOLERANCES[dtype])
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(other, -1), torch.log_softmax(tensor, -1), reduction="none", log_target=True
    ).sum(-1)
    actual = kl_divergence(logits, others, reduction="none")
    np.testing.assert_allclose(actual, expected.numpy(), **TOLERANCES[dtype])
    scores = token_scores(logits, [0] * 6, top_k=50)
    entropy = torch.distributions.Categorical(logits=tensor).entropy()
    np.testing.assert_allclose(scores.entropy, entropy.numpy(), **TOLERANCES[dtype])
    best = torch.log_softmax(tensor, -1).topk(50)
    np.testing.assert_array_equal(scores.top_ids, best.indices.numpy())
    np.testing.assert_allclose(scores.top_logprobs, best.values.numpy(), **TOLERANCES[dtype])


# scikit-learn


@pytest.mark.parametrize("weighted", [False, True])
def test_sklearn_log_loss(weighted, rng):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, targets = scores_for("cross_entropy", rng, (40, 6), np.float64), rng.integers(0, 6, 40)
    y_pred, weight = softmax(logits), rng.random(6) if weighted else None
    y_pred /= y_pred.sum(-1, keepdims=True)
    for normalize, reduction in ((True, "mean"), (False, "sum")):
        expected = metrics.log_loss(
            targets,
            y_pred,
            labels=range(6),
            normalize=normalize,
            sample_weight=weight[targets] if weighted else None,
        )
        options = {"weight": weight, "reduction": reduction}
        assert cross_entropy_loss(targets, y_pred, **options) == pytest.approx(expected, rel=1e-13)
        assert cross_entropy(logits, targets, **options) == pytest.approx(expected, rel=1e-13)
        assert nll_loss(np.log(y_pred), targets, **options) == pytest.approx(expected, rel=1e-13)


@pytest.mark.slow
def test_sklearn_scorers_of_the_docstring():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import cross_val_score

    code = cross_entropy_loss.__doc__.partition("of class 1::")[2].partition("Examples")[0]
    several, two = ast.parse(textwrap.dedent(code)).body
    names = {"make_scorer": make_scorer, "cross_entropy_loss": cross_entropy_loss, "np": np}
    x, y = load_iris(return_X_y=True)
    for scorer, rows in ((several, y >= 0), (two, y < 2)):
        scoring = eval(compile(ast.Expression(scorer.value), "docstring", "eval"), names)  # noqa: S307 -- our docstring
        ours, theirs = (
            cross_val_score(LogisticRegression(max_iter=1000), x[rows], y[rows], scoring=one, error_score="raise")
            for one in (scoring, "neg_log_loss")
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


# SciPy


@each_dtype
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scipy_softmax_family(dtype, axis, rng):
    logits, others = scores_for("cross_entropy", rng, (2, 5, 6, 7), dtype)
    logits[1, 2, 3] = others[1, 2, 3] = -np.inf
    logits[2, 4, :5] = others[2, 4, :5] = -np.inf
    for ours, theirs in (
        (softmax, scipy.special.softmax),
        (log_softmax, scipy.special.log_softmax),
        (logsumexp, scipy.special.logsumexp),
    ):
        actual, expected = ours(logits, axis=axis), theirs(logits, axis=axis)
        np.testing.assert_allclose(actual, expected, **TOLERANCES[dtype])
        assert actual.shape == expected.shape
        assert ours is logsumexp or actual.dtype == expected.dtype == dtype
    p, q = scipy.special.softmax(logits.astype(float), axis), scipy.special.softmax(others.astype(float), axis)
    tolerance = {"rtol": 1e-6, "atol": 2e-7} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    divergences = kl_divergence(logits, others, axis=axis, reduction="none")
    np.testing.assert_allclose(divergences, scipy.special.rel_entr(p, q).sum(axis), **tolerance)
    np.testing.assert_allclose(divergences, scipy.stats.entropy(p, q, axis=axis), **tolerance)
    scores = token_scores(logits, np.zeros(divergences.shape, int), axis=axis)
    np.testing.assert_allclose(scores.entropy, scipy.stats.entropy(p, axis=axis), **tolerance)


# optax, which computes in float32


@each_kind
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.slow
def test_optax_softmax_cross_entropy(kind, axis, rng, optax):
    import jax

    logits, targets = logits_and_targets(rng, kind, np.float32, (4, 7, 5), axis)
    targets = np.where(targets == -100, 2, targets)
    for smoothing in (0.0, 0.1) if kind == "distributions" else (0.0,):

        def losses_of(logits, smoothing=smoothing):
            if kind == "ids":
                return optax.softmax_cross_entropy_with_integer_labels(logits, targets, axis=axis)
            return optax.softmax_cross_entropy(logits, (1 - smoothing) * targets + smoothing / logits.shape[axis], axis)

        given = {"axis": axis, "label_smoothing": smoothing}
        losses, gradient = cross_entropy_and_grad(logits, targets, reduction="none", **given)
        np.testing.assert_allclose(losses, losses_of(logits), **TOLERANCES[np.float32])
        expected = jax.grad(lambda x: losses_of(x).sum())(logits)
        np.testing.assert_allclose(gradient, expected, **TOLERANCES[np.float32])


def test_optax_kl_divergence(rng, optax):
    base_logits, logits = scores_for("cross_entropy", rng, (2, 6, 50), np.float32)
    expected = optax.losses.kl_divergence(log_softmax(logits), softmax(base_logits))
    np.testing.assert_allclose(kl_divergence(base_logits, logits, reduction="none"), expected, rtol=1e-5, atol=2e-6)
    expected = optax.losses.kl_divergence_with_log_targets(log_softmax(logits), log_softmax(base_logits))
    np.testing.assert_allclose(kl_divergence(base_logits, logits, reduction="none"), expected, rtol=1e-5, atol=2e-6)


# torch's autograd


@each_kind
@each_options
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_torch_autograd_with_label_smoothing_z_loss_logit_scale_softcap(kind, options, reduction, rng):
    torch = pytest.importorskip("torch")
    logits, targets, _ = problem(rng, kind, np.float64, axis=1)
    tensor = torch.tensor(logits, requires_grad=True)
    x = tensor * options.get("logit_scale", 1)
    if "softcap" in options:
        x = options["softcap"] * torch.tanh(x / options["softcap"])
    smoothing = options.get("label_smoothing", 0.0)
    kept = torch.tensor(targets != -100) if kind == "ids" else torch.ones(5, 6, dtype=torch.bool)
    penalty = options.get("z_loss", 0) * (torch.logsumexp(x, 1)[kept] ** 2)
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(targets), label_smoothing=smoothing, reduction=reduction)
    loss = loss + (penalty.mean() if reduction == "mean" else penalty.sum())
    loss.backward()
    actual, gradient = cross_entropy_and_grad(logits, targets, axis=1, reduction=reduction, **options)
    assert actual == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_of_a_meter_equal_those_of_statsmodels(weighted, rng):
    models = pytest.importorskip("statsmodels.api")
    parts = [rng.exponential(3, rng.integers(1, 30)) + rng.random() for _ in range(40)]
    losses, groups = np.concatenate(parts), np.repeat(np.arange(40), list(map(len, parts)))
    weights = rng.uniform(0.1, 3, losses.size) if weighted else None
    meter = LossMeter()
    meter.update(sequence_losses(losses, segment_ids=groups, sample_weight=weights))
    others = rng.exponential(5, 15)  # loose tokens: each a group of its own
    meter.update(others, sample_weight=np.full(15, 0.7) if weighted else None)
    losses, groups = np.concatenate([losses, others]), np.concatenate([groups, 40 + np.arange(15)])
    weights = np.concatenate([weights, np.full(15, 0.7)]) if weighted else np.ones(losses.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = models.WLS(losses, np.ones(losses.size), weights=weights).fit(
            cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
        )
    assert meter.loss == pytest.approx(fit.params[0], rel=1e-12)
    assert meter.loss.stderr == pytest.approx(fit.bse[0], rel=1e-12)
