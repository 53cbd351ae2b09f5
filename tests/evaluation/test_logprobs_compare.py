"""compare_files and `tokenloss compare` of log-probabilities of tokens alone: of a trainer and of a sampler."""

import json
import math
import pickle
from pathlib import Path

import clients
import numpy as np
import pytest
from commands import assert_refused

from tokenloss import compare_files, mismatch, sinks

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
    found = only(compare_files(trainer, {"engine": rollout}))
    for name in ("k1", "k3", "k3_stderr", "mean_ratio_interval", "sequence_ess", "ratio_quantiles", "diagnosis"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.sequences["count"].tolist() == LENGTHS
    lines = [1, 2, 3, 4] if "jsonl" in trainer + rollout else None
    assert (found.sequences["line"].tolist() if "line" in found.sequences else None) == lines


def test_segment_ids_number_the_tokens_of_arrays(folder):
    ids = np.load("ids.npy")
    found = only(compare_files("flat.npy", "flat_base.npy", segment_ids="ids.npy"))
    assert found == mismatch(np.load("flat.npy"), np.load("flat_base.npy"), segment_ids=ids)
    alone = only(compare_files("flat.npy", "flat_base.npy"))
    assert (alone.is_clustered, alone.sequences) == (False, None)


def test_tokens_without_a_number_are_left_out_and_counted(folder):
    rows = [json.loads(line)["logprobs"] for line in (folder / "lists.jsonl").read_text().splitlines()]
    rows[1][2] = None
    clients.save_lines(folder / "lists.jsonl", *({"logprobs": row} for row in rows))
    found = only(compare_files("flat.npy", "lists.jsonl"))
    assert (found.count, found.n_without_number, found.n_nan) == (20, 1, 0)
    ours = np.load("flat.npy")
    ours[0] = np.nan
    np.save("flat.npy", ours)
    with pytest.warns(UserWarning, match="1 of 20 tokens are nan"):
        assert np.isnan(only(compare_files("flat.npy", "lists.jsonl")).k3)


@pytest.mark.parametrize(("trainer", "rollout"), [("nan.npy", "rollout.jsonl"), ("batch.npz", "base.npz")])
def test_the_plot_is_of_absolute_differences(trainer, rollout, folder):
    pytest.importorskip("matplotlib")
    found = only(compare_files(trainer, rollout, sinks=[sinks.DivergencePlot("a.svg")]))
    text = (folder / "a.svg").read_text("utf-8")
    mean = f"mean {found.mean_abs_difference:.4g} ± {found.mean_abs_difference_stderr:.2g}"
    for words in ("Quantiles of the absolute difference", "21 tokens", mean):
        assert f"<!-- {words} -->" in text


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
def test_tables_have_the_columns_of_the_result(suffix, folder):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    tokens, sequences = (f"{name}{suffix}" for name in ("tokens", "sequences"))
    outputs = sinks.ComparedTokenTable(tokens), sinks.ComparedSequenceTable(sequences)
    memory = sinks.ComparedTokenTable(), sinks.ComparedSequenceTable()
    found = only(compare_files("nan.npy", {"e": "rollout.jsonl"}, sinks=[*outputs, *memory]))
    for table, columns in zip(memory, (found.columns(), found.sequences), strict=True):
        for name, column in columns.items():
            np.testing.assert_array_equal(table.columns()[name], column, name)
    assert memory[0].columns()["text"].tolist()[:3] == ["t0", "t1", "t2"]
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(tokens)["ratio"], found.ratio)
        np.testing.assert_array_equal(np.load(sequences)["log_ratio"], found.sequences["log_ratio"])


def test_the_command_prints_the_summary_and_the_verdicts(folder, command):
    status, out, _ = command("compare", "nan.npy", "rollout.jsonl")
    found = compare_files("nan.npy", "rollout.jsonl")
    assert (status, out) == (0, found.summary() + "\n")
    assert command("compare", "nan.npy", "rollout.jsonl", "--max-k3", "9", "--min-ess", "0.01")[0] == 0
    assert command("compare", "nan.npy", "rollout.jsonl", "--max-k3", "1e-9")[0] == 3
    (candidate,) = json.loads(command("compare", "nan.npy", "rollout.jsonl", "--json")[1])["candidates"]
    assert (candidate["trainer"], candidate["sampler"]) == ("nan.npy", "rollout.jsonl")
    assert candidate["k3"] == only(found).k3


def write(name, array):
    np.save(name, array)
    return name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (lambda: ("rollout.jsonl", "flat.npy"), "rollout.jsonl: holds responses of the engine that sampled; it must"),
        (
            lambda: (write("short.npy", np.load("flat.npy")[:-1]), "rollout.jsonl"),
            "short.npy: holds 20 log-probabilities; it must hold 21, one for each token of the 4 sequences",
        ),
        (
            lambda: (write("full.npy", np.full((4, 8), -1.0)), "rollout.jsonl"),
            "full.npy: row 0 has 8 numbers, 0 of them nan; it must hold 5 log-probabilities, as many as line 1 of "
            "rollout.jsonl has tokens, and then nan or 0, or nan before them",
        ),
        (
            lambda: (write("narrow.npy", np.load("nan.npy")[:, :6]), "rollout.jsonl"),
            "narrow.npy: row 1 has 6 numbers, 0 of them nan; it must hold 7 log-probabilities, as many as line 2",
        ),
        (
            lambda: ("zeros.npy", write("zeros_base.npy", np.nan_to_num(np.load("nan_base.npy")))),
            "zeros.npy: has no number above 0, and its rows end in zeros, as log-probabilities of tokens with padding",
        ),
        (lambda: ("flat.npy", "nan.npy"), "nan.npy: has shape (4, 8); it must have (21,), as flat.npy"),
        (
            lambda: (write("high.npy", np.ones(21)), "rollout.jsonl"),
            "high.npy: logprobs[0] = 1 is not a log-probability: it is above 0",
        ),
        (lambda: ("flat.npy", "rollout.jsonl", "lists.jsonl"), "the list of others is '2 files'; it must be one file"),
        (lambda: ("flat.npy", "rollout.jsonl", "--html", "a.html"), "--html does not apply to log-probabilities of"),
        (lambda: ("flat.npy", "rollout.jsonl", "--kind", "probs"), "--kind does not apply to log-probabilities of"),
        (lambda: ("flat.npy", "rollout.jsonl", "--max-kl", "1"), "--max-kl does not apply to log-probabilities"),
        (lambda: ("rollout.jsonl", "other.jsonl", "--max-k3", "1"), "--max-k3 does not apply to scores of"),
        (lambda: ("flat.npy", "rollout.jsonl", "--segment-ids", "ids.npy"), "--segment-ids is for arrays, and a file"),
        (
            lambda: ("flat.npy", clients.save_lines(Path("two.jsonl"), {"logprobs": [-1.0]}, {"logprobs": ["a"]})),
            "two.jsonl: line 2: logprobs[0] is 'a'; it must be a log-probability, a number of at most 0, or null",
        ),
        (
            lambda: ("ours.jsonl", clients.save_lines(Path("one.jsonl"), *[{"logprobs": [-1.0]}] * 4)),
            "ours.jsonl: line 1: it has 5 tokens; it must have 1, as line 1 of one.jsonl",
        ),
        (
            lambda: (
                write("each.npy", np.full((4, 8), -1.0)),
                clients.save_lines(Path("each.jsonl"), *[clients.chat(("a", -1.0, []))] * 4),
            ),
            "each.npy: has 4 rows, and each.jsonl as many responses, each of one token; it must be a .npz file, whose",
        ),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_name(argv, message, folder, command):
    assert_refused(command("compare", *argv()), message)


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
    found, expected = only(compare_files("trainer.jsonl", "rollout.jsonl")), mismatch(ours, base)
    for name in ("k1", "k3", "k3_stderr", "ess_interval", "diagnosis"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.sequences["line"].tolist() == [*range(1, 41)]


def test_choices_of_a_request_are_paired_by_their_number(answers):
    ours, base = answers
    names = ["a", "b"] * 20
    choices = np.repeat(np.arange(20), 2)
    named_lists("trainer.jsonl", ours[::-1], names[::-1], choice=choices[::-1].tolist())
    named_answers("rollout.jsonl", [base[0::2], base[1::2]], "ab")
    found = only(compare_files("trainer.jsonl", "rollout.jsonl"))
    assert found.k3 == pytest.approx(mismatch(ours, base).k3, rel=1e-12)


def test_lines_are_paired_by_place_where_one_file_has_no_names(answers):
    ours, base = answers
    named_lists("trainer.jsonl", ours, [f"r{i}" for i in range(40)][::-1])
    named_lists("rollout.jsonl", base, [None] * 40)
    assert only(compare_files("trainer.jsonl", "rollout.jsonl")).k3 == mismatch(ours, base).k3
    named_answers("rollout.jsonl", base[:, None], [f"r{i}" for i in range(40)])
    np.save("trainer.npy", ours)
    assert only(compare_files("trainer.npy", "rollout.jsonl")).k3 == mismatch(ours, base).k3


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
    found, expected = only(compare_files(path, "rollout.jsonl")), mismatch(ours, base, where=is_token)
    for figure in ("count", "k1", "k3_stderr", "ess_interval", "n_without_number", "diagnosis"):
        assert getattr(found, figure) == getattr(expected, figure), figure
    clients.save_lines(Path("rollout.jsonl"), *({name: line[name][:1]} for line in lines))
    np.save("trainer.npy", ours[:, 0])
    assert only(compare_files("trainer.npy", "rollout.jsonl")).count == 40  # without a mask


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"rollout_log_probs": [-1, -2], "response_mask": [1]}', "response_mask has 1 elements; it must have 2, one"),
        ('{"rollout_log_probs": [-1, -2], "response_mask": [1, 2]}', "response_mask[1] is 2; it must be 0 or 1"),
        ('{"rollout_log_probs": [-1, "a"], "response_mask": [1, 1]}', "rollout_log_probs[1] is 'a'; it must be a"),
        ('{"rollout_log_probs": [-1], "logprobs": [-1]}', "it holds logprobs and rollout_log_probs; it must hold"),
        ('{"old_log_probs": [-1, -2]}', "it holds old_log_probs; it must be a response with choices (vLLM, OpenAI), "
         'meta_info (SGLang) or completion_probabilities (llama.cpp); compare also takes lines {"logprobs": [...]}'),
    ],
)  # fmt: skip
def test_rollouts_that_are_not_understood_name_the_line_that_is(line, message, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    np.save("trainer.npy", [-1.0, -2.0])
    clients.save_lines(Path("rollout.jsonl"), line)
    assert_refused(command("compare", "trainer.npy", "rollout.jsonl"), f"rollout.jsonl: line 1: {message}")


def test_a_trainers_file_that_cannot_be_read_is_named_and_not_the_rollout(folder, command):
    """The message was about logprobs.jsonl, which is right."""
    Path("trainer.pt").write_bytes(pickle.dumps(np.zeros(3)))
    message = "trainer.pt: is a pickle, as torch.save writes; it must be saved by numpy.save, or"
    for rollout in "lists.jsonl", "rollout.jsonl":
        assert_refused(command("compare", "trainer.pt", rollout), message)
    assert_refused(command("compare", "none.npy", "lists.jsonl"), "none.npy: cannot be read: No such file")
    clients.save_lines(Path("odd.jsonl"), {"input": "a", "output": "b"})
    assert_refused(command("compare", "odd.jsonl", "lists.jsonl"), "odd.jsonl: line 1: it holds input, output; it must")


def test_a_row_that_fits_a_response_at_both_ends_is_refused(tmp_path):
    """[nan, x, nan] of two tokens: the first or the last of these may be missing."""
    np.save(tmp_path / "trainer.npy", [[math.nan, -1.0, math.nan], [-1.0, -2.0, math.nan]])
    clients.save_lines(tmp_path / "rollout.jsonl", *[{"logprobs": [-1.0, -2.0]}] * 2)
    with pytest.raises(ValueError, match=r"trainer.npy: row 0 has 3 numbers, 2 of them nan; it must hold 2 log-prob"):
        compare_files(tmp_path / "trainer.npy", tmp_path / "rollout.jsonl")


def test_scores_less_their_maximum_are_scores(tmp_path, rng):
    """No number is above 0, and some rows end in zeros, though not each in another number of them."""
    for i in range(2):
        logits = rng.normal(size=(30, 6))
        logits[:10, -1] = 9
        np.save(tmp_path / f"{i}.npy", logits - logits.max(axis=1, keepdims=True))
    found = only(compare_files(tmp_path / "0.npy", tmp_path / "1.npy"))
    assert type(found).__name__ == "Comparison"


def test_rows_of_padding_must_be_of_one_length(folder):
    ours = np.load("nan.npy")
    np.savez("longer.npz", logprobs=np.where(np.arange(8) == 5, -1.0, ours))
    with pytest.raises(
        ValueError, match=r"^longer.npz: row 0 has 6 tokens before its padding of nan; it must have 5, as"
    ):
        compare_files("batch.npz", "longer.npz")


@pytest.mark.parametrize("number", ["true", '"-1"', "0.5", "-1" + 400 * "0", "[-1]"])
def test_lines_of_json_hold_numbers_alone(number, folder):
    clients.save_lines(folder / "lists.jsonl", f'{{"logprobs": [-1, {number}]}}')
    np.save("two.npy", [-1.0, -2.0])
    with pytest.raises(ValueError, match=r"^lists.jsonl: line 1: logprobs\[1\] is .*; it must be a log-prob"):
        compare_files("two.npy", "lists.jsonl")


def test_numbers_that_are_not_known_or_0_by_rounding_are_taken(folder):
    clients.save_lines(folder / "lists.jsonl", '{"logprobs": [-1, NaN, null, 1e-7, -Infinity]}')
    np.save("five.npy", [-1.0, -2.0, -3.0, 0.0, -1.0])
    with pytest.warns(UserWarning, match="1 of 3 tokens have an infinite divergence or loss"):
        found = only(compare_files("five.npy", "lists.jsonl"))
    assert (found.count, found.n_without_number, found.n_infinite) == (3, 2, 1)


def test_responses_of_prompts_stay_beside_scores(folder, rng):
    """A row of scores for a response whose prompt has two tokens: as many rows as responses."""
    lists = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": None}
    counts = {"prompt_tokens": 2, "completion_tokens": 0}
    clients.save_lines(folder / "prompt.jsonl", {"choices": [{"text": "ab", "logprobs": lists}], "usage": counts})
    np.save("row.npy", -rng.exponential(size=(1, 9)))
    np.save("ids.npy", [3])
    with pytest.raises(ValueError, match=r"token 1 has no id; it must have id 3, the target of row 0 of row.npy$"):
        compare_files("row.npy", "prompt.jsonl", "ids.npy")


def test_scores_of_all_classes_stay_scores(folder, rng):
    """Two arrays of two dimensions, and a file that holds logits, too, are no log-probabilities of tokens alone."""
    np.save("a.npy", rng.normal(size=(21, 30)))
    np.save("b.npy", rng.normal(size=(21, 30)))
    assert type(only(compare_files("a.npy", "b.npy"))).__name__ == "Comparison"
    np.savez("c.npz", logits=np.zeros((3, 2)), logprobs=np.zeros(3))
    np.savez("d.npz", logits=2.5 * np.eye(3)[:, :2], logprobs=np.zeros(3))
    assert type(only(compare_files("c.npz", "d.npz"))).__name__ == "Comparison"
