"""evaluate: what the command prints, for Python; blocks in memory against the functions of arrays."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import BFLOAT16, FLOATS, LAYOUTS
from files import held_at_most

import tokenloss
from tokenloss import LossMeter, evaluate, sequence_losses, token_scores
from tokenloss._evaluation import plan
from tokenloss._evaluation import rows as shard_rows
from tokenloss.formats import blocks, open_scores
from tokenloss.results import Evaluation

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

TIMES = {"seconds", "gb_per_second"}


def without_times(figures):
    return {name: value for name, value in figures.items() if name not in TIMES}


def figures_of_tokens(evaluation):
    """All figures that depend on neither files nor blocks."""
    left_out = {"files", "shards", "shape", "n_bytes_read", "highest_loss_tokens", "words", *TIMES}
    return {name: repr(value) for name, value in evaluation.to_dict().items() if name not in left_out}


# -- files: what the command prints ------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path):
    """Three files of sequences (N, T, V), a text, and segment ids that put them together in another way."""
    rng = np.random.default_rng(21)
    logits, targets = rng.normal(size=(6, 5, 7), scale=2).astype(np.float32), rng.integers(7, size=(6, 5))
    targets[1, 3:] = -100
    ids = np.array([3, 9, -1, 3, 2**40, 9]).repeat(5)
    for name, part in zip("abc", np.split(np.arange(6), [1, 4]), strict=True):
        np.savez(tmp_path / f"part-{name}.npz", logits=logits[part], targets=targets[part])
        np.save(tmp_path / f"scores-{name}.npy", logits[part])
        np.save(tmp_path / f"targets-{name}.npy", targets[part])
        np.save(tmp_path / f"ids-{name}.npy", ids.reshape(6, 5)[part])
    np.save(tmp_path / "all-targets.npy", targets)
    np.save(tmp_path / "all-ids.npy", ids)
    (tmp_path / "text.txt").write_text("In the beginning  God created \n")
    return SimpleNamespace(path=tmp_path, logits=logits, targets=targets, ids=ids.reshape(6, 5))


@pytest.mark.parametrize(
    ("source", "argv", "of_files", "options"),
    [
        ("part-a.npz", [], {}, {}),
        ("part-*.npz", [], {}, {}),
        (["part-a.npz", "part-b.npz"], [], {}, {}),
        (["part-a.npz", "part-[bc].npz"], ["--shift"], {}, {"shift": True}),
        ("part-*.npz", ["--shift"], {"shift": True}, {}),
        ("part-*.npz", ["--no-shift", "--top", 2], {}, {"shift": False, "top": 2}),
        ("part-*.npz", ["--segment-ids", "all-ids.npy"], {"segment_ids": "all-ids.npy"}, {}),
        ("part-*.npz", ["--segment-ids", "ids-*.npy"], {"segment_ids": ["ids-*.npy"]}, {}),
        ("part-*.npz", ["--segment-ids", "all-ids.npy", "--shift"], {"segment_ids": "all-ids.npy"}, {"shift": True}),
        ("scores-*.npy", ["--targets", "targets-*.npy"], {"targets": "targets-*.npy"}, {}),
        ("scores-*.npy", ["--targets", "all-targets.npy"], {"targets": ["all-targets.npy"]}, {}),
        (["scores-a.npy", "targets-a.npy"], [], {}, {}),
        ("part-*.npz", ["--text", "text.txt"], {}, {"text": "text.txt"}),
        ("part-*.npz", ["--text", "text.txt", "--words", "lm-eval"], {}, {"text": "text.txt", "words": "lm-eval"}),
        ("part-*.npz", ["--n-bytes", 31, "--ignore-index", 3], {"ignore_index": 3}, {"n_bytes": 31}),
        ("part-*.npz", ["--workers", 2, "--kind", "logits"], {"kind": "logits"}, {"workers": 2}),
        ("part-*.npz", ["--array", "logits", "--state", "state"], {"array": "logits"}, {"state": "other-state"}),
    ],
)
def test_evaluate_is_what_the_command_prints(source, argv, of_files, options, texts, score_json, monkeypatch):
    monkeypatch.chdir(texts.path)
    if "--ignore-index" in argv:
        for name in "abc":
            data = dict(np.load(f"part-{name}.npz"))
            np.savez(
                f"part-{name}.npz", logits=data["logits"], targets=np.where(data["targets"] < 0, 3, data["targets"])
            )
    printed = score_json(*([source] if isinstance(source, str) else source), *argv)
    paths = Path(source) if isinstance(source, str) else map(Path, source)
    for given in (source, paths):
        result = evaluate(open_scores(given, **of_files) if of_files else given, **options)
        assert without_times(json.loads(json.dumps(result.to_dict()))) == without_times(printed)
        options.pop("state", None)
    assert isinstance(result, Evaluation)
    assert (result.count, result.n_sequences, result.loss) == tuple(
        printed[n] for n in ("count", "n_sequences", "loss")
    )


def test_sequences_of_an_evaluation_are_a_table(texts):
    result = evaluate(texts.path / "part-*.npz")
    expected = sequence_losses(token_scores(texts.logits, texts.targets))
    assert result.sequences["file"].tolist() == [0, 1, 1, 1, 2, 2]
    assert result.sequences["sequence"].tolist() == [0, 0, 1, 2, 0, 1]
    for name in ("nll", "loss", "perplexity", "is_greedy"):
        np.testing.assert_array_equal(result.sequences[name], getattr(expected, name))
    np.testing.assert_array_equal(result.sequences["count"], expected.count)
    paths = [str(texts.path / f"part-{name}.npz") for name in "abbbcc"]
    assert [row["file"] for row in result.figures["sequences"]] == paths
    worst = [row["loss"] for row in result.figures["highest_loss_sequences"]]
    assert worst == sorted(expected.loss.tolist(), reverse=True)[:5]


def test_segment_ids_in_one_file_go_on_in_the_next(texts):
    """One id is one sequence, whichever files hold its tokens."""
    result = evaluate(open_scores(texts.path / "part-*.npz", segment_ids=texts.path / "all-ids.npy"))
    scores = token_scores(texts.logits, texts.targets)
    expected = sequence_losses(scores, segment_ids=texts.ids)
    order = np.argsort(result.sequences["sequence"])
    assert result.sequences["sequence"][order].tolist() == [3, 9, 2**40]
    np.testing.assert_array_equal(result.sequences["nll"][order], expected.nll)
    assert result.sequences["file"][order].tolist() == [-1, -1, 2]
    meter = LossMeter()
    meter.update(expected)
    meter.update(scores.nll, where=scores.kept & (texts.ids < 0))
    assert result.meter == meter
    assert result.figures["n_without_sequence"] == np.count_nonzero(texts.targets[2] >= 0)
    assert {row["file"] for row in result.figures["sequences"]} == {None, str(texts.path / "part-c.npz")}
    with np.load(texts.path / "part-a.npz") as data:  # a file of its own has numbers of its own
        np.savez(texts.path / "part-a.npz", **data, segment_ids=texts.ids[:1])
    assert evaluate(texts.path / "part-a.npz").sequences["file"].tolist() == [0]


# -- blocks: the functions of arrays -----------------------------------------------------------------------------------


def blocks_of(shape, seed=22, dtype=np.float32, classes=9):
    """Logits and class ids, a few of them ignored, a mask and numbers of sequences."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, classes), scale=3).astype(dtype)
    targets = rng.integers(classes, size=shape)
    targets[rng.random(shape) < 0.1] = -100
    return logits, targets, rng.random(shape) < 0.8, rng.integers(-1, 4, size=shape) * 2**33


def meter_of(scores, loose=(), **sequences):
    meter = LossMeter()
    meter.update(sequence_losses(scores, **sequences))
    if np.any(loose):
        meter.update(scores.nll, where=scores.kept & loose)
    return meter


@pytest.mark.parametrize("layout", [*LAYOUTS, "list"])
def test_blocks_of_rows_are_loose_tokens(layout):
    logits, targets, where, _ = blocks_of((30,), dtype=np.float64)
    change = np.ndarray.tolist if layout == "list" else LAYOUTS[layout]
    meter = LossMeter()
    meter.update(token_scores(logits, targets, where=where))
    assert evaluate([tuple(map(change, (logits, targets, where)))]).meter == meter
    assert meter.n_sequences == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_sequences(layout):
    logits, targets, where, _ = blocks_of((4, 7))
    change = LAYOUTS[layout]
    for mask in (None, where):
        result = evaluate([(change(logits), change(targets), mask)])
        scores = token_scores(logits, targets, where=mask)
        assert result.meter == meter_of(scores)
        assert result.accuracy == scores.is_greedy.sum() / scores.kept.sum()
        assert result.figures["n_ignored"] == scores.kept.size - scores.kept.sum()


def test_blocks_with_segment_ids():
    made = [blocks_of(shape, seed) for seed, shape in enumerate([(30,), (4, 7), (2, 3, 2)])]
    result = evaluate(made)
    flat = [np.concatenate([block[i].reshape(-1, *block[i].shape[-1:] * (i < 1)) for block in made]) for i in range(4)]
    logits, targets, where, ids = flat
    scores = token_scores(logits, targets, where=where)
    assert result.meter == meter_of(scores, ids < 0, segment_ids=ids)
    expected = sequence_losses(scores, segment_ids=ids)
    assert result.sequences["sequence"].tolist() == [0, 2**33, 2**34, 3 * 2**33]
    np.testing.assert_array_equal(result.sequences["nll"], expected.nll)
    assert set(result.sequences["file"].tolist()) == {-1}


def test_blocks_number_their_sequences_on():
    made = [blocks_of((n, 5), n)[:2] for n in (2, 1, 3)]
    result = evaluate(made)
    assert result.sequences["sequence"].tolist() == list(range(6))
    meter = LossMeter()
    for logits, targets in made:
        meter.update(sequence_losses(token_scores(logits, targets)))
    assert result.meter == meter


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_blocks_of_each_dtype(dtype):
    logits, targets, *_ = blocks_of((4, 7), dtype=dtype)
    result = evaluate([(logits, targets)])
    assert result.meter == meter_of(token_scores(logits, targets))
    assert (result.figures["dtype"], result.figures["n_bytes_read"]) == (dtype.name, logits.nbytes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_blocks_of_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    logits, targets, where, ids = map(torch.tensor, blocks_of((4, 7)))
    logits = logits.to(getattr(torch, dtype))
    result = evaluate([(logits, targets, where, ids)])
    scores = token_scores(logits, targets, where=where)
    assert result.meter == meter_of(scores, ids.numpy() < 0, segment_ids=ids)
    assert result.figures["dtype"] == dtype


@pytest.mark.parametrize("kind", ["log_probs", "probs"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_blocks_of_kind(kind, dtype):
    logits, targets, where, _ = blocks_of((4, 7))
    function, loss = {
        "log_probs": (tokenloss.log_softmax, tokenloss.nll_loss),
        "probs": (tokenloss.softmax, lambda p, y, **options: tokenloss.cross_entropy_loss(y, p, **options)),
    }[kind]
    values = function(logits.astype(np.float64)).astype(dtype)
    result = evaluate(blocks([(values, targets, where)], kind=kind))
    losses = loss(values, targets, where=where, reduction="none")
    assert result.meter == meter_of(losses, where=where & (targets != -100))
    assert result.figures["kind"] == kind


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_blocks_of_log_probs_in_half_precision(dtype):
    """Their rounding is allowed for, as it is in files."""
    log_probs = np.full((4, 50), 0.3 - math.log(50)).astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    assert evaluate(blocks([(log_probs, [0, 1, 2, 3])], kind="log_probs")).meter.count == 4
    with pytest.raises(ValueError, match="block 0: log_probs has a row whose logsumexp is"):
        evaluate(blocks([(log_probs.astype(np.float32), [0, 1, 2, 3])], kind="log_probs"))


def test_blocks_of_bfloat16_are_not_copied_whole(monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 1 << 20)
    logits = np.zeros((1000, 10_000), BFLOAT16)  # 20 MB
    with held_at_most(6 << 20):
        assert evaluate([(logits, np.zeros(1000, int))], workers=1).meter.count == 1000


def test_blocks_of_distributions_are_checked_in_pieces_where_they_count(monkeypatch):
    monkeypatch.setattr(shard_rows, "_CACHED", 12)  # four rows at a time
    rng = np.random.default_rng(8)
    logits, shares, where = rng.normal(size=(10, 3)), rng.dirichlet(np.ones(3), 10), np.arange(10) % 5 != 1
    shares[~where] = 7
    assert evaluate([(logits, shares, where)]).meter.loss == tokenloss.cross_entropy(logits, shares, where=where)
    shares[7] = 2
    with pytest.raises(ValueError, match=r"targets\[7\] has a probability of 2"):
        evaluate([(logits, shares, where)])


def test_blocks_of_distributions():
    logits, targets, where, _ = blocks_of((4, 7))
    soft = tokenloss.softmax(np.random.default_rng(1).normal(size=logits.shape).astype(np.float64))
    soft[~where] = np.nan  # never read
    result = evaluate([(logits, soft, where)])
    losses = tokenloss.cross_entropy(logits, np.where(where[..., None], soft, 0), where=where, reduction="none")
    assert result.meter == meter_of(losses, where=where)
    assert result.figures["targets"] == "distributions"
    assert evaluate([(logits, targets), (logits, soft, where)]).figures["targets"] == "class ids, distributions"
    with pytest.raises(ValueError, match=r"^block 1: targets\[0, \d\] "):
        evaluate([(logits, targets), (logits, soft)])


def test_masked_rows_of_blocks_are_never_read():
    logits, targets, where, _ = blocks_of((4, 7))
    result = evaluate([(logits, targets, where)])
    logits[~where], targets[~where] = np.nan, 99
    assert figures_of_tokens(evaluate([(logits, targets, where)])) == figures_of_tokens(result)


@pytest.mark.parametrize("with_mask", [False, True])
def test_shift_of_blocks_is_next_token(with_mask):
    logits, ids, where, _ = blocks_of((4, 7))
    mask = where if with_mask else None
    result = evaluate([(logits, ids, mask)], shift=True)
    assert result.meter == meter_of(token_scores(*tokenloss.next_token(logits, ids, mask)[:2],
                                                where=tokenloss.next_token(logits, ids, mask)[2]))  # fmt: skip
    assert result.figures["n_without_next"] == 4


def test_shift_of_blocks_with_segment_ids():
    logits, ids, where, _ = blocks_of((40,))
    segments = np.array([0, 5, -1, 7]).repeat(10)
    result = evaluate([(logits, ids, where, segments)], shift=True)
    pairs = (segments[1:] == segments[:-1]) & (segments[1:] >= 0)
    scores = token_scores(logits[:-1], ids[1:], where=pairs & where[1:] & where[:-1])
    assert result.meter == meter_of(scores, segment_ids=segments[:-1])
    assert result.figures["n_without_next"] == 40 - pairs.sum()


# -- the same bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [1, 2, 5, 1000])
def test_same_bits_for_any_cut_into_blocks(block_rows, monkeypatch):
    logits, targets, where, ids = blocks_of((12, 5), classes=300)
    loose = [(logits.reshape(60, 300), targets.ravel(), where.ravel())]
    whole = [evaluate(loose), evaluate([(logits, targets, where)]), evaluate([(logits, targets, where, ids)])]
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    for n in (1, 4, 12):
        parts = [[array[i : i + n] for array in (logits, targets, where, ids)] for i in range(0, 12, n)]
        cut = [
            evaluate([array.reshape(5 * len(array), *array.shape[2:]) for array in part[:3]] for part in parts),
            evaluate(part[:3] for part in parts),  # a generator
            evaluate([tuple(part) for part in parts]),
        ]
        for result, expected in zip(cut, whole, strict=True):
            assert result.meter == expected.meter
            assert figures_of_tokens(result) == figures_of_tokens(expected)
            assert result.figures["highest_loss_tokens"] == expected.figures["highest_loss_tokens"]
            assert [repr(column.tolist()) for column in result.sequences.values()] == [
                repr(column.tolist()) for column in expected.sequences.values()
            ]


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_same_bits_for_any_cut_into_shards(block_rows, tmp_path, monkeypatch):
    logits, targets, _, ids = blocks_of((60,))
    expected = {}
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    np.save(tmp_path / "ids.npy", ids := np.sort(ids))
    np.save(tmp_path / "targets.npy", targets)
    for cuts in ([], [13, 40], [1, 2, 3, 59]):
        for path in tmp_path.glob("part-*.npy"):
            path.unlink()
        for number, part in enumerate(np.split(logits, cuts)):
            np.save(tmp_path / f"part-{number}.npy", part)
        for shift in (False, True):
            files = {"targets": tmp_path / "targets.npy", "segment_ids": tmp_path / "ids.npy"}
            result = evaluate(open_scores(tmp_path / "part-*.npy", **files), shift=shift)
            expected.setdefault(shift, result)
            assert result.meter == expected[shift].meter
            columns, others = result.sequences, expected[shift].sequences
            order = np.argsort(columns["sequence"])
            for name in ("sequence", "nll", "count", "is_greedy"):
                np.testing.assert_array_equal(columns[name][order], others[name][np.argsort(others["sequence"])])
            for name in ("count", "n_ignored", "n_without_next", "loss", "stderr", "sequence_loss_stderr", "accuracy"):
                assert result.figures[name] == expected[shift].figures[name]


def test_highest_loss_tokens_of_blocks():
    made = [blocks_of((3, 4), 1), blocks_of((5, 2), 2)]
    result = evaluate([block[:3] for block in made], top=6).figures["highest_loss_tokens"]
    parts = [token_scores(block[0], block[1], where=block[2]) for block in made]
    losses = np.concatenate([np.where(part.kept, part.nll, -1).ravel() for part in parts])
    places = np.argsort(-losses, kind="stable")[:6]
    assert [token["row"] for token in result] == places.tolist()
    assert [token["nll"] for token in result] == losses[places].tolist()
    assert [token["target"] for token in result] == np.concatenate([block[1].ravel() for block in made])[
        places
    ].tolist()
    assert {token["file"] for token in result} == {None}


@pytest.mark.parametrize("rows", [1, 2, 7, 30])
@pytest.mark.parametrize("masked", [False, True])
def test_shift_of_sequences_that_go_on_in_the_next_block(rows, masked):
    rng = np.random.default_rng(8)
    logits, ids = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(6, size=30)
    numbers = np.repeat([4, -1, 0, 7, 4, 2], [9, 2, 1, 8, 5, 5])
    where = rng.random(30) < 0.8 if masked else None
    buffer = np.empty((rows, 6), np.float32)  # as engines do that write each block to the same memory

    def engine():
        for at in range(0, 30, rows):
            part = slice(at, at + rows)
            buffer[: len(logits[part])] = logits[part]
            mask = None if where is None else where[part]
            yield buffer[: len(logits[part])], ids[part], mask, numbers[part]

    result, whole = evaluate(engine(), shift=True), evaluate([(logits, ids, where, numbers)], shift=True)
    assert figures_of_tokens(result) == figures_of_tokens(whole)
    pairs = (numbers[:-1] == numbers[1:]) & (numbers[:-1] >= 0)
    assert result.to_dict()["n_without_next"] == 30 - pairs.sum()
    if masked:
        pairs &= where[:-1] & where[1:]
    expected = LossMeter()
    expected.update(sequence_losses(token_scores(logits[:-1], ids[1:], where=pairs), segment_ids=numbers[:-1]))
    assert result.meter == expected


def test_n_bytes_and_n_words_of_sequences(texts):
    paths = sorted(texts.path.glob("part-*.npz"))
    n_bytes, n_words = np.arange(10, 16), [1, 2, 3, 4, 5, 6]
    meter = evaluate(paths, n_bytes=n_bytes, n_words=n_words).meter
    expected = LossMeter()
    scores = token_scores(texts.logits, texts.targets)
    expected.update(sequence_losses(scores, n_bytes=n_bytes, n_words=n_words))
    assert meter == expected
    figures = evaluate(paths, n_bytes=75, n_words=n_words).figures
    assert (figures["bytes_are_by_sequence"], figures["words_are_by_sequence"]) == (False, True)
    with pytest.raises(ValueError, match=r"n_bytes has shape \(5,\); it must be \(6,\), one for each sequence"):
        evaluate(paths, n_bytes=np.ones(5, int))
    for wrong in (
        {"n_bytes": -1},
        {"n_words": [1, -2]},
        {"n_bytes": 1.5},
        {"text": texts.path / "text.txt", "n_words": 3},
    ):
        with pytest.raises((TypeError, ValueError), match=r"n_bytes|n_words"):
            evaluate(paths, **wrong)


@pytest.mark.parametrize("shift", ["no", 2, []])
def test_shift_that_is_no_bool(shift):
    with pytest.raises(ValueError, match="shift is"):
        evaluate([(np.zeros((2, 3)), [0, 1])], shift=shift)
