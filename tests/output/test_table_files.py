"""Files with a row for each token or sequence: the same of every source and in every format as arrays give."""

import json

import clients
import numpy as np
import pytest
from candidates import Many
from commands import LOGITS, TARGETS, assert_refused
from eval_harness import lines_of, of_values
from places import TESTS
from rendered import Documents
from tables import LISTS, read_table

import tokenloss
from tokenloss import compare_files, compare_samples, evaluate, sequence_losses, sinks, token_scores
from tokenloss._evaluation import plan
from tokenloss.formats import open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
MODEL = TESTS / "data" / "model"
SUFFIXES = [".npy", ".csv", ".parquet"]
OF_SCORES = ("nll", "rank", "argmax", "is_greedy", "entropy")
PLACES = ("file", "row", "sequence", "position")
NEVER_NULL = {*PLACES, "name", "target", "kept", "is_greedy_known", "is_prompt"}


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
    places = {"row": np.arange(30), "sequence": np.arange(6).repeat(5), "position": np.tile(np.arange(5), 6)}
    return rows_of(token_scores(logits, targets, where=where), targets, file=np.zeros(30), **places)


def of_shifted_blocks(path, command):
    """Rows without a next token are left out; a place is that of the row, not of its target."""
    rng = np.random.default_rng(32)
    logits, targets, where = rng.normal(size=(6, 5, 9)), rng.integers(9, size=(6, 5)), rng.random((6, 5)) < 0.8
    evaluate([(logits, targets, where)], shift=True, sinks=[sinks.TokenTable(path)])
    logits, targets, mask = tokenloss.next_token(logits, targets, where)
    row, position = np.arange(30).reshape(6, 5)[:, :4].ravel(), np.tile(np.arange(4), 6)
    places = {"file": np.zeros(24), "row": row, "sequence": np.arange(6).repeat(4), "position": position}
    return rows_of(token_scores(logits, targets, where=mask), targets, **places)


def of_segment_ids(path, command):
    ids = np.array([7, 7, -3, 2**40, 7])
    evaluate([(np.zeros((5, 3)), np.zeros(5, int), None, ids)], sinks=[sinks.TokenTable(path)])
    places = {"row": np.arange(5), "sequence": np.maximum(ids, -1), "position": np.array([0, 1, -1, 0, 2])}
    return rows_of(token_scores(np.zeros((5, 3)), np.zeros(5, int)), np.zeros(5), file=np.zeros(5), **places)


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
        "row": np.r_[:13, :27, :20],
        "sequence": np.r_[np.full(13, -1), np.arange(3).repeat(9), np.arange(2).repeat(10)],
        "position": np.r_[np.full(13, -1), np.tile(np.arange(9), 3), np.tile(np.arange(10), 2)],
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
    positions = np.concatenate([np.arange(n) for n in (6, 7, 10, 9, 8)])  # each file has its own sequences
    own = {"file": np.repeat([0, 1], [13, 27]), "row": np.r_[:13, :27], "sequence": many.segment_ids,
           "position": positions}  # fmt: skip
    columns = {name: np.tile(column, 3) for name, column in (own | {"target": many.targets}).items()}
    comparisons = [many.comparison(name) for name in many.logits]
    figures = ("kept", "base_nll", "nll", "kl", "delta_p", "is_same_top", "base_top_p")
    of_all = {name: np.concatenate([getattr(one, name) for one in comparisons]) for name in figures}
    return {"name": np.repeat([*many.logits], 40)} | columns | of_all


def of_compared_responses(path, command):
    """Two candidates that returned the same tokens as the base."""
    documents = Documents(np.random.default_rng(18))
    models = {"base": ("base", 5), "near": ("other", 7), "less": ("other", 3)}
    files = {
        name: clients.save_lines(path.parent / f"{name}.jsonl", *documents.responses(model, k))
        for name, (model, k) in models.items()
    }
    named = [f"{name}={files[name]}" for name in ("near", "less")]
    assert command("compare", files["base"], *named, "--per-token", path)[::2] == (0, "")
    result = compare_files(files["base"], {name: files[name] for name in ("near", "less")})
    lengths = [len(ids) for ids in documents.ids]
    places = {
        "file": np.zeros(sum(lengths)),
        "sequence": np.repeat(np.arange(len(lengths)), lengths),
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "target": np.concatenate(documents.ids),
    }
    figures = ("kept", "base_nll", "nll", "kl_bound", "delta_p", "is_same_top", "is_top_known", "base_mass", "mass")
    of_all = {name: np.concatenate([getattr(one, name) for one in result.values()]) for name in figures}
    names = {"name": np.repeat([*result], sum(lengths))}
    return names | {name: np.tile(column, 2) for name, column in places.items()} | of_all


OF_TEXT = [of_responses, of_candidates, of_compared_responses]
SOURCES = [of_blocks, of_shifted_blocks, of_segment_ids, of_files, *OF_TEXT]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_row_for_each_token(source, suffix, command, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", 5)
    expected = source(tmp_path / f"tokens{suffix}", command)
    table = read_table(tmp_path / f"tokens{suffix}")
    assert ("text" in table) == (source in OF_TEXT and suffix != ".npy")
    table.pop("text", None)
    assert list(table) == list(expected)
    order = slice(None)
    if "name" in table:  # rows of a block come candidate by candidate
        names = expected.pop("name").tolist()
        order = np.argsort([names.index(name) for name in table["name"]], kind="stable")
        assert [table["name"][row] for row in order] == names
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
    result = read_table(path)
    assert list(result) == ["file", "sequence", "count", "nll", "loss", "perplexity", "is_greedy"]
    assert result["nll"].tolist() == expected.nll[expected.count > 0].tolist()
    assert {name: column.tolist() for name, column in evaluation.sequences.items()} == {
        name: column.tolist() for name, column in result.items()
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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_for_each_question_metric_and_candidate(suffix, command, tmp_path):
    """In the order of the metrics; ids that are text stay text; metrics other than 0 and 1 do not flip."""
    values = {"base": [1, 1, 0, 1], "a": [1, 0, 0, 0], "b": [1, 1, 1, 0.5]}
    ids = (7, 8, "x", 10) if suffix == ".csv" else (7, 8, 9, 10)
    for name, own in values.items():
        lines = [line | {"doc_id": i, "f1": value / 4} for line, i, value in zip(of_values(own), ids, own, strict=True)]
        clients.save_lines(tmp_path / f"{name}.jsonl", *lines)
    path = tmp_path / f"questions{suffix}"
    files = [tmp_path / "base.jsonl", f"A={tmp_path / 'a.jsonl'}", f"B={tmp_path / 'b.jsonl'}"]
    assert command("compare", *files, "--per-sequence", path)[0] == 0
    memory = sinks.SequenceTable()
    result = compare_samples(files[0], {"A": tmp_path / "a.jsonl", "B": tmp_path / "b.jsonl"}, sinks=[memory])
    table, columns = read_table(path), memory.columns()
    expected = [
        (name, "", metric.name, metric.filter, str(doc_id), base, other, metric.mcnemar_p is not None and base != other)
        for name, one in result.items()
        for metric in one.metrics
        for doc_id, base, other in zip(metric.doc_ids, metric.base_values, metric.other_values, strict=True)
    ]
    assert sum(row[-1] for row in expected) == 2  # of A's acc
    for (name, column), own in zip(columns.items(), zip(*expected, strict=True), strict=True):
        assert [*map(str, column)] == [*map(str, own)], name
        if name in LISTS:
            assert [str(value or "") for value in table[name]] == [*map(str, own)], name
        else:
            assert table[name].tolist() == [*own], name
    assert list(table) == ["name", "task", "metric", "filter", "doc_id", "base", "other", "flipped"]


def test_questions_of_folders_have_their_task(command, tmp_path):
    tasks = ("mc", "lastword")
    for run in ("base", "noise"):
        (tmp_path / run).mkdir()
        for task in tasks:
            clients.save_lines(tmp_path / run / f"samples_{task}_2026-01-01T00-00-00.jsonl", *lines_of(task, run))
    table = sinks.SequenceTable(columns=["flipped"])
    result = compare_samples(tmp_path / "base", {"q": tmp_path / "noise"}, sinks=[table])["q"]
    columns = table.columns()
    assert list(columns) == ["name", "task", "metric", "filter", "doc_id", "flipped"]
    for metric in result.metrics:
        own = (columns["task"] == metric.task) & (columns["metric"] == metric.name)
        n_flipped = (metric.right_to_wrong or 0) + (metric.wrong_to_right or 0)
        assert (own.sum(), columns["flipped"][own].sum()) == (metric.count, n_flipped)
    refused = command("compare", tmp_path / "base", tmp_path / "noise", "--per-sequence", tmp_path / "base" / "q.csv")
    assert_refused(refused, "--per-sequence", "would be written into")


def test_a_column_that_samples_lack_is_refused_before_they_are_read(tmp_path):
    for name in "base", "other":
        clients.save_lines(tmp_path / f"{name}.jsonl", *of_values([1, 0]))
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write("{damaged")
    with pytest.raises(ValueError, match="nll"):
        compare_samples(tmp_path / "base.jsonl", tmp_path / "other.jsonl", sinks=[sinks.SequenceTable(columns=["nll"])])


@pytest.mark.parametrize("columns", ["nll", iter(["nll"]), np.array(["nll"]), {"nll": 1}])
def test_columns_are_named_by_any_iterable_or_one_text(columns):
    table = sinks.SequenceTable(columns=columns)
    evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[table])
    assert list(table.columns()) == ["file", "sequence", "count", "nll"]


def test_columns_that_are_no_names_are_refused_as_unknown():
    with pytest.raises(ValueError, match=r"^TokenTable needs columns that the tokens here do not have: 1$"):
        evaluate([(np.zeros((2, 4)), np.ones(2, int))], sinks=[sinks.TokenTable(columns=[1])])


def test_more_top_classes_than_there_are_classes():
    table = sinks.TokenTable(top_k=5)
    evaluate([(3 * np.eye(3), np.arange(3))], sinks=[table])
    columns = table.columns()
    assert [name for name in columns if name.startswith("top_id")] == ["top_id_1", "top_id_2", "top_id_3"]
    assert columns["top_id_1"].tolist() == [0, 1, 2]


def test_compared_sequences_that_several_files_may_share_have_no_file(tmp_path):
    """One file of segment_ids for two shards, in which the second sequence goes on."""
    for name, seed in ("base", 0), ("q", 1):
        (tmp_path / name).mkdir()
        for shard in 0, 1:
            logits = np.random.default_rng([seed, shard]).normal(size=(3, 4))
            np.savez(tmp_path / name / f"{shard}.npz", logits=logits, targets=[0, 1, 2])
    np.save(tmp_path / "ids.npy", [0, 0, 1, 1, 2, 2])
    table = sinks.SequenceTable()
    base = open_scores(tmp_path / "base", segment_ids=tmp_path / "ids.npy")
    compare_files(base, tmp_path / "q", sinks=[table])
    assert table.columns()["file"].tolist() == [-1, -1, -1]
    assert table.columns()["sequence"].tolist() == [0, 1, 2]


def test_a_sink_may_be_used_for_responses_and_for_scores(npz, tmp_path):
    sink = sinks.TokenTable(tmp_path / "t.npy")
    responses = clients.save(tmp_path / "completions.jsonl", *clients.COMPLETIONS)
    for path, has_entropy in (responses, False), (npz(logits=LOGITS, targets=TARGETS), True), (responses, False):
        evaluate([path], sinks=[sink])
        assert ("entropy" in read_table(tmp_path / "t.npy")) == has_entropy


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_and_likeliest_classes_of_each_token(suffix, command, npz, tmp_path):
    text = ["a\rb", 'c"\n', "\ud800", "d", "e,"]
    rng = np.random.default_rng(7)
    logits, targets = rng.normal(size=(1, 5, 9)), rng.integers(9, size=(1, 5))
    with_text = npz("a.npz", logits=logits, targets=targets, tokens=np.array([text]))
    without = npz("b.npz", logits=logits, targets=np.where(np.arange(5) == 3, -100, targets))
    path = tmp_path / f"tokens{suffix}"
    evaluate([with_text, without], shift=False, sinks=[sinks.TokenTable(path, top_k=2), sinks.HtmlPage(tmp_path / "p")])
    table, kept = read_table(path), np.arange(10) != 8
    if suffix != ".npy":
        assert table["text"] == [*text[:2], "\ufffd", *text[3:], *[None] * 5]
    scores = token_scores(np.concatenate([logits] * 2), np.concatenate([targets] * 2), top_k=2)
    unknown = np.nan if suffix != ".npy" else -1
    for k in range(2):
        ids = np.where(kept, scores.top_ids[..., k].reshape(-1), unknown)
        logprobs = np.where(kept, scores.top_logprobs[..., k].reshape(-1), np.nan)
        np.testing.assert_array_equal(table[f"top_id_{k + 1}"], ids)
        np.testing.assert_array_equal(table[f"top_logprob_{k + 1}"], logprobs)
    assert "top_id_3" not in table
    again = tmp_path / f"again{suffix}"
    assert command("score", with_text, without, "--no-shift", "--per-token", again, "--top-k", 2)[0] == 0
    assert again.read_bytes() == path.read_bytes()
    for top_k, error in (-1, ValueError), (1.5, TypeError):
        with pytest.raises(error, match="top_k"):
            sinks.TokenTable(path, top_k=top_k)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tokenizer_gives_each_token_its_bytes_and_its_text(suffix, command, npz, tmp_path):
    """In place of what the file holds; bytes that are no whole character are escapes; special tokens have no text."""
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ids = np.array([[*(vocabulary[piece] for piece in ("a", "Ġ", "ð", "Ł", "Ļ", "Ĥ", "Ġthe")), 0, -100]])
    path = npz(logits=np.zeros((*ids.shape, 512)), targets=ids, tokens=np.full(ids.shape, "x"))
    result = tmp_path / f"tokens{suffix}"
    assert command("score", path, "--tokenizer", MODEL, "--per-token", result)[0] == 0
    table = read_table(result)
    unknown = -1 if suffix == ".npy" else np.nan
    np.testing.assert_array_equal(table["n_bytes"], [1, 1, 1, 1, 1, 1, 4, 0, unknown])
    assert list(table)[-2:] == (["position", "n_bytes"] if suffix == ".npy" else ["n_bytes", "text"])
    if suffix != ".npy":
        assert table["text"] == ["a", " ", "\\xf0", "\\x9f", "\\x99", "\\x82", " the", None, None]
    assert command("score", path, "--tokenizer", MODEL, "--per-sequence", result)[0] == 0
    assert (read_table(result)["n_bytes"].tolist(), list(read_table(result))[-1]) == ([10], "bits_per_byte")


def test_positions_go_on_in_the_next_file_and_block(npz, tmp_path, monkeypatch):
    """Of ids in any order, pieces of sequences among them, whatever the blocks are in which files are read."""
    rng = np.random.default_rng(8)
    ids, logits, targets = rng.integers(-1, 4, size=60), rng.normal(size=(60, 5)), rng.integers(5, size=60)
    expected = [np.count_nonzero(ids[:i] == one) if one >= 0 else -1 for i, one in enumerate(ids)]
    own = [
        np.count_nonzero(ids[s:i] == ids[i]) if ids[i] >= 0 else -1 for s, e in [(0, 13), (13, 60)] for i in range(s, e)
    ]
    parts = slice(0, 13), slice(13, 60)
    paths = [npz(f"{i}.npz", logits=logits[part], targets=targets[part]) for i, part in enumerate(parts)]
    np.save(tmp_path / "ids.npy", ids)
    for i, part in enumerate(parts):
        np.save(tmp_path / f"ids-{i}.npy", ids[part])
    blocks = [(logits[part], targets[part], None, ids[part]) for part in parts]
    table = sinks.TokenTable(tmp_path / "t.npy")

    def scores(*names):
        return open_scores(paths, segment_ids=[tmp_path / name for name in names])

    def positions(source, **options):
        result = evaluate(source, sinks=[table], top=60, **options).figures["highest_loss_tokens"]
        places = read_table(tmp_path / "t.npy")["position"].astype(int)
        starts = {None: 0} | dict(zip(map(str, paths), (0, 13), strict=True))
        listed = {starts[token["file"]] + token["row"]: token["position"] for token in result}
        assert [listed[row] for row in sorted(listed)] == [None if place < 0 else place for place in places]
        return places.tolist()

    monkeypatch.setattr(plan, "_BLOCK_ROWS", 7)
    assert positions(scores("ids.npy")) == positions(blocks) == expected
    assert positions(scores("ids-0.npy", "ids-1.npy")) == own
    shifted = [place for i, place in enumerate(expected) if i < 59 and ids[i] == ids[i + 1] >= 0]
    assert positions(blocks, shift=True) == shifted
    assert positions(scores("ids.npy"), shift=True) == shifted


def test_a_table_in_memory_has_the_columns_of_the_file(npz, tmp_path):
    path = npz(logits=LOGITS, targets=np.where(np.arange(len(TARGETS)) == 1, -100, TARGETS))
    tables = sinks.TokenTable(tmp_path / "t.npy", top_k=2), sinks.TokenTable(top_k=2)
    assert tables[1].columns() == {}
    evaluate(path, sinks=tables)
    compared = sinks.TokenTable(tmp_path / "c.npy"), sinks.TokenTable()
    compare_files(path, {"a": npz("a.npz", logits=0.9 * LOGITS)}, sinks=compared)
    for in_file, in_memory in (tables, compared):
        expected, result = np.load(in_file.path), in_memory.columns()
        assert [*result] == [*expected.dtype.names]
        for name, column in result.items():
            assert column.dtype.isnative
            np.testing.assert_array_equal(column, expected[name], err_msg=name)
        with pytest.raises(ValueError, match=r"path.*None, for a table in memory"):
            in_file.columns()
