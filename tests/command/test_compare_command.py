"""tokenloss compare: its JSON, its tables, its options, and files that do not fit together."""

import inspect
import json
import math
import re
from pathlib import Path

import clients
import numpy as np
import pytest
from commands import assert_refused
from places import DATA, SAMPLE

import tokenloss
from tokenloss._command import commands
from tokenloss._command.arguments import make_parser
from tokenloss._evaluation import plan
from tokenloss.formats import (
    llama_cpp,
    open_hidden_states,
    open_logprobs,
    open_responses,
    open_samples,
    open_scores,
)

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def near(value, error):
    """What is equal to figures as JSON, to within an error: null is nan or infinite."""
    if isinstance(value, dict):
        return {name: near(each, error) for name, each in value.items()}
    if isinstance(value, list):
        return [near(each, error) for each in value]
    if isinstance(value, float):
        return pytest.approx(value, rel=error, abs=error) if math.isfinite(value) else None
    return value


@pytest.mark.parametrize("block_rows", [5, 1000])
@pytest.mark.parametrize("other", ["other.npy", "other.zarr", "other.npz"])
def test_compare_reads_every_format(other, block_rows, models, compare_json, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_ROWS", block_rows)
    if other == "other.zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(models.path / other, mode="w")
        group.create_array("logits", data=models.other, chunks=(3, 4, 5))
    result = compare_json(models.path / "base.npz", models.path / other)
    sequences = np.arange(4)[:, None]  # each row of (4, 6, V)
    expected = tokenloss.compare(models.base, models.other, models.targets, segment_ids=sequences).to_dict()
    of_files = {"base", "file", "base_kind", "kind", "shape", "n_ignored", "n_without_next", "fits_better_shifted"}
    of_files |= {"name", "size", "classes", "files"}
    assert set(result) == set(expected) | of_files
    assert (result["base_kind"], result["kind"]) == ("logits", "probs" if other == "other.npz" else "logits")
    if other == "other.npz":
        words = "kind:logits|dtype:float32", "kind:probs/logits|dtype:float64/float32"
        expected["signature"] = expected["signature"].replace(*words)
    for name, value in expected.items():
        assert result[name] == near(value, 1e-5 if other == "other.npz" else 0), name
    assert (result["base"], result["file"]) == (str(models.path / "base.npz"), str(models.path / other))
    assert (result["shape"], result["count"], result["n_ignored"]) == ([24, 9], 24, 0)


def test_targets_and_ignore_index_in_compare(models, compare_json):
    base, other, targets = models.path / "base.npz", models.path / "other.npy", models.path / "targets.npy"
    expected = compare_json(base, other)
    for argv in ((base, other, "--targets", targets), (other, base)):
        assert compare_json(*argv)["count"] == expected["count"]
    assert compare_json(other, base)["perplexity"] == expected["base_perplexity"]
    assert compare_json(base, other, "--ignore-index", models.targets[0, 0])["n_ignored"] == np.count_nonzero(
        models.targets == models.targets[0, 0]
    )


def test_compare_files_that_do_not_fit(models, command):
    base, other, targets = models.path / "base.npz", models.path / "other.npy", models.path / "targets.npy"
    refused = command("compare", other, other, "--html", "page.html")
    assert_refused(refused, "--html needs columns that are not known without targets: base_nll, nll")
    assert_refused(command("compare", other, other, "--shift"), f"{other}: has no targets", "--targets")
    assert_refused(
        command("compare", base, SAMPLE), f"{SAMPLE}: contains 15 rows of 51864 classes; it must contain 24 rows of 9"
    )
    np.save(targets, models.targets[:, ::-1])
    assert_refused(
        command("compare", base, other, "--targets", targets), f"{targets}: its targets differ from those in", f"{base}"
    )
    np.save(targets, models.targets + 5)
    assert_refused(command("compare", other, other, "--targets", targets), f"{other}, {targets}: targets[", "[0, 9)")
    np.save(targets, models.base.reshape(24, 9))
    assert_refused(
        command("compare", other, other, "--targets", targets), "targets has shape (24, 9)", "(24,) (class ids)"
    )
    assert_refused(command("compare", base, other, "--plot", "x.txt"), "'x.txt'")


def test_compare_files_of_other_targets(command, models):
    np.savez(models.path / "else.npz", logits=models.other, targets=models.targets[:, ::-1])
    base, other = models.path / "base.npz", models.path / "else.npz"
    assert_refused(command("compare", base, other), f"{other}: its targets differ from those in {base}")


def test_definitions_llama_cpp(models, compare_json, tmp_path):
    tokens = np.zeros((4, 14), int)
    tokens[:, 8:] = models.targets
    llama_cpp.write(tmp_path / "base.kld", tokens, [models.base.reshape(24, 9)], 14)
    of_file = compare_json(tmp_path / "base.kld", models.path / "other.npy", "--definitions", "llama.cpp")
    of_logits = compare_json(models.path / "base.npz", models.path / "other.npy", "--definitions", "llama.cpp")
    assert of_file["definitions"] == of_logits["definitions"] == "llama.cpp"
    for name in ("perplexity", "mean_kl", "base_perplexity", "rms_delta_p"):
        assert of_file[name] == pytest.approx(of_logits[name], rel=1e-3)
    assert of_file["perplexity"] == of_logits["perplexity"]
    assert of_file["mean_kl"] != of_logits["mean_kl"]  # of what the file rounds


def numbers(text):
    """All numbers in a text."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def leaves(value):
    """All values in an object of JSON."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [leaf for part in parts for leaf in leaves(part)]
    return [value]


def test_compare_prints_what_is_in_its_json(models, command, compare_json):
    argv = models.path / "base.npz", models.path / "other.npy"
    figures = compare_json(*argv)
    known = [value for value in leaves(figures) if isinstance(value, float)]
    status, out, err = command("compare", *argv)
    assert (status, err) == (0, "")
    cells = [cell for line in out.splitlines()[1:] for cell in re.split("  +", line.strip())[1:]]
    shown = re.findall(r"-?\d+\.(\d+)", " ".join(cells)), numbers(" ".join(cells))
    for decimals, value in zip(*shown, strict=True):
        assert any(abs(value - scale * one) < 0.51 * 10 ** -len(decimals) for one in known for scale in (1, 100))
    assert len(shown[1]) > 43  # those of llama.cpp, intervals and tables of groups


def test_definitions_llama_cpp_print_what_llama_cpp_printed(command, tmp_path):
    with np.load(DATA / "llama-cpp.npz") as sample:
        np.savez(tmp_path / "base.npz", log_probs=sample["base_log_probs"], targets=sample["targets"])
        np.save(tmp_path / "other.npy", sample["logits"])
    argv = tmp_path / "base.npz", tmp_path / "other.npy", "--definitions", "llama.cpp"
    status, out, err = command("compare", *argv)
    assert (status, err) == (0, "")
    printed = (DATA / "llama-cpp.txt").read_text("utf-8").split("====== Perplexity statistics ======")[1]
    rows = [line.replace(" ", "") for line in out.splitlines()[1:]]
    count = 0
    for line in printed.replace(" ", "").splitlines():
        label, _, theirs = line.rpartition(":")
        if label:
            (row,) = (row.removeprefix(label) for row in rows if re.match(re.escape(label) + r"-?\d", row))
            unit = 10.0 ** -len(re.search(r"\.(\d+)", theirs)[1])
            for mine, their in zip(numbers(row.split("95%interval")[0]), numbers(theirs), strict=True):
                assert mine == pytest.approx(their, abs=4.5 * unit)
                count += 1
    assert count == 43


@pytest.fixture
def sources(tmp_path, monkeypatch, rng):
    """Files of everything that the commands read, by short names."""
    monkeypatch.chdir(tmp_path)
    ids, (x, q) = rng.integers(3, size=(4, 6)), rng.normal(size=(2, 4, 6, 5), scale=3)
    np.savez("x.npz", logits=x, a=x, targets=ids, y=ids)
    np.savez("q.npz", logits=q, a=q)
    states = rng.normal(size=(2, 4, 6, 3))
    np.savez("xh.npz", hidden_states=states[0], h=states[0], i=states[0], targets=ids)
    np.savez("qh.npz", hidden_states=states[1], h=states[1])
    np.save("head.npy", rng.normal(size=(5, 3)))
    np.save("t.npy", ids)
    np.save("t2.npy", ids)
    np.save("s.npy", np.repeat(np.arange(4), 6))
    np.save("s2.npy", np.repeat(np.arange(4), 6))
    for name in "xq":
        number = -1.0 - (name == "q")
        clients.save_lines(Path(f"{name}.jsonl"), clients.chat(("t", number, []), ("u", -2.0, [])))
        logprobs = -rng.exponential(size=(4, 6))
        np.savez(f"{name}l.npz", logprobs=logprobs, a=logprobs, m=np.ones((4, 6)))
        run = "base" if name == "x" else "noise"
        clients.save(Path(f"{name}s.jsonl"), f"{run}/mc.jsonl")
        Path(f"{name}-folder").mkdir()
        clients.save(Path(f"{name}-folder/samples_mc_2026-01-01T00-00-00.jsonl"), f"{run}/mc.jsonl")
    return tmp_path


TOKENS = "--targets=t.npy --segment-ids=s.npy --ignore-index=3"
OF_TOKENS = {"targets": ["t.npy"], "segment_ids": ["s.npy"], "ignore_index": 3}
RUN = "--state=f --scheduler=x --workers=2"
OF_RUN = {"state": "f", "scheduler": "x", "workers": 2}
# by name: a call, the verb, the options that it gets, and its sources
FORWARDED = {
    "scores": (
        "score x.npz --array=a --kind=logits --shift --by=file --calibration --top=9 --n-bytes=7 --n-words=6 "
        f"--tokenizer=T {TOKENS} {RUN}",
        "evaluate", OF_RUN | {"shift": True, "by": "file", "calibration": True, "top": 9, "n_bytes": 7, "n_words": 6},
        lambda: [open_scores("x.npz", **OF_TOKENS, array="a", kind="logits", tokenizer="T")],
    ),
    "a text in windows": (
        "score x.npz --window=6 --stride=4 --targets-array=y --text=t.npy --words=lm-eval --by=file", "evaluate",
        {"text": "t.npy", "words": "lm-eval", "by": "file"},
        lambda: [open_scores("x.npz", window=6, stride=4, targets_array="y")],
    ),
    "hidden states": (
        f"score xh.npz --lm-head=head.npy --hidden=h --logit-scale=2 --softcap=5 --targets-array=targets {TOKENS}",
        "evaluate", {},
        lambda: [open_hidden_states("xh.npz", "head.npy", **OF_TOKENS, targets_array="targets", array="h",
                                    logit_scale=2.0, softcap=5.0)],
    ),
    "responses": (
        "score x.jsonl --part=all --skip-failed --no-shift", "evaluate", {"shift": False},
        lambda: [open_responses("x.jsonl", part="all", skip_failed=True)],
    ),
    "log-probabilities": (
        f"score xl.npz --logprobs --array=a --mask=m --segment-ids=s.npy {RUN}", "evaluate", OF_RUN,
        lambda: [open_logprobs("xl.npz", array="a", mask="m", segment_ids=["s.npy"])],
    ),
    "two models": (
        "compare x.npz q=q.npz --base-array=a --base-kind=logits --array=a --kind=logits --classes=4 --noise=q.npz "
        "--definitions=llama.cpp --divergences=tv,js --divergences=hellinger --size=q=4.9G --shift --targets-array=y "
        f"--window=6 --stride=4 --tokenizer=T --targets=t.npy --ignore-index=3 --by=position --calibration {RUN}",
        "compare_files",
        OF_RUN | {"by": "position", "shift": True, "classes": 4, "calibration": True,
                  "definitions": "llama.cpp", "divergences": ("tv", "js", "hellinger"),
                  "sizes": {"q": "4.9G"}, "noise": "q.npz"},
        lambda: [open_scores("x.npz", ["t.npy"], ignore_index=3, targets_array="y", array="a", kind="logits", window=6,
                             stride=4, tokenizer="T"),
                 open_scores("q.npz", array="a", kind="logits")],
    ),
    "drafts of hidden states": (
        "compare xh.npz q=qh.npz --base-lm-head=head.npy --base-hidden=i --lm-head=head.npy --hidden=h --draft "
        "--temperature=0.5 --cost-ratio=0.1 --logit-scale=2 --softcap=5",
        "compare_files", {"temperature": 0.5, "classes": "all", "shift": False},
        lambda: [open_hidden_states("xh.npz", "head.npy", array="i", logit_scale=2.0, softcap=5.0),
                 open_hidden_states("qh.npz", "head.npy", array="h", logit_scale=2.0, softcap=5.0)],
    ),
    "one head for both": (
        "compare xh.npz q=qh.npz --lm-head=head.npy --hidden=h", "compare_files", {},
        lambda: [open_hidden_states(f"{name}h.npz", "head.npy", array="h") for name in "xq"],
    ),
    "responses beside scores": (
        "compare x.jsonl q=q.npz --targets=t.npy --segment-ids=s.npy --part=prompt", "compare_files", {},
        lambda: [open_responses("x.jsonl", part="prompt"),
                 open_scores("q.npz", targets=["t.npy"], segment_ids=["s.npy"])],
    ),
    "a trainer and an engine": (
        "compare xl.npz q=q.jsonl --logprobs --mask=m --base-array=a --part=all --skip-failed", "compare_files", {},
        lambda: [open_logprobs("xl.npz", array="a", mask="m"),
                 open_responses("q.jsonl", part="all", skip_failed=True)],
    ),
    "samples": (
        "compare x-folder q=q-folder --margin=0.1 --cluster=c --run=2026", "compare_samples",
        {"margin": 0.1, "cluster": "c"},
        lambda: [open_samples(f"{name}-folder", run=["2026"]) for name in "xq"],
    ),
    "two tokenizers": (
        "compare x.npz q=q.npz --text=t --tokenizer-a=A --tokenizer-b=B --array=a --kind=logits --ignore-index=3 "
        "--shift --workers=2 --targets=t.npy --targets=t2.npy --segment-ids=s.npy --segment-ids=s2.npy",
        "compare_texts", {"text": "t", "names": ("x.npz", "q"), "shift": True, "workers": 2},
        lambda: [open_scores("x.npz", "t.npy", segment_ids="s.npy", array="a", kind="logits", ignore_index=3,
                             tokenizer="A"),
                 open_scores("q.npz", "t2.npy", segment_ids="s2.npy", array="a", kind="logits", ignore_index=3,
                             tokenizer="B")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDED)
def test_every_option_reaches_the_opener_or_the_function_that_runs_the_command(name, sources, command, monkeypatch):
    words, verb, options, opened = FORWARDED[name]
    signature, got = inspect.signature(getattr(commands, verb)), {}

    def function(*args, **given):
        got.update(signature.bind(*args, **given).arguments)
        raise ValueError("enough")

    function.__signature__ = signature
    monkeypatch.setattr(commands, verb, function)
    assert_refused(command(*words.split()), "enough")
    given = [got.pop(argument) for argument in ("source", "base", "a", "others", "b") if argument in got]
    given = [one for each in given for one in (each.values() if isinstance(each, dict) else [each])]
    assert [(type(one), repr(vars(one))) for one in given] == [(type(one), repr(vars(one))) for one in opened()]
    unset = (None, False, (), [], {}, 0, "whitespace", "exact", ("kl",), 5)
    changed = {argument: value for argument, value in got.items() if value not in unset or argument == "shift"}
    changed = {argument: value for argument, value in changed.items() if value is not None} | options
    assert changed.pop("progress", True) is True
    assert changed == {argument: got[argument] for argument in changed} == options


def test_every_option_of_the_command_is_among_those_that_are_forwarded():
    calls = [words.split() for words, *_ in FORWARDED.values()]
    outputs = {"per_token", "per_sequence", "plot", "html", "top_k", "format", "call", "source", "base", "others"}
    outputs |= {"detect"}  # an attribute of `Comparisons`, for what is printed
    for name, files in ("score", ["x"]), ("compare", ["x", "y"]):
        options = {*vars(make_parser().parse_args([name, *files]))} - outputs
        typed = {word.partition("=")[0][2:].removeprefix("no-").replace("-", "_") for call in calls for word in call[1:]
                 if call[0] == name and word.startswith("--")}  # fmt: skip
        gates = {option for option in options if option.startswith(("max_", "min_", "confidence"))}
        assert options - gates == {"sizes" if option == "size" else option for option in typed}


PAIRS = {
    "scores": ("x.npz", "q.npz"), "responses": ("x.jsonl", "q.jsonl"), "log-probabilities": ("xl.npz", "ql.npz"),
    "samples": ("xs.jsonl", "qs.jsonl"),
}  # fmt: skip
OF_SCORES = "--targets=t.npy --ignore-index=3 --kind=logits --targets-array=y --base-kind=logits"
OF_ROWS = "--classes=3 --definitions=llama.cpp --divergences=tv"
# by what files hold: the options that are not for them, and the words that say so
NOT_FOR = {
    "scores": {
        "--hidden=h --logit-scale=2 --softcap=5 --base-hidden=h": "is for hidden states; x.npz, q.npz have scores",
        "--part=all --skip-failed": "is for responses; x.npz, q.npz have scores",
        "--mask=m": "is for log-probabilities in files with names; x.npz, q.npz have scores",
        "--run=2026": "is for folders of samples; x.npz, q.npz have scores",
        "--margin=0.1 --cluster=c": "is for samples of lm-evaluation-harness",
    },
    "responses": {
        f"{OF_SCORES} --segment-ids=s.npy --array=a": "is for scores; x.jsonl, q.jsonl have responses",
        "--hidden=h --logit-scale=2 --softcap=5 --lm-head=head.npy --base-lm-head=head.npy": "is for hidden states",
        OF_ROWS: "needs all classes of each token",
        "--mask=m --logprobs": "is for log-probabilities",
        "--margin=0.1 --cluster=c": "is for samples of lm-evaluation-harness",
    },
    "log-probabilities": {
        OF_SCORES: "is for scores; xl.npz, ql.npz have log-probabilities",
        "--hidden=h --logit-scale=2 --softcap=5": "is for hidden states; xl.npz, ql.npz have log-probabilities",
        OF_ROWS: "needs all classes of each token",
        "--part=all --skip-failed": "is for responses; xl.npz, ql.npz have log-probabilities",
        "--margin=0.1 --cluster=c": "is for samples of lm-evaluation-harness",
        "--size=q=4G --noise=xs.jsonl": "needs the most likely classes of each token",
        "--html=x.html": "needs columns that the tokens here do not have: base_nll, kl, nll",
    },
    "samples": {
        f"{OF_SCORES} --segment-ids=s.npy --array=a": "is for scores; xs.jsonl, qs.jsonl have samples",
        "--hidden=h --logit-scale=2 --softcap=5 --lm-head=head.npy":
            "is for hidden states; xs.jsonl, qs.jsonl have samples",
        f"{OF_ROWS} --shift --state=f --scheduler=x --noise=q.npz --size=q=4G --draft --temperature=0.5":
            "does not apply to samples of lm-evaluation-harness",
        "--html=x.html --plot=x.png --per-token=x.csv": "needs tokens, which this comparison does not have",
        "--part=all --skip-failed": "is for responses; xs.jsonl, qs.jsonl have samples",
        "--mask=m --logprobs": "is for log-probabilities",
    },
}  # fmt: skip


@pytest.mark.parametrize("content", PAIRS)
def test_an_option_that_is_not_for_what_files_hold_is_refused(content, sources, command):
    base, other = PAIRS[content]
    before = {*sources.iterdir()}
    for options, words in NOT_FOR[content].items():
        for option in options.split():
            if "noise" in option and content == "log-probabilities":
                np.savez("noise.npz", logprobs=-np.ones((4, 6)))
                option = "--noise=noise.npz"
            refused = command("compare", base, f"q={other}", option)
            assert_refused(refused, f"{option.partition('=')[0].replace('--no-', '--')} ", words)
    assert {path.name for path in {*sources.iterdir()} - before} <= {"noise.npz"}
    for option in [] if content == "samples" else ["--shift", "--no-shift"]:
        assert command("compare", base, f"q={other}", option)[0] == 0
    assert command("compare", base, f"q={other}", "--workers=2")[0] == 0


def test_one_head_is_for_the_files_that_may_hold_hidden_states(sources, command):
    """Not for responses beside them, nor for a base whose kind is given."""
    refused = command("compare", "xh.npz", "q.jsonl", "--lm-head", "head.npy")
    assert_refused(refused, "xh.npz: has 6 rows with targets in sequence 0; it must have 2, as q.jsonl does")
    refused = command("compare", "x.npz", "q.npz", "--base-kind", "logits", "--lm-head", "head.npy")
    assert_refused(refused, "q.npz: contains logits, a; it must contain exactly one of hidden_states, hidden")


def test_the_mask_of_lines_beside_an_array_without_names(sources, command):
    np.save("trainer.npy", [-1.0, -2.0, -3.0])
    clients.save_lines(Path("rollout.jsonl"), {"logprobs": [-1.0, -2.5, -3.0], "m": [1, 1, 0]})
    argv = "compare", "trainer.npy", "rollout.jsonl", "--logprobs", "--json"
    counts = [json.loads(command(*argv, *mask)[1])["candidates"][0]["count"] for mask in ([], ["--mask", "m"])]
    assert counts == [3, 2]
    refused = command(*argv, "--mask", "n")
    assert_refused(refused, "rollout.jsonl: line 1: it has no mask 'n'; it must have it next to logprobs")
    refused = command("score", "trainer.npy", "--logprobs", "--mask", "m")
    assert_refused(refused, "--mask is for log-probabilities in files with names; trainer.npy has log-probabilities")
    for array in ["--array", "z"], ["--base-array", "z", "--array", "a"]:
        refused = command("compare", "xl.npz", "ql.npz", "--logprobs", *array)
        assert_refused(refused, "l.npz: contains logprobs, a, m; it must contain 'z'")
    for options in {"array": "z"}, {"mask": "z"}:
        with pytest.raises(ValueError, match=r"trainer.npy: contains one array without a name; it must name 'z'"):
            open_logprobs("trainer.npy", **options)
        with pytest.raises(ValueError, match=r"xl.npz: contains logprobs, a, m; it must contain 'z'"):
            open_logprobs("xl.npz", **options)
