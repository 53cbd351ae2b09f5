"""What score and compare take arrays for: --kind, --base-kind, class ids and distributions."""

import itertools
import math

import numpy as np
import pytest
from commands import LOGITS, TARGETS, assert_refused
from reference import log_softmax

import tokenloss
from tokenloss._core.validation import UNNORMALIZED
from tokenloss._evaluation import plan
from tokenloss.formats import open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def test_targets_as_second_file(command, score_json, npy):
    scores, targets = npy(LOGITS, TARGETS)
    assert score_json(scores, targets)["targets"] == "class ids"
    assert score_json(scores, targets)["files"] == [str(scores), str(targets)]
    for dtype in (np.bool_, np.int64):
        scores, targets = npy(LOGITS, np.eye(3, dtype=dtype)[TARGETS])
        assert_refused(
            command("score", scores, targets), f"{targets}: has dtype {np.dtype(dtype)} and the shape", "--targets"
        )
        result = score_json(scores, "--targets", targets)
        assert (result["targets"], result["loss"]) == ("distributions", tokenloss.cross_entropy(LOGITS, TARGETS))


@pytest.mark.parametrize("block_rows", [1, 2, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0.5, 0.25, 0.2], ["targets[1, 0] adds up to 0.95", "add up to 1, as a distribution does", "class ids are"]),
        ([0.5, 0.5, 0.02], ["targets[1, 0] adds up to 1.02"]),
        ([0.5, 0.75, -0.25], ["targets[1, 0] has a probability of -0.25", "from 0 to 1", "class ids are integers"]),
        ([1.25, -0.001, -0.249], ["targets[1, 0] has a probability of 1.25"]),
        ([np.nan, 0.5, 0.5], ["targets[1, 0] "]),
        ([2.0, -1.0, 0.0], ["targets[1, 0] has a probability of "]),
    ],
)
def test_targets_that_are_no_distribution(row, words, dtype, block_rows, command, npz, npy, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    logits = LOGITS.reshape(2, 2, 3).astype(dtype)
    shares = np.eye(3, dtype=dtype)[TARGETS].reshape(2, 2, 3)
    shares[1, 0] = row
    path = npz(logits=logits, targets=shares)
    assert_refused(command("score", path), f"{path}: targets", *words)
    scores, targets = npy(logits, shares)
    assert_refused(command("score", scores, "--targets", targets), f"{targets}: targets", *words)


def test_targets_of_a_single_row_that_are_no_distribution(command, npy):
    scores, targets = npy(LOGITS[0], np.array([0.5, 0.25, 0.125], np.float32))
    refused = command("score", scores, "--targets", targets, "--kind", "logits")
    assert_refused(refused, f"{targets}: targets adds up to 0.875")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("row", [[0.5, 0.25, 0.245], [0.5, 0.5, 0.009], [1.0009, -0.0009, 0]])
def test_targets_that_are_nearly_a_distribution(row, dtype, score_json, npz):
    shares = np.eye(3, dtype=dtype)[TARGETS]
    shares[2] = row
    result = score_json(npz(logits=LOGITS, targets=shares))
    assert result["loss"] == pytest.approx(tokenloss.cross_entropy(LOGITS, shares))


def test_targets_in_float16_are_added_up_in_float64(score_json, npz):
    shares = np.full((2, 50_000), 1 / 50_000, np.float16)
    result = score_json(npz(logits=np.zeros((2, 50_000), np.float32), targets=shares))
    assert result["loss"] == pytest.approx(math.log(50_000) * float(shares[0].astype(float).sum()))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_kind_missing_for_probs(dtype, command, score_json, npy):
    probs = tokenloss.softmax(LOGITS.astype(np.float64)).astype(dtype)
    for targets in (TARGETS, np.array([-100, -100, 2, 0])):
        scores, path = npy(probs, targets)
        refused = command("score", scores, path)
        assert_refused(refused, f"{scores}: looks like probabilities, since rows add up to 1", "--kind probs", "logits")
        assert score_json(scores, path, "--kind", "logits")["loss"] == tokenloss.cross_entropy(probs, targets)
        assert score_json(scores, path, "--kind", "probs")["loss"] == tokenloss.cross_entropy_loss(
            targets, probs, ignore_index=-100
        )


def test_kind_of_scores_that_are_not_probs_is_logits(score_json, npy):
    probs = tokenloss.softmax(LOGITS.astype(np.float64))
    for scores, targets in (
        (np.zeros((4, 3)), TARGETS),
        (np.concatenate([probs, [[-2e-3, 0.5, 0.502]]]), np.zeros(5, int)),
        (probs * 1.02, TARGETS),
        (np.ones((3, 1)), np.zeros(3, int)),  # of one class
    ):
        assert score_json(*npy(scores, targets))["loss"] == tokenloss.cross_entropy(scores, targets)


def test_kind_check_leaves_out_ignored_rows(command, npy, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 3)
    scores = np.concatenate([np.zeros((5, 3)), tokenloss.softmax(LOGITS.astype(np.float64))])
    targets = np.concatenate([np.full(5, -100), TARGETS])
    assert_refused(command("score", *npy(scores, targets)), "looks like probabilities")


def test_kind_check_of_compare_leaves_out_ignored_rows(compare_json, npy):
    scores, targets = npy(np.concatenate([np.full((20, 3), 1 / 3), LOGITS]), [-100] * 20 + TARGETS.tolist())
    other = scores.with_name("other.npy")
    np.save(other, 0.5 * np.load(scores))
    assert compare_json(scores, other, "--targets", targets)["count"] == 4


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_kind_check_leaves_out_rows_of_zeros_or_nan(value, command, npy):
    probs = tokenloss.softmax(LOGITS.astype(np.float64))
    probs[1] = value
    assert_refused(command("score", *npy(probs, TARGETS)), "looks like probabilities")


def test_kind_probs_that_hardly_differ_are_told_apart(npy, command, tmp_path):
    """Their logarithms are equal in their own dtype."""
    low = np.linspace(0.2, 0.3, 1000, dtype=np.float32)
    probs = np.stack([low, np.nextafter(low, np.float32(1)), 1 - 2 * low], -1)
    assert (np.log(probs[:, 0]) == np.log(probs[:, 1])).any()
    scores, targets = npy(probs, np.ones(1000, int))
    table = tmp_path / "tokens.npy"
    assert command("score", scores, targets, "--kind", "probs", "--per-token", table)[0] == 0
    result = np.load(table)
    assert (result["argmax"] == np.where(probs[:, 1] > probs[:, 2], 1, 2)).all()
    assert result["rank"].max() == 2


def test_kind_and_base_kind_missing_in_compare(command, compare_json, models):
    np.save(models.path / "probs.npy", tokenloss.softmax(models.other.reshape(24, 9)))
    base, probs, targets = models.path / "base.npz", models.path / "probs.npy", models.path / "targets.npy"
    assert_refused(command("compare", base, probs), f"{probs}: looks like probabilities", "--kind probs")
    refused = command("compare", probs, models.path / "other.npy", "--targets", targets)
    assert_refused(refused, f"{probs}: looks like probabilities", "--base-kind probs")
    assert compare_json(base, probs, "--kind", "logits")["count"] == 24
    assert compare_json(base, probs, "--kind", "probs")["mean_kl"] == pytest.approx(
        tokenloss.kl_divergence(models.base, models.other), rel=1e-4
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("wrong", ["base 2", "logits", "probs"])
def test_kind_log_probs_of_wrong_logsumexp(wrong, named, command, npz, npy):
    logs = tokenloss.log_softmax(LOGITS.astype(np.float64))
    scores = {"base 2": logs / math.log(2), "logits": LOGITS, "probs": np.exp(logs)}[wrong]
    scores = np.concatenate([logs, scores])
    targets = np.concatenate([TARGETS, TARGETS])
    argv = [npz(log_probs=scores, targets=targets)] if named else [*npy(scores, targets), "--kind", "log_probs"]
    got = tokenloss.logsumexp(scores[4:5])[0]
    words = f"{argv[0]}: log_probs has a row whose logsumexp is {got:.4g}; for natural log-probabilities it is 0"
    if got < 0 and not named:  # as of rows that were cut
        assert command("score", *argv)[0] == 0
    else:
        assert_refused(command("score", *argv), words)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
def test_tokens_have_the_bits_of_token_scores_of_that_kind(kind, dtype, npz):
    class Kept(tokenloss.sinks.Sink):
        rows, top_k = "tokens", 3

        def write(self, block):
            (tops,) = block.tops.values()
            self.columns = block.columns | tops
            np.testing.assert_array_equal(tops["rank"], block.columns["rank"])

    logits, targets = np.random.default_rng(5).normal(size=(40, 30)), np.arange(40) % 31 - 1
    logs = tokenloss.log_softmax(logits)
    scores = {"logits": logits, "log_probs": logs, "probs": np.exp(logs)}[kind].astype(dtype)
    expected, sink = tokenloss.token_scores(scores, targets, kind=kind, ignore_index=-1, top_k=3), Kept()
    tokenloss.evaluate(open_scores(npz(**{kind: scores}, targets=targets), ignore_index=-1), sinks=[sink])
    for name, column in vars(expected).items():
        np.testing.assert_array_equal(sink.columns[name], column, name)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_kind_log_probs_of_the_likeliest_classes_alone(dtype, score_json, command, npz):
    logs = tokenloss.log_softmax(np.random.default_rng(0).standard_normal((6, 50)))
    targets = logs.argmax(-1)
    cut = np.where(logs >= np.sort(logs)[:, -5:-4], logs, -np.inf).astype(dtype)
    path = npz(log_probs=cut, targets=targets)
    words = "log_probs has a row whose logsumexp is -", "--kind log_probs accepts truncated rows"
    assert_refused(command("score", path), *words)
    assert score_json(path, "--kind", "log_probs")["loss"] == tokenloss.nll_loss(cut, targets)


def test_kind_log_probs_of_nearly_right_logsumexp(score_json, command, npz):
    logs = tokenloss.log_softmax(LOGITS.astype(np.float64))
    logs[0] += 0.99 * UNNORMALIZED
    logs[1] = np.nan
    logs[2] += 7  # is not scored
    result = score_json(npz(log_probs=logs, targets=[0, 1, -100, 0]))
    assert (result["count"], result["loss"]) == (3, None)
    logs[0] += 0.02 * UNNORMALIZED
    assert_refused(command("score", npz(log_probs=logs, targets=[0, 1, -100, 0])), "logsumexp is 0.101")


@pytest.mark.parametrize("given", [False, True])
def test_kind_log_probs_of_wrong_logsumexp_in_compare(given, command, npz, models):
    logs = tokenloss.log_softmax(models.other.astype(np.float64)) / math.log(2)
    path = npz(log_probs=logs)
    options = ["--kind", "log_probs"] if given else []
    status = command("compare", models.path / "base.npz", path, *options)
    if given:  # as if rows were cut
        assert status[0] == 0
    else:
        assert_refused(status, f"{path}: log_probs has a row whose")


@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
# in float16, small probabilities are 0
@pytest.mark.filterwarnings("ignore:b. 6 of 150 tokens have an infinite divergence or loss:UserWarning")
def test_files_have_the_bits_of_arrays_with_kind_and_base_kind(definitions, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 70)
    kinds = {"logits": np.copy, "log_probs": log_softmax, "probs": lambda logits: np.exp(log_softmax(logits))}
    rng = np.random.default_rng(20)
    models = rng.normal(size=(2, 150, 37), scale=3)
    targets, files = rng.integers(30, size=150), (tmp_path / "base.npz", tmp_path / "other.npz")
    for base_kind, kind, classes in itertools.product(kinds, kinds, (None, 30)):
        if definitions == "llama.cpp" and (base_kind == "logits" or classes):
            continue  # of logits, compare makes no log-probabilities
        base, other = (kinds[name](model).astype(dtype) for name, model in zip((base_kind, kind), models, strict=True))
        np.savez(files[0], targets=targets, **{base_kind: base})
        np.savez(files[1], **{kind: other})
        options = {"definitions": definitions, "classes": classes}
        expected = tokenloss.compare(base, other, targets, base_kind=base_kind, kind=kind, **options)
        (result,) = tokenloss.compare_files(files[0], {"b": files[1]}, **options).values()
        for name in ("nll", "base_nll", "kl", "delta_p", "base_top_p", "is_same_top", "mean_kl", "left_out"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), str((base_kind, kind, name)))


def test_files_of_probabilities_that_do_not_add_up_to_1_are_refused_as_by_compare(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 40)
    rng = np.random.default_rng(21)
    probs, targets = rng.dirichlet(np.ones(9), 100), rng.integers(9, size=100)
    files = tmp_path / "base.npz", tmp_path / "other.npz"
    np.savez(files[0], targets=targets, probs=probs)
    probs[93] /= 2
    np.savez(files[1], probs=probs)
    with pytest.raises(ValueError, match=r"other\.npz, rows from 80 on: logits\[13\] has a row that adds up to 0\.5;"):
        tokenloss.compare_files(files[0], {"b": files[1]})
