"""Sources: what openers return knows its files by their headers, can be sent elsewhere, and is refused in one way."""

import json
import os
import pickle
import re
import subprocess
import sys

import clients
import numpy as np
import pytest
from arrays import assert_same_bits
from commands import run
from files import LOGITS, TARGETS, held_at_most, save_compressed_npz, save_npz, save_zarr

import tokenloss
from tokenloss import compare_files, compare_samples, compare_texts, evaluate
from tokenloss.formats import (
    Blocks,
    Logprobs,
    Responses,
    Samples,
    Scores,
    Source,
    blocks,
    open_hidden_states,
    open_logprobs,
    open_responses,
    open_samples,
    open_scores,
)
from tokenloss.formats.content import as_source

RNG = np.random.default_rng(5)
LOGPROBS = -RNG.exponential(size=(3, 4))
MASK = np.arange(4) < np.array([[4], [2], [3]])
ANSWER = {"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.25}]}}
SAMPLE = {"doc_id": 0, "filtered_resps": ["A"], "acc": 1}


def save_lines(path, *lines):
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def save_shards(folder, n=3):
    """Files of five rows each, of seven classes."""
    for i in range(n):
        np.savez(folder / f"part-{i}.npz", logits=np.full((5, 7), i, np.float16), targets=np.arange(5))
    return folder / "part-*.npz"


def save_samples(folder, *tasks):
    folder.mkdir()
    for task in tasks:
        save_lines(folder / f"samples_{task}_2026-11-28T09-00-00.0.jsonl", SAMPLE)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file of each content, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    save_shards(tmp_path)
    np.savez("unlabeled.npz", logits=np.zeros((2, 3, 7), np.float32), input_ids=np.zeros((2, 3), int))
    np.save("logits.npy", LOGITS)
    np.save("ids.npy", TARGETS)
    np.save("more-ids.npy", TARGETS[::-1])
    np.save("hidden.npy", np.ones((8, 4)))
    np.save("head.npy", np.ones((4, 51864)))
    np.save("trainer.npy", LOGPROBS)
    np.savez("trainer.npz", logprobs=LOGPROBS)
    save_lines(tmp_path / "chat.jsonl", {"choices": [ANSWER]})
    save_lines(tmp_path / "rollout.jsonl", {"logprobs": [-0.5, -1.0]})
    save_lines(tmp_path / "mc.jsonl", SAMPLE)
    save_samples(tmp_path / "tasks", "arc", "gsm8k")
    return tmp_path


# -- values -----------------------------------------------------------------------------------------------------------

REPRS = {
    "Scores(3 files, 15 x 7, float16, class ids)": lambda: open_scores("part-*.npz"),
    "Scores(logits.npy, 8 x 6, float32, without targets)": lambda: open_scores("logits.npy"),
    "Scores(logits.npy, 8 x 6, float32, class ids)": lambda: open_scores("logits.npy", "ids.npy"),
    "Scores(unlabeled.npz, 2 x 3 x 7, float32, input ids)": lambda: open_scores("unlabeled.npz"),
    "Scores(hidden.npy, 8 x 51,864, float64, without targets)": lambda: open_hidden_states("hidden.npy", "head.npy"),
    "Responses(chat.jsonl, chat, generated)": lambda: open_responses("chat.jsonl"),
    "Logprobs(trainer.npy, 3 x 4)": lambda: open_logprobs("trainer.npy"),
    "Logprobs(rollout.jsonl, lines of JSON)": lambda: open_logprobs("rollout.jsonl"),
    "Samples(tasks, arc, gsm8k)": lambda: open_samples("tasks"),
    "Samples(mc.jsonl)": lambda: open_samples("mc.jsonl"),
    "Blocks(list)": lambda: blocks([(LOGITS, TARGETS)]),
    "Blocks(a function)": lambda: blocks(iter),
}


@pytest.mark.parametrize("expected", REPRS)
def test_repr_shows_what_a_source_holds(expected, folder):
    source = REPRS[expected]()
    assert isinstance(source, Source)
    assert repr(source) == expected


@pytest.mark.parametrize("expected", [name for name in REPRS if "Blocks" not in name])
def test_sources_of_files_are_pickled_without_what_is_open(expected, folder):
    source = REPRS[expected]()
    if isinstance(source, Scores) and len(source.paths) == 1:
        assert source.file is source.file  # opened once
        next(source.blocks(1))
    data = pickle.dumps(source)
    assert len(data) < 1000
    again = pickle.loads(data)  # noqa: S301 - made here
    assert (type(again), repr(again), again.files, again.given()) == (
        type(source), expected, source.files, source.given(),
    )  # fmt: skip


SCORED_ELSEWHERE = """
import pickle, sys, tokenloss
sources = pickle.load(sys.stdin.buffer)
print([tokenloss.evaluate(source).meter.total.hex() for source in sources])
"""


def test_a_source_with_absolute_paths_is_read_by_a_process_in_another_folder(folder):
    sources = open_scores("logits.npy", "ids.npy"), open_responses("chat.jsonl"), open_logprobs("trainer.npy")
    expected = [evaluate(source).meter.total.hex() for source in sources]
    (folder / "elsewhere").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", SCORED_ELSEWHERE], input=pickle.dumps([source.absolute() for source in sources]),
        cwd=folder / "elsewhere", env=os.environ, capture_output=True, check=True,
    )  # fmt: skip
    assert result.stdout.decode().strip() == repr(expected)


def test_like_opens_another_model_with_the_same_options(folder):
    np.savez("other.npz", scores=LOGITS, probs=LOGITS, y=TARGETS)
    for source, path in [
        (open_scores("other.npz", "ids.npy", array="scores", kind="log_probs", shift=False), "other.npz"),
        (open_hidden_states("hidden.npy", "head.npy", logit_scale=0.5, ignore_index=3), "hidden.npy"),
        (open_responses("chat.jsonl", part="all", skip_failed=True), "chat.jsonl"),
        (open_logprobs("trainer.npz", array="logprobs"), "trainer.npz"),
        (open_samples("tasks", run="2026-11"), "tasks"),
    ]:
        other = source.like(path)
        assert (type(other), other.paths) == (type(source), source.paths)
        assert (other.given(), other.token_options) == (source.given(), source.token_options)
    assert open_scores("part-0.npz").like("part-*.npz").shape == (15, 7)
    with pytest.raises(ValueError, match="like opens files, but this source has blocks"):
        blocks([]).like("part-0.npz")


def test_name_is_what_was_opened(folder):
    assert open_scores("part-*.npz").name == "part-*.npz"
    assert open_scores("part-*.npz").paths == ("part-0.npz", "part-1.npz", "part-2.npz")
    assert set(open_hidden_states("hidden.npy", "head.npy", "ids.npy").files) == {"hidden.npy", "head.npy", "ids.npy"}


# -- headers are read at once, and nothing else -----------------------------------------------------------------------


def test_scores_are_not_read_by_the_opener(tmp_path):
    """Neither all of a large file, nor a damaged part of a small one."""
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 14, 1 << 15)}
        )
        file.truncate(file.tell() + (4 << 29))  # takes no room on the disk
    with held_at_most(1 << 20):
        source = open_scores(path)
        assert (source.kind, source.shape, source.dtype) == ("logits", (1 << 14, 1 << 15), "float32")
        assert [len(block) for _, block in zip(range(2), source.blocks(4), strict=False)] == [4, 4]
    store = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (store / "logits" / "c" / "1" / "0").write_bytes(b"no chunk")
    source = open_scores(store)
    with pytest.raises(ValueError, match="cannot be read"):
        list(source.blocks(3))


def test_later_lines_of_responses_are_not_read_by_the_opener(tmp_path):
    path = save_lines(tmp_path / "chat.jsonl", *[{"choices": [ANSWER]}] * 3)
    path.write_text(path.read_text() + "damaged\n")
    source = open_responses(path)
    with pytest.raises(ValueError, match="line 4"):
        list(source)


WRONG = {
    "a damaged header": (
        lambda path: (path / "part-1.npz").write_bytes(b"PK\3\4 damaged"), lambda: open_scores("part-*.npz"),
        "part-1.npz: cannot be read",
    ),
    "a shard of other classes": (
        lambda path: np.savez(path / "part-1.npz", logits=np.zeros((5, 8), np.float16)),
        lambda: open_scores("part-*.npz"), "part-1.npz: contains logits of 8 classes; it must contain logits of 7",
    ),
    "a shard of another kind": (
        lambda path: np.savez(path / "part-1.npz", probs=np.zeros((5, 7), np.float16)),
        lambda: open_scores("part-*.npz"), "part-1.npz: contains probs of 7 classes; it must contain logits of 7",
    ),
    "targets that do not exist": (
        lambda path: None, lambda: open_scores("logits.npy", "missing.npy"), "No such file or directory: 'missing.npy'",
    ),
    "segment ids in a damaged file": (
        lambda path: (path / "numbers.npy").write_bytes(b"\x93NUMPY"),
        lambda: open_scores("logits.npy", segment_ids="numbers.npy"), "numbers.npy: ",
    ),
    "a head of another size": (
        lambda path: np.save(path / "head.npy", np.ones((5, 9))), lambda: open_hidden_states("hidden.npy", "head.npy"),
        "head.npy: the head has shape (5, 9); it must have shape (V, 4) or (4, V)",
    ),
    "hidden states without a head": (
        lambda path: np.savez(path / "hidden.npz", hidden_states=np.ones((8, 4))), lambda: open_scores("hidden.npz"),
        "contains hidden_states and no scores; it must be opened by open_hidden_states",
    ),
    "responses opened as scores": (
        lambda path: None, lambda: open_scores("chat.jsonl"),
        "chat.jsonl: is JSON; it must have scores or hidden states; formats.op",
    ),
    "scores opened as responses": (lambda path: None, lambda: open_responses("logits.npy"), "logits.npy: line 1"),
    "responses opened as log-probabilities": (
        lambda path: None, lambda: open_logprobs("chat.jsonl"), "chat.jsonl: line 1: it has no log-probabilities",
    ),
    "responses opened as samples": (lambda path: None, lambda: open_samples("chat.jsonl"), "has no samples"),
    "class ids opened as log-probabilities": (
        lambda path: None, lambda: open_logprobs("ids.npy"), "logprobs has dtype int64; it must be float16",
    ),
    "an array by a name, where a file has none": (
        lambda path: None, lambda: open_logprobs("trainer.npy", array="logprobs"),
        "contains one array without a name; it must name 'logprobs'",
    ),
    "a mask by a name, where a file has none": (
        lambda path: None, lambda: open_logprobs("trainer.npy", mask="mask"),
        "contains one array without a name; it must name 'mask'",
    ),
    "a mask that the file lacks": (
        lambda path: None, lambda: open_logprobs("trainer.npz", mask="mask"), "contains logprobs; it must contain",
    ),
    "several files of log-probabilities": (
        lambda path: None, lambda: open_logprobs(["trainer.npy", "trainer.npz"]), "path is '2 paths'; it must be one",
    ),
    "no file": (lambda path: None, lambda: open_scores([]), "paths is empty; it must be a path, or paths"),
    "a file twice": (lambda path: None, lambda: open_scores(["logits.npy"] * 2), "is given twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_files_is_an_error_at_the_opener(what, folder):
    prepare, opened, words = WRONG[what]
    prepare(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        opened()


@pytest.mark.parametrize("save", [save_npz, save_compressed_npz])
@pytest.mark.parametrize("change", ["rows", "dtype", "kind"])
def test_a_file_whose_header_changed_after_it_was_opened_is_refused(change, save, tmp_path):
    sources = [open_scores(save(tmp_path / "scores")) for _ in range(2)]
    logits = LOGITS[:4] if change == "rows" else LOGITS.astype(np.float64) if change == "dtype" else LOGITS
    path = save(tmp_path / "scores", logits, TARGETS[: len(logits)])
    if change == "kind":
        np.savez(path, probs=LOGITS, targets=TARGETS)
    for read in (lambda: list(sources[0].blocks(3)), lambda: evaluate(sources[1])):
        with pytest.raises(ValueError, match="changed after it was opened; it must stay as it is while it is read"):
            read()


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_one_file_is_read_by_hand(tmp_path):
    source = open_scores(save_npz(tmp_path / "scores", tokens=np.array(["a"] * 8), segment_ids=TARGETS))
    assert (source.kind, source.shape, source.dtype) == ("logits", LOGITS.shape, "float32")
    np.testing.assert_array_equal(source.targets, TARGETS)
    assert source.file.tokens.tolist() == ["a"] * 8
    np.testing.assert_array_equal(source.file.segment_ids, TARGETS)
    for _ in range(2):  # each pass starts at the first row
        assert_same_bits(np.concatenate(list(source.blocks(3))), LOGITS)


def test_several_files_are_read_by_hand_one_after_the_other(tmp_path):
    source = open_scores(save_shards(tmp_path))
    result = [*source.blocks(3)]
    assert [len(block) for block in result] == [3, 2] * 3
    assert np.concatenate(result)[:, 0].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for read in (lambda: source.file, lambda: source.targets):
        with pytest.raises(
            TypeError, match=r"source is 'Scores\(3 files, .*\)'; it must be one file, to be read by hand"
        ):
            read()
    with pytest.raises(ValueError, match="most_rows is 0; it must be a positive integer"):
        source.blocks(0)


# -- contents ---------------------------------------------------------------------------------------------------------

CONTENTS = {
    "scores": (Scores, lambda path: "logits.npy"),
    "scores in shards": (Scores, lambda path: ["part-0.npz", "part-1.npz"]),
    "scores and class ids": (Scores, lambda path: ["logits.npy", "ids.npy"]),
    "a folder of samples": (Samples, lambda path: "tasks"),
    "a file of samples": (Samples, lambda path: "mc.jsonl"),
    "responses": (Responses, lambda path: "chat.jsonl"),
    "a list of responses": (Responses, lambda path: ["chat.jsonl"]),
    "lists in lines of JSON": (Logprobs, lambda path: "rollout.jsonl"),
    "lists that verl names": (
        Logprobs, lambda path: save_lines(path / "verl.jsonl", {"rollout_log_probs": [-1.0], "response_mask": [1]}),
    ),
    "an array of log-probabilities": (Logprobs, lambda path: "trainer.npz"),
    "blocks": (Blocks, lambda path: [(LOGITS, TARGETS)]),
    "an iterator of blocks": (Blocks, lambda path: iter([(LOGITS, TARGETS)])),
    "a function that makes blocks": (Blocks, lambda path: lambda first: [(LOGITS, TARGETS)]),
    "a source": (Scores, lambda path: open_scores("logits.npy")),
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_content_tells_which_source_it_is(content, folder):
    kind, value = CONTENTS[content]
    assert type(as_source(value(folder))) is kind


@pytest.mark.parametrize(
    ("array", "mask"),
    [
        ("rollout_log_probs", "response_mask"), ("sampling_per_token_logps", "completion_mask"),
        ("completion_logprobs", "completion_mask"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["npz", "jsonl"])
def test_frameworks_names_of_log_probabilities_come_with_their_masks(array, mask, form, tmp_path):
    """Those of verl, of TRL and of prime-rl; what a mask leaves out may hold any number."""
    path, padded = tmp_path / f"rollout.{form}", np.where(MASK, LOGPROBS, -99.0)
    if form == "npz":
        np.savez(path, **{array: padded, mask: MASK.astype(int)})
    else:
        save_lines(path, *({array: row.tolist(), mask: own.astype(int).tolist()} for row, own in zip(padded, MASK)))  # noqa: B905 - of one length
    result = evaluate(path)
    assert result.count == MASK.sum()
    assert result.meter.total == pytest.approx(-LOGPROBS[MASK].sum(), rel=1e-15)
    assert result.columns()["count"].tolist() == MASK.sum(1).tolist()


def test_contents_that_are_mixed_are_refused(folder):
    with pytest.raises(ValueError, match="contains responses; it must contain scores, as"):
        evaluate(["logits.npy", "chat.jsonl"])
    with pytest.raises(ValueError, match="contains samples; it must contain responses, as"):
        evaluate(["chat.jsonl", "mc.jsonl"])
    with pytest.raises(TypeError, match=r"source is 'list of sources'; it must be one source; open several files at o"):
        evaluate([open_scores("part-0.npz"), open_scores("part-1.npz")])
    for value, words in (([], "is empty"), (None, "is 'NoneType'"), (LOGITS, "is 'ndarray'"), ({"id": 1}, "is 'dict'")):
        with pytest.raises((TypeError, ValueError), match=f"source {words}; it must be paths"):
            evaluate(value)


def test_an_array_that_may_be_log_probabilities_is_not_read_as_scores(folder):
    """One axis, padding of nan, and padding of zeros: each was a loss over the wrong axis."""
    np.save("flat.npy", LOGPROBS.ravel())
    np.save("nan.npy", np.where(MASK, LOGPROBS, np.nan))
    np.save("zeros.npy", np.where(MASK, LOGPROBS, 0))
    padding = (
        "has no number above 0, and its rows end in nan or in zeros, as log-probabilities of tokens with padding do"
    )
    for name, got in (
        ("flat.npy", "has one number for each token, and no classes"), ("nan.npy", padding), ("zeros.npy", padding)
    ):  # fmt: skip
        words = (
            f"{name}: {got}; it must be opened by open_logprobs, if it contains log-probabilities of tokens, or come "
        )
        with pytest.raises(ValueError, match=re.escape(f"{words}with kind=")):
            evaluate(name)
        with pytest.raises(ValueError, match=re.escape(words)):
            compare_files(name, "trainer.npz")
        status, message = run("score", name)
        assert status == 2
        assert f"{name}: {got}; it must come with --logprobs, if it contains log-probabilities of tokens, or" in message
        assert run("score", name, "--logprobs")[0] == (2 if name == "zeros.npy" else 0)  # whose padding would count
        assert open_scores(name, kind="log_probs").kind == "log_probs"  # as the reader says
    np.save("classes.npy", tokenloss.log_softmax(LOGITS))  # no zeros, no nan: as any log-probabilities of classes
    assert evaluate(["classes.npy", "ids.npy"]).count == 8


# -- what a source lacks ----------------------------------------------------------------------------------------------


def lacking(folder):
    """By what a function needs: calls with sources that lack it, and what each error says."""
    tops, nll, made = open_responses("chat.jsonl"), open_logprobs("trainer.npy"), [(LOGITS, TARGETS)]
    by_hand = open_scores("logits.npy")
    gives = "chat.jsonl gives only the most likely classes"
    samples = "samples of lm-evaluation-harness, which compare_samples compares; {} needs the loss of each token"
    return {
        "nll": [
            (lambda: evaluate("mc.jsonl"), f"mc.jsonl contains {samples.format('evaluate')}"),
            (lambda: evaluate(open_samples("tasks")), f"tasks contains {samples.format('evaluate')}"),
        ],
        "rows": [
            (lambda: compare_files(tops, tops, divergences=["js"]), f"{gives}; divergences needs all classes of each"),
            (lambda: compare_files(tops, tops, classes=3), f"{gives}; classes needs all classes of each token"),
            (lambda: compare_files(tops, tops, temperature=0.5), f"{gives}; temperature needs all classes of each"),
            (lambda: compare_files(tops, tops, definitions="llama.cpp"), f"{gives}; definitions needs all classes"),
            (
                lambda: compare_files(nll, "trainer.npz", classes=3),
                "trainer.npy gives the log-probability of each token only; classes needs all classes of each token",
            ),
            (lambda: compare_texts(tops, tops, text="ids.npy"), f"{gives}; compare_texts needs all classes"),
        ],
        "tops": [
            (
                lambda: compare_files(nll, "trainer.npz", sizes={"trainer.npz": 1}),
                "trainer.npy gives the log-probability of each token only; sizes needs the most likely classes of",
            ),
        ],
        "tokenizer": [
            (
                lambda: compare_texts(by_hand, by_hand, text="ids.npy"),
                "logits.npy was opened without tokenizer=; compare_texts needs a tokenizer",
            ),
        ],
        "plan": [
            (
                lambda: evaluate(blocks(made), scheduler="tcp://127.0.0.1:1"),
                "source is blocks, which are made one by one; scheduler needs files, all of which are known before the",
            ),
            (lambda: compare_files(made, by_hand), "source is blocks, which are made one by one; base needs files"),
        ],
        "resume": [
            (
                lambda: evaluate(made, state="a.state"),
                "which starts at its first block; state needs a source that can start at any part: files, or a func",
            ),
        ],
    }


@pytest.mark.parametrize("need", ["nll", "tops", "rows", "tokenizer", "plan", "resume"])
def test_a_source_that_lacks_what_an_option_needs_is_refused_in_one_way(need, folder):
    for call, words in lacking(folder)[need]:
        with pytest.raises(ValueError, match=re.escape(words)):
            call()
    assert not (folder / "a.state").exists()


def test_a_source_without_targets_is_not_scored(folder):
    with pytest.raises(ValueError, match="has no targets; it must contain targets, or come with targets="):
        evaluate(open_scores("logits.npy"))
    np.save("other.npy", LOGITS + RNG.normal(size=LOGITS.shape))
    (result,) = compare_files("logits.npy", "other.npy").values()  # which needs none
    assert not result.has_targets


# -- options ----------------------------------------------------------------------------------------------------------


def test_shift_of_a_verb_must_not_contradict_the_opener(folder):
    shifted, kept, free = (open_scores("unlabeled.npz", shift=shift) for shift in (True, False, None))
    assert evaluate(shifted).count == evaluate(shifted, shift=True).count == evaluate(free, shift=True).count == 4
    with pytest.raises(
        ValueError, match=r"shift is False; it must be True, or left out, since unlabeled\.npz was opened with s"
    ):
        evaluate(shifted, shift=False)
    with pytest.raises(
        ValueError, match=r"shift is True; it must be False, or left out, since unlabeled\.npz was opened with s"
    ):
        compare_files(kept, "unlabeled.npz", shift=True)
    with pytest.raises(ValueError, match="it must be False, or left out, since source was opened with shift=False"):
        evaluate(blocks([(LOGITS, TARGETS)], shift=False), shift=True)
    assert free.token_options.shift is None  # the verb leaves the source as it is


def test_shift_leaves_sources_that_are_aligned_as_they_are(folder):
    for source in (open_responses("chat.jsonl"), open_logprobs("trainer.npy")):
        assert evaluate(source, shift=True) == evaluate(source)


def test_targets_that_are_given_twice(folder):
    with pytest.raises(ValueError, match=r"ids\.npy: is given twice; it must be given once"):
        evaluate(open_scores(["logits.npy", "ids.npy"], "ids.npy"))
    np.save("ids.npy", np.arange(5))
    with pytest.raises(
        ValueError, match=r"ids\.npy: contains int64, like targets, but part-0\.npz has targets; it must"
    ):
        evaluate(["part-0.npz", "ids.npy"])
    own, other = open_scores("part-0.npz"), open_scores("part-0.npz", "ids.npy")
    np.save("ids.npy", np.arange(5)[::-1])
    logits = np.zeros((5, 7), np.float16)
    for source, ids in ((own, np.arange(5)), (other, np.arange(5)[::-1])):  # those of the opener replace the file's own
        result = evaluate(source)
        assert result.meter.loss == tokenloss.cross_entropy(logits, ids)
        assert fields(result)["ids"] == fields(evaluate([(logits, ids)]))["ids"]


def fields(result):
    """The fields of a signature."""
    return dict(field.split(":") for field in result.signature.split("|"))


def test_a_list_of_class_ids_beside_scores_that_is_no_integers(folder):
    np.save("float.npy", TARGETS.astype(float))
    with pytest.raises(ValueError, match=r"class ids are integers: save them with \.astype\(int\)"):
        evaluate(["logits.npy", "float.npy"])
    with pytest.raises(ValueError, match="has dtype float64 and the shape of targets; it must contain integers"):
        open_scores(["logits.npy", "float.npy"])


# -- log-probabilities ------------------------------------------------------------------------------------------------


def sums_of(rows):
    """Total, tokens and mean of the means, by NumPy."""
    rows = [np.asarray(row)[~np.isnan(row)] for row in rows]
    every = np.concatenate(rows)
    return -every.sum(), every.size, np.mean([-row.mean() for row in rows if row.size])


def assert_losses(result, rows):
    total, count, per_sequence = sums_of(rows)
    assert (result.count, result.n_sequences) == (count, sum(bool((~np.isnan(row)).any()) for row in rows))
    assert result.meter.total == pytest.approx(total, rel=1e-14)
    assert result.meter.loss == pytest.approx(total / count, rel=1e-14)
    assert result.perplexity == pytest.approx(np.exp(total / count), rel=1e-14)
    assert result.figures["sequence_loss"] == pytest.approx(per_sequence, rel=1e-14)
    assert result.figures["kind"] == "logprobs"
    assert np.isnan(result.accuracy)
    kept = [row[~np.isnan(row)] for row in map(np.asarray, rows)]
    columns = result.columns()
    assert columns["count"].tolist() == [row.size for row in kept if row.size]
    np.testing.assert_allclose(columns["nll"], [-row.sum() for row in kept if row.size], rtol=1e-14)
    means = np.array([-row.mean() for row in kept if row.size])
    weights = np.array([row.size for row in kept if row.size])
    if len(means) > 1:  # the error of a ratio, by sequences
        spread = weights * (means - total / count)
        error = np.sqrt(len(means) / (len(means) - 1) * (spread**2).sum()) / count
        assert result.meter.loss.stderr == pytest.approx(error, rel=1e-9)


def test_log_probabilities_are_evaluated_by_rows_masks_and_segment_ids(tmp_path):
    padded = np.where(MASK, LOGPROBS, np.nan)
    np.save(tmp_path / "rows.npy", padded)
    assert_losses(evaluate(open_logprobs(tmp_path / "rows.npy")), padded)
    np.savez(tmp_path / "masked.npz", train=LOGPROBS, kept=MASK)
    assert_losses(evaluate(open_logprobs(tmp_path / "masked.npz", array="train")), LOGPROBS)
    assert_losses(evaluate(open_logprobs(tmp_path / "masked.npz", array="train", mask="kept")), padded)
    lines = [[None if np.isnan(one) else one for one in row] for row in padded.tolist()]
    save_lines(tmp_path / "lines.jsonl", *({"logprobs": row} for row in lines))
    assert_losses(evaluate(tmp_path / "lines.jsonl"), padded)
    np.save(tmp_path / "flat.npy", LOGPROBS.ravel())
    flat = evaluate(open_logprobs(tmp_path / "flat.npy"))  # whose tokens are assumed independent
    assert (flat.count, flat.n_sequences, flat.loss) == (12, 0, pytest.approx(-LOGPROBS.mean(), rel=1e-14))
    numbers = np.array([3, 3, 0, 0, 0, 7, 3, 7, 7, 7, 7, 7])
    for name, shape in ("flat.npy", (12,)), ("rows.npy", (3, 4)):
        np.save(tmp_path / name, LOGPROBS.reshape(shape))
        np.save(tmp_path / "numbers.npy", numbers.reshape(shape))
        result = evaluate(open_logprobs(tmp_path / name, segment_ids=tmp_path / "numbers.npy"))
        assert_losses(result, [LOGPROBS.ravel()[numbers == number] for number in (0, 3, 7)])


def test_log_probabilities_have_the_losses_of_the_logits_that_they_come_from(tmp_path):
    logits, ids = RNG.normal(size=(3, 4, 6)), RNG.integers(6, size=(3, 4))
    nll = tokenloss.cross_entropy(logits, ids, reduction="none")
    np.savez(tmp_path / "logprobs.npz", logprobs=-nll)
    result, expected = evaluate(tmp_path / "logprobs.npz"), evaluate([(logits, ids)])
    assert (result.meter.loss, result.meter.loss.stderr) == (expected.meter.loss, expected.meter.loss.stderr)
    assert result.columns()["nll"].tolist() == expected.columns()["nll"].tolist()


def test_segment_ids_that_leave_out_a_log_probability(tmp_path):
    np.save(tmp_path / "flat.npy", [-1.0, -2.0, np.nan])
    for numbers, fits in ([0, 0, -1], True), ([0, -1, 0], False):
        np.save(tmp_path / "numbers.npy", numbers)
        source = open_logprobs(tmp_path / "flat.npy", segment_ids=tmp_path / "numbers.npy")
        if fits:
            assert (evaluate(source).count, evaluate(source).n_sequences) == (2, 1)
        else:
            with pytest.raises(ValueError, match=r"token 1 of .*flat.npy has a log-probability, and the number -1; it"):
                evaluate(source)


def test_tables_of_log_probabilities_are_printed(tmp_path, command):
    np.save(tmp_path / "rows.npy", np.where(MASK, LOGPROBS, np.nan))
    result = evaluate(open_logprobs(tmp_path / "rows.npy"))
    status, out, err = command("score", tmp_path / "rows.npy", "--logprobs")
    assert (status, out, err) == (0, result.summary() + "\n", "")
    assert out.startswith(f"{tmp_path / 'rows.npy'}  3 sequences; log-probabilities rounded to")
    assert "greedy accuracy" not in out
    assert "bits per byte" not in out
    text = tmp_path / "text.txt"
    text.write_text("x" * 40)
    assert evaluate(open_logprobs(tmp_path / "rows.npy"), text=text).n_bytes == 40


def test_a_state_of_log_probabilities_belongs_to_their_segment_ids(tmp_path):
    np.save(tmp_path / "flat.npy", LOGPROBS.ravel())
    np.save(tmp_path / "numbers.npy", np.arange(12) // 5)
    source = open_logprobs(tmp_path / "flat.npy", segment_ids=tmp_path / "numbers.npy")
    first = evaluate(source, state=tmp_path / "state")
    assert evaluate(source, state=tmp_path / "state") == first
    np.save(tmp_path / "numbers.npy", np.arange(12) // 3)
    os.utime(tmp_path / "numbers.npy", ns=(0, 0))
    with pytest.raises(ValueError, match="state"):
        evaluate(source, state=tmp_path / "state")


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_take_the_options_that_say_what_they_hold(tmp_path):
    logits, ids = RNG.normal(size=(2, 5, 6)), RNG.integers(6, size=(2, 5))
    made = [(logits[:1], ids[:1]), (logits[1:], ids[1:])]
    nll = tokenloss.cross_entropy(logits, ids, reduction="none")
    assert evaluate(blocks(made)) == evaluate(made)
    assert evaluate(blocks(made)).meter.total == pytest.approx(nll.sum(), rel=1e-14)
    of_kind = [(tokenloss.softmax(one), own) for one, own in made]
    assert evaluate(blocks(of_kind, kind="probs")).meter.total == pytest.approx(nll.sum(), rel=1e-12)
    shifted = tokenloss.cross_entropy(logits[:, :-1], ids[:, 1:], reduction="none")
    for result in evaluate(blocks(made, shift=True)), evaluate(blocks(made), shift=True):
        assert (result.count, result.meter.total) == (8, pytest.approx(shifted.sum(), rel=1e-14))
    ignored = int(ids[0, 0])
    result = evaluate(blocks(made, ignore_index=ignored))
    assert (result.count, result.meter.total) == (
        (ids != ignored).sum(), pytest.approx(nll[ids != ignored].sum(), rel=1e-14),
    )  # fmt: skip
    with pytest.raises(IndexError, match="-100 is out of range"):
        evaluate(blocks([(logits, np.where(ids == ignored, -100, ids))], ignore_index=None))
    ranks = tmp_path / "a.tiktoken"
    ranks.write_text(
        "".join(f"{base} {i}\n" for i, base in enumerate(["YQ==", "YmI=", "YQo=", "Yw==", "ZA==", "ZWVl"]))
    )
    result = evaluate(blocks(made, tokenizer=ranks))
    lengths = np.array([1, 2, 2, 1, 1, 3])[ids]
    assert result.n_bytes == lengths.sum()
    assert result.bits_per_byte == pytest.approx(nll.sum() / np.log(2) / lengths.sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "odds"}, "kind is 'odds'; it must be 'logits', 'log_probs', 'probs'"),
        ({"shift": 2}, "shift is 2; it must be True, False or None"),
        ({"tokenizer": 3}, "tokenizer is 'int'; it must be a path"),
        ({"ignore_index": "none"}, "ignore_index is 'none'; it must be an integer or None"),
    ],
)
def test_options_of_blocks_that_are_wrong(options, words):
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        blocks([(LOGITS, TARGETS)], **options)
    with pytest.raises(TypeError, match="source is 'int'; it must be blocks, or a function that makes them"):
        blocks(3)


def test_samples_are_for_comparisons_of_samples(folder):
    clients.save(folder / "base.jsonl", "base/mc.jsonl")
    clients.save(folder / "noise.jsonl", "noise/mc.jsonl")
    result = compare_samples(open_samples("base.jsonl"), {"noise": open_samples("noise.jsonl")})
    assert result == compare_samples("base.jsonl", {"noise": "noise.jsonl"})
    with pytest.raises(ValueError, match="contains responses; it must contain samples of lm-evaluation-harness"):
        compare_samples(open_responses("chat.jsonl"), "noise.jsonl")
    with pytest.raises(ValueError, match="compare_samples"):
        compare_files("base.jsonl", "noise.jsonl")


def test_a_source_of_other_files_than_it_was_opened_for_is_refused(folder, monkeypatch):
    """Also where the other file has the same shape: it is in another folder, or took the place of the first."""
    source = open_scores("logits.npy", "ids.npy")
    (folder / "elsewhere").mkdir()
    np.save("elsewhere/logits.npy", 2 * LOGITS)
    np.save("elsewhere/ids.npy", TARGETS)
    monkeypatch.chdir(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"logits.npy: changed after it was opened"):
        evaluate(source)
    monkeypatch.chdir(folder)
    np.save("new.npy", 2 * LOGITS)
    os.replace("new.npy", "logits.npy")  # noqa: PTH105 - of a test
    for read in (evaluate, lambda source: source.file):
        with pytest.raises(ValueError, match=r"logits.npy: changed after it was opened"):
            read(source)


@pytest.mark.parametrize("made", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_blocks_of_an_empty_iterable_are_refused(made):
    with pytest.raises(ValueError, match=r"source is empty; it must be an iterable of blocks, which is read only once"):
        evaluate(blocks(made))


def test_blocks_of_a_generator_are_read_once():
    loop = blocks(block for block in [(LOGITS, TARGETS)])
    assert evaluate(loop).meter.count > 0
    with pytest.raises(ValueError, match=r"source is empty; .* which is read only once"):
        evaluate(loop)


def test_a_candidate_may_name_the_files_of_its_base_in_another_way(folder):
    base = open_scores("logits.npy", "ids.npy")
    np.save("other.npy", LOGITS + 0.5)
    other = open_scores("other.npy", folder / "ids.npy")
    assert compare_files(base, {"other": other})["other"].count == evaluate(base).meter.count
