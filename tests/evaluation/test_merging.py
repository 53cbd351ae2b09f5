"""Evaluations of parts add up to that of the whole, from wherever they come; what does not fit is refused."""

import itertools
import pickle

import clients
import numpy as np
import pytest

import tokenloss._evaluation.parts as parts_module
from tokenloss import evaluate
from tokenloss.formats import open_responses, open_scores
from tokenloss.results import Evaluation

RNG = np.random.default_rng(41)
LOGITS = RNG.normal(size=(40, 9), scale=3).astype(np.float32)
TARGETS = RNG.integers(9, size=40)
TARGETS[::11] = -100
IDS = np.repeat([4, 9, 2, 7, 5], 8)
PARTS = [slice(0, 8), slice(8, 24), slice(24, 40)]


@pytest.fixture
def files(npz):
    """Saves the three parts of a text, whose tokens are in sequences of eight; their own ids, if any, come again."""

    def save(kind="batch"):
        paths = []
        for number, part in enumerate(PARTS):
            shape = (-1, 8) if kind == "batch" else (-1,)
            arrays = {"logits": LOGITS[part].reshape(*shape, 9), "targets": TARGETS[part].reshape(shape)}
            if kind == "own ids":
                arrays["segment_ids"] = np.arange(part.stop - part.start) // 5
            paths.append(npz(f"part-{number}.npz", **arrays))
        return paths

    return save


def of_files(kind, **options):
    def evaluations(files, tmp_path):
        paths = files(kind)
        return evaluate(paths, **options), [evaluate([path], **options) for path in paths]

    return evaluations


def of_ids_for_all(files, tmp_path):
    """Sequences that go on in the next file, of which each of two evaluations has its own."""
    paths = files("flat")
    ids = np.concatenate([np.repeat([6, 1], [3, 21]), np.full(16, 8)])
    for name, part in ("all", slice(None)), ("first", slice(24)), ("last", slice(24, None)):
        np.save(tmp_path / f"{name}.npy", ids[part])
    halves = paths[:2], paths[2:]
    return (
        evaluate(open_scores(paths, segment_ids=tmp_path / "all.npy"), n_words=70),
        [
            evaluate(open_scores(half, segment_ids=tmp_path / f"{name}.npy"), n_words=n)
            for half, name, n in zip(halves, ["first", "last"], [30, 40], strict=True)
        ],
    )


def of_lengths(files, tmp_path):
    """The bytes of each sequence."""
    paths = files()
    n_bytes = np.arange(20, 25)
    parts = [slice(0, 1), slice(1, 3), slice(3, 5)]
    pairs = zip(paths, parts, strict=True)
    return evaluate(paths, n_bytes=n_bytes), [evaluate([path], n_bytes=n_bytes[part]) for path, part in pairs]


def of_responses(files, tmp_path):
    names = [name for name in clients.COMPLETIONS if "08" not in name]
    paths = [clients.save(tmp_path / f"part-{i}.json", name) for i, name in enumerate(names)]
    return evaluate(paths), [evaluate([path]) for path in paths]


def of_responses_whose_bytes_are_not_all_known(files, tmp_path):
    paths = [clients.save(tmp_path / f"{i}.json", f"sglang/generate_0{i}.json") for i in range(2)]
    whole = evaluate(paths)
    assert whole.meter.n_bytes == 0 < evaluate(paths[:1]).meter.n_bytes
    return whole, [evaluate([path]) for path in paths]


def of_blocks(shape, ids=None, **options):
    def evaluations(files, tmp_path):
        blocks = [
            (LOGITS[part].reshape(*shape, 9), TARGETS[part].reshape(shape), None)
            + (() if ids is None else (ids[part].reshape(shape),))
            for part in PARTS
        ]
        return evaluate(blocks, **options), [evaluate([block], **options) for block in blocks]

    return evaluations


WHOLES = {
    "batch": of_files("batch"), "flat": of_files("flat", top=3), "own ids": of_files("own ids"),
    "shift": of_files("batch", shift=True), "bytes": of_files("batch", n_bytes=0, top=0), "lengths": of_lengths,
    "ids for all": of_ids_for_all, "responses": of_responses, "unknown": of_responses_whose_bytes_are_not_all_known,
    "blocks": of_blocks((-1, 8)), "flat blocks": of_blocks((-1,)), "ids of blocks": of_blocks((-1,), IDS),
    "shifted blocks": of_blocks((-1, 8), shift=True), "shifted ids": of_blocks((-1,), IDS, shift=True),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLES)
def test_parts_add_up_to_the_whole(name, files, tmp_path):
    whole, parts = WHOLES[name](files, tmp_path)
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]  # noqa: S301 -- our own
    merged = sum(parts[1:], parts[0])
    assert merged.figures.keys() == whole.figures.keys()
    if name == "ids for all":  # which are in other files
        merged.figures["files"] = whole.figures["files"]
    assert merged == whole
    assert Evaluation.of_parts(iter(parts)) == sum(parts)
    assert merged.summary().splitlines()[1:] == whole.summary().splitlines()[1:]
    assert (parts[0] + sum(parts[1:])).sequences["nll"].tolist() == whole.sequences["nll"].tolist()
    for order in itertools.permutations(parts[:3]):
        assert sum([*order, *parts[3:]]).meter == whole.meter


def test_lists_are_as_short_as_the_shortest(files):
    first, second, _ = files()
    merged = evaluate([first], top=2) + evaluate([second], top=4)
    assert merged.figures["highest_loss_tokens"] == evaluate([first, second], top=2).figures["highest_loss_tokens"]


def test_what_comes_twice_among_many_is_refused(files, npz):
    paths = [npz(f"{i}.npz", logits=LOGITS[8 * i : 8 * i + 8], targets=TARGETS[8 * i : 8 * i + 8]) for i in range(5)]
    parts = [evaluate(path) for path in paths]
    assert Evaluation.of_parts(parts) == evaluate(paths)
    with pytest.raises(ValueError, match=r"3\.npz is in both, with the same losses"):
        Evaluation.of_parts([*parts, parts[3]])
    with pytest.raises(ValueError, match="shift is False in one and True in the other"):
        Evaluation.of_parts([*parts, evaluate([files()[0]], shift=True)])


def test_many_parts_are_merged_in_linear_time(monkeypatch):
    """`sum` makes the figures of all parts so far for each part; `of_parts` makes them once."""
    calls = []
    evaluation = parts_module.Parts.evaluation
    monkeypatch.setattr(parts_module.Parts, "evaluation", lambda *arguments: calls.append(1) or evaluation(*arguments))
    parts = [evaluate([(LOGITS[None, :8], TARGETS[None, :8])]) for _ in range(20)]
    calls.clear()
    assert Evaluation.of_parts(parts).count == 20 * parts[0].count
    assert len(calls) == 1


def test_what_cannot_be_added_up_is_refused(files):
    one = evaluate([files()[0]])
    assert Evaluation.of_parts([one]) is one
    with pytest.raises(ValueError, match="evaluations is empty; it must be at least one Evaluation"):
        Evaluation.of_parts([])
    with pytest.raises(TypeError, match="one of evaluations is a LossMeter; pass an Evaluation"):
        Evaluation.of_parts([one, one.meter])


def test_the_same_name_on_another_machine_is_another_file(files, npz):
    first, *_ = files()
    ours = evaluate([first])
    npz("part-0.npz", logits=LOGITS[8:16], targets=TARGETS[8:16])
    assert (ours + evaluate([first])).meter.count == np.count_nonzero(TARGETS[:16] >= 0)
    npz("part-0.npz", logits=LOGITS[:1], targets=TARGETS[:1])  # which is ignored
    nothing = evaluate([first])
    assert (nothing + nothing).meter.count == 0


def test_what_does_not_fit_is_refused(files, tmp_path, npz):
    first, second, _ = files()
    one = evaluate([first])
    block = LOGITS[None], TARGETS[None]
    ids = block[0], block[1], None, IDS[None]
    probs = npz("probs.npz", probs=np.full((4, 9), 1 / 9), targets=np.zeros(4, int))
    narrow = npz("narrow.npz", logits=LOGITS[:, :8], targets=np.zeros(40, int))
    responses = clients.save(tmp_path / "a.json", clients.COMPLETIONS[0])
    (tmp_path / "text").write_text("words")
    text = {"text": tmp_path / "text"}
    for left, right, message in [
        (one, evaluate([probs]), "kind is 'logits' in one and 'probs' in the other"),
        (one, evaluate([narrow]), "the number of classes is 9 in one and 8 in the other"),
        (one, evaluate([second], shift=True), "shift is False in one and True in the other"),
        (one, evaluate(open_scores(probs, kind="logits", array="probs", ignore_index=8)), "ignore_index is -100 in"),
        (one, evaluate([second], n_bytes=9), "n_bytes is 'not given' in one and 'given' in the other"),
        (one, evaluate([block]), "source is 'files' in one and 'blocks' in the other"),
        (one, evaluate([responses]), "source is 'files' in one and 'files of responses' in the other"),
        (one, one, "part-0.npz is in both, with the same losses"),
        (evaluate([block]), evaluate([ids]), "segment_ids is 'not given' in one and 'given' in the other"),
        (evaluate([ids]), evaluate([ids]), "sequence 2 of segment_ids is in both"),
        (evaluate([first], **text), evaluate([second], **text, words="lm-eval"), "words is 'whitespace' in one and"),
        (
            evaluate([responses]),
            evaluate(open_responses(responses, part="generated")),
            "part is 'prompt' in one and 'g",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            left + right
        with pytest.raises(ValueError, match=message):
            Evaluation.of_parts([left, right])
    for other in None, 1, one.meter, "":
        with pytest.raises(TypeError):
            one + other


def test_sequences_of_ids_for_all_that_stand_in_both_are_refused(files, npz, tmp_path):
    paths = files("flat")
    np.save(tmp_path / "first.npy", np.repeat([1, 2], 12))
    np.save(tmp_path / "again.npy", np.repeat([3, 2], 16))
    one = evaluate(open_scores(paths[:2], segment_ids=tmp_path / "first.npy"))
    others = [npz("other.npz", logits=LOGITS[:16], targets=TARGETS[:16]), *paths[2:]]
    other = evaluate(open_scores(others, segment_ids=tmp_path / "again.npy"))
    with pytest.raises(ValueError, match="sequence 2 of segment_ids is in both"):
        one + other


def test_numbers_of_a_files_own_are_not_those_of_others(npz, tmp_path):
    paths = [npz(f"{i}.npz", logits=LOGITS[i : i + 8], targets=TARGETS[i : i + 8]) for i in range(5)]
    own = npz("own.npz", logits=LOGITS[:8], targets=TARGETS[:8], segment_ids=np.full(8, 5))
    np.save(tmp_path / "first.npy", np.repeat([1, 2], 8))
    np.save(tmp_path / "last.npy", np.repeat([5, 6], 8))
    first = evaluate(open_scores(paths[:2], segment_ids=tmp_path / "first.npy"))
    last = evaluate(open_scores(paths[2:4], segment_ids=tmp_path / "last.npy"))
    merged = first + evaluate([own]) + last
    assert merged.sequences["sequence"].tolist() == [1, 2, 5, 5, 6]
    assert merged.sequences["file"].tolist() == [0, 1, 2, 3, 4]


def test_words_of_responses_whose_bytes_are_not_all_known(tmp_path):
    paths = [clients.save(tmp_path / f"{i}.json", f"sglang/generate_0{i}.json") for i in range(2)]
    merged = evaluate(paths[:1], n_words=7) + evaluate(paths[1:], n_words=5)
    assert (merged.meter.n_bytes, merged.meter.n_words) == (0, 12)
    assert merged.meter.word_perplexity == evaluate(paths, n_words=12).meter.word_perplexity


def test_requests_that_come_twice_are_refused(tmp_path):
    line = {"custom_id": "q", "response": {"status_code": 200, "body": clients.chat(("a", -1.0))}, "error": None}
    paths = [clients.save_lines(tmp_path / f"{i}.jsonl", line) for i in range(2)]
    with pytest.raises(ValueError, match="the custom_id 'q' is also on line 1 of"):
        evaluate(paths[:1]) + evaluate(paths[1:])
