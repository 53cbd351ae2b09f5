"""Signatures: the same for any split of a text, other where figures are of something else, and printed below tables."""

import base64
import inspect
import itertools
import math

import clients
import numpy as np
import pytest

import tokenloss
from tokenloss import (
    ComparisonMeter,
    LossMeter,
    compare,
    compare_files,
    compare_samples,
    evaluate,
    linear_compare,
    sequence_losses,
)
from tokenloss._core.signature import differing_fields
from tokenloss.formats import blocks as blocks_of
from tokenloss.formats import open_hidden_states, open_logprobs, open_responses, open_scores
from tokenloss.results import Evaluation, Evaluations

RNG = np.random.default_rng(3)
LENGTHS = [5, 1, 8, 3, 4]
LOGITS = [RNG.normal(size=(length, 7)).astype(np.float32) for length in LENGTHS]
IDS = [RNG.integers(7, size=length) for length in LENGTHS]


def fields(signature):
    """The fields of a signature."""
    return dict(field.split(":") for field in signature.split("|"))


def splitmix64(state):
    """The hash of a class id, in Python's integers."""
    state = (state + 1) * 0x9E3779B97F4A7C15 % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def hash_of(*sequences):
    """The hash of sequences, or of one: the sum over all ids, each mixed with the hash of the one before."""
    total = 0
    for ids in sequences:
        before = 0
        for one in map(int, ids):
            total += splitmix64(one ^ before)
            before = splitmix64(one)
    return f"{total % 2**64 >> 32:08x}"


def hash_of_loose(ids):
    """The hash of ids that belong to no sequence."""
    return hash_of(*([one] for one in ids))


def padded(numbers):
    """A batch of the texts of these numbers."""
    longest = max(LENGTHS[number] for number in numbers)
    logits, ids = np.full((len(numbers), longest, 7), 9.0, np.float32), np.full((len(numbers), longest), -100)
    for row, number in enumerate(numbers):
        logits[row, : LENGTHS[number]], ids[row, : LENGTHS[number]] = LOGITS[number], IDS[number]
    return logits, ids


BATCHES = [[[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 2], [0, 3, 1]]]


@pytest.mark.parametrize("shift", [None, True])
def test_signature_is_the_same_for_any_shards_blocks_order_and_sum(shift, tmp_path):
    signatures = []
    for number, batches in enumerate(BATCHES):
        blocks = [padded(batch) for batch in batches]
        paths = [tmp_path / f"{number}-{i}.npz" for i in range(len(blocks))]
        for path, (logits, ids) in zip(paths, blocks, strict=True):
            np.savez(path, logits=logits, targets=ids)
        each = [evaluate([block], shift=shift) for block in blocks]
        result = [
            evaluate(blocks, shift=shift),
            evaluate(paths, shift=shift),
            sum(each),
            Evaluation.of_parts(each[::-1]),
        ]
        signatures += [one.signature for one in result]
        assert all(one.figures["signature"] == one.signature for one in result)
    kept = [ids[bool(shift) :] for ids in IDS]
    scored = f"tokens:{sum(map(len, kept))}|sequences:{sum(length > bool(shift) for length in LENGTHS)}"
    of_shift = "|shift:yes" if shift else ""
    plain = f"tokenloss:{tokenloss.__version__}|unit:sequence|{scored}{of_shift}"
    plain += f"|kind:logits|dtype:float32|ids:{hash_of(*kept)}"
    masked = plain.replace("|kind", "|mask:yes|kind")  # by padding
    assert set(signatures) == {plain, masked}
    assert differing_fields(signatures) == []


def test_signature_of_a_resumed_run_is_that_of_one_run(tmp_path):
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    for path, logits, ids in zip(paths, LOGITS, IDS, strict=False):
        np.savez(path, logits=logits, targets=ids)
    state = tmp_path / "state"
    for function in lambda some: evaluate(some, state=state), lambda some: evaluate(some, state=state):
        result = function(paths)
    assert result.signature == evaluate(paths).signature
    (tmp_path / "q").mkdir()
    for path, logits in zip(paths, LOGITS, strict=False):
        np.savez(tmp_path / "q" / path.name, logits=logits + 1)
    others = {"q": [tmp_path / "q" / path.name for path in paths]}
    once, *again = (compare_files(paths, others, state=tmp_path / "compared")["q"].signature for _ in range(2))
    assert [once] == again == [compare_files(paths, others)["q"].signature]
    assert fields(once)["ids"] == fields(result.signature)["ids"]


def one_sequence(**options):
    """An evaluation of blocks."""
    logits, ids = options.pop("logits", LOGITS[2][None]), options.pop("ids", IDS[2][None])
    return evaluate(blocks_of([(logits, ids, *options.pop("rest", ()))], kind=options.pop("kind", None)), **options)


OTHER_IDS = IDS[2][None].copy()
OTHER_IDS[0, 3] = (OTHER_IDS[0, 3] + 1) % 7
CHANGES = {  # the fields by which a signature differs
    ("ids",): {"ids": OTHER_IDS},
    ("unit", "sequences", "ids"): {"rest": (None, np.array([[0, 0, 0, 0, 1, 1, 1, 2]]))},
    ("bytes",): {"n_bytes": 30},
    ("words",): {"n_words": 6},
    ("tokens", "mask", "ids"): {"rest": (np.arange(8)[None] < 6,)},
    ("tokens", "shift", "ids"): {"shift": True},
    ("dtype",): {"logits": LOGITS[2][None].astype(np.float16)},
    ("kind",): {"logits": tokenloss.log_softmax(LOGITS[2][None]), "kind": "log_probs"},
}


@pytest.mark.parametrize("differ", CHANGES, ids="-".join)
def test_differing_fields_are_named(differ):
    plain = {f"n_{differ[0]}": 5} if differ[0] in ("bytes", "words") else {}
    result = Evaluations(A=one_sequence(**plain), B=one_sequence(**CHANGES[differ]))
    assert differing_fields(one.signature for one in result.values()) == [*differ]
    title, *_, last = result.summary().splitlines()
    assert f"the models' signatures differ in {', '.join(differ)}" in title
    assert ("compare bits per byte" in title) == ("ids" in differ)
    each = [fields(one.signature) for one in result.values()]
    joined = {name: {one.get(name, "no") for one in each} for name in {**each[0], **each[1]}}
    assert {name: set(values.split(",")) for name, values in fields(last.strip()).items()} == joined


@pytest.mark.parametrize("shift", [False, True])
def test_targets_that_are_rolled_within_each_text_have_another_hash(shift, tmp_path):
    """4.394 and 4.151 nats had one signature."""
    logits, ids = RNG.normal(size=(3, 9, 7)), RNG.integers(7, size=(3, 9))
    actual = []
    for targets in (ids, np.roll(ids, 1, 1)):
        np.savez(tmp_path / "a.npz", logits=logits, targets=targets)
        blocks = evaluate([(logits, targets)], shift=shift)
        files = evaluate(tmp_path / "a.npz", shift=shift)
        meter = ComparisonMeter()
        meter.update(logits, logits, targets)
        compared = compare(logits, logits, targets), meter.result(), linear_compare(*[logits, np.eye(7)] * 2, targets)
        np.savez(tmp_path / "b.npz", logits=logits + 1)
        compared += (compare_files(tmp_path / "a.npz", {"b": tmp_path / "b.npz"})["b"],)
        assert fields(blocks.signature)["ids"] == fields(files.signature)["ids"]
        assert {fields(one.signature)["ids"] for one in compared} == {hash_of(*targets)}
        actual.append(blocks.signature)
    assert differing_fields(actual) == ["ids"]


@pytest.mark.filterwarnings("ignore:.*identical to base")
@pytest.mark.parametrize(
    ("where", "shift"),
    [
        ("in order", True),
        ("mixed", False),
        pytest.param("in order", False, marks=pytest.mark.slow),
        pytest.param("mixed", True, marks=pytest.mark.slow),
    ],
)
def test_hash_does_not_depend_on_where_a_sequence_is_split(where, shift, tmp_path):
    """By files, by blocks, by calls of a ComparisonMeter or by a run that goes on from a state."""
    numbers = np.repeat([4, 0, 9, -1], [20, 15, 20, 5])
    numbers = numbers if where == "in order" else RNG.permutation(numbers)
    logits, ids = RNG.normal(size=(60, 7)).astype(np.float32), RNG.integers(7, size=60)
    ids[[3, 30]] = -100
    actual = set()
    for n, places in enumerate([[], [20, 40], [1, 2, 3, 25, 26, 59], range(1, 60, 4)]):
        parts = [np.split(array, places) for array in (logits, ids, numbers)]
        paths = [tmp_path / f"{n}-{i}.npy" for i in range(len(parts[0]))]
        for path, rows, one in zip(paths, *parts[:2], strict=True):
            np.save(path, rows)
            np.save(path.with_suffix(".ids.npy"), one)
        np.save(tmp_path / "numbers.npy", numbers)
        blocks = [(rows, one, None, own) for rows, one, own in zip(*parts, strict=True)]
        evaluations = [evaluate(blocks, shift=shift)]
        if where == "in order" or not shift:
            targets = [path.with_suffix(".ids.npy") for path in paths]
            source = open_scores(paths, targets, segment_ids=tmp_path / "numbers.npy")
            evaluations.append(evaluate(source, shift=shift))
            evaluations.append(compare_files(source, {"q": paths}, shift=shift)["q"])
        for stop in range(0, len(blocks), 9):
            state = tmp_path / f"state-{n}-{stop}"
            evaluate(lambda first, stop=stop, blocks=blocks: blocks[first : stop + 1], shift=shift, state=state)
            evaluations.append(evaluate(lambda first, blocks=blocks: blocks[first:], shift=shift, state=state))
        if not shift:
            meters = ComparisonMeter(), ComparisonMeter()
            for i, (rows, one, _, own) in enumerate(blocks):
                meters[2 * i > len(blocks)].update(rows, rows, one, segment_ids=own)
            meters[0].merge(meters[1])
            evaluations += [meters[0].result(), compare(logits, logits, ids, segment_ids=numbers)]
        actual |= {fields(one.signature)["ids"] for one in evaluations}
    kept = [ids[numbers == number] for number in (4, 0, 9)]
    if shift:
        kept = [one[1:] for one in kept]
    else:
        kept += [[one] for one in ids[numbers < 0]]
    if where == "in order" or not shift:
        assert actual == {hash_of(*([one for one in sequence if one >= 0] for sequence in kept))}
    assert len(actual) == 1


def test_the_same_tokens_in_another_order_have_the_same_ids():
    for order in itertools.islice(itertools.permutations(range(8)), 0, 40000, 4001):
        result = evaluate([(LOGITS[2][[*order]], IDS[2][[*order]])])
        assert fields(result.signature)["ids"] == hash_of_loose(IDS[2])
    batch = np.arange(7)
    assert len({hash_of_loose(one) for one in itertools.combinations_with_replacement(batch, 4)}) == math.comb(10, 4)


@pytest.mark.parametrize(
    ("window", "stride", "scored"),
    [(6, 2, [range(1, 6), range(6, 8), range(8, 10), range(10, 12)]), (6, 6, [range(1, 6), range(7, 12)])],
)
def test_signature_has_the_window_and_its_stride(window, stride, scored, tmp_path):
    ids = RNG.integers(7, size=12)
    rows = np.arange(0, 12 - window + 1, stride)[:, None] + np.arange(window)
    np.savez(tmp_path / "a.npz", logits=RNG.normal(size=(*rows.shape, 7)), input_ids=ids[rows])
    result = fields(evaluate(open_scores(tmp_path / "a.npz", window=window, stride=stride)).signature)
    assert [result[name] for name in ("window", "stride", "shift")] == [str(window), str(stride), "yes"]
    new = [ids[[*of_window]] for of_window in scored]
    assert (result["tokens"], result["ids"]) == (str(sum(map(len, new))), hash_of(*new))


def test_windows_of_papers_and_whole_texts_are_told_apart_as_of_lm_evaluation_harness_2301(tmp_path):
    """Somebody held a perplexity of windows of 2048 tokens against one of whole documents: 5.47 and 8.71."""
    ids = RNG.integers(7, size=12)
    logits = RNG.normal(size=(2, 6, 7))
    np.savez(tmp_path / "papers.npz", logits=logits, input_ids=ids.reshape(2, 6))
    np.savez(tmp_path / "whole.npz", logits=logits.reshape(1, 12, 7), input_ids=ids[None])
    papers = evaluate(open_scores(tmp_path / "papers.npz", window=6, stride=6))
    whole = evaluate(tmp_path / "whole.npz", shift=True)
    assert "window" in differing_fields([papers.signature, whole.signature])
    assert "window" in Evaluations(papers=papers, whole=whole).summary().partition("\n")[0]


def test_weights_of_a_meter_are_in_its_signature():
    """As the number of tokens of equal weights that would have the same variance (Kish)."""
    signatures = []
    for weight in (
        None,
        1.0,
        np.ones(4),
        np.full(4, 2.0),
        np.array([0.5, 1.5, 1.0, 1.0]),
        np.array([0.0, 1.0, 1.0, 1.0]),
    ):
        meter = LossMeter()
        meter.update([0.1, 0.2, 0.3, 0.4], sample_weight=weight)
        signatures.append(fields(meter.signature) | {"tokens": ""})
    plain = {"tokenloss": tokenloss.__version__, "unit": "token", "tokens": ""}
    equal, other = plain | {"weights": "4"}, plain | {"weights": "3.55556"}
    assert signatures == [plain, plain, plain, equal, other, plain]  # a weight of 0 leaves a token out
    meter = LossMeter()
    meter.update(sequence_losses(np.ones((5, 3)), sample_weight=np.arange(1, 6)[:, None]))
    assert meter.signature == f"tokenloss:{tokenloss.__version__}|unit:sequence|tokens:15|sequences:5|weights:12.2727"
    assert meter.to_dict()["signature"] == (meter + LossMeter()).signature == meter.signature


def test_signature_of_a_comparison_is_the_same_of_arrays_blocks_and_files(tmp_path):
    logits, ids = padded(range(5))
    other, numbers = (logits + 1).astype(np.float16), np.arange(5)[:, None]
    expected = compare(logits, other, ids, segment_ids=numbers).signature
    scored = "unit:sequence|tokens:21|sequences:5|mask:yes|kind:logits|dtype:float16/float32"
    assert expected == f"tokenloss:{tokenloss.__version__}|{scored}|ids:{hash_of(*IDS)}"
    meters = ComparisonMeter(), ComparisonMeter()
    for row in range(5):
        meters[row > 2].update(logits[row], other[row], ids[row], segment_ids=np.full(8, row))
    meters[0].merge(meters[1])
    assert meters[0].result().signature == expected
    for name, scores, arrays in ("base", logits, {"targets": ids}), ("q", other, {}):
        np.savez(tmp_path / f"{name}.npz", logits=scores, **arrays)
    of_files = compare_files(tmp_path / "base.npz", {"q": tmp_path / "q.npz"})
    assert of_files["q"].signature == expected
    assert of_files.to_dict()["candidates"][0]["signature"] == of_files.columns()["signature"][0] == expected
    assert of_files.summary().endswith(f"\n\n  {expected}")


def test_signature_of_a_comparison_has_its_options():
    logits, ids = padded([0])
    logits = tokenloss.log_softmax(logits)
    plain, probs = compare(logits, logits + 1, ids).signature, tokenloss.softmax(logits)
    for actual, differ in [
        (compare(logits, logits, np.minimum(ids, 5), classes=6), ["classes"]),
        (compare(logits, logits, ids, classes=7), []),
        (compare(logits, logits, ids, definitions="llama.cpp"), ["definitions"]),
        (compare(probs, logits, ids, base_kind="probs"), ["kind"]),
        (linear_compare(logits, np.eye(7), logits, np.eye(7), ids), ["kind"]),
        (compare(logits, logits, None), []),
    ]:
        names = differing_fields([plain, actual.signature])
        assert [name for name in names if name != "ids"] == differ
    meter = ComparisonMeter()
    for dtype in np.float32, np.float16:
        meter.update(logits.astype(dtype), logits.astype(dtype), ids)
    assert fields(meter.result().signature)["dtype"] == "float16+float32"
    assert meter.result().count == 2 * 5


def test_score_warns_of_models_whose_signatures_differ(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, dtype, ids in ("a", np.float32, IDS[0]), ("b", np.float16, IDS[0]), ("c", np.float32, IDS[0][::-1]):
        np.savez(f"{name}.npz", logits=LOGITS[0].astype(dtype), targets=ids)
    for other, expected in ("b", "tokenloss: warning: the models' signatures differ in dtype\n"), ("c", ""):
        for form in ("text", "json"):
            status, _, err = command("score", "A=a.npz", f"B={other}.npz", "--format", form)
            assert (status, err) == (0, expected)


@pytest.mark.filterwarnings("ignore:.*identical to base")
def test_signature_of_responses_and_samples(tmp_path):
    paths = [clients.save(tmp_path / f"{name}.jsonl", *clients.COMPLETIONS[:3]) for name in ("base", "other")]
    result = evaluate(paths[0])
    part, kind = result.figures["part"], {"kind": "responses", "unit": "sequence"}
    counts = {"tokens": str(result.count), "sequences": str(result.n_sequences), "part": part}
    counts["bytes"] = str(result.n_bytes)
    assert fields(result.signature) == {"tokenloss": tokenloss.__version__, **kind, **counts}
    compared = compare_files(*paths).popitem()[1].signature
    assert fields(compared) | {"bytes": counts["bytes"]} == fields(result.signature)
    assert differing_fields([compared, result.signature]) == []
    samples = [clients.save(tmp_path / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]
    ((_, one),) = compare_samples(*samples).items()
    counts = f"unit:document|samples:{one.count}|documents:{one.n_documents}"
    assert one.signature == f"tokenloss:{tokenloss.__version__}|{counts}"
    assert one.summary().endswith(f"\n\n  {one.signature}")
    assert one.to_dict()["signature"] == one.signature


# -- options -----------------------------------------------------------------------------------------------------------

HIDDEN = RNG.normal(size=(3, 9, 4)).astype(np.float32)
HIDDEN /= np.sqrt(np.square(HIDDEN).mean(-1, keepdims=True))  # as a norm leaves them
LM_HEAD = RNG.normal(size=(7, 4)).astype(np.float32)
TEXT_IDS = RNG.integers(1, 7, size=(3, 9))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Files by name: scores, hidden states, responses and what belongs to them."""
    path = tmp_path_factory.mktemp("sources")
    logits = HIDDEN @ LM_HEAD.T
    np.savez(path / "scores.npz", logits=logits, log_probs=tokenloss.log_softmax(logits), targets=TEXT_IDS)
    np.savez(path / "more.npz", logits=logits, targets=TEXT_IDS, other=TEXT_IDS[::-1])
    np.savez(path / "hidden.npz", hidden=HIDDEN, hidden_states=HIDDEN, targets=TEXT_IDS)
    np.savez(path / "windows.npz", logits=logits, input_ids=TEXT_IDS)
    np.save(path / "head.npy", LM_HEAD)
    np.save(path / "rolled.npy", np.roll(TEXT_IDS, 1, 1))
    np.save(path / "numbers.npy", np.arange(27) // 5)
    np.savez(path / "logprobs.npz", logprobs=-(HIDDEN[..., 0] ** 2), other=-(HIDDEN[..., 1] ** 2), mask=TEXT_IDS > 2)
    ranks = "".join(f"{base64.b64encode(b'abcdefg'[i : i + 1]).decode()} {i}\n" for i in range(7))
    (path / "a.tiktoken").write_text(ranks)
    (path / "text").write_text("\n".join("".join("abcdefg"[i] for i in row) for row in TEXT_IDS))
    clients.save(path / "answers.jsonl", *clients.COMPLETIONS[:3])
    return path


SCORES = {"source": "scores.npz", "array": "logits"}
FROM_HIDDEN = {"opener": open_hidden_states, "source": "hidden.npz", "lm_head": "head.npy", "array": "hidden"}
ANSWERS = {"opener": open_responses, "source": "answers.jsonl"}
LOGPROBS = {"opener": open_logprobs, "source": "logprobs.npz"}
# by option of `evaluate` or of an opener: two calls that differ in it, and the fields of the signature that tell them
# apart
OF_EVALUATE = {
    "source": (SCORES, {"source": "more.npz"}, []),  # the model is not a field
    "targets": (SCORES, SCORES | {"targets": "rolled.npy"}, ["ids"]),
    "segment_ids": (SCORES, SCORES | {"segment_ids": "numbers.npy"}, ["sequences", "ids"]),
    "array": (SCORES, SCORES | {"array": "log_probs"}, ["kind"]),
    "targets_array": (
        {"source": "more.npz"},
        {"source": "more.npz", "targets_array": "other"},
        [],
    ),  # whole texts moved
    "kind": (SCORES | {"array": "log_probs", "kind": "log_probs"}, SCORES | {"kind": "logits"}, ["kind"]),
    "shift": (SCORES, SCORES | {"shift": True}, ["tokens", "shift", "ids"]),
    "window": (
        {"source": "windows.npz", "shift": True},
        {"source": "windows.npz", "window": 9, "stride": 9},
        ["window", "stride"],
    ),
    "stride": (
        {"source": "windows.npz", "window": 9, "stride": 9},
        {"source": "windows.npz", "window": 9, "stride": 9},
        [],
    ),
    "ignore_index": (SCORES, SCORES | {"ignore_index": int(TEXT_IDS[0, 0])}, ["tokens", "mask", "ids"]),
    "lm_head": (FROM_HIDDEN, FROM_HIDDEN, []),  # a part of the model
    "array of hidden states": (FROM_HIDDEN, FROM_HIDDEN | {"array": "hidden_states"}, []),  # a part of the model
    "array of log-probabilities": (LOGPROBS, LOGPROBS | {"array": "other"}, []),  # a model
    "mask": (LOGPROBS, LOGPROBS | {"mask": "mask"}, ["tokens"]),
    "logit_scale": (FROM_HIDDEN, FROM_HIDDEN | {"logit_scale": 0.5}, ["scale"]),
    "softcap": (FROM_HIDDEN | {"softcap": 2.0}, FROM_HIDDEN | {"softcap": 3.0}, ["cap"]),
    "part": (ANSWERS, ANSWERS | {"part": "all"}, ["tokens", "part", "bytes"]),
    "skip_failed": (ANSWERS, ANSWERS | {"skip_failed": True}, []),  # none failed
    "n_bytes": (SCORES | {"n_bytes": 100}, SCORES | {"n_bytes": 200}, ["bytes"]),
    "n_words": (SCORES | {"n_words": 10}, SCORES | {"n_words": 20}, ["words"]),
    "text": (SCORES | {"n_bytes": 100}, SCORES | {"text": "text"}, ["bytes"]),
    "tokenizer": (SCORES | {"n_bytes": 100}, SCORES | {"tokenizer": "a.tiktoken"}, ["bytes"]),
    "words": (SCORES | {"text": "text"}, SCORES | {"text": "text", "words": "lm-eval"}, ["words"]),
    "top": (SCORES, SCORES | {"top": 1}, []),
}
ELSEWHERE = {
    "by",
    "calibration",
    "sinks",
    "state",
    "scheduler",
    "progress",
    "workers",
}  # they change no metric: see their own tests
NAMES = {"source", "targets", "segment_ids", "lm_head", "text", "tokenizer"}  # options that are paths


def options_of(*functions):
    """The names of all options of these functions."""
    return {name for function in functions for name in inspect.signature(function).parameters}


def scored(sources, opener=open_scores, **options):
    """What `evaluate` finds of a source, which is opened with the options that its opener has."""
    given = {name: sources / one if name in NAMES else one for name, one in options.items()}
    of_opener = {name: given.pop(name) for name in options_of(opener) & given.keys() - {"shift"}}
    return evaluate(opener(given.pop("source"), **of_opener), **given)


@pytest.mark.parametrize("option", OF_EVALUATE)
def test_signature_tells_the_options_of_evaluate_and_of_openers_apart(option, sources):
    """8.82, 5.63 and 6.73 had one signature, for three scales and caps."""
    *calls, differ = OF_EVALUATE[option]
    assert differing_fields(scored(sources, **call).signature for call in calls) == differ


def test_every_option_of_evaluate_and_of_openers_is_looked_at():
    openers = open_scores, open_hidden_states, open_responses, open_logprobs, blocks_of
    looked_at = {option.partition(" ")[0] for option in OF_EVALUATE} | ELSEWHERE
    assert looked_at == options_of(evaluate, *openers) - {"path", "paths"}


ARRAYS = {"base_logits": HIDDEN @ LM_HEAD.T, "logits": HIDDEN @ LM_HEAD.T + 1, "targets": TEXT_IDS}
OF_COMPARE = {
    "base_logits": ({"base_logits": ARRAYS["logits"]}, []),  # a model
    "logits": ({"logits": ARRAYS["base_logits"]}, []),  # a model
    "targets": ({"targets": np.roll(TEXT_IDS, 1, 1)}, ["ids"]),
    "kind": ({"logits": tokenloss.softmax(ARRAYS["logits"]), "kind": "probs", "base_kind": "logits"}, ["kind"]),
    "base_kind": ({"base_logits": tokenloss.softmax(ARRAYS["logits"]), "base_kind": "probs"}, ["kind"]),
    "classes": ({"classes": 6, "targets": np.minimum(TEXT_IDS, 5)}, ["classes"] + ["ids"] * bool((TEXT_IDS > 5).any())),
    "axis": ({name: np.moveaxis(ARRAYS[name], -1, 1) for name in ("base_logits", "logits")} | {"axis": 1}, []),
    "ignore_index": ({"ignore_index": int(TEXT_IDS[0, 0])}, ["tokens", "mask", "ids"]),
    "where": ({"where": np.arange(9) < 6}, ["tokens", "mask", "ids"]),
    "segment_ids": ({"segment_ids": np.arange(3)[:, None]}, ["unit", "sequences"]),
    "cu_seqlens": ({"cu_seqlens": [0, 9, 18, 27]}, ["unit", "sequences"]),
    "definitions": (
        {"base_logits": tokenloss.log_softmax(ARRAYS["logits"]), "definitions": "llama.cpp"},
        ["definitions"],
    ),
    "divergences": ({"divergences": ("tv",)}, []),  # more metrics, which the others lack
    "calibration": ({"calibration": True}, []),
    "workers": ({"workers": 1}, []),
}


@pytest.mark.parametrize("option", OF_COMPARE)
def test_signature_tells_the_options_of_compare_apart(option):
    changed, differ = OF_COMPARE[option]
    result = compare(**ARRAYS), compare(**ARRAYS | changed)
    assert differing_fields(one.signature for one in result) == differ


def test_every_option_of_compare_is_looked_at():
    assert OF_COMPARE.keys() == inspect.signature(compare).parameters.keys()


@pytest.mark.filterwarnings("ignore:.*identical to base")
def test_signature_of_a_comparison_has_the_scale_and_cap_of_logits(sources):
    models = [HIDDEN, LM_HEAD, HIDDEN, LM_HEAD + 1, TEXT_IDS]
    for options, differ in ({"logit_scale": 0.5}, ["scale"]), ({"softcap": 2.0}, ["cap"]):
        plain, other = (linear_compare(*models, **some).signature for some in ({}, options))
        assert differing_fields([plain, other]) == differ
        files = [
            open_hidden_states(sources / "hidden.npz", sources / "head.npy", array="hidden", **some)
            for some in ({}, options)
        ]
        plain, other = (compare_files(one, {"q": one})["q"].signature for one in files)
        assert differing_fields([plain, other]) == differ


def test_signature_of_drafts_has_the_cost_ratio():
    logits = ARRAYS["logits"]
    result = [tokenloss.draft_acceptance(logits, logits, cost_ratio=cost).signature for cost in (None, 0.1, 0.2)]
    assert differing_fields(result) == ["cost"]
    assert [fields(one).get("cost") for one in result] == [None, "0.1", "0.2"]
