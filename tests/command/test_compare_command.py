"""tokenloss compare: its JSON, its tables, its options, and files that do not fit together."""

import inspect
import math
import re

import numpy as np
import pytest
from commands import assert_refused
from places import DATA, SAMPLE

import tokenloss
from tokenloss._command import commands
from tokenloss._evaluation import compare_files, plan
from tokenloss._evaluation.compare_logprobs import compare_logprobs
from tokenloss._evaluation.compare_responses import compare_responses
from tokenloss._evaluation.compare_samples import compare_samples
from tokenloss._evaluation.compare_scores import compare_scores
from tokenloss.formats import llama_cpp

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
    found = compare_json(models.path / "base.npz", models.path / other)
    sequences = np.arange(4)[:, None]  # each row of (4, 6, V)
    expected = tokenloss.compare(models.base, models.other, models.targets, segment_ids=sequences).to_dict()
    of_files = {"base", "file", "base_kind", "kind", "shape", "n_ignored", "n_without_next", "fits_better_shifted"}
    of_files |= {"name", "size", "classes", "files"}
    assert set(found) == set(expected) | of_files
    assert (found["base_kind"], found["kind"]) == ("logits", "probs" if other == "other.npz" else "logits")
    if other == "other.npz":
        words = "kind:logits|dtype:float32", "kind:probs/logits|dtype:float64/float32"
        expected["signature"] = expected["signature"].replace(*words)
    for name, value in expected.items():
        assert found[name] == near(value, 1e-5 if other == "other.npz" else 0), name
    assert (found["base"], found["file"]) == (str(models.path / "base.npz"), str(models.path / other))
    assert (found["shape"], found["count"], found["n_ignored"]) == ([24, 9], 24, 0)


def test_targets_and_ignore_index_in_compare(models, compare_json):
    base, other, targets = models.path / "base.npz", models.path / "other.npy", models.path / "targets.npy"
    expected = compare_json(base, other)
    for argv in ((base, other, "--targets", targets), (other, base), (other, other, "--targets", targets)):
        assert compare_json(*argv)["count"] == expected["count"]
    assert compare_json(other, base)["perplexity"] == expected["base_perplexity"]
    assert compare_json(base, other, "--ignore-index", models.targets[0, 0])["n_ignored"] == np.count_nonzero(
        models.targets == models.targets[0, 0]
    )


def test_compare_files_that_do_not_fit(models, command):
    base, other, targets = models.path / "base.npz", models.path / "other.npy", models.path / "targets.npy"
    refused = command("compare", other, other, "--html", "page.html")
    assert_refused(refused, f"{other}: holds no targets; it must hold them for --html, or come with --targets")
    assert_refused(command("compare", other, other, "--shift"), f"{other}: holds no targets", "--targets")
    assert_refused(
        command("compare", base, SAMPLE), f"{SAMPLE}: holds 15 rows of 51864 classes; it must hold 24 rows of 9"
    )
    np.save(targets, models.targets[:, ::-1])
    assert_refused(command("compare", base, other, "--targets", targets), f"{targets}: holds other targets", f"{base}")
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
    assert_refused(command("compare", base, other), f"{other}: holds other targets; it must hold those of {base}")


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


ALL = "--targets=t --segment-ids=s --ignore-index=3 --shift --workers=2"
FILES = f"{ALL} --array=a --kind=probs --lm-head=l --hidden=h --logit-scale=2 --softcap=5 --state=f --scheduler=x"
FILES += " --targets-array=y"
OF_ALL = {"targets": ["t"], "segment_ids": ["s"], "ignore_index": 3, "shift": True, "workers": 2}
OF_FILES_ALONE = {"array": "a", "kind": "probs", "lm_head": "l", "hidden": "h", "logit_scale": 2.0, "softcap": 5.0,
                  "state": "f", "scheduler": "x", "targets_array": "y"}  # fmt: skip
FORWARDED = {
    "evaluate": (
        "score x.npy --n-bytes=7 --n-words=6 --words=lm-eval --tokenizer=t --top=9 --part=all --skip-failed "
        f"--window=9 --stride=4 {FILES}",
        OF_ALL | OF_FILES_ALONE | {"source": ["x.npy"], "n_bytes": 7, "n_words": 6, "words": "lm-eval",
                                   "tokenizer": "t", "top": 9, "part": "all", "skip_failed": True, "window": 9,
                                   "stride": 4},
    ),
    "compare_files": (
        "compare x.npy q=q.npy --base-array=b --base-kind=log_probs --base-lm-head=m --base-hidden=i --classes=8 "
        "--definitions=llama.cpp --divergences=tv,js --divergences=hellinger --size=q=4.9G --part=all --skip-failed "
        f"--margin=0.1 --cluster=c --run=2026 --noise=n.json --draft --temperature=0.5 --cost-ratio=0.1 {FILES}",
        OF_ALL | OF_FILES_ALONE | {"base": "x.npy", "others": {"q": "q.npy"}, "base_array": "b", "lm_head": ["l"],
                                   "base_kind": "log_probs", "base_lm_head": "m", "base_hidden": "i", "classes": 8,
                                   "definitions": "llama.cpp", "divergences": ("tv", "js", "hellinger"),
                                   "sizes": {"q": "4.9G"}, "part": "all",
                                   "skip_failed": True, "margin": 0.1, "cluster": "c", "run": ["2026"],
                                   "noise": "n.json", "draft": True, "temperature": 0.5, "cost_ratio": 0.1},
    ),
    "compare_texts": (
        "compare x.npy q=q.npy --text=t --tokenizer-a=A --tokenizer-b=B --array=a --targets-array=y --kind=probs "
        "--ignore-index=3 --shift --workers=2 --targets=i --targets=j --segment-ids=k --segment-ids=l",
        {"a": "x.npy", "b": "q.npy", "name_b": "q", "tokenizer_a": "A", "tokenizer_b": "B", "array": "a",
         "targets_array": "y", "kind": "probs", "ignore_index": 3, "shift": True, "workers": 2,
         "targets": ["i", "j"], "segment_ids": ["k", "l"]},
    ),
}  # fmt: skip
OTHERS = {"sinks", "progress", "text"}  # which no option gives as it is


@pytest.mark.parametrize("function", [compare_scores, compare_responses, compare_samples, compare_logprobs])
def test_an_option_that_a_comparison_does_not_take_is_refused(function, command, monkeypatch):
    """By the command and by Python alike, before any file is read."""
    monkeypatch.setattr(compare_files, "is_samples", lambda _: function is compare_samples)
    monkeypatch.setattr(compare_files, "are_logprobs", lambda *_: function is compare_logprobs)
    base, other = ("x.npy", "q.npy") if function is compare_scores else ("x.json", "q.json")
    taken = {*inspect.signature(function).parameters, "workers", "progress"}
    refused = {name: value for name, value in FORWARDED["compare_files"][1].items() if name not in taken}
    words = {word[2:].split("=")[0]: word for word in FORWARDED["compare_files"][0].split() if word.startswith("--")}
    for name, value in refused.items():
        option = {"sizes": "size"}.get(name, name.replace("_", "-"))
        named = words[option].replace("=q=", f"={other}=")
        assert_refused(command("compare", base, other, named), f"--{option} ")
        given = {other: "4.9G"} if name == "sizes" else value
        with pytest.raises(ValueError, match=rf"^{name} (does not apply to|is for) (responses|samples|log-prob)"):
            tokenloss.compare_files(base, other, **{name: given})
    if function is compare_samples:
        for option in "--html=x.html", "--plot=x.png", "--per-token=x.csv", "--per-sequence=x.csv":
            words = "does not apply to samples of lm-evaluation-harness; in Python, columns() of each of the result's"
            assert_refused(command("compare", base, other, option), f"{option.partition('=')[0]} {words} metrics lists")
    assert len(refused) > 1


@pytest.mark.parametrize("name", FORWARDED)
def test_every_option_reaches_the_function_that_runs_the_command(name, command, monkeypatch):
    words, expected = FORWARDED[name]
    signature, got = inspect.signature(getattr(commands, name)), {}

    def function(*args, **options):
        got.update(signature.bind(*args, **options).arguments)
        raise ValueError("enough")

    function.__signature__ = signature
    monkeypatch.setattr(commands, name, function)
    assert_refused(command(*words.split()), "enough")
    assert {option: value for option, value in got.items() if option not in OTHERS} == expected
    others = OTHERS | ({"name_a", "top"} if name == "compare_texts" else set())
    assert set(signature.parameters) <= expected.keys() | others
    assert all(signature.parameters[option].default != value for option, value in expected.items())
