"""The option `by`: losses and divergences of groups, against NumPy; merged in any order, the same bits."""

import csv
import io
import itertools
import json
import math
import pickle
import shutil

import numpy as np
import pytest

from tokenloss import compare, compare_files, cross_entropy, evaluate, log_softmax
from tokenloss._statistics.groups import MOST_GROUPS
from tokenloss.formats import open_logprobs, open_scores
from tokenloss.results import Evaluation

RNG = np.random.default_rng(47)
LOGITS = RNG.normal(size=(60, 9), scale=2).astype(np.float32)
TARGETS = RNG.integers(9, size=60)
TARGETS[::11] = -100
NLL = cross_entropy(LOGITS, TARGETS, reduction="none")
KEPT = TARGETS != -100
IDS = np.repeat([4, 0, 2, 6, 1], [3, 21, 8, 16, 12])  # in the files of `SPLITS`, some go on
INTERLEAVED = RNG.integers(-1, 5, size=60)
SPLITS = [0, 8, 20, 60]
WORDS = np.array(["code", "news", "prose"])


def copied(value):
    """A copy as another machine gets it."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


def positions_in(ids):
    """The position of each token in its sequence."""
    return np.array([-1 if one < 0 else int(np.sum(ids[:i] == one)) for i, one in enumerate(ids)])


def bin_of(position):
    """The first position of a bin that doubles; None outside of sequences."""
    return None if position < 0 else 2 ** (int(position).bit_length() - 1) if position else 0


def by_hand(labels, ids, kept=KEPT, nll=NLL):
    """Rows of the table: for sums S and n over the tokens of a group in a sequence, the clustered error of DESIGN."""
    rows = {}
    labels = np.array([*labels], object)
    for label in {*labels[kept].tolist()}:
        own = kept & np.array([one == label for one in labels.tolist()])
        parts = np.where(ids < 0, -1 - np.arange(len(ids)), ids)[own]
        numbers = np.unique(parts, return_inverse=True)[1]
        sums, counts = np.bincount(numbers, nll[own]), np.bincount(numbers)
        n, mean = len(sums), nll[own].mean()
        if n == 1 or (ids[own] < 0).all():  # the tokens of one sequence count as independent
            stderr = nll[own].std(ddof=1) / math.sqrt(own.sum()) if own.sum() > 1 else math.nan
        else:
            stderr = math.sqrt(n / (n - 1) * np.sum((sums - mean * counts) ** 2)) / own.sum()
        rows[label] = own.sum(), len({*ids[own][ids[own] >= 0].tolist()}), mean, stderr
    return rows


def check(table, expected):
    """Compare a table with rows by hand, whose labels have the same order."""
    assert table["group"].tolist() == sorted(expected, key=lambda label: (label is None, label))
    for i, label in enumerate(table["group"].tolist()):
        count, n_sequences, mean, stderr = expected[label]
        assert (table["count"][i], table["n_sequences"][i]) == (count, n_sequences)
        assert table["loss"][i] == pytest.approx(mean, rel=1e-12)
        assert table["stderr"][i] == pytest.approx(stderr, rel=1e-9, nan_ok=True)
        assert table["perplexity"][i] == pytest.approx(math.exp(mean), rel=1e-12)
        low, high = table["perplexity_low"][i], table["perplexity_high"][i]
        assert math.isnan(stderr) or low < table["perplexity"][i] < high


@pytest.fixture
def files(npz, tmp_path):
    """Saves the tokens in three files, with further arrays by name, and one file of segment ids for all."""

    def save(ids=IDS, **fields):
        np.save(tmp_path / "ids.npy", ids)
        paths = []
        for number, (start, stop) in enumerate(itertools.pairwise(SPLITS)):
            own = {name: array[start:stop] for name, array in fields.items()}
            paths.append(npz(f"part-{number}.npz", logits=LOGITS[start:stop], targets=TARGETS[start:stop], **own))
        return open_scores(paths, segment_ids=tmp_path / "ids.npy")

    return save


@pytest.mark.parametrize("ids", [IDS, INTERLEAVED], ids=["in order", "interleaved"])
@pytest.mark.parametrize("by", ["position", "position:1", "position:7", "file", "domain", "level", "is_code"])
def test_groups_of_files_whose_sequences_go_on_in_the_next(files, ids, by):
    domain = WORDS[np.random.default_rng(5).integers(3, size=60)]
    fields = {"domain": domain, "level": np.random.default_rng(5).integers(-2, 9, size=60), "is_code": domain == "code"}
    source = files(ids, **fields)
    places = positions_in(ids)
    labels = {
        "position": [bin_of(place) for place in places],
        "position:1": [None if place < 0 else int(place) for place in places],
        "position:7": [None if place < 0 else int(place) // 7 * 7 for place in places],
        "file": np.repeat([str(path) for path in source.paths], np.diff(SPLITS)).tolist(),
        "domain": domain.tolist(),
        "level": fields["level"].tolist(),
        "is_code": ["true" if one else "false" for one in fields["is_code"]],
    }
    evaluation = evaluate(source, by=by)
    check(evaluation.groups, by_hand(labels[by], ids))
    assert evaluation.figures["by"] == by
    assert sum(row["count"] for row in evaluation.figures["groups"]) == evaluation.count
    plain = evaluate(source)
    assert plain.groups is None
    assert plain.meter == evaluation.meter


@pytest.mark.parametrize("layout", ["batch", "cu_seqlens", "segment_ids"])
@pytest.mark.parametrize("shift", [False, True])
def test_a_field_has_a_label_for_each_sequence_or_each_token(npz, layout, shift):
    shape = (4, 15) if layout == "batch" else (60,)
    arrays = {"logits": LOGITS.reshape(*shape, 9), "targets": np.where(KEPT, TARGETS, 0).reshape(shape)}
    ids = np.repeat([0, 1, 2, 3], 15)
    arrays |= {"cu_seqlens": np.arange(0, 61, 15)} if layout == "cu_seqlens" else {}
    arrays |= {"segment_ids": ids} if layout == "segment_ids" else {}
    topics, tokens = WORDS[[1, 0, 1, 2]], WORDS[np.random.default_rng(5).integers(3, size=60)]
    path = npz(**arrays, topic=topics, token=tokens.reshape(shape))
    kept = np.arange(60) % 15 < 14 if shift else np.ones(60, bool)
    targets = np.where(KEPT, TARGETS, 0)
    nll = cross_entropy(LOGITS, np.roll(targets, -1) if shift else targets, reduction="none")
    check(evaluate(path, by="topic", shift=shift).groups, by_hand(topics[ids].tolist(), ids, kept, nll))
    labels = np.roll(tokens, -1) if shift else tokens  # a row has the label of the token that it predicts
    check(evaluate(path, by="token", shift=shift).groups, by_hand(labels.tolist(), ids, kept, nll))
    check(evaluate(path, shift=shift).by(topics), {
        label: (*row[:3], row[3] if row[1] > 1 else math.nan)  # of sums, tokens are unknown
        for label, row in by_hand(topics[ids].tolist(), ids, kept, nll).items()
    })  # fmt: skip


def test_the_last_row_of_a_file_has_the_label_of_the_first_token_of_the_next(npz):
    tokens, targets = np.arange(60) % 4, np.where(KEPT, TARGETS, 0)
    paths = [
        npz(f"{name}.npz", logits=LOGITS[part], targets=targets[part], token=tokens[part])
        for name, part in (("a", slice(0, 25)), ("b", slice(25, 60)))
    ]
    nll, kept = cross_entropy(LOGITS, np.roll(targets, -1), reduction="none"), np.arange(60) < 59
    result = evaluate(paths, by="token", shift=True).groups
    check(result, by_hand(np.roll(tokens, -1).tolist(), np.full(60, -1), kept, nll))


def test_positions_are_those_in_windows(npz):
    """Of windows that overlap, only the tokens count that no earlier window has."""
    windows = np.arange(4)[:, None] * 5 + np.arange(8)
    text = np.random.default_rng(5).integers(9, size=23)
    logits = np.random.default_rng(5).normal(size=(4, 8, 9)).astype(np.float32)
    path = npz(logits=logits, targets=text[windows])
    source = open_scores(path, window=8, stride=5, shift=True)
    is_new = (np.arange(8) + 1 >= 3) | (np.arange(4) == 0)[:, None]
    kept = (is_new & (np.arange(8) < 7)).reshape(-1)
    nll = cross_entropy(logits.reshape(-1, 9), np.roll(text[windows], -1, -1).reshape(-1), reduction="none")
    ids, positions = np.repeat(np.arange(4), 8), np.tile(np.arange(8), 4)
    check(evaluate(source, by="position:1").groups, by_hand(positions.tolist(), ids, kept, nll))


def test_blocks_give_the_bits_of_files(files):
    source = files()
    expected = evaluate(source, by="position").figures["groups"]
    bounds = [0, 1, 33, 60]
    blocks = [(LOGITS[a:b], TARGETS[a:b], None, IDS[a:b]) for a, b in itertools.pairwise(bounds)]
    assert evaluate(blocks, by="position").figures["groups"] == expected


def test_merging_in_any_order_changes_no_bit(npz):
    paths = [
        npz(f"{i}.npz", logits=LOGITS.reshape(4, 15, 9)[i : i + 1], targets=TARGETS.reshape(4, 15)[i : i + 1],
            domain=WORDS[np.random.default_rng(5).integers(3, size=15)][None])
        for i in range(4)
    ]  # fmt: skip
    for by in "position", "file", "domain":
        whole = evaluate(paths, by=by)
        parts = [copied(evaluate([path], by=by)) for path in paths]
        for _ in range(3):
            parts = [parts[i] for i in np.random.default_rng(5).permutation(len(parts))]
            assert Evaluation.of_parts(parts).figures["groups"] == whole.figures["groups"]
            assert (parts[0] + (parts[1] + parts[2]) + parts[3]).groups["stderr"].tolist() == (
                whole.groups["stderr"].tolist()
            )
    with pytest.raises(ValueError, match="by is 'file' in one and None in the other"):
        evaluate(paths[:1], by="file") + evaluate(paths[1:])


@pytest.mark.parametrize("by", ["position", "file", "domain"])
def test_states_and_clusters_give_the_same_bits(files, tmp_path, monkeypatch, by):
    source, state = files(domain=WORDS[np.arange(60) % 3]), tmp_path / "state"
    whole = evaluate(source, by=by).figures["groups"]
    assert evaluate(source, by=by, state=state).figures["groups"] == whole
    lines = state.read_bytes().splitlines(keepends=True)
    state.write_bytes(b"".join([lines[0], *lines[:1:-1]]))  # without the result of the first file, in reverse
    assert evaluate(source, by=by, state=state).figures["groups"] == whole
    with pytest.raises(ValueError, match=f"was written with by '{by}'; it must be another file, with None"):
        evaluate(source, state=state)
    pytest.importorskip("dask")

    def of_workers(function, units, _):
        yield from [*enumerate(map(*copied((function, units))))][::-1]

    monkeypatch.setattr("tokenloss._evaluation.cluster.map_shards", of_workers)
    assert evaluate(source, by=by, scheduler="x").figures["groups"] == whole


def response(tokens, **fields):
    """A response with the log-probabilities of tokens, by their text."""
    content = [{"token": token, "logprob": logprob, "top_logprobs": []} for token, logprob in tokens]
    return {"choices": [{"message": {"content": "".join(dict(tokens))}, "logprobs": {"content": content}}], **fields}


@pytest.fixture
def records(tmp_path):
    """Saves lines of JSON."""

    def save(*rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / name

    return save


def test_fields_of_responses_with_dots_and_missing_ones(records):
    lines = [[("a", -0.5), ("bc", -1.5)], [("d", -1.0)], [("ef", -2.0), ("g", -0.25)], [("h", -3.0)]]
    metas = [{"topic": "x", "n": 1}, {"topic": 2}, {}, {"topic": "x"}]
    path = records(*(response(line, metadata=meta) for line, meta in zip(lines, metas, strict=True)))
    evaluation = evaluate(path, by="metadata.topic")
    nll = np.array([0.5, 1.5, 1.0, 2.0, 0.25, 3.0])
    ids = np.array([0, 0, 1, 2, 2, 3])
    every = np.ones(6, bool)
    labels = ["x", "x", 2, None, None, "x"]
    groups = evaluation.groups
    assert groups["group"].tolist() == [2, "x", None]
    expected = by_hand(labels, ids, every, nll)
    for i, label in enumerate(groups["group"].tolist()):
        assert groups["loss"][i] == pytest.approx(expected[label][2], rel=1e-15)
        assert groups["stderr"][i] == pytest.approx(expected[label][3], rel=1e-12, nan_ok=True)
    n_bytes = {2: 1, "x": 4, None: 3}  # the tokens' text is known
    bits = [expected[one][2] * expected[one][0] / math.log(2) / n_bytes[one] for one in (2, "x", None)]
    assert groups["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert [row["group"] for row in evaluate(path, by="position").figures["groups"]] == [0, 1]
    assert [row["group"] for row in evaluate(path, by="file").figures["groups"]] == [str(path)]


def test_fields_of_lines_may_have_a_label_for_each_token(records):
    path = records(
        {"logprobs": [-1.0, -2.0, None], "kind": ["a", "b", "a"]},
        {"logprobs": [-4.0], "kind": "b"},
        {"logprobs": [-0.5]},
    )
    result = evaluate(open_logprobs(path), by="kind").groups
    assert dict(zip(result["group"], result["loss"], strict=True)) == {"a": 1.0, "b": 3.0, None: 0.5}


def test_bits_per_byte_of_groups_with_a_tokenizer(npz, tmp_path):
    ranks = "".join(f"{text} {i}\n" for i, text in enumerate(["YQ==", "YmM=", "ZGVm"]))  # a, bc and def
    (tmp_path / "three.tiktoken").write_text(ranks)
    logits, targets = LOGITS[:, :3].reshape(4, 15, 3), np.random.default_rng(5).integers(3, size=(4, 15))
    path = npz(logits=logits, targets=targets)
    result = evaluate(open_scores(path, tokenizer=tmp_path / "three.tiktoken"), by="position").groups
    nll, bins = cross_entropy(logits, targets, reduction="none"), [bin_of(place) for place in range(15)]
    for i, label in enumerate(result["group"].tolist()):
        own = np.array(bins) == label
        sums, sizes = nll[:, own].sum(1), (targets[:, own] + 1).sum(1)
        rate = sums.sum() / sizes.sum()
        assert result["bits_per_byte"][i] == pytest.approx(rate / math.log(2), rel=1e-12)
        stderr = math.sqrt(4 / 3 * np.sum((sums - rate * sizes) ** 2)) / sizes.sum()
        assert result["bits_per_byte_stderr"][i] == pytest.approx(stderr / math.log(2), rel=1e-9)


def test_ten_thousand_groups_and_no_more(npz, monkeypatch):
    assert MOST_GROUPS == 10_000
    monkeypatch.setattr("tokenloss._statistics.groups.MOST_GROUPS", 60)  # which takes less time
    number = np.arange(60)
    paths = [npz(f"{i}.npz", logits=LOGITS, targets=TARGETS, number=number + i) for i in range(2)]
    assert len(evaluate(paths[0], by="number").groups["group"]) == KEPT.sum()
    words = "by is 'number'; it must be something that makes at most 60 groups"
    monkeypatch.setattr("tokenloss._statistics.groups.MOST_GROUPS", 59)
    for source in paths[0], paths:
        with pytest.raises(ValueError, match=words.replace("60", "59")):
            evaluate(source, by="number")
    with pytest.raises(ValueError, match="by is 'position:1'"):
        evaluate([(LOGITS[None], np.zeros((1, 60), int))], by="position:1")
    monkeypatch.setattr("tokenloss._statistics.groups.MOST_GROUPS", 60)
    with pytest.raises(ValueError, match=words):  # together
        evaluate([npz("c.npz", logits=LOGITS, targets=np.zeros(60, int), number=number), paths[1]], by="number")


@pytest.mark.parametrize(
    ("by", "error", "message"),
    [
        (3, TypeError, "by has type int|by must be|by is 3"),
        ("", TypeError, "by"),
        ("position:0", ValueError, "by is 'position:0'; it must be 'position', .* where N is a positive integer"),
        ("position:1.5", ValueError, "by is 'position:1.5'"),
        (
            "topic",
            ValueError,
            r"scores.npz: contains logits, targets, weight; it must have the array of by='topic'",
        ),
        ("weight", ValueError, r"weight has dtype float64; it must be text, integers or bool"),
        (
            "position",
            ValueError,
            r"contains tokens that are in no sequence; it must have sequences, in which by='position'",
        ),
    ],
)
def test_wrong_values(npz, by, error, message):
    path = npz(logits=LOGITS, targets=TARGETS, weight=np.ones(60))
    with pytest.raises(error, match=message):
        evaluate(path, by=by)


def test_fields_that_do_not_fit(npz, records):
    path = npz(logits=LOGITS.reshape(4, 15, 9), targets=TARGETS.reshape(4, 15), domain=WORDS)
    words = (
        r"domain has shape \(3,\); it must have shape \(4, 15\), a label for each row, or \(4,\), one for each sequence"
    )
    with pytest.raises(ValueError, match=words):
        evaluate(path, by="domain")
    path = records(response([("a", -0.5)], topic={"a": 1}))
    with pytest.raises(ValueError, match=r"line 1: topic is \{'a': 1\}; it must be text, a number, a boolean or null"):
        evaluate(path, by="topic")
    with pytest.raises(ValueError, match=r"rows.jsonl: has no field 'other'; it must have the field of by='other'"):
        evaluate(path, by="other")
    with pytest.raises(ValueError, match="source is blocks, which are made one by one; by needs files"):
        evaluate([(LOGITS, TARGETS)], by="domain")


def test_the_command_prints_groups(files, command, score_json, tmp_path):
    source = files(domain=WORDS[np.arange(60) % 3])
    argv = *source.paths, "--segment-ids", tmp_path / "ids.npy"
    rows = score_json(*argv, "--by", "position")["groups"]
    assert rows == json.loads(json.dumps(evaluate(source, by="position").figures["groups"]))
    _, out, _ = command("score", *argv, "--by", "position")
    table = out[out.index("By position") :].split("\n\n")[0].splitlines()
    assert [line.split("  ")[1].strip() for line in table[1:]] == [
        "group",
        "0",
        "1",
        "2 to 3",
        "4 to 7",
        "8 to 15",
        "16 to 31",
    ]


def test_csv_has_a_row_for_each_group_of_each_model(files, command, tmp_path):
    source = files(domain=WORDS[np.arange(60) % 3])
    argv = [f"{name}={tmp_path / 'part-*.npz'}" for name in "AB"], ("--segment-ids", tmp_path / "ids.npy")
    for names, options in (["A", "B"], ()), (["A", "B"], ("--max-loss", "99")):
        _, out, _ = command("score", *argv[0], *argv[1], "--by", "domain", "--format", "csv", *options)
        rows = [*csv.DictReader(io.StringIO(out))]
        assert [(row["name"], row["group"]) for row in rows] == [(name, word) for name in names for word in WORDS]
        assert [float(row["loss"]) for row in rows[:3]] == evaluate(source, by="domain").groups["loss"].tolist()
        assert all(row["verdict"] == "holds" for row in rows if options)


# -- two models --------------------------------------------------------------------------------------------------------


def mean_by_hand(values, ids):
    """The mean, and the clustered error of DESIGN; tokens of a single sequence are independent."""
    numbers = np.unique(np.where(ids < 0, -1 - np.arange(len(ids)), ids), return_inverse=True)[1]
    if numbers.max(initial=0) == 0:
        numbers = np.arange(len(values))
    sums, counts = np.bincount(numbers, values), np.bincount(numbers)
    n, mean = len(sums), values.mean()
    return mean, math.sqrt(n / (n - 1) * np.sum((sums - mean * counts) ** 2)) / len(values) if n > 1 else math.nan


@pytest.fixture
def pair(npz, tmp_path):
    """Saves a base and a candidate in three files each, and one file of segment ids for all."""
    base = LOGITS.astype(np.float64)
    other = base + np.random.default_rng(5).normal(size=LOGITS.shape, scale=0.5)
    domain = WORDS[np.random.default_rng(5).integers(3, size=60)]
    np.save(tmp_path / "ids.npy", IDS)
    paths = {"base": [], "q4": []}
    for number, (start, stop) in enumerate(itertools.pairwise(SPLITS)):
        arrays = {"logits": base[start:stop], "targets": TARGETS[start:stop], "domain": domain[start:stop]}
        paths["base"].append(npz(f"base-{number}.npz", **arrays))
        paths["q4"].append(npz(f"q4-{number}.npz", logits=other[start:stop]))
    source = open_scores(paths["base"], segment_ids=tmp_path / "ids.npy")
    return source, open_scores(paths["q4"]), other, domain


@pytest.mark.parametrize("by", ["position", "position:7", "file", "domain"])
def test_groups_of_two_models(pair, tmp_path, by):
    base, q4, other, domain = pair
    places = positions_in(IDS)
    labels = np.array({
        "position": [bin_of(place) for place in places],
        "position:7": [int(place) // 7 * 7 for place in places],
        "file": np.repeat([str(path) for path in base.paths], np.diff(SPLITS)).tolist(),
        "domain": domain.tolist(),
    }[by], object)  # fmt: skip
    one = compare_files(base, {"q4": q4}, by=by, state=tmp_path / "state")["q4"]
    again = compare_files(base, {"q4": q4}, by=by, state=tmp_path / "state")["q4"]
    assert one.to_dict()["groups"] == again.to_dict()["groups"]
    assert one.to_dict()["by"] == by
    logs = [log_softmax(array.astype(np.float64)) for array in (LOGITS, other)]
    losses = [-np.take_along_axis(one, np.maximum(TARGETS, 0)[:, None], 1)[:, 0] for one in logs]
    values = {
        "kl": (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1), "loss_difference": losses[1] - losses[0],
        "same_top": (logs[0].argmax(1) == logs[1].argmax(1)).astype(float), "loss": losses[1], "base_loss": losses[0],
    }  # fmt: skip
    table = one.groups
    assert table["group"].tolist() == sorted({*labels[KEPT]})
    for i, label in enumerate(table["group"].tolist()):
        own = KEPT & (labels == label)
        assert (table["count"][i], table["n_sequences"][i]) == (own.sum(), len({*IDS[own].tolist()}))
        for name, column in values.items():
            mean, stderr = mean_by_hand(column[own], IDS[own])
            assert table[name][i] == pytest.approx(mean, rel=1e-6, abs=1e-9)
            if f"{name}_stderr" in table:
                assert table[f"{name}_stderr"][i] == pytest.approx(stderr, rel=1e-5, abs=1e-9, nan_ok=True)


def test_groups_of_several_candidates_and_of_none(pair, compare_json, command, tmp_path):
    base, q4, _, _ = pair
    argv = tmp_path / "base-*.npz", f"a={tmp_path / 'q4-*.npz'}", "--segment-ids", tmp_path / "ids.npy"
    one = compare_files(base, {"a": q4}, by="domain")["a"]
    assert compare_json(*argv, "--by", "domain")["groups"] == json.loads(json.dumps(one.to_dict()["groups"]))
    _, out, _ = command("compare", *argv, "--by", "domain")
    assert [line.split()[0] for line in out.split("By domain\n")[1].splitlines()[1:4]] == ["code", "news", "prose"]
    assert compare_files(base, {"a": q4})["a"].groups is None
    status, _, err = command("compare", *argv, "--by", "domain", "--draft")
    assert (status, err.count("\n")) == (2, 1)
    assert "--by is for divergences, not for the acceptance of drafts" in err


def test_groups_of_responses_of_two_models(records):
    lines = [[("a", -0.5), ("b", -1.5)], [("c", -1.0)], [("d", -2.0), ("e", -0.25)]]
    topics = ["x", "y", None]
    base = records(*(response(line, topic=topic) for line, topic in zip(lines, topics, strict=True)), name="base.jsonl")
    other = [[(token, 2 * logprob) for token, logprob in line] for line in lines]
    path = records(*(response(line) for line in other), name="other.jsonl")
    for first, second in (base, path), (path, base):  # either may have the field
        sign = 1 if first == base else -1
        table = compare_files(first, {"q4": second}, by="topic")["q4"].groups
        assert table["group"].tolist() == ["x", "y", None]
        assert (sign * table["loss_difference"]).tolist() == [1.0, 1.0, 1.125]
        assert table["count"].tolist() == [2, 1, 2]
        assert np.isnan(table["same_top"]).all()  # no list shows the likeliest class
    table = compare_files(base, {"q4": path}, by="position")["q4"].groups
    assert table["group"].tolist() == [0, 1]
    mean, stderr = mean_by_hand(np.array([0.5, 1.0, 2.0]), np.arange(3))
    assert (table["loss_difference"][0], table["loss_difference_stderr"][0]) == pytest.approx((mean, stderr))
    with pytest.raises(ValueError, match=r"base.jsonl: has no field 'other'; it must have the field of by='other'"):
        compare_files(base, path, by="other")


def test_groups_of_a_trainer_and_a_sampler(records, tmp_path, command):
    logprobs = [[-1.0, -2.0, -0.5], [-0.25, -3.0]]
    trainer = records(*({"logprobs": own} for own in logprobs), name="trainer.jsonl")
    changed = [[-1.25, -2.0, -0.25], [-0.5, -2.0]]
    rollout = records(
        *({"logprobs": own, "task": task} for own, task in zip(changed, ["a", ["a", "b"]], strict=True)),
        name="rollout.jsonl",
    )
    table = compare_files(open_logprobs(trainer), {"r": open_logprobs(rollout)}, by="task")["r"].groups
    d = np.array([0.25, 0.0, -0.25, 0.25, -1.0])
    assert table["group"].tolist() == ["a", "b"]
    expected = mean_by_hand(d[:4], np.array([0, 0, 0, 1]))
    assert (table["difference"][0], table["difference_stderr"][0]) == pytest.approx(expected)
    assert table["k3"].tolist() == pytest.approx([np.mean(np.expm1(d[:4]) - d[:4]), np.expm1(-1) + 1])
    _, out, _ = command("compare", trainer, rollout, "--by", "position:2")
    assert [line.split()[0] for line in out.split("By position:2\n")[1].splitlines()[1:3]] == ["0", "2"]
    for name, array in ("t", logprobs[0] * 2), ("r", [-1.0] * 6):
        np.save(tmp_path / f"{name}.npy", np.reshape(array, (2, 3)))
    arrays = [open_logprobs(tmp_path / f"{name}.npy") for name in "tr"]
    assert compare_files(arrays[0], {"r": arrays[1]}, by="position").popitem()[1].groups["count"].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="contains an array, which has no fields; it must be lines of JSON"):
        compare_files(arrays[0], {"r": arrays[1]}, by="task")


# -- pages and plots ---------------------------------------------------------------------------------------------------


def test_pages_and_plots_have_groups(pair, command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr("tokenloss._output.drawing.save", lambda figure, path: figures.append(figure))
    base, q4, _, _ = pair
    ids = "--segment-ids", tmp_path / "ids.npy"
    outputs = "--by", "domain", "--plot", tmp_path / "a.png", "--html", tmp_path / "a.html"
    groups = evaluate(base, by="domain").groups
    kl = compare_files(base, {"q4": q4}, by="domain")["q4"].groups
    for number in range(3):
        shutil.copy(tmp_path / f"q4-{number}.npz", tmp_path / f"q5-{number}.npz")
    one, two = (f"{name}={tmp_path / f'q{i}-*.npz'}" for i, name in ((4, "q4"), (5, "$x$")))
    for call, title, field, table, lines in (
        (["score", tmp_path / "base-*.npz"], "Loss by group", "loss", groups, 1),
        (["compare", tmp_path / "base-*.npz", one], "Divergence by group", "kl", kl, 1),
        (["compare", tmp_path / "base-*.npz", one, two], "Divergence by group", "kl", kl, 2),
    ):
        status, _, err = command(*call, *ids, *outputs)
        assert status == 0, err
        (axes,) = [axes for axes in figures.pop().axes if axes.get_title(loc="left") == title]
        assert [text.get_text() for text in axes.get_xticklabels()] == table["group"].tolist()
        assert len(axes.containers) == lines
        assert axes.containers[0].lines[0].get_ydata().tolist() == pytest.approx(table[field].tolist())
        page = (tmp_path / "a.html").read_text("utf-8")
        assert "<b>By domain</b>" in page
        assert all(f">{word}</td>" in page for word in WORDS)


def test_plots_of_groups_without_any_and_with_many(rng):
    plots = pytest.importorskip("tokenloss.plots")
    pytest.importorskip("matplotlib")
    table = {
        "group": np.array(["a" * 99, "$b$", None], object),
        "loss": np.ones(3),
        "stderr": np.array([0.1, np.nan, 1]),
    }
    titles = [axes.get_title(loc="left") for axes in plots.draw_losses([0.5, 1.0], groups=table).axes]
    assert titles == ["Loss by group", "Loss along the text", "Histogram of the losses"]
    many = {"group": np.arange(500), "loss": rng.random(500), "stderr": np.full(500, 0.1)}
    figure = plots.draw_losses([0.5], groups=many)
    assert len(figure.axes[0].get_xticks()) <= 24
    base = rng.normal(size=(6, 5))
    comparisons = {f"q{i}": compare(base, base + 0.1 * i * rng.normal(size=(6, 5))) for i in (1, 2)}
    assert len(plots.draw_candidates(comparisons).axes) == 2
