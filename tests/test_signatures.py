"""Signatures: the same for any split of a text, other where figures are of something else, and printed below tables."""

import itertools
import math

import clients
import numpy as np
import pytest

import tokenloss
from tokenloss import ComparisonMeter, LossMeter, compare, compare_files, evaluate, linear_compare, sequence_losses
from tokenloss._core.signature import differing_fields
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


def hash_of(ids):
    return f"{sum(splitmix64(int(one)) for one in ids) % 2**64 >> 32:08x}"


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
        found = [
            evaluate(blocks, shift=shift),
            evaluate(paths, shift=shift),
            sum(each),
            Evaluation.of_parts(each[::-1]),
        ]
        signatures += [one.signature for one in found]
        assert all(one.figures["signature"] == one.signature for one in found)
    kept = np.concatenate([ids[bool(shift) :] for ids in IDS])
    scored = f"tokens:{len(kept)}|sequences:{sum(length > bool(shift) for length in LENGTHS)}"
    of_shift = "|shift:yes" if shift else ""
    plain = f"tokenloss:{tokenloss.__version__}|unit:sequence|{scored}{of_shift}"
    plain += f"|kind:logits|dtype:float32|ids:{hash_of(kept)}"
    masked = plain.replace("|kind", "|mask:yes|kind")  # by padding
    assert set(signatures) == {plain, masked}
    assert differing_fields(signatures) == []


def test_signature_of_a_resumed_run_is_that_of_one_run(tmp_path):
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    for path, logits, ids in zip(paths, LOGITS, IDS, strict=False):
        np.savez(path, logits=logits, targets=ids)
    state = tmp_path / "state"
    for function in lambda some: evaluate(some, state=state), lambda some: evaluate(some, state=state):
        found = function(paths)
    assert found.signature == evaluate(paths).signature
    (tmp_path / "q").mkdir()
    for path, logits in zip(paths, LOGITS, strict=False):
        np.savez(tmp_path / "q" / path.name, logits=logits + 1)
    others = {"q": [tmp_path / "q" / path.name for path in paths]}
    once, *again = (compare_files(paths, others, state=tmp_path / "compared")["q"].signature for _ in range(2))
    assert [once] == again == [compare_files(paths, others)["q"].signature]
    assert fields(once)["ids"] == fields(found.signature)["ids"]


def one_sequence(**options):
    """An evaluation of blocks."""
    logits, ids = options.pop("logits", LOGITS[2][None]), options.pop("ids", IDS[2][None])
    return evaluate([(logits, ids, *options.pop("rest", ()))], **options)


OTHER_IDS = IDS[2][None].copy()
OTHER_IDS[0, 3] = (OTHER_IDS[0, 3] + 1) % 7
CHANGES = {  # the fields by which a signature differs
    ("ids",): {"ids": OTHER_IDS},
    ("unit", "sequences"): {"rest": (None, np.array([[0, 0, 0, 0, 1, 1, 1, 2]]))},
    ("tokens", "mask", "ids"): {"rest": (np.arange(8)[None] < 6,)},
    ("tokens", "shift", "ids"): {"shift": True},
    ("dtype",): {"logits": LOGITS[2][None].astype(np.float16)},
    ("kind",): {"logits": tokenloss.log_softmax(LOGITS[2][None]), "kind": "log_probs"},
}


@pytest.mark.parametrize("differ", CHANGES, ids="-".join)
def test_differing_fields_are_named(differ):
    found = Evaluations(A=one_sequence(), B=one_sequence(**CHANGES[differ]))
    assert differing_fields(one.signature for one in found.values()) == [*differ]
    title, *_, last = found.summary().splitlines()
    assert f"the models' signatures differ in {', '.join(differ)}" in title
    assert ("compare bits per byte" in title) == ("ids" in differ)
    each = [fields(one.signature) for one in found.values()]
    joined = {name: {one.get(name, "no") for one in each} for name in {**each[0], **each[1]}}
    assert {name: set(values.split(",")) for name, values in fields(last.strip()).items()} == joined


def test_the_same_tokens_in_another_order_have_the_same_ids():
    for order in itertools.islice(itertools.permutations(range(8)), 0, 40000, 4001):
        found = evaluate([(LOGITS[2][[*order]], IDS[2][[*order]])])
        assert fields(found.signature)["ids"] == hash_of(IDS[2])
    batch = np.arange(7)
    assert len({hash_of(one) for one in itertools.combinations_with_replacement(batch, 4)}) == math.comb(10, 4)


@pytest.mark.parametrize(("window", "stride", "scored"), [(6, 2, range(1, 12)), (6, 6, [*range(1, 6), *range(7, 12)])])
def test_signature_has_the_window_and_its_stride(window, stride, scored, tmp_path):
    ids = RNG.integers(7, size=12)
    rows = np.arange(0, 12 - window + 1, stride)[:, None] + np.arange(window)
    np.savez(tmp_path / "a.npz", logits=RNG.normal(size=(*rows.shape, 7)), input_ids=ids[rows])
    found = fields(evaluate(tmp_path / "a.npz", window=window, stride=stride).signature)
    assert [found[name] for name in ("window", "stride", "shift")] == [str(window), str(stride), "yes"]
    assert (found["tokens"], found["ids"]) == (str(len(scored)), hash_of(ids[[*scored]]))


def test_windows_of_papers_and_whole_texts_are_told_apart_as_of_lm_evaluation_harness_2301(tmp_path):
    """Somebody held a perplexity of windows of 2048 tokens against one of whole documents: 5.47 and 8.71."""
    ids = RNG.integers(7, size=12)
    logits = RNG.normal(size=(2, 6, 7))
    np.savez(tmp_path / "papers.npz", logits=logits, input_ids=ids.reshape(2, 6))
    np.savez(tmp_path / "whole.npz", logits=logits.reshape(1, 12, 7), input_ids=ids[None])
    papers = evaluate(tmp_path / "papers.npz", window=6, stride=6)
    whole = evaluate(tmp_path / "whole.npz", shift=True)
    assert "window" in differing_fields([papers.signature, whole.signature])
    assert "window" in Evaluations(papers=papers, whole=whole).summary().partition("\n")[0]


def test_weights_of_a_meter_are_in_its_signature():
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
    weighted = plain | {"weights": "yes"}
    assert signatures == [plain, plain, plain, weighted, weighted, plain]  # a weight of 0 leaves a token out
    meter = LossMeter()
    meter.update(sequence_losses(np.ones((5, 3)), sample_weight=np.arange(1, 6)[:, None]))
    assert meter.signature == f"tokenloss:{tokenloss.__version__}|unit:sequence|tokens:15|sequences:5|weights:yes"
    assert meter.to_dict()["signature"] == (meter + LossMeter()).signature == meter.signature


def test_signature_of_a_comparison_is_the_same_of_arrays_blocks_and_files(tmp_path):
    logits, ids = padded(range(5))
    other, numbers = (logits + 1).astype(np.float16), np.arange(5)[:, None]
    expected = compare(logits, other, ids, segment_ids=numbers).signature
    scored = "unit:sequence|tokens:21|sequences:5|mask:yes|kind:logits|dtype:float16/float32"
    assert expected == f"tokenloss:{tokenloss.__version__}|{scored}|ids:{hash_of(np.concatenate(IDS))}"
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
    for found, differ in [
        (compare(logits, logits, np.minimum(ids, 5), classes=6), ["classes"]),
        (compare(logits, logits, ids, classes=7), []),
        (compare(logits, logits, ids, definitions="llama.cpp"), ["definitions"]),
        (compare(probs, logits, ids, base_kind="probs"), ["kind"]),
        (linear_compare(logits, np.eye(7), logits, np.eye(7), ids), ["kind"]),
        (compare(logits, logits, None), []),
    ]:
        names = differing_fields([plain, found.signature])
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


def test_signature_of_responses_and_samples(tmp_path):
    paths = [clients.save(tmp_path / f"{name}.jsonl", *clients.COMPLETIONS[:3]) for name in ("base", "other")]
    found = evaluate(paths[0])
    part, kind = found.figures["part"], {"kind": "responses", "unit": "sequence"}
    counts = {"tokens": str(found.count), "sequences": str(found.n_sequences), "part": part}
    assert fields(found.signature) == {"tokenloss": tokenloss.__version__, **kind, **counts}
    assert fields(compare_files(*paths).popitem()[1].signature) == fields(found.signature)
    samples = [clients.save(tmp_path / f"{run}.jsonl", f"{run}/mc.jsonl") for run in ("base", "noise")]
    ((_, one),) = compare_files(*samples).items()
    counts = f"unit:document|samples:{one.count}|documents:{one.n_documents}"
    assert one.signature == f"tokenloss:{tokenloss.__version__}|{counts}"
    assert one.summary().endswith(f"\n\n  {one.signature}")
    assert one.to_dict()["signature"] == one.signature
