"""assert_close: it passes where every figure keeps to its limit, and else names the figures and the farthest tokens."""

import math

import clients
import numpy as np
import pytest
from arrays import fails

from tokenloss import compare
from tokenloss.formats import open_scores
from tokenloss.testing import assert_close

RNG = np.random.default_rng(5)
BASE = RNG.normal(size=(3, 4, 7))
LOGITS = BASE + RNG.normal(size=BASE.shape) / 8
TARGETS = RNG.integers(7, size=BASE.shape[:-1])
NAN, INF = math.nan, math.inf


def softmax(rows):
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def figures_of_tokens():
    """Of each token, its divergence, its change of loss, and whether the likeliest classes are the same."""
    own, other = softmax(BASE.reshape(-1, 7)), softmax(LOGITS.reshape(-1, 7))
    at = np.arange(len(own)), TARGETS.reshape(-1)
    same_top = own.argmax(-1) == other.argmax(-1)
    return (own * np.log(own / other)).sum(-1), abs(np.log(own[at] / other[at])), same_top


KL, CHANGE, SAME = figures_of_tokens()
FIGURES = {"max_kl": KL.mean(), "max_token_kl": KL.max(), "max_abs_loss": CHANGE.max(), "min_same_top": SAME.mean()}
assert 0 < FIGURES["min_same_top"] < 1


def as_torch(dtype):
    return lambda array: pytest.importorskip("torch").tensor(array).to(getattr(pytest.importorskip("torch"), dtype))


def as_jax(array):
    return pytest.importorskip("jax.numpy").asarray(array)


def as_file(folder, name, scores, **arrays):
    path = folder / f"{name}.npz"
    np.savez(path, logits=scores, **arrays)
    return path


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("source", ["arrays", "files", "shards"])
def test_each_limit_holds_up_to_its_figure(name, source, tmp_path):
    scores, options = (LOGITS, BASE), {"targets": TARGETS}
    if source == "files":
        scores, options = (as_file(tmp_path, "q", LOGITS), as_file(tmp_path, "base", BASE, targets=TARGETS)), {}
    elif source == "shards":
        parts = [slice(0, 1), slice(1, 3)]
        scores = (
            [as_file(tmp_path, f"q{i}", LOGITS[part]) for i, part in enumerate(parts)],
            [as_file(tmp_path, f"base{i}", BASE[part], targets=TARGETS[part]) for i, part in enumerate(parts)],
        )
        options = {}
    is_least, figure = name.startswith("min_"), FIGURES[name]
    tight, loose = ((1 + 1e-9) * figure, (1 - 1e-9) * figure)[:: 1 if is_least else -1]
    assert_close(*scores, **options, **{name: loose})
    with pytest.raises(AssertionError) as caught:
        assert_close(*scores, **options, **{name: tight})
    of_limit, *rows = table(str(caught.value), name)
    assert of_limit[-4:] == ["fails,", "at", "least" if is_least else "most", f"{tight:g}"]
    assert float(of_limit[-5]) == pytest.approx(figure, rel=1e-5)
    distance = {"max_abs_loss": CHANGE, "min_same_top": np.where(SAME, 0, 1 + KL)}.get(name, KL)
    expected = np.argsort(-distance)[: min(5, np.count_nonzero(distance))]
    assert [described(row) for row in rows] == [
        (
            {"arrays": f"[{token // 4},{token % 4}]", "files": str(token)}.get(source, str(token - 4 * (token > 3))),
            str(TARGETS.flat[token]), *(str(scores.reshape(-1, 7)[token].argmax()) for scores in (LOGITS, BASE)),
        )
        for token in expected.tolist()
    ]  # fmt: skip
    for row, token in zip(rows, expected, strict=True):
        assert float(row[-3]) == pytest.approx(KL[token], rel=1e-5)
        assert abs(float(row[-2]) - float(row[-1])) == pytest.approx(CHANGE[token], abs=1e-5)
    if source == "shards":
        assert [row[0].endswith(f"base{int(token > 3)}.npz") for row, token in zip(rows, expected, strict=True)]


def table(message, name):
    """The cells of the row of a limit, and of each token's row."""
    assert message.startswith(f"not close to the base  {name} fails (12 tokens)\n")
    lines = message.replace(", ", ",").replace("fails,", "fails, ").splitlines()
    first = next(line.split() for line in lines if line.startswith(f"  {name} "))
    return [first, *(line.split() for line in lines[lines.index("  Tokens that differ most") + 2 :])]


def described(row):
    """The position of a token, its id, and both likeliest classes."""
    return tuple(row[-7:-3])


@pytest.mark.parametrize(
    "of", [as_torch("float32"), as_torch("bfloat16"), as_jax], ids=["torch", "torch of bfloat16", "jax"]
)
def test_tensors_are_as_good_as_arrays(of):
    base, logits = of(BASE), of(LOGITS)
    assert_close(base, base, TARGETS, max_token_kl=0, max_abs_loss=0, min_same_top=1)
    with pytest.raises(AssertionError, match=r"Tokens that differ most\n  position  token  top class  base's "):
        assert_close(logits, base, as_torch("int64")(TARGETS), max_abs_loss=0.01)


def test_base_and_logits_are_not_mistaken_for_each_other():
    kl = compare(BASE, LOGITS, None).mean_kl
    assert kl != compare(LOGITS, BASE, None).mean_kl
    assert_close(LOGITS, BASE, max_kl=kl)
    with pytest.raises(AssertionError, match="max_kl fails"):
        assert_close(LOGITS, BASE, max_kl=np.nextafter(kl, 0))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("value", "word"), [(NAN, "nan"), (INF, "nan"), (-INF, "infinite")])
def test_nan_and_infinity_of_one_token_fail_whatever_the_limit(side, value, word):
    scores = [LOGITS.copy(), BASE.copy()]
    scores[side][2, 1, TARGETS[2, 1]] = value
    with pytest.raises(AssertionError, match=rf"(?s){word}.* fails, none\n.*base's loss\n +\[2, 1\]"):
        assert_close(*scores, TARGETS, max_kl=1e300, min_same_top=0)
    assert_close(*scores, TARGETS, max_kl=1, where=np.arange(4) != 1)
    assert_close(*scores, np.where(TARGETS[2, 1] == TARGETS, -100, TARGETS), max_abs_loss=1)


def test_a_comparison_of_no_token_fails():
    for options in {"where": False}, {"targets": np.full(TARGETS.shape, -100)}:
        with pytest.raises(AssertionError, match=r"max_kl fails \(0 tokens\)"):
            assert_close(BASE, BASE, max_kl=1, **options)
    with pytest.raises(AssertionError, match=r"max_token_kl fails \(0 tokens\)"):
        assert_close(BASE[:0], BASE[:0], max_token_kl=1)


def test_text_of_tokens_is_printable(tmp_path):
    text = np.full(TARGETS.shape, "\x1b[31m\n")
    paths = as_file(tmp_path, "q", LOGITS), as_file(tmp_path, "base", BASE, targets=TARGETS, tokens=text)
    with pytest.raises(AssertionError, match=r"\\x1b\[31m\\n") as caught:
        assert_close(*paths, max_kl=0)
    assert "\x1b" not in str(caught.value)


def test_classes_leaves_out_what_only_one_vocabulary_has():
    padded = np.concatenate([LOGITS, np.full((3, 4, 2), 9.0)], -1)
    with pytest.raises(AssertionError) as caught:
        assert_close(padded, BASE, TARGETS, classes=7, max_abs_loss=0)
    with pytest.raises(AssertionError) as expected:
        assert_close(LOGITS, BASE, TARGETS, max_abs_loss=0)
    assert str(caught.value) == str(expected.value)


def test_kind_is_that_of_both_unless_base_kind_says_otherwise(tmp_path):
    probs = softmax(BASE)
    assert_close(np.log(probs), probs, TARGETS, kind="log_probs", base_kind="probs", max_abs_loss=1e-12)
    assert_close(probs, probs, TARGETS, kind="probs", max_abs_loss=0)
    paths = tmp_path / "q.npy", tmp_path / "base.npy"
    for path, scores in zip(paths, (np.log(probs), probs), strict=True):
        np.save(path, scores)
    base = open_scores(paths[1], kind="probs")
    assert_close(open_scores(paths[0], kind="log_probs"), base, max_token_kl=1e-12)
    np.save(paths[0], softmax(LOGITS))
    with pytest.raises(AssertionError, match=r"  row  top class  base's +KL\n"):
        assert_close(open_scores(paths[0], kind="probs"), base, max_token_kl=0)


def test_shift_is_of_files_and_what_arrays_hold_is_said_to_the_openers_of_files(tmp_path):
    paths = as_file(tmp_path, "q", LOGITS), as_file(tmp_path, "base", BASE, input_ids=TARGETS)
    with pytest.raises(AssertionError, match=r"\(9 tokens\)"):
        assert_close(*paths, max_kl=0, shift=True)
    with fails(ValueError, "shift is given; it must be left out where logits and base are arrays"):
        assert_close(LOGITS, BASE, max_kl=1, shift=True)
    for name, value in {
        "targets": TARGETS, "kind": "logits", "base_kind": "logits", "where": True, "ignore_index": 3,
    }.items():  # fmt: skip
        with fails(ValueError, f"{name} is given; it must be said where files are opened, as by formats.open_scores"):
            assert_close(*paths, max_kl=1, **{name: value})


def test_equal_files_are_close_without_a_warning_and_a_file_is_not_compared_with_itself(tmp_path):
    paths = [as_file(tmp_path, name, BASE) for name in ("base", "q")]
    assert_close(*paths, max_kl=0)
    words = "the base is compared with itself"
    with pytest.warns(UserWarning, match="^logits: identical to base: the same file$"), fails(AssertionError, words):
        assert_close(paths[0], paths[0], max_kl=0)


def test_bad_arguments_are_refused(tmp_path):
    path = as_file(tmp_path, "base", BASE)
    with fails(ValueError, "the list of gates is empty", "max_kl, max_token_kl, max_abs_loss, min_same_top"):
        assert_close(LOGITS, BASE)
    with fails(ValueError, "min_same_top is 97", "a number from 0 to 1"):
        assert_close(LOGITS, BASE, min_same_top=97)
    for value in NAN, INF, -1:
        with fails(ValueError, f"max_kl is {value}", "a finite number >= 0"):
            assert_close(LOGITS, BASE, max_kl=value)
    for scores in (LOGITS, BASE), (path, path.rename(tmp_path / "q.npz")):
        np.savez(path, logits=2 * BASE)
        with fails(TypeError, "targets is None", "for max_abs_loss"):
            assert_close(*scores, max_abs_loss=1)
    with fails(TypeError, "logits is ", "ndarray", "must be a path, as base is"):
        assert_close(LOGITS, path, max_kl=1)
    with fails(TypeError, "logits is ", "Path", "must be an array, as base is"):
        assert_close(path, BASE, max_kl=1)
    samples = [clients.save(tmp_path / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]
    with fails(
        ValueError, "contains samples of lm-evaluation-harness, which compare_samples compares; assert_close needs"
    ):
        assert_close(*samples, max_kl=1)
    responses = [clients.save(tmp_path / f"{name}.jsonl", *clients.COMPLETIONS[:3]) for name in ("a", "b")]
    with fails(ValueError, "gives only the most likely classes; assert_close needs all classes of each token"):
        assert_close(*responses, max_kl=1)
    logprobs = [tmp_path / f"{name}_logprobs.jsonl" for name in ("a", "b")]
    for path in logprobs:
        path.write_text('{"logprobs": [-0.5, -1.5]}\n')
    with fails(ValueError, "gives the log-probability of each token only; assert_close needs all classes"):
        assert_close(*logprobs, max_kl=1)
