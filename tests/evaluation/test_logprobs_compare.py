"""compare_files and `tokenloss compare` of token log-probabilities: of a trainer and of a sampler."""

import json
import math
import os
import pickle
from pathlib import Path

import clients
import numpy as np
import pytest
from commands import assert_refused
from reference import statistic

from tokenloss import LossMeter, compare_files, cross_entropy, evaluate, mismatch, sequence_losses, sinks
from tokenloss._evaluation import listed_pairs, token_pairs
from tokenloss.formats import open_hidden_states, open_logprobs, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
LENGTHS = [5, 7, 3, 6]


def padded(rows, fill, width=8, on_left=False):
    array = np.full((len(rows), width), fill)
    for line, row in zip(array, rows, strict=True):
        line[width - len(row) if on_left else 0 :][: len(row)] = row
    return array


@pytest.fixture
def folder(tmp_path, monkeypatch, rng):
    """Files of the same tokens, in every layout; None has no number, and is left out."""
    base = [-rng.exponential(size=n) for n in LENGTHS]
    ours = [row * rng.normal(1, 0.05, size=len(row)) for row in base]
    for name, rows in ("rollout", base), ("other", ours):
        answers = [clients.chat(*[(f"t{i}", one, []) for i, one in enumerate(row.tolist())]) for row in rows]
        clients.save_lines(tmp_path / f"{name}.jsonl", *answers)
    clients.save_lines(tmp_path / "lists.jsonl", *({"logprobs": row.tolist()} for row in base))
    clients.save_lines(tmp_path / "ours.jsonl", *({"logprobs": row.tolist()} for row in ours))
    np.save(tmp_path / "flat.npy", np.concatenate(ours))
    np.save(tmp_path / "flat_base.npy", np.concatenate(base))
    np.save(tmp_path / "ids.npy", np.repeat(np.arange(4), LENGTHS))
    np.save(tmp_path / "nan.npy", padded(ours, np.nan))
    np.save(tmp_path / "zeros.npy", padded(ours, 0.0))
    np.savez(tmp_path / "left.npz", logprobs=padded(ours, np.nan, on_left=True))
    np.savez_compressed(tmp_path / "batch.npz", logprobs=padded(ours, np.nan))
    np.save(tmp_path / "nan_base.npy", padded(base, np.nan))
    np.savez(tmp_path / "base.npz", logprobs=padded(base, np.nan))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(path):
    """A source; only arrays without a name must be said to hold log-probabilities."""
    return open_logprobs(path) if str(path).endswith(".npy") else path


def only(comparisons):
    (one,) = comparisons.values()
    return one


LAYOUTS = [
    ("flat.npy", "rollout.jsonl"), ("nan.npy", "rollout.jsonl"), ("zeros.npy", "lists.jsonl"),
    ("left.npz", "rollout.jsonl"), ("ours.jsonl", "rollout.jsonl"), ("ours.jsonl", "lists.jsonl"),
    ("ours.jsonl", "flat_base.npy"), ("nan.npy", "nan_base.npy"),
    ("batch.npz", "base.npz"), ("batch.npz", "rollout.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("trainer", "rollout"), LAYOUTS)
def test_every_layout_has_the_figures_of_the_arrays(trainer, rollout, folder):
    ours, base = (np.load(f"{name}.npy") for name in ("flat", "flat_base"))
    expected = mismatch(ours, base, segment_ids=np.repeat(np.arange(4), LENGTHS))
    result = only(compare_files(opened(trainer), {"engine": opened(rollout)}))
    for name in ("k1", "k3", "k3_stderr", "mean_ratio_interval", "sequence_ess", "ratio_quantiles", "diagnosis"):
        assert statistic(result, name) == statistic(expected, name), name
    assert result.sequences["count"].tolist() == LENGTHS
    lines = [1, 2, 3, 4] if "jsonl" in trainer + rollout else None
    assert (result.sequences["line"].tolist() if "line" in result.sequences else None) == lines


def test_segment_ids_number_the_tokens_of_arrays(folder):
    ids = np.load("ids.npy")
    result = only(compare_files(open_logprobs("flat.npy", segment_ids="ids.npy"), open_logprobs("flat_base.npy")))
    assert result == mismatch(np.load("flat.npy"), np.load("flat_base.npy"), segment_ids=ids)
    assert result == only(
        compare_files(open_logprobs("flat.npy"), open_logprobs("flat_base.npy", segment_ids="ids.npy"))
    )
    alone = only(compare_files(open_logprobs("flat.npy"), open_logprobs("flat_base.npy")))
    assert (alone.is_clustered, alone.sequences) == (False, None)


def test_tokens_without_a_number_are_left_out_and_counted(folder):
    rows = [json.loads(line)["logprobs"] for line in (folder / "lists.jsonl").read_text().splitlines()]
    rows[1][2] = None
    clients.save_lines(folder / "lists.jsonl", *({"logprobs": row} for row in rows))
    result = only(compare_files(open_logprobs("flat.npy"), "lists.jsonl"))
    assert (result.count, result.n_without_number, result.n_nan) == (20, 1, 0)
    ours = np.load("flat.npy")
    ours[0] = np.nan
    np.save("flat.npy", ours)
    with pytest.warns(UserWarning, match="1 of 20 tokens has a divergence or loss of nan"):
        assert np.isnan(only(compare_files(open_logprobs("flat.npy"), "lists.jsonl")).k3)


@pytest.mark.parametrize(("trainer", "rollout"), [("nan.npy", "rollout.jsonl"), ("batch.npz", "base.npz")])
def test_the_plot_is_of_absolute_differences(trainer, rollout, folder):
    pytest.importorskip("matplotlib")
    result = only(compare_files(opened(trainer), opened(rollout), sinks=[sinks.DivergencePlot("a.svg")]))
    text = (folder / "a.svg").read_text("utf-8")
    mean = f"mean {result.mean_abs_difference:.4g} ± {result.mean_abs_difference.stderr:.2g}"
    for words in ("Quantiles of the absolute difference", "21 tokens", mean):
        assert f"<!-- {words} -->" in text


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
def test_tables_have_the_columns_of_the_result(suffix, folder):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    tokens, sequences = (f"{name}{suffix}" for name in ("tokens", "sequences"))
    outputs = sinks.TokenTable(tokens), sinks.SequenceTable(sequences)
    memory = sinks.TokenTable(), sinks.SequenceTable()
    result = only(compare_files(open_logprobs("nan.npy"), {"e": "rollout.jsonl"}, sinks=[*outputs, *memory]))
    for table, columns in zip(memory, (result.columns(), result.sequences), strict=True):
        for name, column in columns.items():
            np.testing.assert_array_equal(table.columns()[name], column, name)
    assert memory[0].columns()["text"].tolist()[:3] == ["t0", "t1", "t2"]
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(tokens)["ratio"], result.ratio)
        np.testing.assert_array_equal(np.load(sequences)["log_ratio"], result.sequences["log_ratio"])


def test_the_command_prints_the_summary_and_the_verdicts(folder, command):
    status, out, _ = command("compare", "nan.npy", "rollout.jsonl", "--logprobs")
    result = compare_files(open_logprobs("nan.npy"), "rollout.jsonl")
    assert (status, out) == (0, result.summary() + "\n")
    assert command("compare", "nan.npy", "rollout.jsonl", "--logprobs", "--max-k3", "9", "--min-ess", "0.01")[0] == 0
    assert command("compare", "nan.npy", "rollout.jsonl", "--logprobs", "--max-k3", "1e-9")[0] == 3
    (candidate,) = json.loads(command("compare", "nan.npy", "rollout.jsonl", "--logprobs", "--json")[1])["candidates"]
    assert (candidate["trainer"], candidate["sampler"]) == ("nan.npy", "rollout.jsonl")
    assert candidate["k3"] == only(result).k3


def write(name, array):
    np.save(name, array)
    return name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (lambda: ("rollout.jsonl", "flat.npy"), "rollout.jsonl: contains responses of the engine that sampled; it"),
        (
            lambda: (write("short.npy", np.load("flat.npy")[:-1]), "rollout.jsonl"),
            "short.npy: contains 20 log-probabilities; it must contain 21, one for each token of the 4 sequences",
        ),
        (
            lambda: (write("full.npy", np.full((4, 8), -1.0)), "rollout.jsonl"),
            "full.npy: row 0 has 8 numbers, 0 of them nan; it must have 5 log-probabilities, one per token on line 1 "
            "of rollout.jsonl, followed by nan or 0, or preceded by nan",
        ),
        (
            lambda: (write("narrow.npy", np.load("nan.npy")[:, :6]), "rollout.jsonl"),
            "narrow.npy: row 1 has 6 numbers, 0 of them nan; it must have 7 log-probabilities, one per token on line 2",
        ),
        (lambda: ("flat.npy", "nan.npy"), "nan.npy: has shape (4, 8); it must have shape (21,), like flat.npy"),
        (
            lambda: (write("high.npy", np.ones(21)), "rollout.jsonl"),
            "high.npy: logprobs[0] = 1 is not a log-probability: it is above 0",
        ),
        (lambda: ("flat.npy", "rollout.jsonl", "lists.jsonl"), "the list of others is '2 files'; it must be one file"),
        (lambda: ("flat.npy", "rollout.jsonl", "--html", "a.html"), "--html needs columns that the tokens here do not"),
        (lambda: ("flat.npy", "rollout.jsonl", "--kind", "probs"), "--kind is for scores; flat.npy has log-prob"),
        (lambda: ("flat.npy", "rollout.jsonl", "--max-kl", "1"), "--max-kl does not apply to log-probabilities"),
        (lambda: ("rollout.jsonl", "other.jsonl", "--max-k3", "1"), "--max-k3 does not apply to scores of"),
        (lambda: ("flat.npy", "rollout.jsonl", "--segment-ids", "ids.npy"), "--segment-ids is for arrays, and rollou"),
        (
            lambda: ("flat.npy", clients.save_lines(Path("two.jsonl"), {"logprobs": [-1.0]}, {"logprobs": ["a"]})),
            "two.jsonl: line 2: logprobs[0] is 'a'; it must be a log-probability, a number of at most 0, or null",
        ),
        (
            lambda: ("ours.jsonl", clients.save_lines(Path("one.jsonl"), *[{"logprobs": [-1.0]}] * 4)),
            "ours.jsonl: line 1: it has 5 tokens; it must have 1, as on line 1 of one.jsonl",
        ),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_name(argv, message, folder, command):
    given = argv()
    flags = ["--logprobs"] if any(str(path).endswith(".npy") for path in given[:2]) else []
    assert_refused(command("compare", *given, *flags), message)


UNNAMED = ["flat.npy", "nan.npy", "zeros.npy"]


@pytest.mark.parametrize("other", ["rollout.jsonl", "lists.jsonl", "flat_base.npy", "nan_base.npy"])
@pytest.mark.parametrize("unnamed", UNNAMED)
def test_arrays_without_a_name_are_refused_until_someone_says_what_they_hold(unnamed, other, folder, command):
    """No guess decides: scores of all classes may have the same shape."""
    for argv in (unnamed, other), (other, unnamed):
        refused = command("compare", *argv)
        assert_refused(
            refused, ".npy: ", "it must come with --logprobs, if it contains log-prob", "or come with --kind"
        )
        with pytest.raises(ValueError, match=r"it must be opened by open_logprobs, if it .*, or come with kind="):
            compare_files(*argv)
    assert_refused(command("score", unnamed), f"{unnamed}: h", "it must come with --logprobs")
    result = open_scores("nan.npy", kind="logits"), open_scores("nan_base.npy", kind="logits")
    with pytest.warns(UserWarning, match="of nan"):
        assert type(only(compare_files(*result, shift=False))).__name__ == "Comparison"


def test_scores_beside_log_probabilities_are_compared_by_those_of_their_tokens(folder, command):
    rng = np.random.default_rng(9)
    logits, ids = rng.normal(size=(4, 8, 12)), rng.integers(12, size=(4, 8))
    ids[np.isnan(np.load("nan.npy"))] = -100
    np.savez("scores.npz", logits=logits, targets=ids)
    nll = np.where(ids >= 0, cross_entropy(logits, ids, reduction="none"), np.nan)
    expected = mismatch(-nll, np.load("nan.npy"))
    result = only(compare_files("scores.npz", open_logprobs("nan.npy")))
    lines = only(compare_files("scores.npz", "lists.jsonl"))
    for name in ("k1", "k3", "k3_stderr", "ess", "count", "n_sequences"):
        assert statistic(result, name) == pytest.approx(statistic(expected, name), rel=1e-12)
        assert type(statistic(lines, name)) is type(statistic(expected, name))
    np.save("scores.npy", np.arange(32.0).reshape(4, 8))
    assert_refused(command("compare", "scores.npy", "base.npz"), "scores.npy: has no targets")


def test_zeros_that_count_as_tokens_are_refused_or_void_unless_something_shows_the_ends(folder):
    np.save("zeros_base.npy", np.nan_to_num(np.load("nan_base.npy")))
    mask = ~np.isnan(np.load("nan.npy"))
    np.savez("masked.npz", logprobs=np.load("zeros.npy"), mine=mask)
    with pytest.raises(
        ValueError, match=r"zeros.npy: its rows end in zeros, .* it must have nan there, or come with m"
    ):
        evaluate(open_logprobs("zeros.npy"))
    whole = evaluate(open_logprobs("nan.npy"))
    assert evaluate(open_logprobs("masked.npz", mask="mine")).meter == whole.meter
    base = open_logprobs("zeros_base.npy")
    with pytest.raises(ValueError, match=r"zeros_base.npy: row 0 has 8 tokens before its padding of nan; it must have"):
        compare_files(open_logprobs("nan.npy"), base)
    with pytest.raises(
        ValueError, match=r"zeros.npy: its rows end in zeros, .* it must have nan there, or come with m"
    ):
        compare_files(open_logprobs("zeros.npy"), base)
    expected = only(compare_files(open_logprobs("nan.npy"), open_logprobs("nan_base.npy")))
    result = only(compare_files(open_logprobs("masked.npz", mask="mine"), open_logprobs("nan_base.npy")))
    ours, others = (one.to_dict() | {"trainer": None} for one in (result, expected))
    assert ours == others | {"n_without_number": 0}  # what a mask leaves out is not counted


def test_segment_ids_of_arrays_beside_lines_are_refused(folder):
    named = open_logprobs("flat.npy", segment_ids="ids.npy")
    with pytest.raises(ValueError, match=r"segment_ids is for arrays, and lists.jsonl has its own sequences"):
        compare_files(named, "lists.jsonl")
    np.save("others.npy", np.repeat(np.arange(4), LENGTHS[::-1]))
    with pytest.raises(ValueError, match=r"others.npy: its sequences differ from those in ids.npy"):
        compare_files(named, open_logprobs("flat_base.npy", segment_ids="others.npy"))


# -- the loss of each file, states and schedulers ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["lists.jsonl", "flat_base.npy", "nan_base.npy", "base.npz", "rollout.jsonl"])
def test_every_layout_is_scored_as_its_sequences(layout, folder):
    ids = "ids.npy" if layout.startswith("flat") else ()
    source = layout if "rollout" in layout else open_logprobs(layout, segment_ids=ids)
    nll = -np.load("flat_base.npy")
    expected = LossMeter()
    expected.update(sequence_losses(nll, segment_ids=np.load("ids.npy")))
    result = evaluate(source)
    assert (result.loss, result.loss.stderr, result.count, result.n_sequences) == (
        expected.loss,
        expected.loss.stderr,
        21,
        4,
    )
    assert "rollout" in layout or (result.meter == expected and np.isnan(result.accuracy))
    shape = "4 responses (chat)" if "rollout" in layout else "4 sequences; log-probabilities rounded to float64"
    assert result.summary().splitlines()[0].startswith(f"{layout}  {shape}")
    np.testing.assert_array_equal(result.sequences["count"], LENGTHS)


def test_tokens_of_no_sequence_are_refused_where_one_file_is_scored(folder):
    np.save("ids.npy", np.arange(21) - 1)
    with pytest.raises(ValueError, match=r"ids.npy: token 0 of flat.npy has a log-probability, and the number -1; it"):
        evaluate(open_logprobs("flat.npy", segment_ids="ids.npy"))


def without_times(figures):
    return {name: value for name, value in figures.items() if name not in ("seconds", "gb_per_second", "n_bytes_read")}


STATES = {
    "lines": ("lists.jsonl", []), "array": ("flat_base.npy", ["--logprobs", "--segment-ids", "ids.npy"]),
    "rows": ("nan_base.npy", ["--logprobs"]), "npz": ("base.npz", []), "responses": ("rollout.jsonl", []),
}  # fmt: skip


@pytest.mark.parametrize("layout", STATES)
def test_state_of_score_resumes_to_the_same_json_and_refuses_a_changed_file(layout, folder, command, score_json):
    name, options = STATES[layout]
    first = score_json(name, *options)
    for _ in range(2):
        actual = score_json(name, *options, "--state", "state")
        assert without_times(actual) == without_times(first)
    assert actual["n_bytes_read"] == 0 < first["n_bytes_read"]
    state = Path("state").read_bytes()
    changed = [name, *(option for option in options if option.endswith(".npy"))]
    for path in changed:
        content, times = Path(path).read_bytes(), Path(path).stat()
        Path(path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        refused = command("score", name, *options, "--state", "state")
        assert refused[0] == 2
        assert "state: contains the result of" in refused[2] or path in refused[2]
        Path(path).write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_refused(command("score", "ours.jsonl", "--state", "state"), "state: ")
    assert Path("state").read_bytes() == state
    assert without_times(score_json(name, *options, "--state", "state")) == without_times(first)


PAIRS = {
    "lines": ("ours.jsonl", "lists.jsonl"), "arrays": ("flat.npy", "flat_base.npy", "--segment-ids", "ids.npy"),
    "rows": ("nan.npy", "nan_base.npy"), "mixed": ("left.npz", "rollout.jsonl"),
    "responses": ("ours.jsonl", "rollout.jsonl"), "tops": ("other.jsonl", "rollout.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_state_of_compare_resumes_to_the_same_json_and_refuses_a_changed_file(pair, folder, command, monkeypatch):
    argv = ["compare", *PAIRS[pair], "--json", *["--logprobs"] * any(".npy" in name for name in PAIRS[pair][:2])]
    first = command(*argv)
    assert first[0] == 0
    done = []
    for module, name in (listed_pairs, "_compare_lists"), (token_pairs, "_compare_losses"):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, run=run, **options: (done.append(1), run(*args, **options))[1])
    for _ in range(2):
        assert command(*argv, "--state", "state") == first
    assert done == [1]
    state = Path("state").read_bytes()
    for path in [name for name in PAIRS[pair] if "." in name]:
        times = Path(path).stat()
        os.utime(path, ns=(1, 1))
        refused = command(*argv, "--state", "state")
        assert_refused(refused, "state: contains the result of", "since the candidates or a file changed")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_refused(command("score", "lists.jsonl", "--state", "state"), "state: was written with command 'compare'; it")
    assert Path("state").read_bytes() == state
    assert command(*argv, "--state", "state") == first


def test_state_of_another_mask_or_array_is_refused(folder, command):
    rows = -np.random.default_rng(3).exponential(size=(2, 4, 5))
    np.savez("a.npz", x=rows[0], y=rows[1], m=np.tril(np.ones((4, 5))), n=np.ones((4, 5)))
    Path("b.npz").write_bytes(Path("a.npz").read_bytes())
    for argv in ("score", "a.npz"), ("compare", "a.npz", "b.npz"):
        options = ["--logprobs", "--state", f"{argv[0]}.state"]
        base = ["--base-array", "x"] if argv[0] == "compare" else []
        for _ in range(2):
            assert command(*argv, *options, *base, "--array", "x", "--mask", "m")[0] == 0
        refused = command(*argv, *options, *base, "--array", "y", "--mask", "m")
        assert_refused(refused, "array", "'x'; it must be another file, with 'y'")
        refused = command(*argv, *options, *base, "--array", "x", "--mask", "n")
        assert_refused(refused, "mask", "'m'; it must be another file, with 'n'")
        refused = command(*argv, *options, *base, "--array", "x")
        assert_refused(refused, "mask", "'m'; it must be another file, with None")


def test_scheduler_of_log_probabilities_and_responses(folder, command, score_json):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster:
        there = ["--scheduler", cluster.scheduler_address]
        for layout, (name, options) in STATES.items():
            state = ["--state", f"score-{layout}.state"]
            here = score_json(name, *options)
            assert without_times(score_json(name, *options, *there, *state)) == without_times(here)
            assert without_times(score_json(name, *options, *state)) == without_times(here)
        for layout, pair in PAIRS.items():
            argv = ["compare", *pair, "--json", *["--logprobs"] * any(".npy" in name for name in pair[:2])]
            state = ["--state", f"compare-{layout}.state"]
            here = command(*argv)
            assert command(*argv, *there, *state) == here
            assert command(*argv, *state) == here


@pytest.mark.parametrize(("option", "value"), [("--state", "state"), ("--scheduler", "tcp://x")])
@pytest.mark.parametrize("argv", [("score", "lists.jsonl"), ("compare", "ours.jsonl", "lists.jsonl")])
def test_tables_of_tokens_need_a_run_without_state_and_scheduler(argv, option, value, folder, command):
    refused = command(*argv, option, value, "--per-token", "t.csv")
    assert_refused(refused, f"--per-token needs every token, and {option} ")
    assert not Path("t.csv").exists()
    assert not Path("state").exists()


# -- names of requests -------------------------------------------------------------------------------------------------


def named_lists(path, rows, names, **columns):
    """Lines with lists of log-probabilities, and the names of their requests."""
    lines = [{"logprobs": row.tolist()} | ({} if name is None else {"custom_id": name})
             for row, name in zip(rows, names, strict=True)]  # fmt: skip
    for key, values in columns.items():
        lines = [line | {key: value} for line, value in zip(lines, values, strict=True)]
    return clients.save_lines(Path(path), *lines)


def named_answers(path, rows, names):
    """Results of a batch: a response for each request, with a choice for each row."""
    lines = []
    for name, answers in zip(names, rows, strict=True):
        choices = [clients.chat(*[("t", number, []) for number in row.tolist()])["choices"][0] | {"index": i}
                   for i, row in enumerate(answers)]  # fmt: skip
        lines.append({"custom_id": name, "response": {"status_code": 200, "body": {"choices": choices}}, "error": None})
    return clients.save_lines(Path(path), *lines)


@pytest.fixture
def answers(tmp_path, monkeypatch, rng):
    """The rows of 40 answers of equal length, and those of the trainer."""
    monkeypatch.chdir(tmp_path)
    base = -rng.exponential(size=(40, 19))
    return base * rng.normal(1, 0.01, size=base.shape), base


@pytest.mark.parametrize("sampler", ["lists", "answers"])
def test_lines_are_paired_by_custom_id(sampler, answers, rng):
    """They were paired by place: k3 of 3.672 for 0.00005."""
    ours, base = answers
    names, order = [f"r{i}" for i in range(40)], rng.permutation(40)
    named_lists("trainer.jsonl", ours[order], [names[i] for i in order])
    if sampler == "lists":
        named_lists("rollout.jsonl", base, names)
    else:
        named_answers("rollout.jsonl", base[:, None], names)
    result, expected = only(compare_files("trainer.jsonl", "rollout.jsonl")), mismatch(ours, base)
    for name in ("k1", "k3", "k3_stderr", "ess_interval", "diagnosis"):
        assert statistic(result, name) == statistic(expected, name), name
    assert result.sequences["line"].tolist() == [*range(1, 41)]


def test_choices_of_a_request_are_paired_by_their_number(answers):
    ours, base = answers
    names = ["a", "b"] * 20
    choices = np.repeat(np.arange(20), 2)
    named_lists("trainer.jsonl", ours[::-1], names[::-1], choice=choices[::-1].tolist())
    named_answers("rollout.jsonl", [base[0::2], base[1::2]], "ab")
    result = only(compare_files("trainer.jsonl", "rollout.jsonl"))
    assert result.k3 == pytest.approx(mismatch(ours, base).k3, rel=1e-12)


def test_lines_are_paired_by_place_where_one_file_has_no_names(answers):
    ours, base = answers
    named_lists("trainer.jsonl", ours, [f"r{i}" for i in range(40)][::-1])
    named_lists("rollout.jsonl", base, [None] * 40)
    assert only(compare_files("trainer.jsonl", "rollout.jsonl")).k3 == mismatch(ours, base).k3
    named_answers("rollout.jsonl", base[:, None], [f"r{i}" for i in range(40)])
    np.save("trainer.npy", ours)
    assert only(compare_files(open_logprobs("trainer.npy"), "rollout.jsonl")).k3 == mismatch(ours, base).k3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["r0", "r1", "r9"], "trainer.jsonl: line 3: the custom_id 'r9' is on no line of rollout.jsonl; it must"),
        (["r0", "r1"], "rollout.jsonl: line 3: the custom_id 'r2' is on no line of trainer.jsonl"),
        (["r0", "r1", "r1"], "trainer.jsonl: line 3: the custom_id 'r1' comes twice; it must have one of its own, or"),
        (["r0", None, "r2"], "trainer.jsonl: line 2: it has no custom_id; it must have one"),
    ],
)  # fmt: skip
def test_custom_ids_that_do_not_fit_are_refused(names, message, answers, command):
    ours, base = answers
    named_lists("trainer.jsonl", ours[: len(names)], names)
    named_lists("rollout.jsonl", base[:3], ["r0", "r1", "r2"])
    assert_refused(command("compare", "trainer.jsonl", "rollout.jsonl"), message)


# -- rollouts of trainers ----------------------------------------------------------------------------------------------

FIELDS = [
    ("rollout_log_probs", "response_mask"),  # verl
    ("sampling_per_token_logps", "completion_mask"),  # TRL
    ("completion_logprobs", "completion_mask"),  # prime-rl
]


@pytest.mark.parametrize(("name", "mask"), FIELDS)
@pytest.mark.parametrize("trainer", ["array", "lines"])
def test_rollouts_of_trainers_are_read_with_their_masks(name, mask, trainer, answers, rng):
    ours, base = answers
    is_token = (np.arange(19) < rng.integers(3, 20, size=40)[:, None]) & (np.arange(19) != 1)  # 1 is of a tool
    lines = [{name: row.tolist(), mask: marks.astype(int).tolist(), "score": 1.0}
             for row, marks in zip(np.where(is_token, base, 7.0), is_token, strict=True)]  # fmt: skip
    clients.save_lines(Path("rollout.jsonl"), *lines)
    if trainer == "array":
        np.save("trainer.npy", ours)
    path = "trainer.npy" if trainer == "array" else named_lists("trainer.jsonl", ours, [None] * 40)
    result, expected = only(compare_files(opened(path), "rollout.jsonl")), mismatch(ours, base, where=is_token)
    for figure in ("count", "k1", "k3_stderr", "ess_interval", "n_without_number", "diagnosis"):
        assert statistic(result, figure) == statistic(expected, figure), figure
    clients.save_lines(Path("rollout.jsonl"), *({name: line[name][:1]} for line in lines))
    np.save("trainer.npy", ours[:, 0])
    assert only(compare_files(open_logprobs("trainer.npy"), "rollout.jsonl")).count == 40  # without a mask


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"rollout_log_probs": [-1, -2], "response_mask": [1]}', "response_mask has 1 elements; it must have 2, one"),
        ('{"rollout_log_probs": [-1, -2], "response_mask": [1, 2]}', "response_mask[1] is 2; it must be 0 or 1"),
        ('{"rollout_log_probs": [-1, "a"], "response_mask": [1, 1]}', "rollout_log_probs[1] is 'a'; it must be a"),
        ('{"rollout_log_probs": [-1], "logprobs": [-1]}', "it has logprobs and rollout_log_probs; it must have"),
        ('{"old_log_probs": [-1, -2]}', "it has old_log_probs; it must be a response with choices (vLLM, OpenAI), "
         'meta_info (SGLang) or completion_probabilities (llama.cpp); compare also takes lines {"logprobs": [...]}'),
    ],
)  # fmt: skip
def test_rollouts_that_are_not_understood_name_the_line_that_is(line, message, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    np.save("trainer.npy", [-1.0, -2.0])
    clients.save_lines(Path("rollout.jsonl"), line)
    refused = command("compare", "trainer.npy", "rollout.jsonl", "--logprobs")
    assert_refused(refused, f"rollout.jsonl: line 1: {message}")


def test_a_trainers_file_that_cannot_be_read_is_named_and_not_the_rollout(folder, command):
    """The message was about logprobs.jsonl, which is right."""
    Path("trainer.pt").write_bytes(pickle.dumps(np.zeros(3)))
    message = "trainer.pt: is a pickle, such as torch.save writes; it must be saved by numpy.save, or"
    for rollout in "lists.jsonl", "rollout.jsonl":
        assert_refused(command("compare", "trainer.pt", rollout), message)
    assert_refused(command("compare", "none.npy", "lists.jsonl"), "none.npy: cannot be read: No such file")
    clients.save_lines(Path("odd.jsonl"), {"input": "a", "output": "b"})
    assert_refused(command("compare", "odd.jsonl", "lists.jsonl"), "odd.jsonl: line 1: it has input, output; it must")


def test_a_row_that_fits_a_response_at_both_ends_is_refused(tmp_path):
    """[nan, x, nan] of two tokens: the first or the last of these may be missing."""
    np.save(tmp_path / "trainer.npy", [[math.nan, -1.0, math.nan], [-1.0, -2.0, math.nan]])
    clients.save_lines(tmp_path / "rollout.jsonl", *[{"logprobs": [-1.0, -2.0]}] * 2)
    with pytest.raises(ValueError, match=r"trainer.npy: row 0 has 3 numbers, 2 of them nan; it must have 2 log-prob"):
        compare_files(open_logprobs(tmp_path / "trainer.npy"), tmp_path / "rollout.jsonl")


def test_scores_less_their_maximum_are_scores(tmp_path, rng):
    """No number is above 0, and some rows end in zeros, though not each in another number of them."""
    for i in range(2):
        logits = rng.normal(size=(30, 6))
        logits[:10, -1] = 9
        np.save(tmp_path / f"{i}.npy", logits - logits.max(axis=1, keepdims=True))
    result = only(compare_files(tmp_path / "0.npy", tmp_path / "1.npy"))
    assert type(result).__name__ == "Comparison"


def test_rows_of_padding_must_be_of_one_length(folder):
    ours = np.load("nan.npy")
    np.savez("longer.npz", logprobs=np.where(np.arange(8) == 5, -1.0, ours))
    with pytest.raises(
        ValueError, match=r"^longer.npz: row 0 has 6 tokens before its padding of nan; it must have 5, like"
    ):
        compare_files("batch.npz", "longer.npz")


@pytest.mark.parametrize("number", ["true", '"-1"', "0.5", "-1" + 400 * "0", "[-1]"])
def test_lines_of_json_hold_numbers_alone(number, folder):
    clients.save_lines(folder / "lists.jsonl", f'{{"logprobs": [-1, {number}]}}')
    np.save("two.npy", [-1.0, -2.0])
    with pytest.raises(ValueError, match=r"^lists.jsonl: line 1: logprobs\[1\] is .*; it must be a log-prob"):
        compare_files(open_logprobs("two.npy"), "lists.jsonl")


def test_numbers_that_are_not_known_or_0_by_rounding_are_taken(folder):
    clients.save_lines(folder / "lists.jsonl", '{"logprobs": [-1, NaN, null, 1e-7, -Infinity]}')
    np.save("five.npy", [-1.0, -2.0, -3.0, 0.0, -1.0])
    with pytest.warns(UserWarning, match="1 of 3 tokens has an infinite divergence or loss"):
        result = only(compare_files(open_logprobs("five.npy"), "lists.jsonl"))
    assert (result.count, result.n_without_number, result.n_infinite) == (3, 2, 1)


def test_responses_of_prompts_stay_beside_scores(folder, rng):
    """A row of scores for a response whose prompt has two tokens: as many rows as responses."""
    lists = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": None}
    counts = {"prompt_tokens": 2, "completion_tokens": 0}
    clients.save_lines(folder / "prompt.jsonl", {"choices": [{"text": "ab", "logprobs": lists}], "usage": counts})
    np.save("row.npy", -rng.exponential(size=(1, 9)))
    np.save("ids.npy", [3])
    with pytest.raises(ValueError, match=r"token 1 has no id; it must have id 3, the target of row 0 of row.npy$"):
        compare_files(open_scores("row.npy", "ids.npy"), "prompt.jsonl")


def test_scores_of_all_classes_stay_scores(folder, rng):
    """Two arrays of two dimensions, and a file that holds logits, too, are no token log-probabilities."""
    np.save("a.npy", rng.normal(size=(21, 30)))
    np.save("b.npy", rng.normal(size=(21, 30)))
    assert type(only(compare_files("a.npy", "b.npy"))).__name__ == "Comparison"
    np.savez("c.npz", logits=np.zeros((3, 2)), logprobs=np.zeros(3))
    np.savez("d.npz", logits=2.5 * np.eye(3)[:, :2], logprobs=np.zeros(3))
    assert type(only(compare_files("c.npz", "d.npz"))).__name__ == "Comparison"


@pytest.mark.parametrize("at", [slice(2, 4), slice(4, 6)], ids=["inside", "at the end"])
@pytest.mark.parametrize("trainer", ["a.npy", "a.npz", "a.jsonl"])
@pytest.mark.parametrize("is_base", [True, False])
def test_a_mask_of_one_file_holds_for_both(trainer, is_base, at, tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    ours, theirs, mask = -rng.exponential(size=(4, 6)), -rng.exponential(size=(4, 6)), np.ones((4, 6), int)
    mask[1, at] = 0
    np.save("a.npy", ours)
    np.savez("a.npz", logprobs=ours)
    clients.save_lines(tmp_path / "a.jsonl", *({"logprobs": row.tolist()} for row in ours))
    np.savez("verl.npz", rollout_log_probs=theirs, response_mask=mask)
    sides = [opened(trainer), open_logprobs("verl.npz")]
    arrays = [ours, theirs]
    result = only(compare_files(*(sides if is_base else sides[::-1])))
    expected = mismatch(*(arrays if is_base else arrays[::-1]), where=mask == 1)
    assert (result.count, result.n_nan, result.n_sequences) == (22, 0, 4)
    assert result.k3 == pytest.approx(expected.k3, rel=1e-13)


@pytest.mark.parametrize(("trainer", "rollout"), [("zeros.npz", "zeros.npz"), ("zeros.npy", "zeros.npz")])
def test_zeros_that_may_be_padding_are_refused_in_arrays_with_a_name(trainer, rollout, folder):
    zeros = np.load("zeros.npy")
    np.savez("zeros.npz", logprobs=zeros)
    np.savez("other.npz", rollout_log_probs=zeros * (1 + 1e-3))
    for one, other in ((trainer, "other.npz"), ("other.npz", rollout)):
        with pytest.raises(ValueError, match="rows end in zeros"):
            compare_files(opened(one), opened(other))
    masks = (zeros != 0).astype(int)
    np.savez("other.npz", rollout_log_probs=zeros * (1 + 1e-3), response_mask=masks)
    assert only(compare_files(opened(trainer), "other.npz")).count == sum(LENGTHS)


def test_zeros_that_may_be_padding_are_refused_in_lists_of_one_length(folder, command):
    zeros = np.load("zeros.npy")
    clients.save_lines(folder / "zeros.jsonl", *({"logprobs": row.tolist()} for row in zeros))
    clients.save_lines(
        folder / "other.jsonl", *({"logprobs": row.tolist()} for row in np.nan_to_num(np.load("nan_base.npy")))
    )
    assert_refused(command("score", "zeros.jsonl"), "zeros.jsonl: its rows end in zeros")
    assert_refused(command("compare", "zeros.jsonl", "other.jsonl"), "zeros.jsonl: its rows end in zeros")
    lines = [
        {"rollout_log_probs": row.tolist(), "response_mask": [1] * n + [0] * (8 - n)}
        for row, n in zip(zeros, LENGTHS, strict=True)
    ]
    assert evaluate(clients.save_lines(folder / "masked.jsonl", *lines)).meter.count == sum(LENGTHS)


@pytest.mark.parametrize("has_first", [True, False])
def test_lines_with_and_without_a_mask_are_refused(has_first, folder):
    lines = [{"rollout_log_probs": [-1.0, -2.0, 0.0]}, {"rollout_log_probs": [-1.0, -2.0, 0.0]}]
    lines[not has_first]["response_mask"] = [1, 1, 0]
    clients.save_lines(folder / "mixed.jsonl", *lines)
    with pytest.raises(ValueError, match=r"mixed.jsonl: line 2: it has (no|a) mask; it must be like the lines before"):
        evaluate("mixed.jsonl")


def test_a_state_belongs_to_one_head(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    hidden, ids = rng.normal(size=(2, 3, 4)), rng.integers(5, size=(2, 3))
    heads = {name: rng.normal(size=(5, 4)) for name in "ab"}
    np.savez("heads.npz", **heads)
    np.savez("hidden.npz", hidden_states=hidden, targets=ids)
    result = {}
    clients.save_lines(tmp_path / "r.jsonl", *({"logprobs": [-1.0, -2.0, -3.0]} for _ in range(2)))
    for name, head in heads.items():
        source = open_hidden_states("hidden.npz", f"heads.npz:{name}")
        result[name] = only(compare_files(source, "r.jsonl"))
        losses = cross_entropy(hidden @ head.T, ids, reduction="none")
        expected = mismatch(-losses, np.array([[-1.0, -2.0, -3.0]] * 2))
        assert result[name].k3 == pytest.approx(expected.k3, rel=1e-12)
    for name in "ab":
        source = open_hidden_states("hidden.npz", f"heads.npz:{name}")
        if name == "a":
            assert only(compare_files(source, "r.jsonl", state="s")).k3 == result["a"].k3
            continue
        with pytest.raises(ValueError, match="candidates or a file changed"):
            compare_files(source, "r.jsonl", state="s")


def test_tokens_of_scores_outside_of_sequences(tmp_path, monkeypatch, rng):
    """Without sequences they are independent, as in arrays; tokens of a few are refused, and so are pieces."""
    monkeypatch.chdir(tmp_path)
    logits, ids = rng.normal(size=(12, 5)), rng.integers(5, size=12)
    theirs = -rng.exponential(size=12)
    ours = -cross_entropy(logits, ids, reduction="none")
    np.savez("flat.npz", logits=logits, targets=ids)
    np.save("theirs.npy", theirs)
    result = only(compare_files("flat.npz", open_logprobs("theirs.npy")))
    assert result == mismatch(ours, theirs)
    np.save("segments.npy", np.repeat(np.arange(4), 3))
    source = open_scores("flat.npz", segment_ids="segments.npy")
    clients.save_lines(tmp_path / "theirs.jsonl", *({"logprobs": row} for row in theirs.reshape(4, 3).tolist()))
    for other in (open_logprobs("theirs.npy"), "theirs.jsonl"):
        result = only(compare_files(source, other))
        assert result.k3.stderr == mismatch(ours, theirs, segment_ids=np.repeat(np.arange(4), 3)).k3.stderr
        assert result.n_sequences == 4
    for numbers, words in (
        ([0, 1] * 6, "the rows of a sequence in several places"),
        ([-1] * 3 + [0] * 9, "tokens that are in no sequence"),
    ):
        np.savez("flat.npz", logits=logits, targets=ids, segment_ids=numbers)
        with pytest.raises(ValueError, match=f"flat.npz: has {words}"):
            compare_files("flat.npz", open_logprobs("theirs.npy"))
    np.savez("flat.npz", logits=logits, targets=np.full((12, 5), 0.2))
    with pytest.raises(ValueError, match=r"flat.npz: has distributions as targets"):
        compare_files("flat.npz", open_logprobs("theirs.npy"))
    np.savez("flat.npz", logits=logits[:0], targets=ids[:0])
    with pytest.raises(ValueError, match="has shape"):
        compare_files("flat.npz", open_logprobs("theirs.npy"))


def test_array_names_log_probabilities_of_all_models_unless_the_base_has_its_own(tmp_path, monkeypatch, rng, command):
    monkeypatch.chdir(tmp_path)
    ours, theirs = -rng.exponential(size=(2, 6)), -rng.exponential(size=(2, 6))
    np.savez("a.npz", lps=ours, logprobs=ours - 1)
    np.savez("b.npz", lps=theirs, logprobs=theirs - 1)
    status, out, err = command("compare", "a.npz", "b.npz", "--logprobs", "--array", "lps", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["candidates"][0]["k3"] == mismatch(ours, theirs).k3
    argv = "--array", "lps", "--base-array", "logprobs"
    _, out, _ = command("compare", "a.npz", "b.npz", "--logprobs", *argv, "--json")
    assert json.loads(out)["candidates"][0]["k3"] == mismatch(ours - 1, theirs).k3
