"""Metrics of samples of lm-evaluation-harness: how they are read, what is refused; the command compare of samples."""

import gzip
import json
import math
import re

import clients
import pytest
from commands import assert_refused
from eval_harness import compare_pair, lines_of, named, of_values, sample

from tokenloss.formats.samples import is_samples

pytestmark = pytest.mark.filterwarnings("ignore:.*identical to base")  # small files of equal values

# -- metrics -----------------------------------------------------------------------------------------------------------


def test_pairs_of_gold_and_prediction_are_no_weighted_values(compared):
    """As f1 and mcc log them: [1, 0] is no value of 1 with a weight of 0."""
    files = [sample(i, acc=1, f1=[1, 0], mcc=[0, 1], likelihood=[0, [-1.0]], bypass=999) for i in range(3)]
    comparison = compared(files, files)
    assert [metric.name for metric in comparison.metrics] == ["acc"]
    assert set(comparison.left_out) == {"f1", "mcc", "likelihood", "bypass"}


def test_metrics_of_one_file_are_left_out(compared):
    comparison = compared(of_values([1, 0]), [line | {"f": 1.0} for line in of_values([1, 0])])
    assert comparison.left_out == {"f": "it is only in the file of the other model"}


def test_a_metric_beyond_1_of_one_model_is_no_fraction(compared):
    """As a count that the other model happens to keep to 0 and 1."""
    base = [sample(i, acc=1.0, hits=float(i % 2)) for i in range(4)]
    other = [line | {"hits": 2.0} for line in base]
    for pair in (base, other), (other, base):
        metric = named(compared(*pair, margin=0.1), "hits")
        assert metric.equivalence_p is metric.right_to_wrong is metric.discordance_bound is None


def test_metrics_of_some_samples(compared):
    base, other = of_values([1, 0, 1]), of_values([0, 1, 1])
    del base[0]["acc"], other[0]["acc"]
    assert named(compared(base, other), "acc").count == 2
    with pytest.raises(ValueError, match=r"other.jsonl: line 1: acc is of weight 1; it must be missing"):
        compared(base, of_values([0, 1, 1]))


@pytest.mark.parametrize("values", [("True", "False"), (True, False), ("1.0", "0")])
def test_numbers_and_booleans_as_text(values, compared):
    acc = named(compared(of_values(values), of_values(values[::-1])), "acc")
    assert (acc.base_values.tolist(), acc.right_to_wrong) == ([1, 0], 1)


def test_long_text_that_is_nearly_a_number_takes_no_time(compared):
    files = of_values(["1" * 200_000 + "x", "1"])
    assert "acc" in compared(files[:1], files[:1]).left_out
    with pytest.raises(ValueError, match="line 1: acc is not a number"):
        compared(files, files)


@pytest.mark.parametrize(
    "text", ["[7.0e-01 2.0e-01\n 1.0e-01]", "[0.7 0.2 0.1]", [0.7, 0.2, 0.1], "[np.float64(0.7)", "[0.7 ... 0.1]"]
)
def test_brier_score_of_the_text_of_numpy(text, compared):
    files = of_values([[1, text], ["2", text]], "brier_score")
    if text == "[np.float64(0.7)":
        with pytest.raises(ValueError, match=r"line 1: brier_score is .*; it must be the number of a choice and"):
            compared(files, files)
    elif "..." in text:
        assert "brier_score" in compared(files, files).left_out
    else:
        result = named(compared(files, files), "brier_score")
        expected = [0.7**2 + 0.8**2 + 0.1**2, 0.7**2 + 0.2**2 + 0.9**2]
        assert result.base_values == pytest.approx(expected, rel=1e-14)
        assert result.discordance_bound is None  # its range is not from 0 to 1


def test_brier_scores_are_no_fractions(compared):
    """They may be as high as 2, even if these are below 1."""
    files = of_values([[0, "[0.7 0.2 0.1]"], [1, "[0.2 0.7 0.1]"]], "brier_score")
    result = named(compared(files, files), "brier_score")
    assert (result.base, result.discordance_bound) == (pytest.approx(0.14), None)


WRONG = {
    "a metric that is nan": ({"acc": math.nan}, "acc is nan; it must be finite"),
    "an infinite metric": ({"acc": "inf"}, "acc is inf"),
    "a perplexity above 0": ({"perplexity": 3.5}, "perplexity is 3.5; it must be a log-likelihood"),
    "a perplexity of text": ({"perplexity": "many"}, "perplexity is 'many'"),
    "a pair of one": ({"bits_per_byte": [-3.0]}, r"bits_per_byte is \[-3.0\]"),
    "a pair of nan": ({"bits_per_byte": ["nan", 3]}, r"bits_per_byte\[0\] is 'nan'"),
    "negative words": ({"word_perplexity": [-3.0, -3]}, r"word_perplexity\[1\] is -3"),
    "probabilities above 1": ({"brier_score": [0, "[0.9 0.9]"]}, "brier_score is .* add up to 1"),
    "a choice beyond": ({"brier_score": [2, "[0.9 0.1]"]}, "brier_score is "),
    "a metric that is missing": (
        {"metrics": ["acc", "f"]},
        "has no f; it must have it, because it is listed in metrics",
    ),
    "names that are none": ({"metrics": [1]}, r"metrics is \[1\]; it must be a list of names"),
    "an id that is a list": ({"doc_id": [1]}, r"doc_id is \[1\]"),
    "an id that is a boolean": ({"doc_id": True}, "doc_id is True"),
    "a filter that is a number": ({"filter": 3}, "filter is 3"),
    "a hash that is a number": ({"doc_hash": 3}, "doc_hash is 3"),
    "no sample": ("{}", "is not a sample of lm-evaluation-harness; it must have doc_id and filtered_resps"),
    "no JSON": ("{", ""),
}


@pytest.mark.parametrize(("wrong", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("is_base", [True, False])
def test_wrong_samples(wrong, words, is_base, compared):
    good = of_values([1, 1])
    bad = [good[0], wrong if isinstance(wrong, str) else good[1] | wrong]
    name = "base" if is_base else "other"
    with pytest.raises(ValueError, match=rf"{name}\.jsonl: line 2: .*{words}"):
        compared(*((bad, good) if is_base else (good, bad)))


@pytest.mark.parametrize("value", ["nan", "0.5", "x", "inf"])
def test_wrong_log_likelihoods_in_responses(value, compared):
    files = lines_of("mc"), lines_of("mc", "noise")
    files[1][2]["filtered_resps"][1][0] = value
    with pytest.raises(ValueError, match=rf"line 3: filtered_resps\[1\]\[0\] is '{value}'; it must be a log-l"):
        compared(*files)


def test_a_metric_that_is_a_number_on_some_lines(compared):
    with pytest.raises(ValueError, match=r"other.jsonl: line 2: acc is not a number; it must be one, as on o"):
        compared(of_values([1, 1]), of_values([1, None]))


def test_accuracies_that_do_not_follow_from_responses(compared):
    """As of tasks with a code of their own: what the file holds counts, and nothing is computed from responses."""
    files = lines_of("mc"), lines_of("mc", "noise")
    for line in files[0][4:7]:
        line["acc"] = 1 - line["acc"]
        del line["acc_norm"]
        line["metrics"].remove("acc_norm")
    for line in files[0][:4] + files[0][7:] + files[1]:
        del line["acc_norm"]
        line["metrics"].remove("acc_norm")
    comparison = compared(*files)
    assert [metric.name for metric in comparison.metrics] == ["acc", "acc_bytes", "brier_score"]
    assert set(comparison.left_out) == {"acc_norm", "target_loglikelihood"}
    (note,) = comparison.notes
    assert re.match(r"acc on line 5 of .*base.jsonl is not what the responses there give", note)


def multiple_choice(texts, target, scores, doc=None, contexts=None, **metrics):
    """A sample of multiple choice."""
    contexts = contexts or ["Q:"] * len(texts)
    requests = {f"gen_args_{i}": {"arg_0": contexts[i], "arg_1": text} for i, text in enumerate(texts)}
    answers = [[str(float(score)), "False"] for score in scores]
    return sample(doc=doc, target=target, arguments=requests, filtered_resps=answers) | metrics


def test_a_target_that_is_a_number_and_a_text(compared):
    """The choice 1 is number 0: which one is right is not certain, so that nothing is computed from it."""
    line = multiple_choice([" 1", " 2", " 0"], "1", [-1, -2, -3], acc=0.0)
    comparison = compared([line], [line])
    assert [metric.name for metric in comparison.metrics] == ["acc"]
    lines = [line | {"doc_id": 1, "target": "0", "acc": 1.0}, line]  # the choice 0 is number 2, too
    lines[0]["arguments"] = line["arguments"] | {"gen_args_2": {"arg_0": "Q:", "arg_1": " 3"}}
    comparison = compared(lines, lines)
    assert [metric.name for metric in comparison.metrics] == ["acc"]
    reason = comparison.left_out["target_loglikelihood"]
    assert re.fullmatch(r"line 2 of .*base.jsonl does not show which answer is right", reason)
    line = multiple_choice([" 7", " 8"], "8", [-1, -2], acc=0.0)
    assert named(compared([line], [line]), "target_loglikelihood").base == -2


def test_acc_bytes_counts_bytes(compared):
    right = {"acc": 0.0, "acc_norm": 0.0, "acc_bytes": 1.0}  # -4 / 8 bytes, but -4 / 4 characters
    line = multiple_choice([" \u00e9\u00e9\u00e9\u00e9", " aaaa"], "0", [-4, -3.5], **right)
    assert compared([line], [line]).notes == []


def test_acc_norm_is_not_computed_where_lengths_are_others(compared):
    """`acc` shows which answer is right, but `acc_bytes` of the file that the lengths are not those of the harness."""
    line = multiple_choice([" a", " bcde"], "0", [-2, -4.5], acc=1.0, acc_bytes=1.0)
    comparison = compared([line], [line])
    assert [metric.name for metric in comparison.metrics] == ["acc", "acc_bytes", "target_loglikelihood"]
    assert re.fullmatch("acc_bytes in .* does not follow from the responses", comparison.left_out["acc_norm"])


def test_acc_norm_is_not_computed_where_choices_begin_with_two_blanks(compared):
    """One of them is perhaps the harness's, so nobody knows the lengths."""
    line = multiple_choice(["  a", "  bcde"], "0", [-2, -4.5], acc=1.0)
    assert [metric.name for metric in compared([line], [line]).metrics] == ["acc", "target_loglikelihood"]


def test_choices_without_a_context_are_sentences_to_choose_from(compared):
    """As in BLiMP; requests without a context are those of mutual information only beside others that have one."""
    line = multiple_choice(["a cat sits", "a cat sit"], "0", [-1, -2], contexts=["", ""], acc=1.0)
    assert named(compared([line], [line]), "target_loglikelihood").base == -1


@pytest.mark.parametrize("without", [0, 1])
def test_targets_that_only_one_file_has_are_not_held_against_the_other(without, compared):
    files = [[line | {"target": "x"} for line in of_values([1, 0])] for _ in range(2)]
    for line in files[without]:
        del line["target"]
    assert compared(*files).count == 2


def test_acc_shows_what_is_right_where_lengths_are_others(compared):
    """As with another delimiter: `acc_norm` of the file is not what texts here give, but `acc` is."""
    line = multiple_choice([" a", " bcde"], "0", [-2, -4.5], acc=1.0, acc_norm=1.0)
    comparison = compared([line], [line])
    assert named(comparison, "acc_norm").base == 1
    assert named(comparison, "target_loglikelihood").base == -2
    assert len(comparison.notes) == 2


def test_other_contexts_with_the_same_continuation(compared):
    """As of winogrande, whose target is the continuation."""
    line = multiple_choice([" 1 was", " 1 was"], "1 was", [-1, -2], contexts=["A", "B"], acc=1.0)
    assert [metric.name for metric in compared([line], [line]).metrics] == ["acc"]


@pytest.mark.parametrize(
    ("texts", "doc", "acc_norm"),
    [
        ([" a", " bcde"], None, 0.0),  # -2 / 1 and -4.5 / 4
        (["a", "bcde"], None, 0.0),
        ([" a", " bcdefghi"], {"options": [" a", " bcdefghi"]}, 0.0),
        (["\na", "\nbcde"], None, None),
        ([" a", "bcde"], None, None),
    ],
)
def test_acc_norm_counts_the_characters_of_the_choice(texts, doc, acc_norm, compared):
    line = multiple_choice(texts, "0", [-2, -4.5], doc, acc=1.0)
    comparison = compared([line], [line])
    result = [metric.base for metric in comparison.metrics if metric.name == "acc_norm"]
    assert result == ([] if acc_norm is None else [acc_norm])
    assert named(comparison, "target_loglikelihood").base == -2


def test_acc_norm_counts_the_blank_of_a_choice_that_has_one(compared):
    texts, scores = [" a", " bcd"], [-1.0, -2.5]  # -1 / 2 > -2.5 / 4 > ...; without the blanks -2.5 / 3 > -1
    with_blank = multiple_choice(texts, "0", scores, {"options": texts}, acc=1.0)
    without = multiple_choice(texts, "0", scores, {"options": ["a", "bcd"]}, acc=1.0)
    assert named(compared([with_blank], [with_blank]), "acc_norm").base == 1
    assert named(compared([without], [without]), "acc_norm").base == 0


def test_responses_of_text_are_no_log_likelihoods(compared):
    lines = [sample(i, filtered_resps=["42", "True"], exact_match=1.0, arguments={}) for i in range(3)]
    comparison = compared(lines, lines)
    assert [metric.name for metric in comparison.metrics] == ["exact_match"]
    assert comparison.left_out == {}


def test_infinite_log_likelihoods(compared):
    files = of_values([-1.0, "-inf"], "perplexity"), of_values([-1.0, -2.0], "perplexity")
    metric = named(compared(*files), "perplexity")
    assert (metric.base, metric.other) == (math.inf, pytest.approx(math.exp(1.5)))
    assert math.isnan(metric.difference.stderr)
    assert metric.ratio == 0


# -- files and the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.json", "samples.jsonl.gz"])
def test_files_of_samples(name, tmp_path):
    path = tmp_path / name
    lines = of_values([1, 0])
    text = json.dumps(lines) if name == "samples.json" else "\n".join(map(json.dumps, lines))
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert is_samples(str(path))
    assert compare_pair(path, str(path)).count == 2


def test_responses_are_no_samples(tmp_path):
    for name in ("vllm/completion_00.json", "llama_server/completion_00.json"):
        assert not is_samples(str(clients.save(tmp_path / "x.json", name)))


@pytest.fixture
def files(tmp_path):
    """Real samples of both runs."""
    return clients.save(tmp_path / "a.jsonl", "base/mc.jsonl"), clients.save(tmp_path / "b.jsonl", "noise/mc.jsonl")


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
def test_compare_of_samples_in_json(files, compare_json):
    result = compare_json(*files, "--margin", 0.2, "--cluster", "answer")
    expected = compare_pair(*files, margin=0.2, cluster="answer").to_dict()
    assert result == json.loads(json.dumps(expected | {"name": str(files[1])}))


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
def test_compare_of_samples_prints_tables(files, command):
    status, out, err = command("compare", *files, "--margin", 0.15)
    assert (status, err) == (0, "")
    rows = {tuple(re.split("  +", line.strip())) for line in out.splitlines()}
    assert ("acc_norm", "0.5", "0.45", "-0.05", "0.05", "-0.1547 to +0.05465") in rows
    assert ("acc_norm", "1", "0", "1") in rows
    assert ("acc_norm", "0.03", "yes") in rows
    assert ("acc", "0.03876", "yes", "no sample differs, so at most 13.9 % do (95 % confidence)") in rows
    assert "20 samples, errors clustered by 20 documents" in out
    assert ("flips, with McNemar's exact test",) in rows
    clustered = command("compare", *files, "--cluster", "answer")[1]
    assert "flips, with McNemar's exact test, as if samples were independent\n" in clustered


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
def test_compare_of_one_or_two_samples_prints_no_interval_that_is_not_there(files, tmp_path, command):
    for n, words in (
        (1, "1 sample, errors clustered by 1 document\n"),
        (2, "errors clustered by 2 documents, too few for more than a guess\n"),
    ):
        paths = [tmp_path / "first" / path.name for path in files]
        for path, whole in zip(paths, files, strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(whole.read_text().splitlines(keepends=True)[:n]))
        status, out, err = command("compare", *paths)
        assert (status, err) == (0, "")
        assert words in out
        assert "nan" not in out


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
@pytest.mark.parametrize(
    "argv",
    [
        ("--definitions", "llama.cpp"), ("--classes", 9), ("--divergences", "js"), ("--draft",), ("--noise", "x.npz"),
        ("--shift",), ("--no-shift",), ("--state", "x"),
    ],
    ids=lambda argv: argv[0],
)  # fmt: skip
def test_options_that_do_not_apply_to_samples(argv, files, command):
    option = "--shift" if argv[0] == "--no-shift" else argv[0]
    assert_refused(command("compare", *files, *argv), f"{option} does not apply to samples")


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
@pytest.mark.parametrize(
    ("argv", "content"),
    [
        (("--targets", "x.npy"), "scores"), (("--segment-ids", "x.npy"), "scores"), (("--array", "x"), "scores"),
        (("--base-array", "x"), "scores"), (("--base-kind", "probs"), "scores"), (("--kind", "probs"), "scores"),
        (("--ignore-index", 0), "scores"), (("--part", "prompt"), "responses"), (("--skip-failed",), "responses"),
        (("--mask", "x"), "log-probabilities in files with names"),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)  # fmt: skip
def test_options_about_other_content_than_samples(argv, content, files, command):
    words = f"{argv[0]} is for {content}; {files[0]}, {files[1]} have samples"
    assert_refused(command("compare", *files, *argv), words)


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
@pytest.mark.parametrize("argv", [("--margin", 0.1), ("--cluster", "x")], ids=lambda argv: argv[0])
def test_options_for_samples_alone(argv, models, command):
    refused = command("compare", models.path / "base.npz", models.path / "other.npy", *argv)
    assert_refused(refused, f"{argv[0]} is for samples of lm-evaluation-harness")


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
def test_compare_of_samples_with_something_else(files, tmp_path, command):
    other = clients.save(tmp_path / "c.jsonl", "vllm/completion_00.json")
    for pair in ((files[0], other), (other, files[0])):
        words = (
            f"{other}: contains responses; it must contain samples of lm-evaluation-harness, as the other models' files"
        )
        assert_refused(command("compare", *pair), words)
    damaged = tmp_path / "d.jsonl"
    damaged.write_text("{")
    assert_refused(command("compare", files[0], damaged), f"{damaged}: line 1: ")
    assert_refused(command("compare", damaged, files[0]), f"{damaged}: line 1: ")
    assert_refused(command("compare", tmp_path / "none.jsonl", files[0]), "none.jsonl: cannot be read")
