"""tokenloss.sinks: what evaluate writes, of files and of blocks, and when it writes nothing."""

import contextlib
import math
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from clients import chat, save_lines
from html_pages import Reader

from tokenloss import compare_files, evaluate, sinks, token_scores
from tokenloss._scores.token_scores import COLUMNS
from tokenloss.formats import open_scores


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


def test_page_of_sequences_that_take_turns_and_of_tokens_in_none(tmp_path):
    ids = np.array([-1, -1, 0, 1, 0])
    evaluate([(np.zeros((5, 3)), np.zeros(5, int), None, ids)], sinks=[sinks.HtmlPage(tmp_path / "page.html")])
    page = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert page.places["sequence"] == ids.tolist()
    assert page.paragraphs == 4  # both tokens in no sequence share one
    assert page.anchors == ["sequence-0", "sequence-1", None]  # each once


def test_page_names_each_file_once(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", logits=np.zeros((2, 3, 4)), targets=np.zeros((2, 3), int))
    evaluate([tmp_path / "a.npz", tmp_path / "b.npz"], sinks=[sinks.HtmlPage(tmp_path / "page.html")])
    headings = Reader((tmp_path / "page.html").read_text("utf-8")).texts["h2"]
    assert headings == ["a.npz", "sequence 0", "sequence 1", "b.npz", "sequence 0", "sequence 1"]


@pytest.mark.parametrize("of_blocks", [True, False])
def test_page_keeps_its_first_tokens(of_blocks, blocks, npz, tmp_path, monkeypatch):
    """However they come; it had one paragraph of all, and no note where more tokens were ignored than left out."""
    monkeypatch.setattr(sinks.HtmlPage, "max_tokens", 7)
    logits, targets, _ = joined(blocks)
    targets[2:] = -100
    path = npz(logits=logits, targets=targets)
    result = evaluate(iter(blocks) if of_blocks else path, sinks=[sinks.HtmlPage(tmp_path / "page.html")])
    page = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert len(page.tokens) == len(page.data["models"][0]["nll"]) == 7
    assert "first 7 of 30 tokens" in page.text("p")
    assert page.texts["dd"][0].strip() == str(result.meter.count)
    assert page.text("h1") == f"Loss of {result.meter.count} tokens" + ("" if of_blocks else f": {path.name}")
    assert page.paragraphs == 2  # as many as rows
    assert page.anchors == ["sequence-0", "sequence-1"]
    made_by = "tokenloss.evaluate"
    assert made_by in page.text("code")


class Collected(sinks.Sink):
    """A sink of the user's own, which does not call the `__init__` of its base."""

    rows, top_k = "tokens", 3

    def __init__(self):
        self.calls, self.blocks = [], []

    @contextlib.contextmanager
    def open(self, schema):
        self.schema = schema
        self.calls.append(("open", schema.models, schema.top_k))
        try:
            yield
        finally:
            self.calls.append(("close", sys.exc_info()[0]))

    def write(self, block):
        self.blocks.append(block)

    def finish(self, result):
        self.calls.append(("finish", result.to_dict()["count"]))

    def column(self, name):
        """A column of all blocks."""
        return np.concatenate([block.columns[name] for block in self.blocks])


def test_sink_of_ones_own(blocks, npz):
    sink = Collected()
    result = evaluate(blocks, sinks=[sink])
    tokens = result.meter.count
    assert sink.calls == [("open", (), 3), ("finish", tokens), ("close", None)]
    logits, targets, where = joined(blocks)
    expected = token_scores(logits, targets, where=where, top_k=3)
    for name in COLUMNS:
        column = np.concatenate([(block.columns | block.tops[""])[name] for block in sink.blocks])
        np.testing.assert_array_equal(column, getattr(expected, name).reshape(column.shape), err_msg=name)
    assert sink.column("target").tolist() == targets.ravel().tolist()
    names = {column.name for column in sink.schema.tokens}
    assert all(block.columns.keys() == names for block in sink.blocks)
    assert "text" not in names
    sink = Collected()
    text = np.array(list("abcdefghijklmno")).reshape(3, 5)
    evaluate(npz(logits=logits[:3], targets=targets[:3], tokens=text), sinks=[sink], top=0)
    assert sink.calls[0] == ("open", (), 3)
    assert "".join(sink.column("text")) == "abcdefghijklmno"
    sink = Collected()
    evaluate([(np.zeros((4, 2)), [0, 1, 0, 1])], sinks=[sink, sinks.Sink()])  # fewer classes than top_k
    assert sink.calls[0] == ("open", (), 2)
    assert sink.blocks[0].tops[""]["top_ids"].shape == (4, 2)


def test_sink_without_tokens_gets_the_result_alone(blocks):
    sink = Collected()
    sink.rows = "none"
    evaluate(blocks, sinks=(one for one in [sink]))
    assert not sink.blocks
    assert [call[0] for call in sink.calls] == ["open", "finish", "close"]


def test_sink_of_sequences_gets_all_of_them_at_once_also_from_a_state(blocks, npz, tmp_path):
    sink = Collected()
    sink.rows = "sequences"
    logits, targets, _ = joined(blocks)
    paths = [
        npz(f"{name}.npz", logits=logits[part], targets=targets[part])
        for name, part in zip("ab", (slice(0, 4), slice(4, 6)), strict=True)
    ]
    for _ in range(2):
        sink.blocks.clear()
        result = evaluate(paths, sinks=[sink], state=tmp_path / "state")
        (block,) = sink.blocks
        assert [*block.columns] == [column.name for column in sink.schema.sequences] == [*result.sequences]
        for name, column in result.sequences.items():
            np.testing.assert_array_equal(block.columns[name], column, err_msg=name)


class Sqlite(sinks.Sink):
    """A sink of somebody else, who knows only what the reference says: each table has the columns of the schema."""

    needs = ({"sequence", "loss"}, {"name", "sequence", "loss"})
    rows = "sequences"

    @contextlib.contextmanager
    def open(self, schema):
        self.names = [column.name for column in schema.sequences]
        with contextlib.closing(sqlite3.connect(self.path)) as self.connection:
            self.connection.execute(f"CREATE TABLE sequences ({', '.join(self.names)})")
            self.insert = f"INSERT INTO sequences VALUES ({', '.join('?' * len(self.names))})"  # noqa: S608
            yield
            self.connection.commit()

    def write(self, block):
        for own in block.models.values() or [{}]:
            columns = block.columns | own
            rows = zip(*(columns[name].tolist() for name in self.names), strict=True)
            self.connection.executemany(self.insert, rows)


def test_a_sink_that_writes_to_sqlite(blocks, npz, tmp_path):
    """Of one model, and of candidates; nothing is committed where the work fails."""
    logits, targets, _ = joined(blocks)
    base, other = npz("a.npz", logits=logits, targets=targets), npz("b.npz", logits=0.9 * logits)
    third = npz("c.npz", logits=0.8 * logits)
    result = evaluate(base, sinks=[Sqlite(tmp_path / "one.db")])
    compared = compare_files(base, {"b": other, "c": third}, sinks=[Sqlite(tmp_path / "two.db")])
    query = "SELECT sequence, loss FROM sequences"
    with contextlib.closing(sqlite3.connect(tmp_path / "one.db")) as database:
        expected = zip(result.sequences["sequence"].tolist(), result.sequences["loss"].tolist(), strict=True)
        assert database.execute(query).fetchall() == [*expected]
    with contextlib.closing(sqlite3.connect(tmp_path / "two.db")) as database:
        for name, one in compared.items():
            expected = zip(one.sequences["sequence"].tolist(), one.sequences["loss"].tolist(), strict=True)
            assert database.execute(f"{query} WHERE name = ?", [name]).fetchall() == [*expected]
    with pytest.raises(TypeError, match="block 3 is 'NoneType'"):
        evaluate([*blocks, None], sinks=[Sqlite(tmp_path / "bad.db")])
    with contextlib.closing(sqlite3.connect(tmp_path / "bad.db")) as database:
        assert database.execute("SELECT * FROM sequences").fetchall() == []


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
    files = {"targets": tmp_path / "targets.npy", "segment_ids": tmp_path / "ids.npy"}
    source, text = open_scores(path, **files), tmp_path / "text.html"
    for sink, words in [
        (sinks.HtmlPage(path), f"HtmlPage {path}: would replace {path}; give another name"),
        (sinks.TokenTable(files["targets"]), f"TokenTable {files['targets']}: would replace"),
        (sinks.SequenceTable(files["segment_ids"]), f"SequenceTable {files['segment_ids']}: would replace"),
        (sinks.HtmlPage(text), f"HtmlPage {text}: would replace"),
        (type("Mine", (sinks.Sink,), {})(path), f"Mine {path}: would replace"),
    ]:
        with pytest.raises(ValueError) as raised:
            evaluate(source, sinks=[sink], text=text)
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


@pytest.mark.parametrize("method", ["open", "write", "finish", "close"])
def test_a_sink_that_cannot_write_is_named_and_no_other_error_is(method, blocks, tmp_path):
    class Full(sinks.Sink):
        rows = "tokens"

        def fail(self, *_):
            raise OSError(28, "No space left on device")

        @contextlib.contextmanager
        def open(self, *_):
            self.fail() if method == "open" else None
            yield
            self.fail() if method == "close" else None

    if method in ("write", "finish"):
        setattr(Full, method, Full.fail)
    with pytest.raises(OSError, match=r"^Full .*x: cannot be written: No space left on device$"):
        evaluate(blocks, sinks=[Full(tmp_path / "x")])
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):  # it writes no file
        evaluate(blocks, sinks=[Full()])

    def engine():
        yield blocks[0]
        raise OSError(5, "Input/output error")

    if method == "close":
        with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error$"):
            evaluate(engine(), sinks=[Full(tmp_path / "x")])


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
        with pytest.raises(ValueError, match=f"^{type(sink).__name__} needs every token, and {option} {verb} only"):
            evaluate(path, sinks=[sink], **{option: str(tmp_path / "x")})
    evaluate(path, sinks=[sinks.SequenceTable(tmp_path / "x.csv")], state=tmp_path / "state")
    assert math.isnan(evaluate(path, state=tmp_path / "state").figures["sequence_loss"])


MISSING = "needs columns that the tokens here do not have: "


@pytest.mark.parametrize("make", [sinks.DivergencePlot, sinks.DivergencePage, sinks.SpanPage, lambda path: Lines("kl")])
def test_sinks_that_need_columns_of_two_models_are_refused_before_any_work(make, npz, tmp_path):
    sink = make(tmp_path / ("x.png" if make is sinks.DivergencePlot else "x.html"))
    columns = {sinks.DivergencePage: "base_nll, kl", sinks.SpanPage: "difference, start, stop"}.get(make, "kl")
    (tmp_path / "old.csv").write_text("old")
    table = sinks.TokenTable(tmp_path / "old.csv")
    with pytest.raises(ValueError, match=f"^{type(sink).__name__} {MISSING}{columns}$"):
        evaluate(npz(logits=3 * np.eye(4), targets=np.arange(4)), sinks=[table, sink])
    assert {path.name for path in tmp_path.iterdir()} == {"scores.npz", "old.csv"}
    assert (tmp_path / "old.csv").read_text() == "old"


class Lines(sinks.Sink):
    """A sink that needs columns."""

    def __init__(self, *needs):
        self.needs = [{*need.split()} for need in needs]


def test_sinks_that_need_columns_of_one_model_are_refused_where_two_are_compared(npz):
    base = npz("base.npz", logits=3 * np.eye(4), targets=np.arange(4))
    for sink, columns in (
        (sinks.LossPlot("x.png"), "is_greedy"),
        (sinks.HtmlPage("x.html"), "argmax, rank"),
        (sinks.TokenTable(columns=["nll", "n_bytes"]), "n_bytes"),
        (Lines("nll rank argmax", "kl rank"), "rank"),  # of the alternative that lacks least
    ):
        with pytest.raises(ValueError, match=f"^{type(sink).__name__} {MISSING}{columns}$"):
            compare_files(base, base, sinks=[sink])
    with pytest.raises(
        ValueError, match=r"^SequenceTable needs columns that the sequences here do not have: perplexity"
    ):
        compare_files(base, base, sinks=[sinks.SequenceTable(columns=["perplexity"])])


class Sequences(sinks.Sink):
    """A sink of sequences that keeps the schema and the block."""

    rows = "sequences"

    def open(self, schema):
        self.columns = {column.name for column in schema.sequences}
        return super().open(schema)

    def write(self, block):
        self.block = block


@pytest.mark.parametrize("shape", [(0, 3, 4), (4, 4), (2, 3, 4)])
def test_sequences_of_candidates_have_the_columns_of_the_schema_also_if_there_are_none(shape, npz):
    scores = np.arange(np.prod(shape)).reshape(shape) / 8
    base, other = npz("base.npz", logits=scores), npz("other.npz", logits=scores**2)
    sink = Sequences()
    compare_files(base, {"q4": other}, sinks=[sink])
    own = sink.block.models["q4"]
    assert {*own} == sink.columns > {"name", "kl"}
    assert {len(column) for column in own.values()} == {shape[0] if len(shape) == 3 else 0}


def test_sequences_of_responses_have_the_columns_of_the_schema(tmp_path):
    path = save_lines(tmp_path / "a.jsonl", {"custom_id": "a", "response": {"body": chat(("a", -0.5), ("b", -1.5))}})
    sink = Sequences()
    assert "custom_id" in evaluate(path, sinks=[sink]).sequences
    assert {*sink.block.columns} == sink.columns


def test_losses_are_not_known_without_targets(npz):
    base, other = npz("base.npz", logits=3 * np.eye(4)), npz("other.npz", logits=2 * np.eye(4))
    with pytest.raises(ValueError, match=r"^Lines needs columns that are not known without targets: base_nll$"):
        compare_files(base, other, sinks=[Lines("base_nll kl")])
    table, tops = sinks.TokenTable(top_k=1), Collected()
    compare_files(base, other, sinks=[table, tops])
    assert np.isnan(table.columns()["nll"]).all()
    assert table.columns()["top_id_1"].tolist() == [0, 1, 2, 3]
    (block,) = tops.blocks
    assert block.tops[""]["rank"].tolist() == [-1] * 4


def test_a_sink_that_is_given_twice_is_refused(blocks):
    table = sinks.TokenTable()
    with pytest.raises(ValueError, match=r"^TokenTable is given twice in sinks$"):
        evaluate(blocks, sinks=[table, sinks.SequenceTable(), table])


def test_a_table_in_memory_holds_nothing_of_work_that_failed(blocks):
    table = sinks.TokenTable()
    evaluate(blocks, sinks=[table])
    assert len(table.columns()["row"]) == 30
    with pytest.raises(TypeError, match="block 3 is 'NoneType'"):
        evaluate([*blocks, None], sinks=[table])
    assert table.columns() == {}
