"""evaluate: what it refuses, in one line that names the argument, the file or the block."""

import numpy as np
import pytest

from tokenloss import evaluate
from tokenloss.formats import blocks, open_scores

LOGITS, IDS = np.zeros((2, 3, 4), np.float32), np.ones((2, 3), int)


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        ([], {}, ValueError, "source is empty; it must be paths or blocks"),
        (iter(()), {}, ValueError, "source is empty"),
        ({"id": "a"}, {}, TypeError, "source is 'dict'; it must be paths, or blocks .*; save a server's response"),
        ('{"id": "' + "a" * 300, {}, TypeError, "source is '{\"id\": \"aaaaaaaa...'; it must be paths"),
        (['[{"id": "a"}]'], {}, TypeError, "source is '.*; it must be a path; save a server's response"),
        (LOGITS, {}, TypeError, "source is 'ndarray'; it must be paths, or blocks such as"),
        (3, {}, TypeError, "source is 'int'; it must be paths or blocks"),
        ((LOGITS, IDS), {}, TypeError, r"block 0 is 'ndarray'; .*; a single block is \[\(logits, targets\)\]$"),
        ([3.5], {}, TypeError, "block 0 is 'float'"),
        ([(LOGITS,)], {}, TypeError, "block 0 is 'tuple of 1'"),
        ([(LOGITS, IDS, None, None, None)], {}, TypeError, "block 0 is 'tuple of 5'"),
        ([(LOGITS, IDS), "a.npz"], {}, TypeError, "block 1 is 'str'"),
        (["a.npz", (LOGITS, IDS)], {}, TypeError, "source is 'tuple'; it must be a path"),
        (["a.npz", 3], {}, TypeError, "source is 'int'; it must be a path"),
        ("a.npz", {"text": 3}, TypeError, "text is 'int'; it must be a path"),
        ("a.npz", {"text": ""}, ValueError, "text is empty; it must be a path"),
        ("", {}, ValueError, "source is empty; it must be a path"),
        ("a.npz", {"state": b"x"}, TypeError, "state is 'bytes'; it must be a path"),
        ("a.npz", {"text": "x", "n_bytes": 3}, ValueError, "text and n_bytes cannot be given together"),
        ("none*.npz", {}, ValueError, r"none\*.npz: matches no file"),
        ("none.npz", {}, OSError, "No such file"),
        ([(LOGITS, IDS)], {"words": "all"}, ValueError, "words is 'all'; it must be 'whitespace' or 'lm-eval'"),
        ([(LOGITS, IDS)], {"top": -1}, ValueError, "top is -1; it must be an integer >= 0"),
        ([(LOGITS, IDS)], {"n_bytes": 0.5}, TypeError, "n_bytes"),
        ([(LOGITS, IDS)], {"workers": 0}, ValueError, "workers"),
        ([(LOGITS, IDS)], {"sinks": "x.csv"}, TypeError, "sinks is 'str'; it must be a sequence of tokenloss.sinks"),
        ([(LOGITS, IDS)], {"sinks": [print]}, TypeError, "sinks is 'builtin_function_or_method'"),
        ([(LOGITS, IDS)], {"text": "none.txt"}, OSError, "No such file"),
        ([(LOGITS, IDS)], {"scheduler": "x"}, ValueError, "source is blocks, which are made one by one; scheduler n"),
        ([(LOGITS, IDS)], {"state": "x"}, ValueError, "source is an iterable, which starts at its first block"),
        ([(np.float32(1), 0)], {}, ValueError, "block 0: logits is a scalar; it must have a class axis"),
        ([(LOGITS.astype(int), IDS)], {}, TypeError, "block 0: logits has dtype int64"),
        ([(LOGITS, IDS[:, 1:])], {}, ValueError, r"block 0: targets has shape \(2, 2\); it must be \(2, 3\)"),
        ([(LOGITS, IDS), (LOGITS, IDS + 3)], {}, IndexError, r"^block 1: targets\[0, 0\] = 4 is out of range \[0, 4\)"),
        ([(LOGITS, IDS * 9)], {"shift": True}, IndexError, r"block 0: shifted targets\[0, 0\] = 9 is out of range"),
        ([(LOGITS, np.eye(4)[IDS])], {"shift": True}, ValueError, "^block 0: contains targets of shape"),
        ([(LOGITS, IDS), (LOGITS[..., :3], IDS)], {}, ValueError, r"block 1: logits has shape \(2, 3, 3\).*\(..., 4\)"),
        ([(LOGITS, IDS, IDS)], {}, TypeError, "block 0: where has dtype int64; it must be bool"),
        ([(LOGITS, IDS, [True])] * 2 + [(LOGITS, IDS, [True] * 4)], {}, ValueError, r"block 2: where has shape \(4,\)"),
        ([(LOGITS, IDS, None, IDS * 0.5)], {}, TypeError, "block 0: segment_ids has dtype float64"),
        ([(LOGITS, IDS, None, [0, 1])], {}, ValueError, r"block 0: segment_ids has shape \(2,\)"),
        ([(LOGITS, IDS), (LOGITS, IDS, None, IDS)], {}, ValueError, "block 1: segment_ids is given"),
        ([(LOGITS, IDS, None, IDS), (LOGITS, IDS)], {}, ValueError, "block 1: segment_ids is None"),
        ([(np.full((20, 4), 0.25), np.ones(20, int))], {}, ValueError, "block 0: looks like probabilities"),
        (blocks([(LOGITS, IDS)], kind="log_probs"), {}, ValueError, "block 0: log_probs has a row whose logsumexp "),
    ],
)  # fmt: skip
def test_evaluate_refuses(source, options, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", logits=LOGITS, targets=IDS)
    with pytest.raises(error, match=words) as raised:
        evaluate(source, **options)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"targets": IDS}, TypeError, "targets is 'ndarray'; it must be a path"),
        ({"targets": 3}, TypeError, "targets is 'int'; it must be a path"),
        ({"segment_ids": [0, 1]}, TypeError, "segment_ids is 'int'; it must be a path"),
        ({"segment_ids": ""}, ValueError, "segment_ids is empty; it must be a path"),
        ({"tokenizer": 3}, TypeError, "tokenizer is 'int'; it must be a path"),
        ({"kind": "odds"}, ValueError, "kind is 'odds'; it must be 'logits', 'log_probs', 'probs'"),
        ({"ignore_index": "x"}, TypeError, "ignore_index is 'x'; it must be an integer or None"),
        ({"shift": "no"}, ValueError, "shift is 'no'"),
        ({"array": "x"}, ValueError, "a.npz: contains logits, targets; it must contain 'x'"),
    ],
)
def test_openers_refuse_what_evaluate_refused(options, error, words, tmp_path):
    np.savez(tmp_path / "a.npz", logits=LOGITS, targets=IDS)
    with pytest.raises(error, match=words):
        open_scores(tmp_path / "a.npz", **options)
    of_blocks = {
        name: value for name, value in options.items() if name in ("kind", "ignore_index", "shift", "tokenizer")
    }
    if of_blocks:
        with pytest.raises(error, match=words):
            evaluate(blocks([(LOGITS, IDS)], **of_blocks))


def test_a_shift_that_contradicts_the_opener_is_refused():
    for opposite in True, False:
        with pytest.raises(
            ValueError, match=f"shift is {opposite}; it must be {not opposite}, or left out, since source was opened"
        ):
            evaluate(blocks([(LOGITS, IDS)], shift=not opposite), shift=opposite)
    assert evaluate(blocks([(LOGITS, IDS)], shift=True), shift=True).count == 4


def test_blocks_without_rows():
    result = evaluate([(LOGITS[:0], IDS[:0]), (np.empty((0, 4)), IDS[:0, 0]), (LOGITS, IDS)])
    assert result.meter == evaluate([(LOGITS, IDS)]).meter
    assert evaluate([(LOGITS[:0], IDS[:0])]).count == 0


def test_errors_of_an_engine_are_its_own():
    def engine():
        yield LOGITS, IDS
        raise ZeroDivisionError("of the engine")

    with pytest.raises(ZeroDivisionError, match="of the engine"):
        evaluate(engine())
