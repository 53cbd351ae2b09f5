"""Files with a row for each token or sequence: the same of every source and in every format as arrays give."""

import clients
import numpy as np
import pytest
from candidates import Many
from commands import LOGITS, TARGETS
from tables import read_table

import tokenloss
from tokenloss import evaluate, sequence_losses, sinks, token_scores
from tokenloss._evaluation import plan

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
SUFFIXES = [".npy", ".csv", ".parquet"]
OF_SCORES = ("nll", "rank", "argmax", "is_greedy", "entropy")
PLACES = ("file", "sequence", "position")
NEVER_NULL = {*PLACES, "candidate", "target", "kept", "is_greedy_known", "is_prompt"}


def rows_of(scores, targets, **places):
    """Columns of a table of tokens."""
    flat = {name: np.ravel(getattr(scores, name)) for name in ("kept", *OF_SCORES)}
    first = ("kept", "nll", "probability", *OF_SCORES[1:])
    flat["probability"] = np.exp(-flat["nll"])
    return {"target": np.ravel(targets)} | {name: flat[name] for name in first} | places


# Each writes a table of tokens to a path and returns the columns that are expected.


def of_blocks(path, command):
    """Blocks of sequences with a mask; their number of rows is not known before."""
    rng = np.random.default_rng(31)
    logits, targets, where = rng.normal(size=(6, 5, 9), scale=3), rng.integers(9, size=(6, 5)), rng.random((6, 5)) < 0.8
    targets[2, 1:] = -100
    parts = slice(0, 1), slice(1, 4), slice(4, 6)
    evaluate(((logits[part], targets[part], where[part]) for part in parts), sinks=[sinks.TokenTable(path)])
    sequence = np.arange(6).repeat(5)
    scores = token_scores(logits, targets, where=where)
    return rows_of(scores, targets, file=np.zeros(30), sequence=sequence, position=np.arange(30))


def of_shifted_blocks(path, command):
    """Rows without a next token are left out; positions are those of the block."""
    rng = np.random.default_rng(32)
    logits, targets, where = rng.normal(size=(6, 5, 9)), rng.integers(9, size=(6, 5)), rng.random((6, 5)) < 0.8
    evaluate([(logits, targets, where)], shift=True, sinks=[sinks.TokenTable(path)])
    logits, targets, mask = tokenloss.next_token(logits, targets, where)
    position = np.arange(30).reshape(6, 5)[:, :4].ravel()
    scores = token_scores(logits, targets, where=mask)
    return rows_of(scores, targets, file=np.zeros(24), sequence=np.arange(6).repeat(4), position=position)


def of_segment_ids(path, command):
    ids = np.array([7, 7, -3, 2**40, 7])
    evaluate([(np.zeros((5, 3)), np.zeros(5, int), None, ids)], sinks=[sinks.TokenTable(path)])
    sequence, scores = np.maximum(ids, -1), token_scores(np.zeros((5, 3)), np.zeros(5, int))
    return rows_of(scores, np.zeros(5), file=np.zeros(5), sequence=sequence, position=np.arange(5))


def of_files(path, command):
    """Files of several shapes: of (N, V), and of sequences (N, T, V)."""
    rng = np.random.default_rng(3)
    logits, targets, bounds = rng.normal(size=(60, 11), scale=3).astype("f4"), rng.integers(11, size=60), (13, 40)
    targets[::7] = -100
    for name, shape, part in zip("abc", [(13,), (3, 9), (2, 10)], np.split(np.arange(60), bounds), strict=True):
        arrays = {"logits": logits[part].reshape(*shape, 11), "targets": targets[part].reshape(shape)}
        np.savez(path.parent / f"part-{name}.npz", **arrays)
    assert command("score", path.parent / "part-*.npz", "--per-token", path)[0] == 0
    places = {
        "file": np.repeat([0, 1, 2], [13, 27, 20]),
        "sequence": np.r_[np.full(13, -1), np.arange(3).repeat(9), np.arange(2).repeat(10)],
        "position": np.r_[:13, :27, :20],
    }
    return rows_of(token_scores(logits, targets), targets, **places)


def of_responses(path, command):
    """Ten completions of vLLM, which tell no entropy; the class of a first token is not known."""
    file = clients.save(path.parent / "completions.jsonl", *clients.COMPLETIONS)
    assert command("score", file, "--per-token", path)[0] == 0
    references = [clients.references()[name] for name in clients.COMPLETIONS]
    lengths = [len(reference.ids) for reference in references]
    ids, logprobs, ranks = (np.concatenate([one[i] for one in references]) for i in range(3))
    top, kept = np.concatenate([one.top_ids[:, 0] for one in references]), ~np.isnan(logprobs)
    return {
        "target": np.where(kept, ids, np.nan), "kept": kept, "nll": -logprobs.astype(float),
        "probability": np.exp(logprobs.astype(float)), "rank": np.where(kept, ranks, -1),
        "argmax": np.where(kept, top, -1), "is_greedy": kept & (top == ids), "file": np.zeros(len(ids)),
        "sequence": np.repeat(np.arange(10), lengths), "position": np.concatenate([np.arange(n) for n in lengths]),
        "is_greedy_known": kept, "is_prompt": np.ones(len(ids)),
    }  # fmt: skip


def of_candidates(path, command):
    """Three candidates in two shards."""
    many = Many(path.parent)
    assert command(*many.argv(), "--per-token", path)[::2] == (0, "")
    own = {"file": np.repeat([0, 1], [13, 27]), "sequence": many.segment_ids, "position": np.r_[:13, :27]}
    columns = {name: np.tile(column, 3) for name, column in (own | {"target": many.targets}).items()}
    comparisons = [many.comparison(name) for name in many.logits]
    figures = ("kept", "base_nll", "nll", "kl", "delta_p", "is_same_top", "base_top_p")
    of_all = {name: np.concatenate([getattr(one, name) for one in comparisons]) for name in figures}
    return {"candidate": np.repeat([0, 1, 2], 40)} | columns | of_all


SOURCES = [of_blocks, of_shifted_blocks, of_segment_ids, of_files, of_responses, of_candidates]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_row_for_each_token(source, suffix, command, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 5)
    expected = source(tmp_path / f"tokens{suffix}", command)
    table = read_table(tmp_path / f"tokens{suffix}")
    assert list(table) == list(expected)
    order = np.argsort(table["candidate"], kind="stable") if "candidate" in table else slice(None)
    for name, column in expected.items():
        if suffix != ".npy" and name not in NEVER_NULL:  # .npy has no null
            column = np.where(expected["kept"], column, np.nan)
        known = ~np.isnan(column) if name == "target" else slice(None)
        error = (
            {"rtol": 1e-5, "atol": 1e-5} if source is of_responses else {"rtol": 1e-14 if name == "probability" else 0}
        )
        np.testing.assert_allclose(table[name][order][known], np.array(column, float)[known], err_msg=name, **error)


@pytest.mark.parametrize("kind", ["log_probs", "probs"])
@pytest.mark.parametrize("soft", [True, False])
def test_per_token_of_other_kinds(soft, kind, score_json, npz, tmp_path):
    log_probs = tokenloss.log_softmax(LOGITS.astype(np.float64))
    scores, targets = log_probs if kind == "log_probs" else np.exp(log_probs), np.eye(3)[TARGETS] if soft else TARGETS
    score_json(npz(**{kind: scores}, targets=targets), "--per-token", tmp_path / "a.npy")
    table, expected = read_table(tmp_path / "a.npy"), token_scores(LOGITS, TARGETS)
    np.testing.assert_array_equal(table["target"], TARGETS)
    for name in ("kept", *OF_SCORES):
        np.testing.assert_allclose(table[name], getattr(expected, name), atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_for_each_sequence(suffix, tmp_path):
    rng = np.random.default_rng(31)
    logits, targets, where = rng.normal(size=(6, 5, 9), scale=3), rng.integers(9, size=(6, 5)), rng.random((6, 5)) < 0.8
    where[2] = False
    path = tmp_path / f"sequences{suffix}"
    blocks = [(logits[part], targets[part], where[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]
    evaluation = evaluate(blocks, sinks=[sinks.SequenceTable(str(path))])
    expected = sequence_losses(token_scores(logits, targets, where=where))
    found = read_table(path)
    assert list(found) == ["file", "sequence", "count", "nll", "loss", "perplexity", "is_greedy"]
    assert found["nll"].tolist() == expected.nll[expected.count > 0].tolist()
    assert {name: column.tolist() for name, column in evaluation.sequences.items()} == {
        name: column.tolist() for name, column in found.items()
    }


def test_sequences_of_several_files_and_of_responses(command, npz, tmp_path):
    for number in range(3):
        npz(f"part-{number}.npz", logits=np.zeros((number + 1, 5, 4)), targets=np.ones((number + 1, 5), int))
    evaluate(tmp_path / "part-*.npz", sinks=[sinks.SequenceTable(tmp_path / "sequences.npy")])
    assert read_table(tmp_path / "sequences.npy")["file"].tolist() == [0, 1, 1, 2, 2, 2]
    path = clients.save(tmp_path / "batch.json", "vllm/completions_batch.json")
    assert command("score", path, "--per-sequence", tmp_path / "sequences.npy")[0] == 0
    table = read_table(tmp_path / "sequences.npy")
    assert list(table) == [
        "file", "sequence", "count", "nll", "loss", "perplexity", "is_greedy", "line", "choice", "is_greedy_known",
    ]  # fmt: skip
    assert table["line"].tolist() == [1] * 4
    assert table["choice"].tolist() == table["sequence"].tolist() == [0, 1, 2, 3]


def test_a_sink_may_be_used_for_responses_and_for_scores(npz, tmp_path):
    sink = sinks.TokenTable(tmp_path / "t.npy")
    responses = clients.save(tmp_path / "completions.jsonl", *clients.COMPLETIONS)
    for path, has_entropy in (responses, False), (npz(logits=LOGITS, targets=TARGETS), True), (responses, False):
        evaluate([path], sinks=[sink])
        assert ("entropy" in read_table(tmp_path / "t.npy")) == has_entropy
