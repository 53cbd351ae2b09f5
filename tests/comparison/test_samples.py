"""compare_samples: the figures of real samples, errors and tests, and which samples belong together."""

import math
import pickle
from fractions import Fraction

import clients
import numpy as np
import pytest
from eval_harness import TASKS, lines_of, named, of_values, sample
from reference import statistic
from reference_sequences import interval_misses

from tokenloss import compare_files, compare_samples
from tokenloss._statistics.distributions import binomial_tail, student_quantile, student_tail
from tokenloss.formats import open_samples, open_scores

pytestmark = pytest.mark.filterwarnings("ignore:.*identical to base")  # small files of equal values


@pytest.fixture
def real(compared):
    """Make a function that compares the runs of a task."""
    return lambda task, **options: compared(lines_of(task), lines_of(task, "noise"), **options)


def clustered(values, weights, groups):
    """Mean and its error, by the definition."""
    values, weights, groups = (np.asarray(array) for array in (values, weights, groups))
    mean = math.fsum(values) / math.fsum(weights)
    rests = [math.fsum(values[groups == one] - mean * weights[groups == one]) for one in np.unique(groups)]
    n = len(rests)
    return mean, math.sqrt(n / (n - 1) * math.fsum(rest**2 for rest in rests)) / math.fsum(weights)


# -- real samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mc", "mc_mutual_info"])
def test_metrics_of_real_samples_are_those_of_the_harness(task, real):
    reference, comparison = clients.samples_reference(), real(task)
    for side, run in (("base", "base"), ("other", "noise")):
        for name, expected in reference[run][task]["metrics"].items():
            name = "brier_score" if name == "brier" else name
            if name not in reference[run][task]["lm_eval"]:  # nor in the file
                continue
            metric = named(comparison, name)
            assert getattr(metric, side) == pytest.approx(expected["mean"], rel=1e-8)
            assert getattr(metric, side).stderr == pytest.approx(expected["stderr"], rel=1e-7)
            assert not metric.is_derived


@pytest.mark.parametrize(
    ("entry", "task", "name"),
    [
        ("mc", "mc", "acc"),
        ("mc/acc_norm", "mc", "acc_norm"),
        ("mc_mutual_info", "mc_mutual_info", "acc"),
        ("lastword", "lastword", "target_loglikelihood"),
        ("rolling", "rolling", "bits_per_byte"),
    ],
)
def test_paired_differences_of_real_samples(entry, task, name, real):
    expected = clients.samples_reference()["paired_noise_minus_base"][entry]
    metric = named(real(task), name)
    # the harness sums in float32
    assert metric.difference == pytest.approx(expected["mean"], abs=1e-6)
    assert metric.difference.stderr == pytest.approx(expected.get("stderr", expected.get("stderr_clustered")), abs=1e-7)


def test_perplexities_of_real_documents(real):
    reference, comparison = clients.samples_reference(), real("rolling")
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        metric = named(comparison, name)
        for side, run in (("base", "base"), ("other", "noise")):
            assert getattr(metric, side) == pytest.approx(reference[run]["rolling"]["lm_eval"][name], rel=1e-12)
    words = named(comparison, "word_perplexity")
    pairs = [[line["word_perplexity"] for line in lines_of("rolling", run)] for run in ("base", "noise")]
    change = [-(float(other[0]) - float(base[0])) for base, other in zip(*pairs, strict=True)]
    mean, error = clustered(change, [pair[1] for pair in pairs[0]], range(10))
    assert (words.log_ratio, words.log_ratio.stderr) == (pytest.approx(mean, rel=1e-11), pytest.approx(error, rel=1e-9))
    assert words.ratio == pytest.approx(words.other / words.base, rel=1e-12)
    factor = (mean - math.log(words.ratio.interval[0])) / error
    assert math.log(words.ratio.interval[1]) == pytest.approx(mean + factor * error, rel=1e-9)
    low, high = np.log(np.log(words.base.interval) / math.log(words.base))  # of the mean loss, by its logarithm
    assert (-low, high) == (
        pytest.approx(high),
        pytest.approx(factor * words.base.stderr / words.base / math.log(words.base)),
    )
    assert 0.04 < interval_misses(factor, [pair[1] for pair in pairs[0]]) < 0.0505
    assert words.sample_weight.tolist() == [pair[1] for pair in pairs[0]]
    for run, side in (("base", "base"), ("noise", "other")):
        expected = reference[run]["rolling"]
        log_stderr = getattr(words, side).stderr / getattr(words, side)
        assert log_stderr == pytest.approx(expected["log_word_perplexity_stderr_clustered"], rel=1e-6)
        error = getattr(named(comparison, "bits_per_byte"), side).stderr
        assert error == pytest.approx(expected["bits_per_byte_stderr_clustered"], rel=1e-6)


def test_perplexity_is_no_mean_of_log_likelihoods(real):
    expected, metric = clients.samples_reference(), named(real("lastword"), "perplexity")
    assert metric.base == pytest.approx(expected["base"]["lastword"]["lm_eval"]["perplexity"], rel=1e-12)
    assert metric.other == pytest.approx(expected["noise"]["lastword"]["lm_eval"]["perplexity"], rel=1e-12)
    error = expected["base"]["lastword"]["perplexity_stderr_delta_method"]
    assert metric.base.stderr == pytest.approx(error, rel=1e-6)
    change = np.array([-line["perplexity"] for line in lines_of("lastword", "noise")]) * metric.other
    change -= np.array([-line["perplexity"] for line in lines_of("lastword")]) * metric.base
    assert metric.difference == metric.other - metric.base
    assert metric.difference.stderr == pytest.approx(clustered(change, np.ones(20), range(20))[1], rel=1e-9)


def test_log_likelihoods_of_right_answers(real):
    reference, metric = clients.samples_reference(), named(real("mc"), "target_loglikelihood")
    answers = [line["doc"]["answer"] for line in lines_of("mc")]
    for values, run in ((metric.base_values, "base"), (metric.other_values, "noise")):
        lines = lines_of("mc", run)
        assert values.tolist() == [float(line["filtered_resps"][i][0]) for line, i in zip(lines, answers, strict=True)]
        exact = reference[run]["mc"]["samples"]["loglikelihoods"]
        assert values == pytest.approx([row[i] for row, i in zip(exact, answers, strict=True)], abs=1e-4)
    assert metric.is_derived


def test_accuracies_follow_from_responses(real):
    for task in TASKS:
        assert real(task).notes == []


@pytest.mark.parametrize("task", ["mc", "mc_mutual_info"])
@pytest.mark.parametrize("without", ["both", "base"])
def test_acc_norm_is_computed_where_it_is_not_held(task, without, compared):
    files = lines_of(task), lines_of(task, "noise")
    expected = named(compared(*files), "acc_norm")
    for line in files[0] if without == "base" else files[0] + files[1]:
        line["metrics"].remove("acc_norm")
        del line["acc_norm"]
    result = named(compared(*files), "acc_norm")
    assert result.is_derived
    for name in ("base", "other", "difference", "difference_stderr", "right_to_wrong", "wrong_to_right"):
        assert statistic(result, name) == statistic(expected, name)


def test_arguments_sorted_as_text_by_a_tool(compared):
    line = lines_of("mc")[0]
    choices = [f" {i}" for i in range(12)]
    choices[2] = " a long one, which is the likeliest for its length"
    line |= {"arguments": {f"gen_args_{i}": {"arg_0": "Q", "arg_1": text} for i, text in enumerate(choices)}}
    line |= {"filtered_resps": [[str(-1.0 - i), "False"] for i in range(12)], "target": "2", "metrics": ["acc"]}
    line |= {"acc": 0.0, "target_hash": "x"}
    line["arguments"] = dict(sorted(line["arguments"].items()))  # gen_args_10 before gen_args_2
    comparison = compared([line], [line])
    assert named(comparison, "target_loglikelihood").base == -3
    assert named(comparison, "acc_norm").base == 1


def test_early_versions_of_the_harness(compared):
    """They wrote numbers as numbers, lists of arguments, and no hashes, filter and names of metrics."""
    expected = compared(lines_of("mc"), lines_of("mc", "noise"))
    files = lines_of("mc"), lines_of("mc", "noise")
    for line in files[0] + files[1]:
        line["arguments"] = [list(one.values()) for one in line["arguments"].values()]
        line["filtered_resps"] = [[float(value), greedy == "True"] for value, greedy in line["filtered_resps"]]
        line["target"] = int(line["target"])
        for name in ("filter", "metrics", "doc_hash", "target_hash", "prompt_hash"):
            del line[name]
    assert compared(*files).to_dict() == expected.to_dict()
    assert compared(lines_of("mc"), files[1]).to_dict() == expected.to_dict()  # hashes are those that it would have


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 1), (1, 1), (3, 10), (5, 10), (40, 100), (900, 2000), (930, 2001)])
def test_tail_of_the_binomial_is_exact(k, n):
    expected = sum(Fraction(math.comb(n, i), 2**n) for i in range(k + 1))
    assert binomial_tail(k, n) == pytest.approx(float(expected), rel=0 if n <= 2000 else 1e-12)


def test_tail_of_the_binomial_of_a_million():
    stats = pytest.importorskip("scipy.stats")
    for k in (100, 400_000, 498_000, 499_500, 500_000, 10**6 - 1, 10**6):
        assert binomial_tail(k, 10**6) == pytest.approx(stats.binom.cdf(k, 10**6, 0.5), rel=1e-10)


@pytest.mark.parametrize("dof", [1, 2, 9, 19, 500, 10**6])
def test_students_t(dof):
    stats = pytest.importorskip("scipy.stats")
    for t in (-3.0, 0.0, 1e-9, 0.5, 1.7, 4.0, 100.0):
        assert student_tail(t, dof) == pytest.approx(stats.t.sf(t, dof), rel=1e-8)
    assert student_quantile(0.025, dof) == pytest.approx(stats.t.isf(0.025, dof), rel=1e-8)


def test_students_t_of_closed_forms():
    assert student_tail(1.0, 1) == pytest.approx(0.25, rel=1e-14)
    assert student_tail(math.sqrt(2), 2) == pytest.approx(0.5 - math.sqrt(2) / 4, rel=1e-14)
    assert student_tail(math.inf, 3) == 0


def test_flips_and_mcnemar(compared):
    base, other = [1] * 9 + [0] * 3 + [1] * 8, [0] * 9 + [1] * 3 + [1] * 8
    acc = named(compared(of_values(base), of_values(other)), "acc")
    assert (acc.right_to_wrong, acc.wrong_to_right) == (9, 3)
    assert acc.mcnemar_p == 2 * sum(math.comb(12, i) for i in range(4)) / 2**12
    mean, error = clustered(np.subtract(other, base), np.ones(20), range(20))
    assert (acc.difference, acc.difference.stderr) == (pytest.approx(mean, rel=1e-14), pytest.approx(error, rel=1e-14))
    radius = 2.0930240544082634 * error
    assert acc.difference.interval == (pytest.approx(mean - radius), pytest.approx(mean + radius))
    assert acc.doc_ids[acc.base_values < acc.other_values].tolist() == [9, 10, 11]
    # the exact ends of 17 of 20, and of 11 (Clopper and Pearson)
    assert acc.base.interval == pytest.approx((0.6210732, 0.9679291), rel=1e-6)
    assert acc.other.interval == pytest.approx((0.3152781, 0.7694221), rel=1e-6)
    assert {one.unit for one in (acc.base, acc.other, acc.difference)} == {"documents"}


@pytest.mark.parametrize("value", [0.5, 2, -1])
def test_flips_are_of_0_and_1_alone(value, compared):
    metric = named(compared(of_values([0, 1, value]), of_values([1, 1, 0])), "acc")
    assert (metric.right_to_wrong, metric.wrong_to_right, metric.mcnemar_p) == (None, None, None)


def test_margin_by_two_one_sided_tests(compared):
    base, other = [1, 0] * 200, [1, 0] * 190 + [0, 1, 0, 0, 1, 0, 1, 1, 1, 0] * 2
    mean, error = clustered(np.subtract(other, base), np.ones(400), range(400))
    for margin in (0.01, 0.02, 0.05):
        acc = named(compared(of_values(base), of_values(other), margin=margin), "acc")
        expected = max(student_tail((margin + mean) / error, 399), student_tail((margin - mean) / error, 399))
        assert acc.equivalence_p == pytest.approx(expected, rel=1e-12)
        assert acc.is_equivalent == (expected < 0.05)
    assert acc.is_equivalent


def test_margin_against_statsmodels(compared):
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(0)
    base, other = rng.random(50), rng.random(50)
    acc = named(compared(of_values(base), of_values(other), margin=0.1), "acc")
    assert acc.equivalence_p == pytest.approx(weightstats.ttost_paired(other, base, -0.1, 0.1)[0], rel=1e-9)


@pytest.mark.parametrize("n", [1, 20, 400])
def test_margin_where_no_document_differs(n, compared):
    """The error is 0, which does not show that two models are equal."""
    acc = named(compared(of_values([1, 0] * n), of_values([1, 0] * n), margin=0.01), "acc")
    assert (acc.difference, acc.difference.stderr, acc.mcnemar_p) == (0, 0, 1)
    assert acc.discordance_bound == pytest.approx(1 - 0.05 ** (1 / (2 * n)), rel=1e-12)
    assert acc.difference.interval == (-acc.discordance_bound, acc.discordance_bound)
    assert acc.equivalence_p == pytest.approx(0.99 ** (2 * n), rel=1e-12)
    assert acc.is_equivalent == (n == 400) == (acc.discordance_bound < 0.01)


def test_margin_where_every_document_differs_alike(compared):
    acc = named(compared(of_values([1, 1, 1]), of_values([0, 0, 0]), margin=0.5), "acc")
    assert (acc.difference, acc.equivalence_p, acc.is_equivalent) == (-1, 1, False)
    some = named(compared(of_values([0.5] * 3), of_values([0.25] * 3), margin=0.5), "acc")
    assert math.isnan(some.equivalence_p)
    assert some.is_equivalent is None
    by_the_margin = named(compared(of_values([0.5] * 3), of_values([0.25] * 3), margin=0.25), "acc")
    assert (by_the_margin.equivalence_p, by_the_margin.is_equivalent) == (1, False)


@pytest.mark.parametrize("margin", [0, 1, -0.1, math.nan, "0.1"])
def test_wrong_margins(margin, compared):
    with pytest.raises(ValueError, match=r"margin is .*; it must be a number between 0 and 1"):
        compared(of_values([0, 1]), of_values([0, 1]), margin=margin)


def test_types_of_margin_and_cluster(compared):
    files = of_values([0, 1]), of_values([0, 1])
    assert type(compared(*files, margin=np.float32(0.5)).margin) is float
    with pytest.raises(TypeError, match="cluster is 3; it must be a string"):
        compared(*files, cluster=3)


def test_margin_without_a_metric_that_it_fits(real):
    with pytest.raises(ValueError, match="has no metric between 0 and 1"):
        real("rolling", margin=0.1)


def test_a_single_document(compared):
    acc = named(compared(of_values([1]), of_values([0]), margin=0.1), "acc")
    assert (acc.difference, acc.is_equivalent) == (-1, False)
    assert math.isnan(acc.difference.stderr)
    assert all(map(math.isnan, acc.difference.interval))


@pytest.mark.parametrize("field", ["topic", "meta.topic", "a.b"])
def test_cluster(field, compared):
    rng = np.random.default_rng(1)
    topics, base, other = rng.integers(0, 5, 40), rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    docs = [{"topic": int(one), "n": i, "meta": {"topic": f"{one}"}, "a.b": float(one)} for i, one in enumerate(topics)]
    files = [[sample(i, doc=docs[i], acc=int(one)) for i, one in enumerate(values)] for values in (base, other)]
    comparison = compared(*files, cluster=field)
    acc = named(comparison, "acc")
    _, error = clustered(other - base, np.ones(40), topics)
    assert acc.difference.stderr == pytest.approx(error, rel=1e-12)
    assert (acc.n_clusters, comparison.n_clusters, comparison.n_documents) == (5, 5, 40)
    low, high = acc.difference.interval
    assert 0.04 < interval_misses((high - low) / 2 / error, np.bincount(topics)) < 0.0505


def test_margin_where_no_group_differs(compared):
    lines = [sample(i, doc={"n": i, "group": i % 4}, acc=i % 2) for i in range(40)]
    acc = named(compared(lines, lines, margin=0.2, cluster="group"), "acc")
    assert acc.discordance_bound == pytest.approx(1 - 0.05 ** (1 / 4), rel=1e-12)
    assert (acc.equivalence_p, acc.is_equivalent) == (pytest.approx(0.8**4, rel=1e-12), False)


@pytest.mark.parametrize("value", [None, [1], {"a": 1}])
def test_cluster_by_a_field_that_is_no_name(value, compared):
    with pytest.raises(ValueError, match=r"base.jsonl: line 1: doc.topic is .*; it must be a string or a number"):
        compared([sample(doc={"topic": value})], [sample(doc={"topic": value})], cluster="topic")
    with pytest.raises(ValueError, match=r"base.jsonl: line 1: doc has no 'topik'"):
        compared([sample(doc={"topic": value})], [sample(doc={"topic": value})], cluster="topik")


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_order_does_not_matter(compared):
    files = lines_of("mc"), lines_of("mc", "noise")
    expected = compared(*files)
    assert compared(files[0], files[1][::-1]).to_dict() == expected.to_dict()
    for i, line in enumerate(files[1]):  # as of a shuffled data set
        line["doc_id"] = 100 + i
    assert compared(files[0], files[1][7:] + files[1][:7]).to_dict() == expected.to_dict()


def test_several_filters(compared):
    files = [
        [sample(i, filter=kind, exact_match=int((i * one) % 3 == at)) for at, kind in enumerate(("strict", "flexible"))
         for i in range(9)]
        for one in (1, 5)
    ]  # fmt: skip
    comparison = compared(*files)
    assert [(one.name, one.filter, one.count) for one in comparison.metrics] == [
        ("exact_match", "strict", 9), ("exact_match", "flexible", 9)
    ]  # fmt: skip
    assert (comparison.count, comparison.n_documents) == (18, 9)
    assert named(comparison, "exact_match", "flexible").wrong_to_right == 3
    assert named(comparison, "exact_match", "strict").difference == 0


def test_repeats_pair_in_order_and_count_as_one_document(compared):
    files = of_values([1, 0, 1]) + of_values([1, 1, 0]), of_values([0, 0, 1]) + of_values([1, 0, 0])
    comparison = compared(*files)
    acc = named(comparison, "acc")
    assert (comparison.count, comparison.n_documents, acc.n_clusters) == (6, 3, 3)
    _, error = clustered([-1, 0, 0, 0, -1, 0], np.ones(6), [0, 1, 2, 0, 1, 2])
    assert acc.difference.stderr == pytest.approx(error, rel=1e-13)
    with pytest.raises(ValueError, match=r"other.jsonl: has no sample for line 4 of .*base.jsonl: doc_id 0"):
        compared(files[0], files[1][:3])
    with pytest.raises(ValueError, match=r"base.jsonl: has no sample for line 4 of .*; 2 more without a partner"):
        compared(files[0][:3], files[1])


def test_the_same_document_under_two_ids(compared):
    doc = {"text": "the same"}
    base, other = ([sample(i, doc=doc, acc=value) for i, value in enumerate(values)] for values in ([1, 0], [1, 0]))
    acc = named(compared(base, other[::-1]), "acc")
    assert (acc.right_to_wrong, acc.n_clusters) == (0, 1)
    for one in (base, other):  # and the same id twice
        one[1]["doc_id"] = 0
    assert named(compared(base, other), "acc").right_to_wrong == 0
    for i, one in enumerate(other):  # other ids
        one["doc_id"] = 7 - i
    assert named(compared(base, other), "acc").right_to_wrong == 0


def test_other_documents_are_refused(compared):
    files = lines_of("mc"), lines_of("mc", "noise")
    with pytest.raises(ValueError, match=r"other.jsonl: has no sample for line 3 of .*: doc_id 2, filter 'none'"):
        compared(files[0], files[1][:2] + files[1][3:])
    for line in files[1][4:6]:
        line["doc_hash"] = "0" * 64
    with pytest.raises(
        ValueError, match=r"other.jsonl: line 5: doc_id 4 differs from the document .* line 5 .*; 3 more"
    ):
        compared(*files)


def test_other_filters_are_refused(compared):
    with pytest.raises(ValueError, match=r"has no sample for line 1 of .*, filter 'strict'"):
        compared([sample(filter="strict", acc=1)], [sample(filter="flexible", acc=1)])


def test_other_targets_are_refused(compared):
    files = lines_of("mc"), lines_of("mc", "noise")
    files[1][3]["target_hash"] = files[1][5]["target_hash"] = "0" * 64
    with pytest.raises(ValueError, match=r"line 4: doc_id 3 has a different target from line 4 .*, and so have 1 more"):
        compared(*files)


def test_other_prompts_are_counted(compared):
    files = lines_of("mc"), lines_of("mc", "noise")
    files[1][3]["prompt_hash"] = "0" * 64
    assert compared(*files).n_other_prompts == 1


def test_other_numbers_of_words_are_refused(compared):
    files = lines_of("rolling"), lines_of("rolling", "noise")
    files[1][2]["word_perplexity"][1] += 1
    with pytest.raises(ValueError, match=r"line 3: word_perplexity is of weight \d+; it must be of weight \d+,"):
        compared(*files)


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path):
    """Real samples of both runs."""
    return [clients.save(tmp_path / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]


def test_sources_are_compared_as_their_paths_are(paths):
    base, noise = sources = [open_samples(path) for path in paths]
    expected = compare_samples(paths[0], {"noise": paths[1]}, margin=0.15)
    assert compare_samples(base, {"noise": noise}, margin=0.15) == expected
    for pair in (base, paths[1]), (paths[0], noise), map(pickle.loads, map(pickle.dumps, sources)):
        of_path = compare_samples(*pair)
        assert list(of_path) == [str(paths[1])]
        assert (
            named(of_path[str(paths[1])], "acc").to_dict()
            == named(compare_samples(*paths)[str(paths[1])], "acc").to_dict()
        )
    both = compare_samples(base, [noise, base])
    assert list(both) == [noise.name, base.name]
    assert both[noise.name].metrics == compare_samples(*paths)[noise.name].metrics


def test_sources_of_one_run_are_compared_with_the_newest_of_others(tmp_path):
    """`run` is said of each model: here two runs of one folder are compared with each other."""
    days = {"2026-11-28": "base", "2026-11-29": "noise"}
    for day, run in days.items():
        clients.save_lines(tmp_path / f"samples_mc_{day}T09-00-00.1.jsonl", *lines_of("mc", run))
    old, new = (open_samples(tmp_path, run=day) for day in days)
    result = compare_samples(old, {"new": new})["new"]
    files = [tmp_path / f"samples_mc_{day}T09-00-00.1.jsonl" for day in days]
    (expected,) = compare_samples(files[0], files[1]).values()
    assert [one.to_dict() | {"task": None} for one in result.metrics] == [one.to_dict() for one in expected.metrics]
    assert named(result, "acc").difference == named(expected, "acc").difference
    assert named(result, "acc_norm").difference != 0


@pytest.mark.parametrize("is_source", [True, False])
def test_compare_files_refuses_samples(is_source, paths, npz):
    base, noise = map(open_samples, paths) if is_source else paths
    scores = npz("scores.npz", logits=np.zeros((2, 3)), targets=[0, 1])
    for path, pair in [(paths[0], (base, noise)), (paths[0], (base, scores)), (paths[1], (scores, {"x": noise}))]:
        with pytest.raises(ValueError) as caught:
            compare_files(*pair)
        held = "contains samples of lm-evaluation-harness, which compare_samples compares"
        assert str(caught.value) == f"{path} {held}; compare_files needs the loss of each token"


def test_compare_samples_refuses_other_sources(paths, npz):
    scores = npz("scores.npz", logits=np.zeros((2, 3)), targets=[0, 1])
    for pair in (open_scores(scores), paths[1]), (paths[0], open_scores(scores)):
        with pytest.raises(
            ValueError, match=r"scores.npz: contains scores; it must contain samples of lm-evaluation-harn"
        ):
            compare_samples(*pair)
    for pair in (scores, paths[1]), (paths[0], scores):
        with pytest.raises(ValueError, match=r"scores.npz: has no samples of lm-evaluation-harness"):
            compare_samples(*pair)
    with pytest.raises(ValueError, match=r"base is \[.*\]; it must be one file of samples, or one folder of them"):
        compare_samples(paths, paths[1])
    with pytest.raises(ValueError, match=r"noise.jsonl: is given twice"):
        compare_samples(paths[0], {"a": paths[1], "b": open_samples(paths[1])})
