"""tokenloss.sinks: what evaluate writes, of files and of blocks, and when it writes nothing."""

import contextlib
import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import Reader

import tokenloss
from tokenloss import evaluate, sequence_losses, sinks, token_scores
from tokenloss._evaluation import plan
from tokenloss._scores.token_scores import COLUMNS


@pytest.fixture
def blocks():
    """Blocks of sequences (N, T, V) with a mask, and all of their tokens."""
    rng = np.random.default_rng(31)
    logits, targets = rng.normal(size=(6, 5, 9), scale=3), rng.integers(9, size=(6, 5))
    targets[2, 1:] = -100
    where = rng.random((6, 5)) < 0.8
    return [(logits[part], targets[part], where[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 6))]


def joined(blocks):
    return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]


def rows_of(path):
    """Columns of a table in any of the formats."""
    if path.suffix == ".npy":
        table = np.load(path)
        return {name: table[name].tolist() for name in table.dtype.names}
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
        return parquet.read_table(path).to_pydict()
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    values = {"True": True, "False": False}
    return {
        name: [values[cell] if cell in values else float(cell) if cell else None for cell in column]
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def test_page_keeps_its_first_tokens_whatever_the_blocks(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks.HtmlPage, "max_tokens", 7)
    evaluate(iter(blocks), sinks=[sinks.HtmlPage(tmp_path / "page.html")])
    found = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert len(found.tokens) == len(found.data["loss"]) == 7
    assert "first 7 of" in found.text("p")


@pytest.mark.parametrize("block_rows", [4, 1000])
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_token_table_of_blocks(suffix, block_rows, blocks, tmp_path, monkeypatch):
    """The number of rows is not known before."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    path = tmp_path / f"tokens{suffix}"
    evaluate(iter(blocks), sinks=[sinks.TokenTable(path)])
    logits, targets, where = joined(blocks)
    scores = token_scores(logits, targets, where=where)
    found = rows_of(path)
    assert list(found)[-3:] == ["file", "sequence", "position"]
    assert found["position"] == list(range(30))
    assert found["sequence"] == np.arange(6).repeat(5).tolist()
    assert set(found["file"]) == {0}
    assert found["target"] == targets.ravel().tolist()
    found["probability"] = [None if p is None else -math.log(p) for p in found["probability"]]
    for name in (set(COLUMNS) | {"probability"}) & set(found) - {"kept"}:
        expected = getattr(scores, "nll" if name == "probability" else name).ravel()
        if suffix != ".npy":  # which has no null
            expected = np.where(scores.kept.ravel(), expected, None)
        known = np.not_equal(expected, None)
        assert [value is None for value in found[name]] == (~known).tolist(), name
        actual, expected = np.array(found[name])[known].astype(float), expected[known].astype(float)
        np.testing.assert_allclose(actual, expected, rtol=1e-14 if name == "probability" else 0, err_msg=name)
    assert found["kept"] == scores.kept.ravel().tolist()


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_sequence_table_of_blocks(suffix, blocks, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
    path = tmp_path / f"sequences{suffix}"
    evaluation = evaluate(blocks, sinks=[sinks.SequenceTable(str(path))])
    logits, targets, where = joined(blocks)
    expected = sequence_losses(token_scores(logits, targets, where=where))
    found = rows_of(path)
    assert list(found) == ["file", "sequence", "tokens", "nll", "loss", "perplexity", "is_greedy"]
    assert found["nll"] == expected.nll[expected.count > 0].tolist()
    assert {name: column.tolist() for name, column in evaluation.sequences.items()} == found


def test_token_table_of_shifted_blocks(blocks, tmp_path):
    """Rows without a next token are left out; positions are those of the block."""
    evaluate(blocks, shift=True, sinks=[sinks.TokenTable(tmp_path / "tokens.npy")])
    table = np.load(tmp_path / "tokens.npy")
    logits, targets, where = joined(blocks)
    logits, targets, mask = tokenloss.next_token(logits, targets, where)
    assert table["position"].tolist() == [5 * i + j for i in range(6) for j in range(4)]
    np.testing.assert_array_equal(table["target"], targets.ravel())
    np.testing.assert_array_equal(table["nll"], token_scores(logits, targets, where=mask).nll.ravel())


def test_token_table_of_segment_ids(tmp_path):
    ids = np.array([7, 7, -3, 2**40, 7])
    evaluate([(np.zeros((5, 3)), np.zeros(5, int), None, ids)], sinks=[sinks.TokenTable(tmp_path / "tokens.npy")])
    assert np.load(tmp_path / "tokens.npy")["sequence"].tolist() == [7, 7, -1, 2**40, 7]


def test_token_table_of_several_files(blocks, tmp_path):
    for number, (logits, targets, _) in enumerate(blocks):
        np.savez(tmp_path / f"part-{number}.npz", logits=logits, targets=targets)
    path = tmp_path / "tokens.npy"
    evaluate(tmp_path / "part-*.npz", sinks=[sinks.TokenTable(path), sinks.SequenceTable(tmp_path / "sequences.npy")])
    table = np.load(path)
    assert table["file"].tolist() == [0] * 5 + [1] * 15 + [2] * 10
    assert table["position"].tolist() == [*range(5), *range(15), *range(10)]
    assert table["sequence"].tolist() == np.r_[[0] * 5, np.arange(3).repeat(5), np.arange(2).repeat(5)].tolist()
    assert np.load(tmp_path / "sequences.npy")["file"].tolist() == [0, 1, 1, 1, 2, 2]


def test_page_and_plot_of_blocks(blocks, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    page, plot = tmp_path / "page.html", tmp_path / "plot.png"
    found = evaluate(blocks, sinks=[sinks.HtmlPage(page), sinks.LossPlot(plot)])
    text = page.read_text("utf-8")
    assert "<title>tokenloss" in text
    assert f"{found.meter.perplexity:.5g}" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


class Collected(sinks.Sink):
    """A sink of the user's own, which does not call the `__init__` of its base."""

    needs_tokens, top_k = True, 3

    def __init__(self):
        self.calls, self.blocks = [], []

    @contextlib.contextmanager
    def open(self, batch, rows, top_k):
        self.calls.append(("open", batch, rows, top_k))
        try:
            yield
        finally:
            self.calls.append(("close", sys.exc_info()[0]))

    def add(self, block):
        self.blocks.append(block)

    def finish(self, summary, result):
        self.calls.append(("finish", summary["tokens"], result.meter.count))


def test_sink_of_ones_own(blocks, npz):
    sink = Collected()
    found = evaluate(blocks, sinks=[sink])
    tokens = found.meter.count
    assert sink.calls == [("open", None, None, 3), ("finish", tokens, tokens), ("close", None)]
    logits, targets, where = joined(blocks)
    expected = token_scores(logits, targets, where=where, top_k=3)
    for name in COLUMNS:
        column = np.concatenate([getattr(block.scores, name) for block in sink.blocks])
        np.testing.assert_array_equal(column, getattr(expected, name).reshape(column.shape), err_msg=name)
    assert np.concatenate([block.ids for block in sink.blocks]).tolist() == targets.ravel().tolist()
    assert {block.text for block in sink.blocks} == {None}
    sink = Collected()
    text = np.array(list("abcdefghijklmno")).reshape(3, 5)
    evaluate(npz(logits=logits[:3], targets=targets[:3], tokens=text), sinks=[sink], top=0)
    assert sink.calls[0] == ("open", (3, 5), 15, 3)
    assert "".join(np.concatenate([block.text for block in sink.blocks])) == "abcdefghijklmno"
    sink = Collected()
    evaluate([(np.zeros((4, 2)), [0, 1, 0, 1])], sinks=[sink, sinks.Sink()])  # fewer classes than top_k
    assert sink.calls[0] == ("open", None, None, 2)
    assert sink.blocks[0].scores.top_ids.shape == (4, 2)


def test_sink_without_tokens_gets_the_result_alone(blocks):
    sink = Collected()
    sink.needs_tokens = False
    evaluate(blocks, sinks=(one for one in [sink]))
    assert not sink.blocks
    assert [call[0] for call in sink.calls] == ["open", "finish", "close"]


@pytest.mark.parametrize("bad", ["target", "type", "engine"])
def test_nothing_is_written_when_a_later_block_is_bad(bad, blocks, tmp_path):
    outputs = [sinks.TokenTable(tmp_path / "tokens.csv"), sinks.SequenceTable(tmp_path / "sequences.npy"),
               sinks.HtmlPage(tmp_path / "page.html"), sink := Collected()]  # fmt: skip
    for output in outputs[:3]:
        output.path.write_text("old")

    def engine():
        yield from blocks
        if bad == "engine":
            raise ZeroDivisionError
        yield (np.zeros((2, 9)), [0, 9]) if bad == "target" else None

    errors = {"target": IndexError, "type": TypeError, "engine": ZeroDivisionError}
    with pytest.raises(errors[bad]):
        evaluate(engine(), sinks=outputs)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "tokens.csv": "old", "sequences.npy": "old", "page.html": "old",
    }  # fmt: skip
    assert [call[0] for call in sink.calls] == ["open", "close"]
    assert sink.calls[-1] == ("close", errors[bad])


def test_nothing_is_written_when_a_file_is_bad(blocks, npz, tmp_path):
    (tmp_path / "tokens.csv").write_text("old")
    logits, targets, _ = joined(blocks)
    paths = [npz("a.npz", logits=logits, targets=targets), npz("b.npz", logits=logits, targets=targets + 5)]
    with pytest.raises(IndexError, match=r"b\.npz: targets"):
        evaluate(paths, sinks=[sinks.TokenTable(tmp_path / "tokens.csv"), sink := Collected()])
    assert (tmp_path / "tokens.csv").read_text() == "old"
    assert not sink.calls


def test_outputs_that_would_replace_an_input(blocks, npz, tmp_path):
    logits, targets, _ = joined(blocks)
    path = npz("a.npz", logits=logits, targets=targets)
    for name in ("targets.npy", "ids.npy"):
        np.save(tmp_path / name, np.abs(targets) % 9)
    (tmp_path / "text.html").write_text("words")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    files = {"targets": tmp_path / "targets.npy", "segment_ids": tmp_path / "ids.npy", "text": tmp_path / "text.html"}
    for sink, words in [
        (sinks.HtmlPage(path), f"HtmlPage {path}: would replace {path}; give another name"),
        (sinks.TokenTable(files["targets"]), f"TokenTable {files['targets']}: would replace"),
        (sinks.SequenceTable(files["segment_ids"]), f"SequenceTable {files['segment_ids']}: would replace"),
        (sinks.HtmlPage(files["text"]), f"HtmlPage {files['text']}: would replace"),
        (type("Mine", (sinks.Sink,), {})(path), f"Mine {path}: would replace"),
    ]:
        with pytest.raises(ValueError) as raised:
            evaluate(path, sinks=[sink], **files)
        assert words in str(raised.value)
    with pytest.raises(ValueError, match=r"state .*a\.npz: would replace"):
        evaluate(path, state=path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("of_blocks", [True, False])
def test_outputs_that_would_replace_each_other(of_blocks, blocks, npz, tmp_path):
    logits, targets, _ = joined(blocks)
    source = blocks if of_blocks else npz(logits=logits, targets=targets)
    path = tmp_path / "x.csv"
    both = [sinks.TokenTable(path), sinks.SequenceTable(f"{tmp_path}/./x.csv")]
    with pytest.raises(ValueError, match=r"SequenceTable .*x\.csv: would replace what TokenTable writes"):
        evaluate(source, sinks=both)
    missing = tmp_path / "none" / "x.csv"
    with pytest.raises(OSError, match=r"TokenTable .*none.x\.csv: cannot be written: No such file"):
        evaluate(source, sinks=[sinks.TokenTable(missing)])
    assert not path.exists()


def test_sinks_of_wrong_names_or_without_their_packages(monkeypatch):
    for sink, fits in [(sinks.TokenTable, ".npy, .csv, .parquet"), (sinks.SequenceTable, ".parquet"),
                       (sinks.LossPlot, ".png")]:  # fmt: skip
        with pytest.raises(ValueError, match="path is ") as raised:
            sink(Path("x.txt"))
        assert fits in str(raised.value)
    for name in ("pyarrow", "pyarrow.parquet", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        sinks.SequenceTable("x.parquet")
    with pytest.raises(ImportError, match="pip install matplotlib"):
        sinks.LossPlot("x.png")


@pytest.mark.parametrize(("option", "verb"), [("state", "keeps"), ("scheduler", "returns")])
def test_sinks_that_need_tokens_of_sums(option, verb, npz, tmp_path):
    path = npz(logits=np.zeros((2, 3)), targets=[0, 1])
    for sink in (sinks.TokenTable(tmp_path / "x.csv"), Collected()):
        with pytest.raises(ValueError, match=f"^{type(sink).__name__} needs every token; {option} {verb} no"):
            evaluate(path, sinks=[sink], **{option: str(tmp_path / "x")})
    evaluate(path, sinks=[sinks.SequenceTable(tmp_path / "x.csv")], state=tmp_path / "state")
    assert math.isnan(evaluate(path, state=tmp_path / "state").figures["sequence_loss"])
