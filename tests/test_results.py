"""What every result can do: its figures are attributes, it is shown, saved, compared and made into tables."""

import copy
import dataclasses
import json
import math
import pickle
import re
import sys
from html.parser import HTMLParser

import clients
import eval_harness
import laid_texts
import numpy as np
import pytest
from reference import statistic

from tokenloss import (
    ComparisonMeter,
    LossMeter,
    calibration,
    class_log_probs,
    compare,
    compare_files,
    compare_samples,
    compare_texts,
    draft_acceptance,
    evaluate,
    linear_compare,
    linear_token_scores,
    mismatch,
    sequence_losses,
    token_scores,
)
from tokenloss._core.result import Result, Shown, Table, as_html, as_markdown, formatted
from tokenloss._evaluation.results import Evaluations
from tokenloss.formats import open_logprobs, open_scores
from tokenloss.results import Comparisons

RNG = np.random.default_rng(7)
LOGITS, OTHER = RNG.normal(size=(2, 3, 4, 6)), RNG.normal(size=(2, 3, 4, 6))
TARGETS = RNG.integers(6, size=(2, 3, 4))
TARGETS[0, 1, 2:] = -100
LENGTHS = np.full(2, 9)
IDS = np.arange(6).reshape(2, 3, 1) - 1  # the first row belongs to no sequence
DRAFTS = {"far": OTHER, "near": LOGITS + 0.1 * OTHER}
HOSTILE = "</td><script>alert('\"&amp;\x1b[31m')</script>\n"


def scored(folder, logits, name="base", **arrays):
    """A file of scores; that of the base has targets."""
    path = folder / f"{name}.npz"
    np.savez(path, logits=logits[0], **({"targets": TARGETS[0]} if name == "base" else {}), **arrays)
    return path


def compared(folder, name="q4"):
    """Files that are compared."""
    return compare_files(scored(folder, LOGITS), {name: scored(folder, OTHER, name="other")})[name]


def drafts_of(folder):
    """The acceptance of drafts in files."""
    drafts = {name: scored(folder, logits, name=name) for name, logits in DRAFTS.items()}
    result = compare_files(scored(folder, LOGITS), drafts, temperature=1)
    return Comparisons({name: one.acceptance(cost_ratio=0.1) for name, one in result.items()})


def of_responses(folder):
    """Files of a server's responses, and of others to the same prompts."""
    paths = [clients.save(folder / f"{name}_responses.jsonl", *clients.COMPLETIONS[:3]) for name in ("base", "other")]
    paths[1].write_text(re.sub(r'("logprob": ?-)', r"\g<1>1", paths[1].read_text("utf-8")), "utf-8")
    return paths


def of_logprobs(folder):
    """Files of a trainer's log-probabilities, and of an engine's that sampled."""
    clients.save_lines(folder / "rollout.jsonl", *({"logprobs": [-0.5 - i, None, -1.0]} for i in range(3)))
    np.save(folder / "trainer.npy", np.linspace(-2, -1, 9))
    return only(compare_files(open_logprobs(folder / "trainer.npy"), folder / "rollout.jsonl"))


def of_samples(folder):
    """Files of samples of two models."""
    return [clients.save(folder / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]


def of_texts(folder, names=("a", "b"), text="to be, or not"):
    """A comparison of two models of a text, by words and by three letters."""
    (folder / "t.txt").write_text(text, "utf-8")
    tokens = laid_texts.words(text), laid_texts.cut(text, 3)
    models = (laid_texts.model(folder, name, [own]) for name, own in zip("ab", tokens, strict=True))
    a, b = (open_scores(model.path, tokenizer=model.tokenizer) for model in models)
    return compare_texts(a, b, text=folder / "t.txt", names=names, shift=True)


def only(comparisons):
    """The only one of several results."""
    (one,) = comparisons.values()
    return one


def evaluations_of(*names):
    return Evaluations({name: evaluate([(LOGITS, TARGETS)]) for name in names})


def meter(*args, **options):
    result = LossMeter()
    result.update(*args, **options)
    return result


MAKERS = {
    "token scores": lambda _: token_scores(LOGITS, TARGETS, top_k=2),
    "token scores of a row": lambda _: token_scores(LOGITS[0, 0], TARGETS[0, 0]),
    "token scores of a token": lambda _: token_scores([1.0, 2.0], 0),
    "token scores of nothing": lambda _: token_scores(LOGITS, TARGETS, where=False),
    "token scores with nan": lambda _: token_scores([[0.0, math.nan], [0.0, -math.inf]], [0, 1]),
    "sequence losses": lambda _: sequence_losses(token_scores(LOGITS, TARGETS), n_bytes=LENGTHS, sample_weight=0.5),
    "sequence losses by number": lambda _: sequence_losses(
        [[1.0, math.inf], [2.0, 3.0]], segment_ids=[[7, 3], [7, -1]]
    ),
    "sequence losses of nothing": lambda _: sequence_losses(np.ones((3, 2)), where=False),
    "meter": lambda _: meter(sequence_losses(token_scores(LOGITS, TARGETS), n_bytes=LENGTHS, n_words=LENGTHS)),
    "meter of tokens": lambda _: meter([0.5, 1.5, 1e-9]),
    "meter of nothing": lambda _: LossMeter(),
    "calibration": lambda _: calibration(LOGITS, TARGETS, segment_ids=IDS, bins=4),
    "calibration of nothing": lambda _: calibration(LOGITS, TARGETS, where=False),
    "calibration of many classes": lambda _: calibration(np.tile(LOGITS, 3), TARGETS, sample_weight=0.5),
    "evaluation": lambda _: evaluate([(LOGITS, TARGETS)]),
    "evaluation of nothing": lambda _: evaluate([(LOGITS[0, :0], TARGETS[0, :0])]),
    "evaluation of a file": lambda folder: evaluate(scored(folder, LOGITS, tokens=np.full((3, 4), HOSTILE))),
    "evaluation of responses": lambda folder: evaluate(of_responses(folder)[:1]),
    "evaluations": lambda _: Evaluations(A=evaluate([(LOGITS, TARGETS)]), B=evaluate([(OTHER, TARGETS)])),
    "comparisons": lambda folder: compare_files(
        scored(folder, LOGITS),
        {name: scored(folder, logits, name=name) for name, logits in (("q4", OTHER), ("q8", LOGITS + 0.1 * OTHER))},
        noise=scored(folder, LOGITS + 0.01 * OTHER, name="twin"),
    ),
    "comparison": lambda _: compare(LOGITS, OTHER, TARGETS),
    "comparison of divergences": lambda _: compare(LOGITS, OTHER, TARGETS, divergences=("tv", "reverse_kl")),
    "comparison of sequences": lambda _: compare(LOGITS, OTHER, TARGETS, segment_ids=IDS),
    "comparison without targets": lambda _: compare(LOGITS, OTHER, None),
    "comparison of a token": lambda _: compare([[1.0, 2.0]], [[1.0, 3.0]], [0]),
    "comparison without finite": lambda _: compare([[1.0, 2.0]] * 2, [[1.0, math.nan], [1.0, -math.inf]], [0, 1]),
    "comparison of files": compared,
    "drafts": lambda _: draft_acceptance(LOGITS[..., :5], OTHER, where=TARGETS >= 0, cost_ratio=0.1),
    "drafts of a text": lambda _: draft_acceptance(LOGITS[0, 0], OTHER[0, 0], temperature=0),
    "drafts of files": drafts_of,
    "comparison of responses": lambda folder: only(compare_files(*of_responses(folder))),
    "comparison of samples": lambda folder: only(compare_samples(*of_samples(folder), margin=0.1)),
    "mismatch": lambda _: mismatch(-np.abs(LOGITS[..., 0]), -np.abs(OTHER[..., 0]), where=TARGETS >= 0),
    "mismatch of tokens": lambda _: mismatch([-1.0, -2.0, math.nan, -3.0], [-1.5, -math.inf, -1.0, -3.0]),
    "mismatch of nothing": lambda _: mismatch(np.zeros((3, 0)), np.zeros((3, 0))),
    "mismatch of files": of_logprobs,
    "comparison of texts": of_texts,
    "comparison of texts without spans": lambda folder: of_texts(folder, text="to"),
    "verdicts": lambda _: compare(LOGITS, OTHER, TARGETS).check(max_kl=1, max_kl_quantile={0.9: 2}, min_same_top=0.5),
    "verdicts by name": lambda folder: evaluations_of(HOSTILE).check(max_loss=3),
    "metric": lambda folder: only(compare_samples(*of_samples(folder))).metrics[0],
}


NAMES = [f"{HOSTILE}{'long ' * 40}{i}" for i in range(30)]


def models_of_names(_):
    """Comparisons of many models, block by block."""
    comparisons = ComparisonMeter()
    comparisons.update(LOGITS, {name: OTHER + i for i, name in enumerate(NAMES)}, TARGETS)
    return comparisons.results()


def responses_of_names(folder):
    """A batch of chats whose texts, top classes and ids are hostile."""
    bodies = [clients.chat((name, -0.5 - i / 9, [(name, -0.5), (HOSTILE, -1.5)])) for i, name in enumerate(NAMES)]
    lines = [
        {"custom_id": name, "response": {"status_code": 200, "body": one}}
        for name, one in zip(NAMES, bodies, strict=True)
    ]
    return clients.save_lines(folder / "batch.jsonl", *lines)


def samples_of_names(folder):
    """Samples with many metrics."""
    samples = [eval_harness.sample(i, **{name: float(i % 3 > 0) for name in NAMES}) for i in range(4)]
    path = clients.save_lines(folder / "samples.jsonl", *samples)
    return only(compare_samples(path, {NAMES[0]: path}, margin=0.1))


OF_HOSTILE_NAMES = {
    "comparison of texts": lambda folder: of_texts(folder, NAMES[:2], f"to be {HOSTILE} {HOSTILE}"),
    "evaluations": lambda _: Evaluations((name, evaluate([(LOGITS, TARGETS)])) for name in NAMES),
    "comparisons": models_of_names,
    "comparison": lambda folder: models_of_names(folder)[NAMES[0]],
    "comparison of files": lambda folder: compare_files(scored(folder, LOGITS), {NAMES[0]: scored(folder, OTHER, "q")}),
    "evaluation of responses": lambda folder: evaluate(responses_of_names(folder)),
    "comparison of responses": lambda folder: compare_files(*[responses_of_names(folder)] * 2),
    "comparison of samples": samples_of_names,
    "metric": lambda folder: samples_of_names(folder).metrics[0],
    "verdicts": lambda folder: models_of_names(folder).check(max_kl=0.01, min_same_top=0.5),
}


@pytest.fixture(params=MAKERS)
def result(request, tmp_path):
    """Each result of the table, whose texts are hostile where it has any."""
    return MAKERS[request.param](tmp_path)


def test_the_table_has_every_class_of_results(tmp_path):
    def leaves(cls):
        subclasses = [c for c in cls.__subclasses__() if c.__module__.startswith("tokenloss")]  # tests define some
        return {cls}.union(*map(leaves, subclasses)) - ({cls} if subclasses else set())

    assert {type(make(tmp_path)) for make in MAKERS.values()} == leaves(Result)


# -- repr and attributes ----------------------------------------------------------------------------------------------


def test_repr_is_a_line_of_attributes(result):
    text = repr(result)
    assert len(text) < 170
    assert text.isprintable()
    name, inner = re.fullmatch(r"(\w+)\((.*)\)", text).groups()
    assert name == type(result).__name__
    if isinstance(result, dict):
        firsts = [repr(one).partition("(")[2].partition(", ")[0] for one in result.values()]
        assert inner == ", ".join(f"{name!r}: {first}" for name, first in zip(result, firsts, strict=True))
        return
    figures = re.findall(r"(\w+)=([^=\[]+|\[.*?\])(?:, |$)", inner)
    assert ", ".join(f"{name}={value}" for name, value in figures) == inner
    for name, shown in figures:
        value = getattr(result, name)
        shown, _, error = shown.partition(" ± ")
        if isinstance(value, str | list | dict | np.ndarray):
            continue
        assert float(shown) == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True)
        if error:
            stderr = statistic(result, f"{name}_stderr")
            assert float(error) == pytest.approx(stderr, rel=1e-2)


def test_repr_shows_bits_per_byte_and_word_perplexity_where_the_text_is_known():
    meter, block = LossMeter(), (np.zeros((1, 3, 4)), np.ones((1, 3), int))
    meter.update([1.0, 2.0, 6.0], n_bytes=12, n_words=2)
    for result in (meter, evaluate([block], n_bytes=12, n_words=2)):
        shown = f"bits_per_byte={result.bits_per_byte:#.6g}, word_perplexity={result.word_perplexity:#.6g})"
        assert repr(result).endswith(shown)
    assert "bits_per_byte" not in repr(evaluate([block]))


def test_repr_of_samples_shows_each_metric_and_how_it_changed(tmp_path):
    for name, values in ("base", [1.0, 1.0, 0.0, 1.0]), ("q4", [1.0, 0.0, 0.0, 1.0]):
        lines = [{"doc_id": i, "filtered_resps": ["4"], "exact_match": one} for i, one in enumerate(values)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = compare_samples(tmp_path / "base.jsonl", {"q4": tmp_path / "q4.jsonl"})
    assert repr(result["q4"]) == "SampleComparison(metrics=['exact_match': 0.5000 (-0.250 ± 0.250)], count=4)"
    assert repr(result) == "Comparisons('q4': metrics=['exact_match': 0.5000 (-0.250 ± 0.250)])"


def test_repr_of_many_results_fits_a_line():
    result = evaluations_of(*(f"model {i}" for i in range(9)))
    assert repr(result).endswith(", ...)")
    assert len(repr(result)) < 170


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (11.0035, 0.05, "11.0035 ± 0.0500"), (11.0, math.nan, "11.0000"), (123456.0, 100.0, "123456 ± 100"),
        (math.inf, math.nan, "inf"), (math.nan, math.nan, "nan"), (0.0, 0.0, "0.00000 ± 0.00"),
        (1234567.0, math.nan, "1.23457e+06"),
    ],
)  # fmt: skip
def test_figures_keep_their_digits(value, error, expected):
    assert formatted(value, error) == expected


def test_an_evaluation_has_the_figures_of_its_meter():
    result = evaluate([(LOGITS, TARGETS)], n_bytes=70, n_words=20)
    scores = token_scores(LOGITS, TARGETS)
    expected = meter(sequence_losses(scores))
    expected.update([], n_bytes=70, n_words=20)
    assert result.meter == expected
    names = [name for name in expected.to_dict() if not name.endswith("_by_sequence") and name != "signature"]
    assert "bits_per_byte_interval" in names
    for name in names:
        assert statistic(result, name) == statistic(expected, name) == result.figures[name], name
    assert (result.loss, result.accuracy) == (scores.loss, scores.accuracy)


# -- figures and tables -----------------------------------------------------------------------------------------------


def test_to_dict_is_json(result):
    figures = result.to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    numbers = {name: value for name, value in figures.items() if isinstance(value, float | int)}
    assert numbers or isinstance(result, dict)
    for name, value in numbers.items():
        attribute = getattr(result, name, value)
        assert isinstance(attribute, np.ndarray) or value == attribute


def test_nan_and_infinity_are_none_in_to_dict():
    result = compare([[1.0, 2.0]] * 2, [[1.0, math.nan], [1.0, -math.inf]], [0, 1])
    assert math.isnan(result.mean_kl)
    assert result.to_dict()["mean_kl"] is result.to_dict()["kl_quantiles"]["0.5"] is None
    assert LossMeter().to_dict()["perplexity_interval"] == [None, None]


def test_columns_are_equally_long_arrays(result):
    if isinstance(result, LossMeter):  # it keeps sums, and no rows
        assert not hasattr(result, "columns")
        return
    columns = result.columns()
    assert len({column.shape for column in columns.values()}) == 1
    for name, column in columns.items():
        assert isinstance(column, np.ndarray), name
        assert column.ndim == 1


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_columns_make_a_table(library, result):
    module = pytest.importorskip(library)
    if isinstance(result, LossMeter):
        return
    columns = result.columns()
    table = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    assert [*table.columns] == [*columns] if library != "pyarrow" else table.column_names == [*columns]
    for name, column in columns.items():
        cells = (
            table[name].to_list()
            if library == "polars"
            else table[name].tolist()
            if library == "pandas"
            else table[name].to_pylist()
        )
        assert len(cells) == len(column)
        if column.dtype.kind == "f":
            np.testing.assert_array_equal(np.array(cells, float), column)
        else:
            assert cells == column.tolist(), name


def test_columns_say_where_each_token_is():
    shape = TARGETS.shape
    expected = np.indices((2, 12)).reshape(2, -1).tolist()
    for columns in token_scores(LOGITS, TARGETS).columns(), compare(LOGITS, OTHER, TARGETS).columns():
        assert [columns["sequence"].tolist(), columns["position"].tolist()] == expected
        np.testing.assert_array_equal(columns["nll"].reshape(shape)[0, 1, 2:], [math.nan] * 2)
    assert sequence_losses(token_scores(LOGITS, TARGETS)).columns()["sequence"].tolist() == [*range(2)]
    assert "position" not in token_scores(LOGITS[0, 0], TARGETS[0, 0]).columns()
    assert "position" not in compare(LOGITS[0, 0], OTHER[0, 0], TARGETS[0, 0]).columns()


def test_columns_count_positions_within_given_sequences():
    columns = compare(np.zeros((7, 2)), np.ones((7, 2)), [0] * 7, segment_ids=[5, -3, 2, 5, 5, -1, 2]).columns()
    assert columns["sequence"].tolist() == [5, -1, 2, 5, 5, -1, 2]
    assert columns["position"].tolist() == [0, -1, 0, 1, 2, -1, 1]


def test_columns_of_an_evaluation_are_what_the_file_of_sequences_holds(tmp_path):
    from tokenloss import sinks

    path = tmp_path / "sequences.npy"
    columns = evaluate([(LOGITS, TARGETS)], sinks=[sinks.SequenceTable(path)]).columns()
    table = np.load(path)
    assert table.dtype.names == tuple(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(table[name], column)


def test_what_is_not_scored_is_not_0():
    logits, other, targets = LOGITS[0, 0], OTHER[0, 0], TARGETS[0, 0]
    hidden, head, options = RNG.normal(size=(4, 3)), RNG.normal(size=(6, 3)), {"where": [True, False, True, False]}
    for result in (
        token_scores(logits, targets, top_k=2, **options),
        linear_token_scores(hidden, head, targets, top_k=2, **options),
        compare(logits, other, targets, **options),
        linear_compare(hidden, head, hidden, head[:, ::-1], targets, **options),
    ):
        for name, column in result.columns().items():
            missing = {"f": math.nan, "i": -1, "b": False}[column.dtype.kind]
            np.testing.assert_array_equal(column[[1, 3]], missing, name)
            assert name == "kept" or column.dtype == bool or not np.isin(column[[0, 2]], [-1, math.nan]).any()
    assert np.isnan(class_log_probs(logits, [0, 1], **options)[[1, 3]]).all()
    sums = sequence_losses([[1.0, math.nan], [1.0, math.nan]], where=[[True, False], [False, False]]).columns()
    assert (sums["nll"][0], sums["count"].tolist(), np.isnan(sums["loss"]).tolist()) == (1, [1, 0], [False, True])
    assert math.isnan(sequence_losses([[1.0, math.nan]]).nll[0])  # as no mask says that it was left out
    assert math.isnan(meter([1.0, math.nan]).loss)


# -- what people see --------------------------------------------------------------------------------------------------


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
def test_summary_is_what_the_command_prints(tmp_path, command):
    path, other = scored(tmp_path, LOGITS), scored(tmp_path, OTHER, name="other")
    responses, samples = of_responses(tmp_path), of_samples(tmp_path)
    for argv, result in [
        (("score", path), evaluate(path)),
        (("score", responses[0]), evaluate(responses[0])),
        (("compare", path, f"q4={other}"), compare_files(path, {"q4": other})),
        (("compare", *responses), compare_files(*responses)),
        (("compare", *samples, "--margin", 0.1), compare_samples(*samples, margin=0.1)),
    ]:
        status, out, _ = command(*argv)
        assert (status, out) == (0, result.summary() + "\n")


CELLS = {"td", "th", "b", "span"}
TAGS = {"div", "p", "table", "caption", "thead", "tbody", "tr"} | CELLS


class Cells(HTMLParser):
    """Reads the cells of tables, and all tags and attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.cells, self.attributes, self.open = set(), [], set(), []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= set(attrs)
        self.open.append(tag)
        if tag in CELLS:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in CELLS:
            self.cells[-1] += data


def test_html_has_the_same_cells_as_the_summary(result):
    check_html(result)


@pytest.mark.filterwarnings("ignore:.*identical to base")
@pytest.mark.parametrize("make", OF_HOSTILE_NAMES)
def test_hostile_names_are_text_and_long_ones_are_cut_in_repr(make, tmp_path):
    result = OF_HOSTILE_NAMES[make](tmp_path)
    check_html(result)
    assert result.summary().replace("\n", "").isprintable()
    assert repr(result).isprintable()
    assert len(repr(result)) <= 4 * 80  # some lines of a screen


def check_html(result):
    """Check the HTML of a result, by its plain text."""
    read, shown, text = Cells(result._repr_html_()), result._shown(), result.summary()
    expected = [shown.title, shown.note]
    for table in shown.tables:
        expected += [table.title] * bool(table.title)
        expected += [cell for row in [table.heads] * bool(table.heads) + [*table.rows] for cell in row]
    expected += [shown.signature] * bool(shown.signature)
    assert read.cells == [cell.replace("\x1b", r"\x1b").replace("\n", r"\n") for cell in expected]
    assert read.tags <= TAGS
    assert {name for name, _ in read.attributes} <= {"style"}
    assert (
        "style",
        "color: inherit",
    ) in read.attributes  # where a page has no doctype, tables have a color of their own
    paddings = [style for _, style in read.attributes if "white-space" in style]
    assert all("padding: 0.1em 1em" in style for style in paddings)  # many notebooks leave cells without
    assert not any(
        word in style for _, style in read.attributes for word in ("background", "#", "rgb", "black", "white;")
    )
    for cell in read.cells:
        assert cell.strip() in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_html_escapes_hostile_text():
    html = as_html(Shown(HOSTILE, HOSTILE, [Table([(HOSTILE, "1")], ("text", HOSTILE), HOSTILE)]))
    read = Cells(html)
    assert read.tags <= TAGS
    assert sum("script" in cell for cell in read.cells) == 5


@pytest.mark.parametrize("name", ["# a", "## a", "- a", "+ a"])
def test_a_name_is_no_heading_or_item_of_markdown(name):
    result = as_markdown(Shown("base", "", [Table([("-0.5", "+1")], title=f"{name} loses most")]))
    assert f"\n\\{name} loses most\n" in result
    assert "| -0.5 | +1  |" in result


def test_html_of_hostile_names(tmp_path):
    result = dataclasses.replace(compare(LOGITS, OTHER, TARGETS), _about={"name": HOSTILE, "base": HOSTILE})
    read = Cells(result._repr_html_())
    assert read.tags <= TAGS
    assert read.cells[0].count("<script>") == 2
    assert "\x1b" not in result.summary()
    assert "\x1b" not in evaluate(scored(tmp_path, LOGITS, tokens=np.full((3, 4), HOSTILE))).summary()


# -- copies and equality ----------------------------------------------------------------------------------------------


def test_cloudpickle_sends_results_by_the_name_of_their_class(result, monkeypatch):
    """Ray, Spark and joblib use it; where a module is not imported yet, it copies the class."""
    cloudpickle = pytest.importorskip("cloudpickle")
    monkeypatch.delitem(sys.modules, "tokenloss.results", raising=False)
    data = cloudpickle.dumps(result)
    assert b"_make_skeleton_class" not in data
    assert type(pickle.loads(data)) is type(result)  # noqa: S301 -- pickled above


def test_pickles_and_copies_are_equal(result):
    for again in pickle.loads(pickle.dumps(result)), copy.deepcopy(result):  # noqa: S301 -- pickled in this line
        assert again == result
        assert repr(again) == repr(result)
        assert again.to_dict() == result.to_dict()
    assert result != 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(result)


TIMES = ("seconds", "gb_per_second", "n_bytes_read")  # are not compared


def changed(value):
    """Values in which one element is another; none if there is nothing to change."""
    if isinstance(value, np.ndarray):
        for index in np.ndindex(value.shape):
            other = value.copy()
            other[index] = changed_scalar(value[index].item() if value.dtype != object else value[index])
            yield other
            return
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ({**value, key: other} for other in changed(item))
    elif isinstance(value, list | tuple):
        yield type(value)([*value, 1])
    elif isinstance(value, bool | int | float | str) or value is None:
        yield changed_scalar(value)


def changed_scalar(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and math.isfinite(value):
        return value + 1
    return 1.5 if isinstance(value, float) else f"{value}x"


def test_one_changed_element_makes_results_unequal(result):
    if isinstance(result, LossMeter):
        other = result + LossMeter()
        assert other == result
        other.update([0.25])
        assert other != result
        return
    if isinstance(result, dict):
        first, last = result
        assert type(result)({first: result[last], last: result[first]}) != result
        return
    of_time = {"seconds", "gb_per_second", "n_bytes_read"}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if field.name == "figures":
            value = {name: figure for name, figure in value.items() if name not in of_time}
        for other in changed(value) if field.compare and field.name != "_parts" else ():
            assert dataclasses.replace(result, **{field.name: other}) != result, field.name


def test_names_and_times_do_not_count_for_equality(tmp_path):
    assert compared(tmp_path) == compared(tmp_path, "another")
    assert evaluate([(LOGITS, TARGETS)]) == evaluate([(LOGITS, TARGETS)])
    assert compare(LOGITS, OTHER, TARGETS) != compare(LOGITS, OTHER, TARGETS, segment_ids=IDS)
