"""Comparisons: the results of several candidates by name, in one schema for scores, responses and samples."""

import json
import math
import pickle

import clients
import numpy as np
import pytest
from candidates import Many
from commands import assert_refused
from eval_harness import of_values
from html_pages import Reader
from rendered import Documents
from tables import read_table

import tokenloss
from tokenloss import ComparisonMeter, compare_files, compare_samples, sinks
from tokenloss._comparison.comparisons import Comparisons
from tokenloss.formats import open_responses
from tokenloss.page import write_comparison_page

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def of_scores(path):
    """The base and other files, and the figures that are the same for all candidates of scores."""
    many = Many(path)
    common = {"base_kind", "files", "shape", "classes", "n_without_next", "n_ignored", "fits_better_shifted",
              "definitions", "has_targets", "count", "n_sequences", "is_clustered", "base_perplexity",
              "base_perplexity_stderr"}  # fmt: skip
    return path / "base", {name: path / name for name in many.logits}, common


def of_responses(path):
    documents = Documents(np.random.default_rng(18))
    models = {"base": ("base", 5), "near": ("other", 7), "less": ("other", 3)}
    files = {
        name: clients.save_lines(path / f"{name}.jsonl", *documents.responses(model, k))
        for name, (model, k) in models.items()
    }
    return files.pop("base"), files, set()


def of_samples(path):
    values = {"base": [1, 1, 0, 1], "a": [1, 0, 0, 1], "b": [1, 1, 1, 1]}
    files = {name: clients.save_lines(path / f"{name}.jsonl", *of_values(value)) for name, value in values.items()}
    return files.pop("base"), files, {"cluster", "margin"}


def compared(make, base, others):
    """Compare the files of one of these functions, as the command does."""
    return (compare_samples if make is of_samples else compare_files)(base, others)


EACH = pytest.mark.parametrize("make", [of_scores, of_responses, of_samples])


@EACH
@pytest.mark.parametrize("several", [True, False])
def test_json_has_one_schema_for_one_candidate_and_for_many(make, several, tmp_path, command):
    base, others, common = make(tmp_path)
    others = others if several else dict([*others.items()][:1])
    result = compared(make, base, others)
    status, out, err = command("compare", base, *(f"{name}={path}" for name, path in others.items()), "--format=json")
    assert (status, err) == (0, "")
    figures = json.loads(out)
    assert figures == json.loads(json.dumps(result.to_dict()))
    assert figures.keys() == common | {"base", "tiers", "candidates"}
    assert figures["base"] == str(base)
    assert {one["name"] for one in figures["candidates"]} == set(others)
    for one in figures["candidates"]:
        assert one["file"] == str(others[one["name"]])
        assert not one.keys() & (common | {"base"})
        assert one | figures == result[one["name"]].to_dict() | {key: figures[key] for key in ("tiers", "candidates")}


@EACH
def test_each_candidate_is_as_alone(make, tmp_path):
    base, others, _ = make(tmp_path)
    result = compared(make, base, others)
    assert list(result) == list(others)
    for name, path in others.items():
        assert result[name] == compared(make, base, {name: path})[name]
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    assert type(again) is Comparisons
    assert again == result
    assert again.to_dict() == result.to_dict()
    changed = Comparisons(result | {name: result[next(iter(others))]})
    assert changed != result


@EACH
def test_a_candidate_may_be_named_base(make, tmp_path):
    base, others, _ = make(tmp_path)
    (path, *_) = others.values()
    (result,) = compared(make, base, {"base": path}).values()
    (named,) = compared(make, base, {"q": path}).values()
    assert result.to_dict() == named.to_dict() | {"name": "base"}


@EACH
def test_a_table_and_columns_name_each_candidate(make, tmp_path, command):
    base, others, _ = make(tmp_path)
    result = compared(make, base, others)
    lines = result.summary().splitlines()
    assert lines[0].startswith(f"{len(others)} models vs {base}")
    assert command("compare", base, *(f"{name}={path}" for name, path in others.items()))[1] == result.summary() + "\n"
    for name in others:
        assert any(line.split()[:1] == [name] for line in lines)
    assert f"<b>{len(others)} models vs" in result._repr_html_()
    columns = result.columns()
    assert sorted(columns["name"]) == sorted(others)
    figure = "other" if make is of_samples else "perplexity"
    for name, value in zip(columns["name"], columns[figure], strict=True):
        one = result[name]
        assert value == (one.metrics[0].other if make is of_samples else one.perplexity)


@pytest.mark.parametrize("make", [of_scores, of_responses, of_samples])
def test_detect_option(make, tmp_path, command):
    base, others, _ = make(tmp_path)
    argv = ["compare", base, *(f"{name}={path}" for name, path in others.items())]
    status, out, err = command(*argv, "--detect", "0.02")
    assert (status, err) == (0, "")
    assert "Detectable with a probability of 80 %, by a test at 5 %, and texts or questions needed for 0.02" in out
    assert "Tiers, by Holm's correction at 5 %" in out
    result = json.loads(command(*argv, "--json", "--detect", "0.02")[1])
    assert result["detect"]["difference"] == 0.02
    assert {row["name"] for row in result["detect"]["needed"]} == {*others}
    assert {name for row in result["tiers"] for tier in row["tiers"] for name in tier} == {*others}
    assert "needed" in command(*argv, "--format", "csv", "--detect", "0.02")[1].splitlines()[0]
    assert command(*argv, "--detect", "2")[0] == 2


def test_perplexities_of_all_and_of_the_base_are_shown(tmp_path):
    base, others, _ = of_scores(tmp_path)
    result = compare_files(base, others)
    rows = {line.split()[0]: line.split()[1] for line in result.summary().splitlines()[3:7]}
    assert list(rows) == ["base", "q8", "q4", "q2"]
    assert rows == {"base": f"{result['q8'].base_perplexity:.6g}"} | {
        name: f"{one.perplexity:.6g}" for name, one in result.items()
    }


def test_no_candidates():
    result = ComparisonMeter().results()
    assert result == {}
    assert result.to_dict() == {"candidates": []}
    assert result.summary() == "0 models"
    assert list(result.columns()) == []


@pytest.mark.parametrize("names", [["q4"], ["q4", "q8"]])
def test_what_needs_targets_is_not_shown_without_them(names, tmp_path, command):
    many = Many(tmp_path)
    np.save(tmp_path / "base.npy", many.base)
    for name in names:
        np.save(tmp_path / f"{name}.npy", many.logits[name])
    argv = "compare", tmp_path / "base.npy", *(f"{name}={tmp_path / name}.npy" for name in names)
    status, out, err = command(*argv, "--plot", tmp_path / "kl.svg", "--per-token", tmp_path / "t.csv")
    assert (status, err) == (0, "")
    assert "without targets" in out.splitlines()[0]
    assert not any(word in out for word in ("PPL", "Δp", "nan"))
    expected = {name: tokenloss.compare(many.base, many.logits[name], None) for name in names}
    assert all(f"{one.mean_kl:.6f}" in out for one in expected.values())
    figures = json.loads(command(*argv, "--format=json")[1])
    assert not figures["has_targets"]
    assert figures["base_perplexity"] is None
    table = read_table(tmp_path / "t.csv")
    assert set(table["target"]) == {-1}
    assert np.isnan([table["nll"], table["base_nll"], table["delta_p"]]).all()
    for name, one in expected.items():
        np.testing.assert_array_equal(table["kl"][np.array(table["name"]) == name], one.kl)


def test_page_of_arrays_without_targets(tmp_path):
    many = Many(tmp_path)
    result = tokenloss.compare(many.base, many.logits["q4"], None)
    write_comparison_page(tmp_path / "page.html", {"q4": result}, np.zeros(40, int))
    page = Reader((tmp_path / "page.html").read_text("utf-8"))
    text = page.text("dt") + page.text("dd")
    assert f"{result.mean_kl:.4g}" in text
    assert not any(word in text for word in ("nan", "Δp", "perplexity"))


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("make", [of_scores, of_responses])
def test_a_row_for_each_candidate_and_sequence(make, suffix, tmp_path, command):
    base, others, _ = make(tmp_path)
    path = tmp_path / f"sequences{suffix}"
    argv = "compare", base, *(f"{name}={file}" for name, file in others.items())
    assert command(*argv, "--per-sequence", path)[::2] == (0, "")
    result, table = compare_files(base, others), read_table(path)
    n = len(next(iter(result.values())).sequences["sequence"])
    assert table.pop("name") == [name for name in others for _ in range(n)]
    if make is of_scores:  # two shards, whose numbers are their own
        np.testing.assert_array_equal(table.pop("file"), np.tile([0, 0, 1, 1, 1], len(others)))
        np.testing.assert_array_equal(table.pop("sequence"), np.tile([0, 1, 0, 1, 2], len(others)))
    else:
        assert set(table.pop("file")) == {0}
    for name, column in table.items():
        expected = np.concatenate([one.sequences[name] for one in result.values()])
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_names_that_no_encoding_has(suffix, tmp_path):
    """As of a file whose name is not of UTF-8."""
    base, others, _ = of_scores(tmp_path)
    paths = tmp_path / f"tokens{suffix}", tmp_path / f"sequences{suffix}"
    outputs = [sinks.TokenTable(paths[0]), sinks.SequenceTable(paths[1])]
    compare_files(base, {"q\udcff": others["q4"]}, sinks=outputs)
    for path in paths:
        assert set(read_table(path)["name"]) == {"q\N{REPLACEMENT CHARACTER}"}


def test_no_rows_where_there_are_no_sequences(tmp_path, command):
    np.savez(tmp_path / "base.npz", logits=4 * np.eye(3), targets=np.arange(3))
    path = tmp_path / "sequences.csv"
    np.save(tmp_path / "q.npy", 3 * np.eye(3))
    assert command("compare", tmp_path / "base.npz", tmp_path / "q.npy", "--per-sequence", path)[::2] == (0, "")
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("several", [True, False])
def test_page_and_plot_of_responses(several, tmp_path, command):
    base, others, _ = of_responses(tmp_path)
    others = others if several else {"near": others["near"]}
    argv = "compare", base, *(f"{name}={file}" for name, file in others.items())
    assert command(*argv, "--html", tmp_path / "page.html", "--plot", tmp_path / "kl.svg")[::2] == (0, "")
    result, page = compare_files(base, others), Reader((tmp_path / "page.html").read_text("utf-8"))
    assert [one["name"] for one in page.data["models"]] == (["less", "near"] if several else ["near"])
    near = page.data["models"][-1]
    bound, kept = result["near"].kl_bound, result["near"].kept
    np.testing.assert_allclose(np.array(near["kl"], float)[kept], bound[kept], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(np.array(near["nll"], float)[kept], result["near"].nll[kept], rtol=1e-5)
    assert page.paragraphs == 4
    for side, path, k in (page.data["base"], base, 5), (near, others["near"], 7):
        rows = [
            ([*row, *[None] * 5][:5], [*chances, *[np.nan] * 5][:5])
            for response in open_responses(path)
            for row, chances in zip(response.top_tokens, np.exp(response.top_logprobs), strict=True)
        ]
        assert side["k"] == min(k, 5)
        names = [None if number < 0 else page.data["class_text"][number] for number in side["top"]]
        assert names == [name for listed, _ in rows for name in listed]
        chances = 100 * np.array([listed for _, listed in rows]).reshape(-1)
        np.testing.assert_allclose(np.array(side["chance"], float), chances, rtol=1e-2)
    assert "mean lower bound on the KL divergence" in page.texts["dt"]
    assert near["quantity"] == "lower bound on the KL divergence"
    assert result["near"].parity in [text.strip() for text in page.texts["dd"]]
    assert "lower bound" in (tmp_path / "kl.svg").read_text("utf-8")


def test_page_of_responses_to_other_requests(tmp_path, command):
    base, others, _ = of_responses(tmp_path)
    lines = others["less"].read_text().splitlines(keepends=True)
    lines[1] = '{"error": {"message": "too long", "code": 400}}\n'
    others["less"].write_text("".join(lines))
    argv = "compare", base, *(f"{name}={file}" for name, file in others.items()), "--skip-failed"
    status, out, err = command(*argv, "--html", tmp_path / "page.html")
    assert (status, out) == (2, "")
    assert "other tokens in less" in err
    assert command(*argv)[0] == 0


# -- the difference of two candidates ----------------------------------------------------------------------------------


def paired(many, figure, a, b):
    """The mean difference of two candidates and its error, of the sums of each sequence, in plain sums."""
    sums = {}
    for number, kept, x, y in zip(
        many.sequences.tolist(), a.kept.tolist(), vars(a)[figure].tolist(), vars(b)[figure].tolist(), strict=True
    ):
        if kept:
            sums.setdefault(number, []).append(float(y) - float(x))
    n = sum(map(len, sums.values()))
    mean = math.fsum(map(math.fsum, sums.values())) / n
    squares = math.fsum((math.fsum(one) - mean * len(one)) ** 2 for one in sums.values())
    return mean, math.sqrt(len(sums) / (len(sums) - 1) * squares) / n


@pytest.mark.parametrize("by_files", [True, False])
def test_differences_of_two_candidates_are_paired_and_clustered(by_files, tmp_path):
    many = Many(tmp_path)
    if by_files:
        result = compare_files(tmp_path / "base", {name: tmp_path / name for name in many.logits})
    else:
        meter = ComparisonMeter()
        for part in (slice(25), slice(25, None)):
            logits = {name: array[part] for name, array in many.logits.items()}
            meter.update(many.base[part], logits, many.targets[part], segment_ids=many.sequences[part])
        result = meter.results()
    for a, b in (("q8", "q4"), ("q4", "q2"), ("q2", "q8")):
        one, other, table = many.comparison(a), many.comparison(b), result.difference(a, b)
        assert list(table) == ["figure", "a", "b", "difference", "stderr", "low", "high", "detectable"]
        assert table["figure"].tolist() == ["kl", "loss", "same_top"]
        for i, name in enumerate(("kl", "nll", "is_same_top")):
            mean, stderr = paired(many, name, one, other)
            assert table["difference"][i] == pytest.approx(mean, rel=1e-12, abs=1e-15)
            assert table["stderr"][i] == pytest.approx(stderr, rel=1e-12)
            reach = one.interval_factor * stderr
            assert table["low"][i] == pytest.approx(mean - reach, rel=1e-12)
            assert table["high"][i] == pytest.approx(mean + reach, rel=1e-12)
        for key, of in (("a", one), ("b", other)):
            assert table[key].tolist() == [of.mean_kl, pytest.approx(math.log(of.perplexity), rel=1e-14), of.same_top]
        ratio = math.log(other.perplexity / one.perplexity)
        assert table["difference"][1] == pytest.approx(ratio, rel=1e-12)
        assert lists(result.difference(b, a)) == {key: pytest.approx(value) for key, value in reverse(table).items()}


def lists(table):
    return {name: column.tolist() for name, column in table.items()}


def reverse(table):
    """The table of the same two candidates, the other way round."""
    turned = {"a": table["b"], "b": table["a"], "difference": -table["difference"]}
    turned |= {"low": -table["high"], "high": -table["low"]}
    return lists({name: turned.get(name, column) for name, column in table.items()})


def test_a_difference_is_that_of_a_comparison_of_both(tmp_path):
    """The difference of losses, and its error, are those of the two models compared without their base."""
    many = Many(tmp_path)
    result = compare_files(tmp_path / "base", {name: tmp_path / name for name in many.logits})
    direct = tokenloss.compare(many.logits["q8"], many.logits["q4"], many.targets, segment_ids=many.sequences)
    table = result.difference("q8", "q4")
    assert table["difference"][1] == direct.log_perplexity_ratio
    assert table["stderr"][1] == direct.log_perplexity_ratio.stderr


def test_differences_without_sequences_or_targets():
    base, noise = np.random.default_rng(5).normal(size=(2, 30, 7))
    meter = ComparisonMeter()
    meter.update(base, {"a": base + 0.1 * noise, "b": base + 0.3 * noise}, None)
    result = meter.results()
    table, change = result.difference("a", "b"), result["b"].kl - result["a"].kl
    assert table["difference"][0] == pytest.approx(change.mean(), rel=1e-13)
    assert table["stderr"][0] == pytest.approx(change.std(ddof=1) / math.sqrt(30), rel=1e-12)
    assert np.isnan([table[name][1] for name in ("a", "b", "difference", "stderr", "low", "high")]).all()


@EACH
def test_what_has_no_difference_is_refused(make, tmp_path):
    base, others, _ = make(tmp_path)
    actual = compared(make, base, others)
    a, b, *_ = others
    with pytest.raises(KeyError, match="nobody"):
        actual.difference(a, "nobody")
    if make is not of_scores:
        with pytest.raises(TypeError, match=r"a candidate is '\w+Comparison'; it must be a Comparison of scores"):
            actual.difference(a, b)
        return
    many = ComparisonMeter()
    many.update(np.zeros((2, 3)), np.eye(3)[:2], [0, 1])
    mixed = Comparisons(actual | {"elsewhere": many.result()})
    with pytest.raises(ValueError, match="difference is for candidates that are compared at the same tokens"):
        mixed.difference(a, "elsewhere")
    same = mixed.difference(a, a)
    assert not same["difference"].any()
    assert not same["stderr"].any()


def test_differences_of_candidates_of_two_bases_without_targets_are_refused(rng):
    """Losses of the base, which are unknown, do not show that there are two."""
    meters = {name: ComparisonMeter() for name in "ab"}
    for meter in meters.values():
        base = rng.normal(size=(30, 7))
        meter.update(base, 0.9 * base, None)
    actual = Comparisons({name: meter.result() for name, meter in meters.items()})
    with pytest.raises(ValueError, match="difference is for candidates that are compared at the same tokens"):
        actual.difference("a", "b")


# -- models that are identical -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scores", "responses", "samples", "log-probabilities"])
def test_a_candidate_that_is_the_base_is_reported(kind, tmp_path, command, rng):
    """A CI that compares a file with itself passed for ever, with zeros and no word."""
    base, copy = tmp_path / "base.npz", tmp_path / "copy.npz"
    if kind == "scores":
        np.savez(base, logits=rng.normal(size=(20, 5)), targets=np.arange(20) % 5)
    elif kind == "log-probabilities":
        np.savez(base, logprobs=-rng.random(20))
    else:
        base, copy = base.with_suffix(".jsonl"), copy.with_suffix(".jsonl")
        clients.save_lines(base, *(Documents(rng).responses("base", 5) if kind == "responses" else of_values([1, 0.5])))
    copy.write_bytes(base.read_bytes())
    link = tmp_path / f"link{base.suffix}"
    link.hardlink_to(base)
    for path, reason in (base, "the same file"), (link, "the same file"), (copy, "the same values"):
        status, out, err = command("compare", base, f"Q={path}")
        assert (status, err) == (0, f"tokenloss: warning: Q: identical to base: {reason}\n")
        assert f"Q: identical to base: {reason}\n" in out
        with pytest.warns(UserWarning, match=f"^Q: identical to base: {reason}$"):
            (compare_samples if kind == "samples" else compare_files)(base, {"Q": path})


@pytest.mark.parametrize(("name", "gate"), [("logits", "--max-kl"), ("logprobs", "--max-k3")])
def test_no_gate_holds_where_the_base_is_compared_with_itself(name, gate, tmp_path, command, rng):
    """Else a CI that is given one file twice passes forever; a copy has the right to pass."""
    base, copy = tmp_path / "base.npz", tmp_path / "copy.npz"
    parts = {"targets": np.arange(20) % 5} if name == "logits" else {}
    np.savez(base, **{name: -rng.random((20, 5)) if parts else -rng.random(20)}, **parts)
    copy.write_bytes(base.read_bytes())
    status, out, _ = command("compare", base, base, gate, 1)
    assert (status, "the base is compared with itself" in out) == (4, True)
    assert command("compare", base, copy, gate, 1)[0] == 0


@pytest.mark.parametrize("values", [[1, 1, 0, 1], [0.5, 1, 0, 1]])
def test_samples_of_0_and_1_may_agree_by_chance(values, tmp_path, command):
    base, other = (clients.save_lines(tmp_path / name, *of_values(values)) for name in ("a.jsonl", "b.jsonl"))
    err = command("compare", base, f"B={other}")[2]
    assert err == ("" if 0.5 not in values else "tokenloss: warning: B: identical to base: the same values\n")


def test_candidates_that_are_identical_are_reported_or_refused(tmp_path, command, rng):
    base = rng.normal(size=(20, 5))
    np.savez(tmp_path / "base.npz", logits=base, targets=np.arange(20) % 5)
    for name, factor in ("q8", 0.9), ("q4", 0.5), ("copy", 0.9):
        np.save(tmp_path / f"{name}.npy", factor * base)
    argv = "compare", tmp_path / "base.npz", *(f"{name}={tmp_path / name}.npy" for name in ("q8", "q4", "copy"))
    status, out, err = command(*argv)
    assert (status, err) == (0, "tokenloss: warning: copy: identical to q8: the same values\n")
    assert "copy: identical to q8: the same values\n" in out
    link = tmp_path / "link.npy"
    link.symlink_to(tmp_path / "q8.npy")
    result = command(*argv[:4], f"other={link}", "--per-token", tmp_path / "t.csv")
    assert_refused(result, f"{link}: is given twice, as {tmp_path / 'q8.npy'}, too; it must be given once")
    assert not (tmp_path / "t.csv").exists()


def test_drafts_that_are_identical_are_reported(tmp_path, command, rng):
    """Greedy ones may agree by chance."""
    target, draft = rng.normal(size=(2, 4, 30, 5))
    paths = {name: tmp_path / f"{name}.npy" for name in ("target", "draft", "copy", "greedy")}
    for path, logits in zip(paths.values(), (target, draft, draft, 0.9 * target), strict=True):
        np.save(path, logits)
    argv = "compare", paths["target"], *(f"{name}={paths[name]}" for name in ("draft", "copy", "greedy")), "--draft"
    assert command(*argv)[2] == "tokenloss: warning: copy: identical to draft: the same values\n"
    assert command(*argv, "--temperature", 0)[2] == ""
    assert "T: identical to base: the same file" in command(*argv[:2], f"T={paths['target']}", "--draft")[2]


def test_gates_of_a_model_that_is_identical_to_its_base_need_no_interval(rng):
    """Two texts cannot show that 99 % of the tokens agree, but equal logits can."""
    base = rng.normal(size=(2, 9, 5)).astype(np.float32)
    targets = np.zeros((2, 9), int)
    options = {"max_kl": 0, "max_kl_quantile": {0.99: 0}, "min_same_top": 1, "max_perplexity_ratio": 1}
    for one in tokenloss.compare(base, base, targets).check(**options).gates:
        assert (one.verdict, one.note) == ("holds", "identical to the base at every token")
        assert np.isnan(one.interval).all()
    (ratio,) = tokenloss.compare(base, base, targets).check(max_perplexity_ratio=0.99).gates
    assert ratio.verdict == "fails"
    near = tokenloss.compare(base, np.nextafter(base, np.float32(9)), targets)
    assert near.check(min_same_top=0.99).verdict == "cannot tell"
